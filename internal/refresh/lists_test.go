package refresh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/outbound"
	"countersign/internal/testpki"
	"countersign/internal/trust"
)

// shop gives out one list at each path, by real HTTP or as ListsConfig.fetch.
type shop struct {
	testing.TB
	url string // by HTTP

	mu    sync.Mutex
	pages map[string]page
	asked map[string][]time.Time
}

type page struct {
	body    []byte
	kind    string
	status  int
	etag    string
	control string
	hang    bool
}

func newShop(t testing.TB) *shop {
	return &shop{TB: t, url: "http://pki.test", pages: map[string]page{}, asked: map[string][]time.Time{}}
}

// open serves it on loopback.
func (s *shop) open() *shop {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := s.page(r.URL.Path)
		if p.hang {
			<-r.Context().Done()
			return
		}
		if p.kind != "" {
			w.Header().Set("Content-Type", p.kind)
		}
		if p.etag != "" {
			w.Header().Set("ETag", p.etag)
			if r.Header.Get("If-None-Match") == p.etag {
				w.WriteHeader(http.StatusNotModified)
				return
			}
		}
		if p.status != 0 {
			w.WriteHeader(p.status)
		}
		w.Write(p.body)
	}))
	s.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	s.url = server.URL
	return s
}

func (s *shop) put(path string, p page) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages[path] = p
}

func (s *shop) page(path string) page {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[path] = append(s.asked[path], time.Now())
	p, ok := s.pages[path]
	if !ok {
		p.status = http.StatusNotFound
	}
	return p
}

func (s *shop) times(path string) []time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked[path])
}

// paths is the number of paths that were asked for.
func (s *shop) paths() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// fetch stands for outbound in a bubble, where there is no network.
func (s *shop) fetch(ctx context.Context, r *outbound.Request) (*outbound.Response, error) {
	p := s.page(strings.TrimPrefix(r.URL, s.url))
	switch {
	case p.hang:
		<-ctx.Done()
		return nil, ctx.Err()
	case p.status != 0:
		return nil, &outbound.StatusError{Host: "pki.test:80", Status: p.status}
	}
	response := &outbound.Response{ETag: p.etag, Header: http.Header{}}
	response.Header.Set("Content-Type", p.kind)
	response.Header.Set("Cache-Control", p.control)
	if p.etag != "" && p.etag == r.ETag {
		response.NotModified = true
	} else {
		response.Body = p.body
	}
	return response, nil
}

// desk is Lists with what it did.
type desk struct {
	testing.TB
	*Lists
	changed atomic.Int64
}

func newDesk(t testing.TB, c ListsConfig) *desk {
	t.Helper()
	d := &desk{TB: t}
	if c.Changed == nil {
		c.Changed = func() { d.changed.Add(1) }
	}
	if c.Client == nil {
		c.Client = outbound.New(outbound.Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	}
	l, err := NewLists(c)
	if err != nil {
		t.Fatal(err)
	}
	d.Lists = l
	t.Cleanup(l.Close)
	return d
}

// again has a URL fetched now, and waits for it.
func (d *desk) again(url string) {
	d.Helper()
	d.mu.Lock()
	u := d.urls[url]
	for {
		busy := u.busy
		if !busy {
			break
		}
		tried := d.tried
		d.mu.Unlock()
		<-tried
		d.mu.Lock()
	}
	u.due, u.tried = time.Time{}, false
	for !u.tried {
		tried := d.tried
		d.mu.Unlock()
		d.hurry()
		<-tried
		d.mu.Lock()
	}
	d.mu.Unlock()
}

// known is the number of URLs.
func (d *desk) known() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.urls)
}

func (d *desk) want(sources ...Source) {
	d.Want(sources)
	ctx, cancel := context.WithTimeout(d.Context(), 10*time.Second)
	defer cancel()
	d.Ready(ctx)
	if ctx.Err() != nil {
		d.Fatal("not ready")
	}
}

// has checks which list a URL has, by its DER; nil for none.
func (d *desk) has(url string, der []byte) {
	d.Helper()
	got, err := d.Fetched(url)
	switch {
	case der == nil && err == nil:
		d.Errorf("there is a list, %s; want none", got)
	case der != nil && err != nil:
		d.Errorf("no list: %v", err)
	case der != nil && got.Sum() != sha256.Sum256(der):
		d.Errorf("the list is %s, want another", got)
	}
}

// says checks that there is exactly one condition, of a code, which says text; no code: that there is none.
func (d *desk) says(code, text string) Condition {
	d.Helper()
	got := d.Conditions()
	if code == "" {
		if len(got) > 0 {
			d.Errorf("conditions %+v; want none", got)
		}
		return Condition{}
	}
	if len(got) != 1 || got[0].Code != code || !strings.Contains(got[0].Text, text) {
		d.Errorf("conditions %+v; want %s saying %q", got, code, text)
		return Condition{}
	}
	if len(got[0].Text) > maxText+4 {
		d.Errorf("text of %d bytes", len(got[0].Text))
	}
	return got[0]
}

func parsed(t testing.TB, der []byte) *trust.CRL {
	t.Helper()
	l, err := trust.ParseCRL(der)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// seen is a list as a store has it that verified a chain with it.
func seen(t testing.TB, der []byte, ca *testpki.Cert) *trust.CRL {
	t.Helper()
	l := parsed(t, der)
	if err := l.SignedBy(ca.Cert); err != nil {
		t.Fatal(err)
	}
	return l
}

func only(ca *testpki.Cert) []*x509.Certificate { return []*x509.Certificate{ca.Cert} }

func number(n int64) testpki.CRLItem { return testpki.Number(n) }

func ago(d time.Duration) testpki.CRLItem { return testpki.ThisUpdate(time.Now().Add(-d)) }

// Whatever a URL gives that cannot be believed is refused, with a condition, and the last good list stays.
func TestListsRefused(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	twin := testpki.New(t, testpki.RawSubject(root.Cert.RawSubject)) // the same name, another key
	good := root.CRL(number(5))
	tampered := bytes.Clone(root.CRL(number(9)))
	tampered[len(tampered)-5] ^= 1
	for _, c := range []struct {
		id, code, text string
		page           page
	}{
		{"C14/404", ListFetch, "expected status 200, found 404", page{status: 404}},
		{"C14/500", ListFetch, "found 500", page{status: 500}},
		{"C14/HTML with 200", ListRefused, `found a page of type "text/html"`, page{body: []byte("<html>" + strings.Repeat("x", 5000)), kind: "text/html; charset=utf-8"}},
		{"C14/HTML that says it is a list", ListRefused, "found a page", page{body: []byte("\n<!doctype html>"), kind: "application/pkix-crl"}},
		{"C14/empty", ListRefused, "revocation list", page{}},
		{"C14/cut short", ListRefused, "revocation list", page{body: good[:len(good)-1], kind: "application/pkix-crl"}},
		{"C14/noise", ListRefused, "content type application/json", page{body: []byte("{\"a\":\"\x1b[31m\"}"), kind: "application/json"}},
		{"C22/a certificate", ListRefused, "found a certificate", page{body: root.DER()}},
		{"C03/another CA", ListRefused, "another CA's name", page{body: other.CRL(number(9))}},
		{"C03/another CA of the same name", ListRefused, "expected a list that is signed by one of the CAs it serves", page{body: twin.CRL(number(9))}},
		{"C03/another CA in its name", ListRefused, "signed by one of the CAs", page{body: root.CRL(number(9), testpki.SignedBy(other))}},
		{"C03/tampered", ListRefused, "signed by one of the CAs", page{body: tampered}},
		{"C04/expired", ListRefused, "that expired at", page{body: root.CRL(number(9), testpki.NextUpdate(time.Now().Add(-time.Second)))}},
		{"C06/of the future", ListRefused, "made before now", page{body: root.CRL(number(9), testpki.ThisUpdate(time.Now().Add(6*time.Minute)))}},
		{"C06/nextUpdate before thisUpdate", ListRefused, "before thisUpdate", page{body: root.CRL(number(9), testpki.NextUpdate(time.Now().Add(-time.Hour)))}},
		{"C06/no nextUpdate, long ago", ListRefused, "that expired at", page{body: root.CRL(number(9), ago(8*24*time.Hour), testpki.NextUpdate(time.Time{}))}},
		{"C07/unknown critical extension", ListRefused, "critical extension", page{body: root.CRL(number(9), testpki.CRLExt(testpki.Unknown))}},
	} {
		t.Run(c.id, func(t *testing.T) {
			s := newShop(t).open()
			url := s.url + "/ca.crl"
			s.put("/ca.crl", c.page)
			d := newDesk(t, ListsConfig{Dir: t.TempDir()})
			d.want(Source{URL: url, Signers: only(root)})
			d.has(url, nil)
			d.says(c.code, c.text)
			d.says(c.code, "there is no list of it yet")
			if d.changed.Load() > 0 {
				t.Error("Changed called")
			}
			s.put("/ca.crl", page{body: good})
			d.again(url)
			d.has(url, good)
			d.says("", "")
			s.put("/ca.crl", c.page)
			d.again(url)
			d.has(url, good)
			d.says(c.code, "the last good list, 1m")
		})
	}
	scope := func(t *testing.T, signers []*x509.Certificate, to []byte, text string) {
		t.Helper()
		s := newShop(t).open()
		url := s.url + "/1.crl"
		first := root.CRL(number(5), testpki.CRLExt(testpki.IDP("http://pki.test/1.crl")))
		s.put("/1.crl", page{body: first})
		dir := t.TempDir()
		d := newDesk(t, ListsConfig{Dir: dir})
		d.want(Source{URL: url, Signers: signers})
		if signers == nil {
			seen := d.Lists
			crl, err := seen.Fetched(url)
			if err != nil || crl.SignedBy(root.Cert) != nil {
				t.Fatal(err)
			}
		}
		s.put("/1.crl", page{body: to})
		d.again(url)
		d.has(url, first)
		d.says(ListRefused, text)
		d.Close()
		d = newDesk(t, ListsConfig{Dir: dir})
		d.want(Source{URL: url, Signers: signers})
		d.has(url, first)
		d.says(ListRefused, text)
	}
	t.Run("C10/the list of another distribution point", func(t *testing.T) {
		scope(t, only(root), root.CRL(number(9), testpki.CRLExt(testpki.IDP("http://pki.test/2.crl"))), "of another scope")
	})
	t.Run("C10/a full list in place of a point's", func(t *testing.T) { scope(t, only(root), root.CRL(number(9)), "of another scope") })
	t.Run("C03/another key than the one before", func(t *testing.T) {
		scope(t, nil, root.CRL(number(9), testpki.CRLExt(testpki.IDP("http://pki.test/1.crl")), testpki.SignedBy(other)), "key that signed the one before")
	})
	t.Run("a new key of the CA, configured", func(t *testing.T) {
		s := newShop(t).open()
		url := s.url + "/ca.crl"
		next := twin.CRL(number(1))
		s.put("/ca.crl", page{body: good})
		d := newDesk(t, ListsConfig{Dir: t.TempDir()})
		d.want(Source{URL: url, Signers: only(root)})
		s.put("/ca.crl", page{body: next})
		d.again(url)
		d.has(url, good)
		d.Want([]Source{{URL: url, Signers: []*x509.Certificate{root.Cert, twin.Cert}}})
		d.again(url)
		d.has(url, next)
		d.says("", "")
	})
	t.Run("C12/too large", func(t *testing.T) {
		s := newShop(t).open()
		s.put("/ca.crl", page{body: good})
		d := newDesk(t, ListsConfig{})
		d.want(Source{URL: s.url + "/ca.crl", MaxBytes: int64(len(good)) - 1})
		d.says(ListFetch, "expected a body of at most")
	})
	t.Run("not configured", func(t *testing.T) {
		d := newDesk(t, ListsConfig{})
		if _, err := d.Fetched("http://a:secret@pki.test/x?token=secret"); err == nil || !strings.Contains(err.Error(), "not among") || strings.Contains(err.Error(), "secret") {
			t.Error(err)
		}
	})
	t.Run("G07/a private address", func(t *testing.T) {
		s := newShop(t).open()
		d := newDesk(t, ListsConfig{Client: outbound.New(outbound.Options{})})
		d.want(Source{URL: s.url + "/ca.crl"})
		d.says(ListFetch, "add 127.0.0.0/8")
		if len(s.times("/ca.crl")) > 0 {
			t.Error("asked")
		}
	})
}

// An older list never comes back: not from a URL, not from a file, not after a restart.
func TestListsRollback(t *testing.T) {
	root, other := testpki.New(t), testpki.New(t)
	seven, five := root.CRL(number(7), ago(time.Hour)), root.CRL(number(5), ago(2*time.Hour))
	sameNumber, sameDate := root.CRL(number(7), ago(2*time.Hour)), root.CRL(number(6), ago(time.Hour))
	noNumber := root.CRL(testpki.NoNumber(), ago(time.Minute))
	newDateLowNumber, oldDateHighNumber := root.CRL(number(6), ago(time.Minute)), root.CRL(number(8), ago(2*time.Hour))
	eight := root.CRL(number(8), ago(30*time.Minute))
	older := map[string][]byte{"lower number and date": five, "same number, older date": sameNumber, "lower number, same date": sameDate,
		"no number": noNumber, "lower number, newer date": newDateLowNumber, "higher number, older date": oldDateHighNumber}

	for name, old := range older {
		t.Run("C05/from a URL, "+name, func(t *testing.T) {
			s := newShop(t).open()
			url := s.url + "/ca.crl"
			dir := t.TempDir()
			d := newDesk(t, ListsConfig{Dir: dir})
			s.put("/ca.crl", page{body: seven})
			d.want(Source{URL: url, Signers: only(root)})
			d.has(url, seven)
			s.put("/ca.crl", page{body: old})
			d.again(url)
			d.has(url, seven)
			d.says(ListRollback, "at least as new as the newest seen (number 7")
			d.Close()
			d = newDesk(t, ListsConfig{Dir: dir})
			d.want(Source{URL: url, Signers: only(root)})
			d.has(url, seven)
			d.says(ListRollback, "number 7")
			s.put("/ca.crl", page{body: eight})
			d.again(url)
			d.has(url, eight)
			d.says("", "")
		})
		t.Run("C05/from a file, "+name, func(t *testing.T) {
			dir := t.TempDir()
			for range 2 { // before and after a restart
				d := newDesk(t, ListsConfig{Dir: dir})
				if use, why := d.Admit(seen(t, seven, root), seven); why != "" || use.Sum() != sha256.Sum256(seven) {
					t.Error(use, why)
				}
				use, why := d.Admit(parsed(t, old), old)
				if use == nil || use.Sum() != sha256.Sum256(seven) || !strings.Contains(why, "older than one that was in force (number 7") || !strings.Contains(why, "stays in force") {
					t.Error(use, why)
				}
				d.Close()
			}
			// A restart at which only the old list is there.
			d := newDesk(t, ListsConfig{Dir: dir})
			use, why := d.Admit(parsed(t, old), old)
			if use == nil || use.Sum() != sha256.Sum256(seven) || why == "" {
				t.Error(use, why)
			}
			if use, why := d.Admit(parsed(t, eight), eight); why != "" || use.Sum() != sha256.Sum256(eight) {
				t.Error(use, why)
			}
		})
	}
	t.Run("C05/what was newest is gone", func(t *testing.T) {
		dir := t.TempDir()
		d := newDesk(t, ListsConfig{Dir: dir})
		d.Admit(seen(t, seven, root), seven)
		d.Close()
		remove(t, dir, seven)
		d = newDesk(t, ListsConfig{Dir: dir})
		use, why := d.Admit(parsed(t, five), five)
		if use != nil || !strings.Contains(why, "is not kept any more") {
			t.Error(use, why)
		}
		if use, why = d.Admit(parsed(t, seven), seven); use == nil || why != "" {
			t.Error(use, why)
		}
		if use, _ = d.Admit(parsed(t, five), five); use == nil || use.Sum() != sha256.Sum256(seven) {
			t.Error(use)
		}
	})
	t.Run("C05/a file older than a URL, and the other way", func(t *testing.T) {
		s := newShop(t).open()
		url := s.url + "/ca.crl"
		s.put("/ca.crl", page{body: seven})
		d := newDesk(t, ListsConfig{Dir: t.TempDir()})
		d.want(Source{URL: url, Signers: only(root)})
		if use, why := d.Admit(parsed(t, five), testpki.PEM("X509 CRL", five)); use.Sum() != sha256.Sum256(seven) || why == "" {
			t.Error(use, why)
		}
		if use, why := d.Admit(parsed(t, eight), testpki.PEM("X509 CRL", eight)); use.Sum() != sha256.Sum256(eight) || why != "" {
			t.Error(use, why)
		}
		d.has(url, eight)
	})
	t.Run("C05/shown by a chain later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			root := testpki.New(t)
			seven, five := root.CRL(number(7)), root.CRL(number(5), ago(time.Hour))
			dir := t.TempDir()
			d := newDesk(t, ListsConfig{Dir: dir})
			crl := parsed(t, seven)
			if use, why := d.Admit(crl, seven); use != crl || why != "" {
				t.Error(use, why)
			}
			if err := crl.SignedBy(root.Cert); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * sweepEvery)
			synctest.Wait()
			d.Close()
			d = newDesk(t, ListsConfig{Dir: dir})
			if use, why := d.Admit(parsed(t, five), five); use.Sum() != sha256.Sum256(seven) || why == "" {
				t.Error(use, why)
			}
		})
	})
	t.Run("C05/a stranger's list does not stand in the way", func(t *testing.T) {
		// It has the right name and key identifier and a huge number, but another key signed it.
		forged := root.CRL(number(1<<62), testpki.SignedBy(other), testpki.NoAKI())
		sameScope := forge(t, root, other)
		twin := testpki.New(t, testpki.RawSubject(root.Cert.RawSubject))
		for _, bad := range [][]byte{forged, sameScope} {
			s := newShop(t).open()
			url := s.url + "/ca.crl"
			s.put("/ca.crl", page{body: bad})
			d := newDesk(t, ListsConfig{Dir: t.TempDir()})
			d.want(Source{URL: url})
			d.Admit(parsed(t, bad), bad)
			if use, why := d.Admit(seen(t, seven, root), seven); use.Sum() != sha256.Sum256(seven) || why != "" {
				t.Error(use, why)
			}
			if use, why := d.Admit(parsed(t, bad), bad); use.Sum() != sha256.Sum256(bad) || why != "" {
				t.Error(use, why) // inert: it is nobody's
			}
		}
		d := newDesk(t, ListsConfig{Dir: t.TempDir()})
		high := twin.CRL(number(100), testpki.NoAKI())
		low := root.CRL(number(3), testpki.NoAKI())
		d.Admit(seen(t, high, twin), high)
		if use, why := d.Admit(seen(t, low, root), low); use.Sum() != sha256.Sum256(low) || why != "" {
			t.Errorf("a CA of the same name decides on another's lists: %s, %s", use, why)
		}
	})
	t.Run("C08/released by a newer list", func(t *testing.T) {
		alice := root.Client("alice")
		held := root.CRL(number(20), testpki.Entry(alice.Cert.SerialNumber, testpki.ReasonCode(6)))
		free := root.CRL(number(21))
		d := newDesk(t, ListsConfig{})
		d.Admit(seen(t, held, root), held)
		if use, why := d.Admit(seen(t, free, root), free); use.Len() != 0 || why != "" {
			t.Error(use, why)
		}
	})
}

// forge makes a list with root's name and key identifier that other signed.
func forge(t *testing.T, root, other *testpki.Cert) []byte {
	signer := *other
	cert := *other.Cert
	cert.SubjectKeyId = root.Cert.SubjectKeyId
	signer.Cert = &cert
	return root.CRL(number(1<<62), testpki.SignedBy(&signer))
}

func listFile(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]) + listSuffix
}

func remove(t *testing.T, dir string, der []byte) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, listFile(der))); err != nil {
		t.Fatal(err)
	}
}

func TestListsOnDisk(t *testing.T) {
	root := testpki.New(t)
	seven, five, eight := root.CRL(number(7), ago(time.Hour)), root.CRL(number(5), ago(2*time.Hour)), root.CRL(number(8))
	// kept returns a folder with list seven of a URL, which has gone.
	kept := func(t *testing.T) (dir, url string, s *shop) {
		t.Helper()
		s, dir = newShop(t).open(), filepath.Join(t.TempDir(), "state", "crls")
		url = s.url + "/ca.crl"
		s.put("/ca.crl", page{body: seven, etag: `"7"`})
		d := newDesk(t, ListsConfig{Dir: dir})
		d.want(Source{URL: url, Signers: only(root)})
		d.has(url, seven)
		d.says("", "")
		d.Close()
		s.put("/ca.crl", page{status: 503})
		return dir, url, s
	}
	t.Run("C14/the last good list is there after a restart", func(t *testing.T) {
		dir, url, s := kept(t)
		s.put("/ca.crl", page{hang: true})
		d := newDesk(t, ListsConfig{Dir: dir})
		d.Want([]Source{{URL: url, Signers: only(root)}})
		start := time.Now()
		d.has(url, seven)
		if wait := time.Since(start); wait > 20*time.Second {
			t.Errorf("waited %v for a server that hangs", wait)
		}
	})
	t.Run("C14/and the server is down", func(t *testing.T) {
		dir, url, _ := kept(t)
		d := newDesk(t, ListsConfig{Dir: dir})
		d.want(Source{URL: url, Signers: only(root)})
		d.has(url, seven)
		d.says(ListFetch, "found 503")
	})
	t.Run("unchanged after a restart", func(t *testing.T) {
		dir, url, s := kept(t)
		s.put("/ca.crl", page{body: []byte("not looked at"), etag: `"7"`})
		d := newDesk(t, ListsConfig{Dir: dir})
		d.want(Source{URL: url, Signers: only(root)})
		d.has(url, seven)
		d.says("", "")
		time.Sleep(2 * together)
		if d.changed.Load() > 0 {
			t.Error("Changed called for what was there")
		}
	})
	t.Run("G06/modes", func(t *testing.T) {
		dir, _, _ := kept(t)
		st, err := os.Stat(dir)
		if err != nil || st.Mode().Perm() != 0o700 {
			t.Error(st.Mode(), err)
		}
		entries, _ := os.ReadDir(dir)
		if len(entries) < 2 {
			t.Error(entries)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
				t.Error(e.Name(), info.Mode(), err)
			}
		}
	})
	damage := map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut short": func(b []byte) []byte { return b[:len(b)/2] },
		"a bit":     func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"longer":    func(b []byte) []byte { return append(b, 0) },
		"noise":     func(b []byte) []byte { return bytes.Repeat([]byte("x"), len(b)) },
		"old list":  func([]byte) []byte { return five },
	}
	for how, f := range damage {
		change := func(t *testing.T, name string) {
			t.Helper()
			data, err := os.ReadFile(name)
			if err == nil {
				err = os.WriteFile(name, f(data), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		t.Run("C05/list damaged: "+how, func(t *testing.T) {
			dir, url, s := kept(t)
			change(t, filepath.Join(dir, listFile(seven)))
			s.put("/ca.crl", page{body: five})
			d := newDesk(t, ListsConfig{Dir: dir})
			d.want(Source{URL: url, Signers: only(root)})
			d.has(url, nil)
			if c := d.Conditions(); len(c) != 2 || c[0].Code != ListRollback || c[1].Code != ListsDamaged {
				t.Errorf("%+v", c)
			}
			s.put("/ca.crl", page{body: seven, etag: `"7"`}) // not asked for by ETag: it is not there
			d.again(url)
			d.has(url, seven)
		})
		t.Run("C05/index damaged: "+how, func(t *testing.T) {
			dir, url, s := kept(t)
			d := newDesk(t, ListsConfig{Dir: dir}) // so that there is an index before
			d.Admit(seen(t, eight, root), eight)
			d.Close()
			change(t, filepath.Join(dir, indexFile))
			s.put("/ca.crl", page{body: five})
			d = newDesk(t, ListsConfig{Dir: dir})
			d.says(ListsDamaged, "the index before it is used")
			d.want(Source{URL: url, Signers: only(root)})
			d.has(url, seven)
			d.Close()
			change(t, filepath.Join(dir, oldIndexFile))
			d = newDesk(t, ListsConfig{Dir: dir})
			d.says(ListsDamaged, "an older one would not be noticed")
		})
	}
	t.Run("C05/killed at every step", func(t *testing.T) {
		dir, url, s := kept(t)
		for step := 0; ; step++ {
			// The folder as it is when the n-th operation is the last that is done: the rest of the process's doing is undone.
			trial := filepath.Join(t.TempDir(), "crls")
			if err := os.CopyFS(trial, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			snap := filepath.Join(t.TempDir(), "at")
			n, took := 0, false
			fail := func(op, name string) error {
				if n++; n == step+1 {
					took = true
					if err := os.CopyFS(snap, os.DirFS(trial)); err != nil {
						t.Error(err)
					}
				}
				return nil
			}
			s.put("/ca.crl", page{body: eight})
			d := newDesk(t, ListsConfig{Dir: trial, fail: fail})
			d.want(Source{URL: url, Signers: only(root)})
			d.has(url, eight)
			d.Close()
			if !took {
				if step < 4 {
					t.Errorf("only %d steps", step)
				}
				break
			}
			s.put("/ca.crl", page{body: five})
			d = newDesk(t, ListsConfig{Dir: snap})
			d.want(Source{URL: url, Signers: only(root)})
			got, err := d.Fetched(url)
			if err != nil || got.Sum() != sha256.Sum256(seven) && got.Sum() != sha256.Sum256(eight) {
				t.Errorf("step %d: %v, %v", step, got, err)
			}
			d.says(ListRollback, "")
			d.Close()
			left, _ := filepath.Glob(filepath.Join(snap, "*"+tempSuffix))
			if len(left) > 0 {
				t.Errorf("step %d: %v is left", step, left)
			}
		}
	})
	t.Run("disk full", func(t *testing.T) {
		var full atomic.Bool
		full.Store(true)
		for _, at := range []string{"write", "rename"} {
			t.Run(at, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					full.Store(true)
					root := testpki.New(t)
					seven, five := root.CRL(number(7)), root.CRL(number(5), ago(time.Hour))
					s := newShop(t)
					s.put("/ca.crl", page{body: seven, etag: `"7"`})
					dir := t.TempDir()
					d := newDesk(t, ListsConfig{Dir: dir, fetch: s.fetch, fail: func(op, _ string) error {
						if op == at && full.Load() {
							return syscall.ENOSPC
						}
						return nil
					}})
					url := s.url + "/ca.crl"
					d.want(Source{URL: url, Signers: only(root)})
					d.has(url, seven)
					d.says(ListsNotKept, "no space left on device")
					if use, why := d.Admit(seen(t, five, root), five); use.Sum() != sha256.Sum256(seven) || why == "" {
						t.Error(use, why) // in memory, it holds
					}
					full.Store(false)
					time.Sleep(2 * time.Hour)
					synctest.Wait()
					d.says("", "")
					d.Close()
					d = newDesk(t, ListsConfig{Dir: dir, fetch: s.fetch})
					s.put("/ca.crl", page{status: 503})
					d.want(Source{URL: url, Signers: only(root)})
					d.has(url, seven)
				})
			})
		}
	})
	t.Run("a folder that cannot be", func(t *testing.T) {
		name := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NewLists(ListsConfig{Dir: filepath.Join(name, "crls")}); err == nil || !strings.Contains(err.Error(), "expected a folder") {
			t.Error(err)
		}
	})
	t.Run("G08/names in the index lead nowhere", func(t *testing.T) {
		dir, _, _ := kept(t)
		data, _ := os.ReadFile(filepath.Join(dir, indexFile))
		_, body, _ := bytes.Cut(data, []byte("\n"))
		sum := sha256.Sum256(seven)
		body = bytes.ReplaceAll(body, []byte(hex.EncodeToString(sum[:])), []byte("../../../etc/passwd"))
		check := sha256.Sum256(body)
		os.WriteFile(filepath.Join(dir, indexFile), append([]byte(hex.EncodeToString(check[:])+"\n"), body...), 0o600)
		d := newDesk(t, ListsConfig{Dir: dir})
		d.says(ListsDamaged, "an entry without a list")
	})
	t.Run("nothing is left of lists that were replaced", func(t *testing.T) {
		dir, url, s := kept(t)
		s.put("/ca.crl", page{body: eight})
		os.WriteFile(filepath.Join(dir, listFile(five)), five, 0o600)
		d := newDesk(t, ListsConfig{Dir: dir})
		d.want(Source{URL: url, Signers: only(root)})
		left, _ := filepath.Glob(filepath.Join(dir, "*"+listSuffix))
		if len(left) != 1 || filepath.Base(left[0]) != listFile(eight) {
			t.Errorf("left: %v", left)
		}
	})
	t.Run("C12/no room", func(t *testing.T) {
		dir, url, s := kept(t)
		d := newDesk(t, ListsConfig{Dir: dir})
		d.keep.Lock()
		for i := range maxKept {
			d.unsigned = append(d.unsigned, &held{crl: parsed(t, five), sum: fmt.Sprintf("%064x", i), size: 1})
		}
		d.keep.Unlock()
		s.put("/ca.crl", page{body: eight})
		d.want(Source{URL: url, Signers: only(root)})
		d.has(url, eight)
		d.says(ListsNotKept, "found none")
	})
}

func TestListsSchedule(t *testing.T) {
	bubble := func(name string, f func(t *testing.T, root *testpki.Cert, s *shop, d *desk)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShop(t)
				f(t, testpki.New(t), s, newDesk(t, ListsConfig{Dir: t.TempDir(), fetch: s.fetch}))
			})
		})
	}
	gaps := func(at []time.Time) (all []time.Duration) {
		for i := range at[1:] {
			all = append(all, at[i+1].Sub(at[i]))
		}
		return all
	}
	bubble("an hour by default, and nothing is told of what did not change", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		s.put("/ca.crl", page{body: root.CRL(testpki.NextUpdate(time.Now().Add(1000 * time.Hour)))})
		d.want(Source{URL: s.url + "/ca.crl"})
		first, _ := d.Fetched(s.url + "/ca.crl")
		time.Sleep(24 * time.Hour)
		for _, g := range gaps(s.times("/ca.crl")) {
			if g < 54*time.Minute || g > time.Hour {
				t.Errorf("after %v", g)
			}
		}
		if again, _ := d.Fetched(s.url + "/ca.crl"); d.changed.Load() != 1 || again != first {
			t.Errorf("changed %d times", d.changed.Load())
		}
	})
	for _, c := range []struct {
		name        string
		every, life time.Duration
		control     string
		least, most time.Duration
	}{
		{"as configured", 5 * time.Minute, 1000 * time.Hour, "max-age=60", 4*time.Minute + 30*time.Second, 5 * time.Minute},
		{"half of what is left", 12 * time.Hour, 4 * time.Hour, "", time.Hour + 47*time.Minute, 2 * time.Hour},
		{"never more than every ten seconds", time.Second, 1000 * time.Hour, "", 10 * time.Second, 10 * time.Second},
		{"by max-age", 0, 1000 * time.Hour, "public, max-age=1200", 18 * time.Minute, 20 * time.Minute},
		{"by max-age, but not all the time", 0, 1000 * time.Hour, "max-age=0", 4*time.Minute + 30*time.Second, 5 * time.Minute},
		{"a long max-age", 0, 1000 * time.Hour, "max-age=99999999", 54 * time.Minute, time.Hour},
	} {
		bubble(c.name, func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
			s.put("/ca.crl", page{body: root.CRL(testpki.NextUpdate(time.Now().Add(c.life))), control: c.control})
			d.want(Source{URL: s.url + "/ca.crl", Every: c.every})
			time.Sleep(c.most + time.Second)
			synctest.Wait()
			if g := gaps(s.times("/ca.crl")); len(g) < 1 || g[0] < c.least || g[0] > c.most {
				t.Errorf("after %v; want %v to %v", g, c.least, c.most)
			}
		})
	}
	bubble("C14/back-off", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		s.put("/ca.crl", page{status: 500})
		d.want(Source{URL: s.url + "/ca.crl", Every: time.Minute})
		since := d.says(ListFetch, "found 500").Since
		if since.IsZero() {
			t.Error("no beginning")
		}
		time.Sleep(2 * time.Hour)
		g := gaps(s.times("/ca.crl"))
		if len(g) < 15 || len(g) > 40 {
			t.Errorf("%d tries in two hours", len(g))
		}
		for i, g := range g {
			if most := min(time.Second<<i, 10*time.Minute); g < time.Second || g > most || g < most/2 {
				t.Errorf("try %d after %v", i, g)
			}
		}
		if c := d.says(ListFetch, "found 500"); c.Since != since {
			t.Error("the condition began anew")
		}
		s.put("/ca.crl", page{body: root.CRL()})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		d.says("", "")
		if d.changed.Load() != 1 {
			t.Errorf("changed %d times", d.changed.Load())
		}
	})
	bubble("C14/hung servers keep nobody waiting", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		var all []Source
		for i := range 12 {
			path := fmt.Sprintf("/%02d.crl", i)
			s.put(path, page{hang: i < 6})
			if i >= 6 {
				s.put(path, page{body: testpki.New(t).CRL()})
			}
			all = append(all, Source{URL: s.url + path})
		}
		start := time.Now()
		d.Want(all)
		d.has(s.url+"/00.crl", nil)
		d.Learn(Source{URL: s.url + "/00.crl", Hosts: []string{"pki.test"}, Signers: only(root)})
		d.Admit(parsed(t, root.CRL()), root.CRL())
		d.Conditions()
		if time.Since(start) > 0 {
			t.Error("waited")
		}
		synctest.Wait()
		if n := s.paths(); n != fetchers {
			t.Errorf("%d fetches at a time", n)
		}
		d.Ready(t.Context())
		if took := time.Since(start); took > 2*fetchTimeout+time.Second {
			t.Errorf("ready after %v", took)
		}
		for i := 6; i < 12; i++ {
			if _, err := d.Fetched(fmt.Sprintf("%s/%02d.crl", s.url, i)); err != nil {
				t.Error(err)
			}
		}
		if n := d.changed.Load(); n != 1 {
			t.Errorf("changed %d times for lists that came together", n)
		}
	})
	bubble("Ready has a deadline", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		s.put("/ca.crl", page{hang: true})
		d.Want([]Source{{URL: s.url + "/ca.crl"}})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		if d.Ready(ctx); time.Since(start) != 5*time.Second {
			t.Error(time.Since(start))
		}
	})
	bubble("C04/stale", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		url := s.url + "/ca.crl"
		s.put("/ca.crl", page{body: root.CRL(testpki.ThisUpdate(time.Now()), testpki.NextUpdate(time.Now().Add(100*time.Hour)))})
		start := time.Now()
		d.want(Source{URL: url})
		time.Sleep(74 * time.Hour)
		d.says("", "")
		time.Sleep(time.Hour + time.Minute)
		if c := d.says(ListStale, "expires in 24h59m"); c.Since.Sub(start) != 75*time.Hour {
			t.Error(c.Since.Sub(start))
		}
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		c := d.Conditions()
		if len(c) != 2 || c[0].Code != ListRefused || c[1].Code != ListStale || !strings.Contains(c[1].Text, "expired ") {
			t.Errorf("%+v", c)
		}
		before := len(s.times("/ca.crl"))
		time.Sleep(time.Hour)
		if n := len(s.times("/ca.crl")) - before; n < 4 || n > 20 {
			t.Errorf("asked %d times in an hour for a list that is late", n)
		}
		s.put("/ca.crl", page{body: root.CRL(number(2), testpki.NextUpdate(time.Now().Add(100*time.Hour)))})
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		d.says("", "")
	})
	bubble("a URL that is gone", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		s.put("/ca.crl", page{body: root.CRL()})
		d.want(Source{URL: s.url + "/ca.crl"})
		d.Want(nil)
		time.Sleep(100 * time.Hour)
		if n := len(s.times("/ca.crl")); n != 1 {
			t.Errorf("asked %d times", n)
		}
		d.has(s.url+"/ca.crl", nil)
		d.says("", "")
	})
	bubble("a URL of two stores", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		other := testpki.New(t)
		s.put("/ca.crl", page{body: root.CRL(testpki.NextUpdate(time.Now().Add(1000 * time.Hour)))})
		d.want(Source{URL: s.url + "/ca.crl", Every: time.Hour, Signers: only(other)}, Source{URL: s.url + "/ca.crl", Every: time.Minute, Signers: only(root)})
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(s.times("/ca.crl")); n != 2 {
			t.Errorf("asked %d times", n)
		}
		d.says("", "")
	})
	t.Run("a reload that panics", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, root := newShop(t), testpki.New(t)
			var calls atomic.Int64
			s.put("/ca.crl", page{body: root.CRL()})
			d := newDesk(t, ListsConfig{fetch: s.fetch, Changed: func() { calls.Add(1); panic("x") }})
			d.want(Source{URL: s.url + "/ca.crl", Every: time.Minute})
			time.Sleep(time.Second)
			s.put("/ca.crl", page{body: root.CRL(number(2))})
			time.Sleep(2 * time.Minute)
			if n := calls.Load(); n != 2 {
				t.Errorf("%d calls", n)
			}
		})
	})
}

func TestListsLearnt(t *testing.T) {
	bubble := func(name string, f func(t *testing.T, root *testpki.Cert, s *shop, d *desk)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShop(t)
				f(t, testpki.New(t), s, newDesk(t, ListsConfig{Dir: t.TempDir(), fetch: s.fetch}))
			})
		})
	}
	hosts := []string{"pki.test"}
	bubble("C13/not to be learnt", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		for _, s := range []Source{
			{URL: "http://169.254.169.254/ca.crl", Hosts: hosts},
			{URL: "http://evil.test/ca.crl", Hosts: hosts},
			{URL: "http://pki.test:8080/ca.crl", Hosts: hosts},
			{URL: "http://a@pki.test/ca.crl", Hosts: hosts},
			{URL: "ldap://pki.test/ca.crl", Hosts: hosts},
			{URL: "file:///etc/passwd", Hosts: hosts},
			{URL: "", Hosts: hosts},
			{URL: "http://pki.test/ca.crl"},
			{URL: "http://pki.test/ca.crl", Hosts: []string{}},
		} {
			s.Signers = only(root)
			d.Learn(s)
		}
		d.Learn(Source{URL: "http://pki.test/ca.crl", Hosts: hosts}) // nobody vouches for it
		time.Sleep(time.Hour)
		if s.paths() > 0 || d.known() > 0 || len(d.Learnt(hosts)) > 0 {
			t.Errorf("asked for %d paths", s.paths())
		}
		d.says("", "")
	})
	bubble("C13/a bounded number", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		second, third := testpki.New(t), testpki.New(t)
		for _, ca := range []*testpki.Cert{root, second, third} {
			for i := range maxOfSigner + 10 {
				d.Learn(Source{URL: fmt.Sprintf("http://pki.test/%s/%d.crl", ca.Cert.SerialNumber, i), Hosts: hosts, Signers: only(ca)})
			}
		}
		if c := d.Conditions(); !slices.ContainsFunc(c, func(c Condition) bool {
			return c.Code == ListsTooMany && strings.Contains(c.Text, "configure their URLs")
		}) {
			t.Errorf("%d conditions, none of them of too many", len(c))
		}
		if n := d.known(); n != maxLearnt {
			t.Errorf("%d URLs", n)
		}
		// The first CA's certificates alone do not take all places.
		if _, err := d.Fetched(fmt.Sprintf("http://pki.test/%s/0.crl", second.Cert.SerialNumber)); strings.Contains(err.Error(), "not among") {
			t.Error("one CA took all")
		}
	})
	bubble("learnt, forgotten, kept across a restart", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		list := root.CRL(testpki.NextUpdate(time.Now().Add(1000 * time.Hour)))
		s.put("/ca.crl", page{body: list})
		source := Source{URL: s.url + "/ca.crl", Hosts: hosts, Signers: only(root)}
		d.Learn(source)
		time.Sleep(time.Second)
		got := d.Learnt(hosts)
		if len(got) != 1 || got[0].Sum() != sha256.Sum256(list) || d.changed.Load() != 1 {
			t.Fatalf("%v, changed %d times", got, d.changed.Load())
		}
		for range 3 {
			time.Sleep(20 * time.Hour)
			d.Learn(source)
		}
		if len(d.Learnt(hosts)) != 1 || len(s.times("/ca.crl")) < 60 {
			t.Errorf("asked %d times", len(s.times("/ca.crl")))
		}
		s.put("/ca.crl", page{body: root.CRL(number(2), testpki.NextUpdate(time.Now().Add(1000*time.Hour)))})
		time.Sleep(2 * time.Hour)
		d.Close()
		asked := len(s.times("/ca.crl"))
		d2 := newDesk(t, ListsConfig{Dir: d.c.Dir, fetch: s.fetch})
		time.Sleep(2 * time.Hour)
		if len(d2.Learnt(hosts)) != 1 || len(s.times("/ca.crl")) != asked {
			t.Errorf("after a restart: %v; asked %d times without being told who may be asked", d2.Learnt(hosts), len(s.times("/ca.crl"))-asked)
		}
		d2.Learn(source)
		time.Sleep(time.Second)
		if len(s.times("/ca.crl")) != asked+1 {
			t.Error("not asked again")
		}
		time.Sleep(25 * time.Hour)
		if len(d2.Learnt(hosts)) != 0 || d2.known() != 0 {
			t.Error("not forgotten")
		}
	})
	bubble("C13/another CA's certificate names the URL first", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		other := testpki.New(t)
		list := root.CRL()
		s.put("/ca.crl", page{body: list})
		d.Learn(Source{URL: s.url + "/ca.crl", Hosts: hosts, Signers: only(other)})
		time.Sleep(time.Second)
		d.says(ListRefused, "another CA's name")
		d.Learn(Source{URL: s.url + "/ca.crl", Hosts: hosts, Signers: only(root)})
		time.Sleep(time.Second)
		d.has(s.url+"/ca.crl", list)
		d.says("", "")
	})
	t.Run("C13/the right CA is seen during a fetch", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, root, other := newShop(t), testpki.New(t), testpki.New(t)
			list := root.CRL()
			s.put("/ca.crl", page{body: list})
			d := newDesk(t, ListsConfig{fetch: func(ctx context.Context, r *outbound.Request) (*outbound.Response, error) {
				time.Sleep(5 * time.Second)
				return s.fetch(ctx, r)
			}})
			d.Learn(Source{URL: s.url + "/ca.crl", Hosts: hosts, Signers: only(other)})
			time.Sleep(time.Second)
			d.Learn(Source{URL: s.url + "/ca.crl", Hosts: hosts, Signers: only(root)})
			time.Sleep(9*time.Second + time.Second/2)
			synctest.Wait()
			d.has(s.url+"/ca.crl", list)
		})
	})
	bubble("C03/lists of intermediates, whom only chains show", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		inter := root.Intermediate("Inter")
		url := s.url + "/inter.crl"
		source := Source{URL: url, Signers: only(root), Others: true}
		forged := inter.CRL(testpki.SignedBy(testpki.New(t)), testpki.NoAKI(), number(9))
		s.put("/inter.crl", page{body: forged}) // somebody on the way was first: inert, for no chain shows such an issuer
		d.want(source)
		d.has(url, forged)
		good := inter.CRL(number(1))
		s.put("/inter.crl", page{body: good})
		d.again(url)
		d.has(url, good)
		if l, err := d.Fetched(url); err != nil || l.SignedBy(inter.Cert) != nil { // a chain has shown the issuer
			t.Fatal(err)
		}
		s.put("/inter.crl", page{body: inter.CRL(testpki.SignedBy(testpki.New(t)), testpki.NoAKI(), number(10))})
		d.again(url)
		d.has(url, good)
		d.says(ListRefused, "of the key that signed the one before")
		s.put("/inter.crl", page{body: root.CRL(testpki.SignedBy(testpki.New(t)), testpki.NoAKI())}) // in the name of a known CA
		d.again(url)
		d.has(url, good)
		next := inter.CRL(number(2))
		s.put("/inter.crl", page{body: next})
		d.again(url)
		d.has(url, next)
		d.says("", "")
	})
	bubble("C13/hosts that are not allowed any more", func(t *testing.T, root *testpki.Cert, s *shop, d *desk) {
		s.put("/ca.crl", page{body: root.CRL()})
		d.Learn(Source{URL: s.url + "/ca.crl", Hosts: hosts, Signers: only(root)})
		time.Sleep(time.Second)
		d.Restrict([]string{"pki.test", "other.test"})
		if len(d.Learnt(hosts)) != 1 {
			t.Error("forgotten")
		}
		d.Restrict(nil)
		asked := len(s.times("/ca.crl"))
		time.Sleep(10 * time.Hour)
		if len(d.Learnt(hosts)) != 0 || len(s.times("/ca.crl")) != asked {
			t.Error("still there")
		}
	})
}

func TestListsAtOnce(t *testing.T) {
	s := newShop(t).open()
	d := newDesk(t, ListsConfig{Dir: t.TempDir()})
	var work sync.WaitGroup
	for i := range 4 {
		root := testpki.New(t)
		path := fmt.Sprintf("/%d.crl", i)
		s.put(path, page{body: root.CRL(number(1))})
		work.Go(func() {
			for n := int64(2); n < 30; n++ {
				list := root.CRL(number(n))
				s.put(path, page{body: list})
				d.Want([]Source{{URL: s.url + path, Signers: only(root)}})
				d.Admit(seen(t, list, root), list)
				d.Fetched(s.url + path)
				d.Learn(Source{URL: s.url + path, Hosts: []string{strings.TrimPrefix(s.url, "http://")}, Signers: only(root)})
				d.Learnt([]string{"pki.test"})
				d.Conditions()
				d.Status()
				d.hurry()
			}
		})
	}
	work.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	d.Ready(ctx)
}

func TestNumberOf(t *testing.T) {
	root := testpki.New(t)
	alice := root.Client("alice")
	for _, n := range []int64{0, 1, 127, 128, 1 << 62} {
		if got := numberOf(root.CRL(number(n), alice)); got == nil || got.Cmp(big.NewInt(n)) != 0 {
			t.Errorf("%d read as %v", n, got)
		}
	}
	der := root.CRL(testpki.NoNumber(), testpki.NextUpdate(time.Time{}))
	if got := numberOf(der); got != nil {
		t.Errorf("%v", got)
	}
	for i := range der {
		numberOf(der[:i])
	}
}
