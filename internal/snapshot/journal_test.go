package snapshot

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/internal/config"
)

func TestJournal(t *testing.T) {
	for _, c := range []struct{ text, path string }{
		{"journal: {max_records: 99}", "journal.max_records"},
		{"journal: {max_records: -1}", "journal.max_records"},
		{"journal: {max_records: 10000001}", "journal.max_records"},
		{"journal: {max_bytes: 1048575}", "journal.max_bytes"},
		{"journal: {max_age: 59s}", "journal.max_age"},
		{"journal: {many_networks: 1}", "journal.many_networks"},
		{"journal: {many_networks: 17}", "journal.many_networks"},
		{"journal: {enabled: false, max_age: 1s}", "journal.max_age"},
		{"journal: {maximum: 1}", "journal.maximum"},
	} {
		t.Run(c.text, func(t *testing.T) {
			f, problems := config.Parse("countersign.yaml", []byte(c.text+"\n"))
			k := &compiler{file: f, problems: problems}
			k.journal("journal", f.Partial)
			for _, p := range k.problems {
				if strings.HasPrefix(p.Path, c.path) {
					return
				}
			}
			t.Errorf("no problem with %s: %v", c.path, k.problems)
		})
	}
	for _, c := range []struct {
		text string
		want *Journal
	}{
		{"", nil},
		{"journal: {enabled: false}", nil},
		{"state: kept\njournal: {enabled: false}", nil},
		{"state: kept", &Journal{State: "kept"}},
		{"journal: {max_bytes: 2MiB, max_age: 24h, max_records: 500, many_networks: 3}", &Journal{State: "state", Bytes: 2 << 20, Age: 24 * time.Hour, Records: 500, Networks: 3}},
	} {
		t.Run("good "+c.text, func(t *testing.T) {
			f, _ := config.Parse("countersign.yaml", []byte("#\n"+c.text+"\n"))
			dir := t.TempDir()
			k := &compiler{file: f, Env: Env{Dir: dir}}
			k.elsewhere(f.Partial)
			got := k.journal("journal", f.Partial)
			switch {
			case len(k.problems) > 0:
				t.Error(k.problems)
			case c.want == nil || got == nil:
				if got != c.want {
					t.Errorf("%+v", got)
				}
			default:
				if c.want.State = filepath.Join(dir, c.want.State); *got != *c.want {
					t.Errorf("%+v, want %+v", got, c.want)
				}
			}
		})
	}
}
