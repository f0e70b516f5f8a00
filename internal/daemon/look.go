package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"countersign/internal/config"
	"countersign/internal/diagnose"
	"countersign/internal/refresh"
	"countersign/internal/snapshot"
	"countersign/internal/trust"
)

// Look is a configuration as a running program would have it, for who explains what that program does. Nothing of it is
// in force, and nothing is written: what a running program keeps on disk is read beside it.
type Look struct {
	*Loaded
	name    string
	now     time.Time
	kept    *refresh.KeptLists
	outside *outside // nil when nothing is fetched
	warning string   // about what is kept
}

// lookTime is how long all that is fetched for one question may take.
const lookTime = 10 * time.Second

// NewLook loads a configuration with what a running program has kept of its URLs. With fetch it also asks every URL, waiting
// for ten seconds at most. The error is a *ConfigError unless the file cannot be read. Close it after use.
func NewLook(name string, now time.Time, fetch bool) (*Look, error) {
	k := &Look{name: name, now: now}
	if fetch {
		k.outside = newOutside(slog.New(slog.DiscardHandler), func() {}, func() {})
	}
	err := k.load()
	if fetch && k.Loaded != nil && len(k.Outside.Fetches) > 0 {
		k.outside.follow(&k.Outside)
		ctx, cancel := context.WithTimeout(context.Background(), lookTime)
		defer cancel()
		k.outside.ready(ctx)
		err = k.load()
	}
	if err != nil {
		k.Close()
		return nil, err
	}
	return k, nil
}

func (k *Look) load() (err error) {
	k.Loaded, err = Load(k.name, k.env())
	return err
}

func (k *Look) env() snapshot.Env {
	env := snapshot.Env{Now: k.now, Open: k.open, Asking: true}
	if k.outside != nil {
		env.Answers = k.outside.answers
	}
	return env
}

// Change compiles the configuration again after edit has changed what was read of it. without says which CAs trust stores
// do without then, nil for none. The error is that of edit, or a *ConfigError; close k after one.
func (k *Look) Change(edit func(*config.Config) error, without func(store string, ca *x509.Certificate) bool) error {
	path, err := filepath.Abs(k.name)
	if err == nil {
		err = edit(k.File.Partial)
	}
	if err != nil {
		return err
	}
	env := k.env()
	env.Dir, env.Without = filepath.Dir(path), without
	if k.Snapshot, _, k.Problems = snapshot.Compile(k.File, slices.Clone(k.Parsed), env); k.Snapshot == nil {
		return &ConfigError{k.File, k.Problems}
	}
	return nil
}

func (k *Look) open(state string) (snapshot.Lists, snapshot.Bundles, string, error) {
	if k.kept == nil {
		var err error
		if k.kept, k.warning, err = refresh.OpenKeptLists(filepath.Join(state, "crls")); err != nil {
			return nil, nil, "", err
		}
	}
	bundles := refresh.KeptBundles(bundlesIn(state))
	if k.outside == nil {
		return k.kept, bundles, k.warning, nil
	}
	lists, fetched, _, err := k.outside.open("")
	if err != nil {
		return nil, nil, "", err
	}
	return newest{lists, k.kept}, either{fetched, bundles}, k.warning, nil
}

// newest are lists that were fetched now, and those that were kept where that failed.
type newest struct {
	fetched snapshot.Lists
	kept    *refresh.KeptLists
}

func (n newest) Fetched(url string) (*trust.CRL, error) {
	now, err := n.fetched.Fetched(url)
	before, kerr := n.kept.Fetched(url)
	switch {
	case err == nil && kerr == nil && now.Scope() == before.Scope() && now.Compare(before) < 0, err != nil && kerr == nil:
		return before, nil
	}
	return now, err
}

func (n newest) Learnt(hosts []string) []*trust.CRL {
	return append(n.fetched.Learnt(hosts), n.kept.Learnt(hosts)...)
}

func (n newest) Admit(crl *trust.CRL, raw []byte) (*trust.CRL, string) { return n.kept.Admit(crl, raw) }

type either struct{ fetched, kept snapshot.Bundles }

func (e either) Fetched(url string) ([]byte, error) {
	data, err := e.fetched.Fetched(url)
	if err == nil {
		return data, nil
	}
	if before, kerr := e.kept.Fetched(url); kerr == nil {
		return before, nil
	}
	return nil, err
}

// Setup is what diagnose needs of the configuration.
func (k *Look) Setup() *diagnose.Setup {
	s := &diagnose.Setup{Snapshot: k.Snapshot, Now: k.now, Places: k.places(), Fetched: k.outside != nil}
	status := map[string]refresh.ListStatus{}
	if k.outside != nil {
		for _, st := range k.outside.status() {
			status[st.URL] = st
		}
	}
	for _, f := range k.Outside.Fetches {
		if f.Bundle {
			continue
		}
		u := diagnose.URL{URL: f.URL}
		shown := f.URL // as refresh shows it, without its query
		if base, _, query := strings.Cut(shown, "?"); query {
			shown = base + "?…"
		}
		if st, known := status[shown]; known {
			u.Problem, u.Checked = st.Problem, st.Checked
		}
		if k.kept != nil {
			if u.Checked.IsZero() {
				u.Checked = k.kept.Checked(f.URL)
			}
			lists := snapshot.Lists(k.kept)
			if k.outside != nil {
				lists, _, _, _ = k.open("")
			}
			if crl, err := lists.Fetched(f.URL); err == nil {
				sum := crl.Sum()
				u.List = &sum
				s.Places[sum] = f.URL
			}
		}
		s.URLs = append(s.URLs, u)
	}
	return s
}

// places says of which file CAs and revocation lists are. What cannot be read now is left out: it was read when the
// configuration was loaded.
func (k *Look) places() map[[sha256.Size]byte]string {
	places := make(map[[sha256.Size]byte]string)
	dir := "."
	if path, err := filepath.Abs(k.name); err == nil {
		dir = filepath.Dir(path)
	}
	read := func(name string) []byte {
		if name == "" {
			return nil
		}
		path := name
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		data, err := snapshot.ReadFile(path)
		if err != nil {
			return nil
		}
		return data
	}
	cas := func(name string, data []byte) {
		list, _ := trust.LoadCertificates(data)
		for _, c := range list {
			sum := sha256.Sum256(c.Raw)
			if places[sum] == "" {
				places[sum] = name
			}
		}
	}
	conf := k.File.Partial
	for _, name := range slices.Sorted(maps.Keys(conf.TrustStores)) {
		t := conf.TrustStores[name]
		if t == nil {
			continue
		}
		if b := t.CABundle; b != nil {
			cas(b.File, read(b.File))
			if b.Directory != "" {
				full := b.Directory
				if !filepath.IsAbs(full) {
					full = filepath.Join(dir, full)
				}
				files, _ := filepath.Glob(filepath.Join(full, "*"))
				for _, file := range files[:min(len(files), 1000)] {
					cas(filepath.Join(b.Directory, filepath.Base(file)), read(file))
				}
			}
			if b.URL != "" {
				if data, err := refresh.KeptBundles(bundlesIn(k.Outside.State)).Fetched(b.URL); err == nil {
					cas(b.URL, data)
				}
			}
		}
		if t.Revocation == nil {
			continue
		}
		for _, src := range t.Revocation.CRLs {
			if src.File == "" {
				continue
			}
			lists, _ := trust.ParseCRLs(read(src.File))
			for _, l := range lists {
				places[l.Sum()] = src.File
			}
		}
	}
	return places
}

// Ask asks OCSP responders, if anything is fetched, and returns what went wrong.
func (k *Look) Ask(questions []*trust.Query) (problems []error) {
	if k.outside == nil {
		return []error{errors.New("nothing is fetched")}
	}
	k.outside.client.Allow(k.Outside.Allow)
	ctx, cancel := context.WithTimeout(context.Background(), lookTime)
	defer cancel()
	for _, q := range questions {
		if err := k.outside.Ask(ctx, q); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", q.Responder, err))
		}
	}
	return problems
}

// Learn fetches the lists of places that a certificate names, if anything is fetched, and loads the configuration again
// with them. It reports whether there is anything new.
func (k *Look) Learn(points []trust.Point) bool {
	if k.outside == nil || len(points) == 0 {
		return false
	}
	k.outside.follow(&k.Outside)
	for _, p := range points {
		k.outside.Learn(p)
	}
	for end := time.Now().Add(lookTime); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		waiting := false
		for _, st := range k.outside.status() {
			waiting = waiting || st.Learnt && st.Checked.IsZero() && st.Problem == ""
		}
		if !waiting {
			break
		}
	}
	was := k.Loaded
	if err := k.load(); err != nil {
		k.Loaded = was // a file has changed meanwhile
		return false
	}
	return true
}

// Close gives back what the look holds.
func (k *Look) Close() {
	if k.kept != nil {
		k.kept.Close()
	}
	if k.outside != nil {
		k.outside.close()
	}
}
