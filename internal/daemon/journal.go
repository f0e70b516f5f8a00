package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"countersign/internal/journal"
	"countersign/internal/refresh"
	"countersign/internal/snapshot"
)

// keep has the journal keep what s says from now on.
func (m *Main) keep(s *snapshot.Journal) {
	if s == nil {
		m.book.Feed(nil)
		m.journal.Use(nil)
		return
	}
	m.journal.Use(&journal.Settings{File: journal.FileIn(s.State), Records: s.Records, Bytes: s.Bytes, Age: s.Age, Networks: s.Networks})
	m.book.Feed(m.journal)
}

// kept is what the operator should know of the journal.
func (m *Main) kept() (list []refresh.Condition) {
	for _, c := range m.journal.Conditions() {
		list = append(list, refresh.Condition{Code: c.Code, Text: c.Text, Since: c.Since})
	}
	return list
}

// OpenJournal opens the journal of the program that a configuration is for, whether it runs or not. The configuration may be
// one that is not accepted, as long as it says which folder.
func OpenJournal(ctx context.Context, config string) (*journal.Reader, error) {
	l, err := Load(config, snapshot.Env{Now: time.Now()})
	if l.Outside.State == "" {
		if err == nil {
			err = fmt.Errorf("%s: expected a folder in state, found none", config)
		}
		return nil, err
	}
	if l.Snapshot != nil && l.Snapshot.Journal == nil {
		return nil, fmt.Errorf("%s: nothing is kept with this configuration; set state: or journal: {enabled: true}, and reload", config)
	}
	file := journal.FileIn(l.Outside.State)
	r, err := journal.OpenReader(ctx, file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no journal yet: %w; the program makes it when it runs with this configuration", err)
	}
	return r, err
}

// ClientCAs returns the CAs that a configuration trusts for clients, by the name that the journal has for them, with the
// trust stores that have them.
func ClientCAs(config string, now time.Time) (map[string][]string, error) {
	l, err := NewLook(config, now, false)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	all := make(map[string][]string)
	for _, listener := range l.Snapshot.Listeners {
		for _, h := range listener.Hosts {
			s := h.Auth.Store
			if s == nil {
				continue
			}
			for _, a := range s.Anchors() {
				name := journal.NameOf(a.RawSubject)
				if !slices.Contains(all[name], s.Name()) {
					all[name] = append(all[name], s.Name())
				}
			}
		}
	}
	return all, nil
}
