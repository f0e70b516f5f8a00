package refresh

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"countersign/internal/trust"
)

// KeptLists are the revocation lists that another process keeps in a folder, for who must not touch them: nothing is
// written, removed or fetched.
type KeptLists struct {
	lists *Lists // of which only what reads is used
}

// OpenKeptLists reads the index of a folder. A folder that is not there has no lists. What is damaged is left out, and
// problem says so.
func OpenKeptLists(path string) (k *KeptLists, problem string, err error) {
	l := &Lists{c: ListsConfig{Log: slog.New(slog.DiscardHandler)}, poke: make(chan struct{}, 1), dirty: make(chan struct{}, 1),
		floors: make(map[string]*floor), ofScope: make(map[string][]*floor), urls: make(map[string]*listURL), conds: make(map[string]Condition)}
	k = &KeptLists{l}
	root, err := os.OpenRoot(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return k, "", nil
	case err != nil:
		return nil, "", fmt.Errorf("revocation lists: expected to read folder %s, found %s; check its permissions", path, cause(err))
	}
	l.dir = &folder{path: path, root: root}
	ix, problem, err := l.dir.readIndex()
	if err != nil {
		root.Close()
		return nil, "", err
	}
	for _, f := range ix.Floors {
		l.floors[f.id()] = f
		l.ofScope[f.Scope] = append(l.ofScope[f.Scope], f)
	}
	for _, row := range ix.URLs {
		u := &listURL{url: row.URL, row: row}
		if !row.Learnt.IsZero() && time.Since(row.Learnt) < learntFor {
			u.learnt = &Source{URL: row.URL}
		}
		l.urls[row.URL] = u
	}
	return k, problem, nil
}

// Fetched returns the list that a URL gave last.
func (k *KeptLists) Fetched(url string) (*trust.CRL, error) {
	crl, err := k.lists.Fetched(url)
	if err != nil {
		return nil, errors.New("no running program has kept it; --fetch asks the URL")
	}
	return crl, nil
}

// Learnt returns the lists of distribution points on these hosts that certificates named.
func (k *KeptLists) Learnt(hosts []string) []*trust.CRL { return k.lists.Learnt(hosts) }

// Admit returns the list to use in place of crl, as Lists.Admit, and remembers nothing.
func (k *KeptLists) Admit(crl *trust.CRL, raw []byte) (use *trust.CRL, older string) {
	l := k.lists
	l.keep.Lock()
	defer l.keep.Unlock()
	f := l.floorOf(crl)
	if f == nil || f.Sum == hexSum(crl.Sum()) || !f.before(numberOf(derOf(crl, raw)), crl.ThisUpdate()) {
		return crl, ""
	}
	older = fmt.Sprintf("revocation list %s is older than one that was in force (%s)", crl, f)
	if use = l.load(f); use == nil {
		return nil, older + ", and that one is not kept any more; put the CA's current list in its place"
	}
	return use, older + ", which stays in force; put the CA's current list in its place"
}

// Checked is when a URL last gave a list; zero if it never did.
func (k *KeptLists) Checked(url string) time.Time {
	if u := k.lists.urls[url]; u != nil {
		return u.row.Checked
	}
	return time.Time{}
}

// Close gives the folder back.
func (k *KeptLists) Close() {
	if k.lists.dir != nil {
		k.lists.dir.root.Close()
	}
}
