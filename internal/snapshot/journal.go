package snapshot

import (
	"time"

	"countersign/internal/config"
)

// Bounds of the journal section.
const (
	minRecords      = 100
	maxRecords      = 10_000_000
	minJournalBytes = 1 << 20
	minJournalAge   = time.Minute
	minNetworks     = 2
	maxNetworks     = 16
)

// Journal says how much is kept of what ended badly. Zero numbers stand for the defaults of package journal.
type Journal struct {
	// State is the folder that the journal is kept in.
	State    string
	Records  int
	Bytes    int64
	Age      time.Duration
	Networks int
}

// journal compiles the journal section. Who has said nothing about a folder gets no files in one.
func (c *compiler) journal(path string, conf *config.Config) *Journal {
	j := conf.Journal
	if j == nil {
		if conf.State == "" {
			return nil
		}
		j = new(config.Journal)
	}
	within := func(key string, found, least, most int) {
		if found != 0 && (found < least || found > most) {
			c.problem(config.Path(path, key), "leave it out for the default", "expected %d to %d, found %d", least, most, found)
		}
	}
	within("max_records", j.MaxRecords, minRecords, maxRecords)
	within("many_networks", j.ManyNetworks, minNetworks, maxNetworks)
	if b := int64(j.MaxBytes); b != 0 && b < minJournalBytes {
		c.problem(config.Path(path, "max_bytes"), "leave it out for the default", "expected at least 1MiB, found %d bytes", b)
	}
	if a := time.Duration(j.MaxAge); a != 0 && a < minJournalAge {
		c.problem(config.Path(path, "max_age"), "leave it out for the default", "expected at least %s, found %s", minJournalAge, a)
	}
	if j.Enabled != nil && !*j.Enabled {
		return nil
	}
	return &Journal{State: c.outside.State, Records: j.MaxRecords, Bytes: int64(j.MaxBytes), Age: time.Duration(j.MaxAge), Networks: j.ManyNetworks}
}
