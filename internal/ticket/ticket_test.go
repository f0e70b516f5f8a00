package ticket

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"countersign/internal/memnet"
	"countersign/internal/testpki"
)

// TestRefusals offers every ticket that must not be taken. Each gets a full handshake, and a reason.
func TestRefusals(t *testing.T) {
	for _, v := range versions {
		t.Run(v.name, func(t *testing.T) {
			w := newWorld(t)
			earn := func(t *testing.T, edit func(*visit)) *wallet {
				t.Helper()
				wal := new(wallet)
				visit := w.newVisit(v.id, wal)
				if edit != nil {
					edit(&visit)
				}
				w.visit(visit).full(t, nil)
				wal.ticket(t)
				return wal
			}
			other := w.root.Client("other", testpki.Lifetime(1000*time.Hour))
			for _, c := range []struct {
				name     string
				earn     func(*visit)
				pass     time.Duration
				offer    func(*visit)
				declined error
			}{
				{name: "A01/other scope", offer: func(v *visit) { v.scope = scopeB }, declined: errSeal},
				{name: "A02/same CA, stricter policy", offer: func(v *visit) { v.scope = ScopeOf("public", "a.test", "2") }, declined: errSeal},
				{name: "A03/earned without a certificate, other scope",
					earn:  func(v *visit) { v.auth, v.client = tls.RequestClientCert, nil },
					offer: func(v *visit) { v.scope, v.client = scopeB, other }, declined: errSeal},
				{name: "A03/earned without a certificate, now required", // the scope would differ; crypto/tls refuses besides
					earn:  func(v *visit) { v.auth, v.client = tls.RequestClientCert, nil },
					offer: func(v *visit) { v.client = other }, declined: errLibrary},
				{name: "A03/earned with client auth, now off",
					offer: func(v *visit) { v.auth = tls.NoClientCert }, declined: errLibrary},
				{name: "A05/an hour and a second", pass: Lifetime + time.Second, declined: errAge},
				{name: "clock set back", pass: -skew - time.Second, declined: errFuture},
				{name: "other server name", offer: func(v *visit) { v.name = "b.test" }, declined: errSeal},
				{name: "leaf has expired", earn: func(v *visit) { v.client = w.root.Client("brief", testpki.NotAfter(w.clock.now().Add(time.Minute))) },
					pass: 2 * time.Minute, declined: errLibrary},
				{name: "no scope", offer: func(v *visit) { v.scope = Scope{} }},
			} {
				t.Run(c.name, func(t *testing.T) {
					wal := earn(t, c.earn)
					had := wal.ticket(t)
					w.clock.pass(c.pass)
					visit := w.newVisit(v.id, wal)
					if c.offer != nil {
						c.offer(&visit)
					}
					s := w.visit(visit)
					s.full(t, c.declined)
					if got := s.at(); !got.Equal(w.clock.now()) {
						t.Errorf("authenticated at %v, want the time of the full handshake, %v", got, w.clock.now())
					}
					if visit.auth == tls.RequireAnyClientCert && visit.scope != (Scope{}) {
						if len(s.state.PeerCertificates) == 0 {
							t.Error("no certificate: the client was not asked")
						}
						if bytes.Equal(had, wal.ticket(t)) {
							t.Error("the client still has the ticket that was refused")
						}
					}
				})
			}

			t.Run("A08/other process", func(t *testing.T) {
				wal := earn(t, nil)
				old := w.keys
				w.keys = newKeys(w.clock.now)
				defer func() { w.keys = old }()
				w.visit(w.newVisit(v.id, wal)).full(t, errGeneration)
			})
			t.Run("no scope gives none", func(t *testing.T) {
				wal := new(wallet)
				visit := w.newVisit(v.id, wal)
				visit.scope = Scope{}
				w.visit(visit).full(t, nil)
				if wal.cs != nil {
					t.Error("the zero scope gave a ticket")
				}
			})
			t.Run("A06/verified again", func(t *testing.T) {
				wal := earn(t, nil)
				refused := errors.New("revoked meanwhile")
				visit := w.newVisit(v.id, wal)
				visit.verify = func(tls.ConnectionState) error { return refused }
				s := w.visit(visit)
				if !s.state.DidResume || !errors.Is(s.err, refused) || s.clientErr == nil {
					t.Errorf("server %v, client %v, resumed %v; want a resumed session that is refused", s.err, s.clientErr, s.state.DidResume)
				}
				s.verifiedOnce(t)
			})

			// In real handshakes, garbage in place of the ticket.
			good := earn(t, nil)
			own := good.ticket(t)
			changed := func(i int) []byte {
				b := bytes.Clone(own)
				b[i] ^= 1
				return b
			}
			random := make([]byte, len(own))
			rand.Read(random)
			random[0] = formatSealed
			for _, c := range []struct {
				name     string
				ticket   []byte
				declined error
			}{
				{"one byte", []byte{1}, errSize},
				{"stand-in", []byte{formatNone}, errFormat},
				{"other format", changed(0), errFormat},
				{"random", random, errGeneration},
				{"other generation", changed(3), errGeneration},
				{"nonce", changed(headerSize), errSeal},
				{"sealed", changed(len(own) / 2), errSeal},
				{"tag", changed(len(own) - 1), errSeal},
				{"cut", own[:len(own)-1], errSeal},
				{"header only", own[:overhead], errSize},
				{"longer", append(bytes.Clone(own), 0), errSeal},
				{"B22/too long", append(bytes.Clone(own), make([]byte, maxTicket)...), errSize},
				{"B22/longest", append(bytes.Clone(own), make([]byte, 60000)...), errSize},
			} {
				t.Run("garbage/"+c.name, func(t *testing.T) {
					w.visit(w.newVisit(v.id, good.with(t, c.ticket))).full(t, c.declined)
				})
			}

			t.Run("ticket of the other TLS version", func(t *testing.T) {
				theirs := new(wallet)
				w.visit(w.newVisit(versions[0].id+versions[1].id-v.id, theirs)).full(t, nil)
				w.visit(w.newVisit(v.id, good.with(t, theirs.ticket(t)))).full(t, errSeal)
			})
			t.Run("chain is not the one sealed", func(t *testing.T) {
				visit := w.newVisit(v.id, good)
				visit.host = func(*tls.Config) {}
				var broken bool
				visit.verify = func(tls.ConnectionState) error { broken = true; return nil }
				wal := earn(t, nil)
				visit.cache = wal.with(t, reclaim(t, w, wal.ticket(t), v.id, func(c *claim) { c.chain[5] ^= 1 }))
				s := w.visit(visit)
				if !errors.Is(s.err, errChain) || broken || s.clientErr == nil {
					t.Errorf("server %v, client %v, verified %v; want %v and nothing after it", s.err, s.clientErr, broken, errChain)
				}
			})
			t.Run("content of another scope", func(t *testing.T) {
				b := reclaim(t, w, own, v.id, func(c *claim) { c.scope = scopeB })
				w.visit(w.newVisit(v.id, good.with(t, b))).full(t, errContent)
			})
			t.Run("not a session", func(t *testing.T) {
				b := w.keys.current().seal(scopeA, tls.ConnectionState{Version: v.id, ServerName: "a.test"}, []byte("no session"))
				w.visit(w.newVisit(v.id, good.with(t, b))).full(t, errContent)
			})
		})
	}
}

// reclaim opens a ticket as only a bug could, changes our entry, and seals it again.
func reclaim(t *testing.T, w *world, ticket []byte, version uint16, edit func(*claim)) []byte {
	t.Helper()
	cs := tls.ConnectionState{Version: version, ServerName: "a.test"}
	plain, err := w.keys.current().open(scopeA, cs, ticket)
	if err != nil {
		t.Fatal(err)
	}
	state, err := tls.ParseSessionState(plain)
	if err != nil {
		t.Fatal(err)
	}
	c, ok := findClaim(state.Extra)
	if !ok {
		t.Fatal("no entry of ours")
	}
	edit(&c)
	state.Extra = [][]byte{[]byte("of somebody else"), c.append(nil)}
	if plain, err = state.Bytes(); err != nil {
		t.Fatal(err)
	}
	return w.keys.current().seal(scopeA, cs, plain)
}

// TestScopes offers each ticket of twenty policies at all of them.
func TestScopes(t *testing.T) {
	w := newWorld(t)
	var scopes [20]Scope
	for i := range scopes {
		scopes[i] = ScopeOf("public", "host", strconv.Itoa(i))
		if i >= 10 {
			scopes[i] = scopes[i-10] // but for one bit, so that their ciphers have the same place
			scopes[i][31] ^= 1
		}
	}
	for _, v := range versions {
		t.Run("A01 A07 A43/"+v.name, func(t *testing.T) {
			for i, from := range scopes {
				wal := new(wallet)
				earned := w.newVisit(v.id, wal)
				earned.scope = from
				w.visit(earned).full(t, nil)
				own := wal.ticket(t)
				for j, to := range scopes {
					offered := w.newVisit(v.id, wal.with(t, own))
					offered.scope = to
					if s := w.visit(offered); i == j {
						s.resumed(t)
					} else {
						s.full(t, errSeal)
					}
				}
			}
		})
	}
}

func TestScopeOf(t *testing.T) {
	seen := map[Scope]string{{}: "the zero scope"}
	for _, parts := range [][]string{nil, {""}, {"", ""}, {"ab", "c"}, {"a", "bc"}, {"abc"}, {"c", "ab"}, {"abc", ""}} {
		s := ScopeOf(parts...)
		if was, ok := seen[s]; ok {
			t.Errorf("%q has the scope of %s", parts, was)
		}
		seen[s] = fmt.Sprintf("%q", parts)
		if s != ScopeOf(parts...) {
			t.Errorf("%q: not always the same", parts)
		}
	}
}

// TestTampered changes and cuts a ticket everywhere.
func TestTampered(t *testing.T) {
	w := newWorld(t)
	wal := new(wallet)
	w.visit(w.newVisit(tls.VersionTLS13, wal)).full(t, nil)
	own := wal.ticket(t)
	cs := tls.ConnectionState{Version: tls.VersionTLS13, ServerName: "a.test"}
	s := w.keys.Session(scopeA)
	refused := func(what string, i int, ticket []byte) {
		t.Helper()
		state, err := s.unwrap(ticket, cs)
		if state != nil || err != nil || s.declined == nil && len(ticket) > 0 {
			t.Fatalf("%s at %d of %d: %v, %v, declined %v; want nil, nil and a reason", what, i, len(own), state, err, s.declined)
		}
	}
	for i := range own {
		for _, bit := range []byte{1, 0x80} {
			b := bytes.Clone(own)
			b[i] ^= bit
			refused("changed", i, b)
		}
		refused("cut", i, own[:i])
	}
	for version := range 256 {
		if version != formatSealed {
			b := bytes.Clone(own)
			b[0] = byte(version)
			refused("format", version, b)
		}
	}
	refused("version", 0, func() []byte { cs.Version = tls.VersionTLS12; return own }())
	cs.Version = tls.VersionTLS13
	for _, name := range []string{"", "a.tes", "a.test.", "A.test"} {
		cs.ServerName = name
		refused("name "+name, 0, own)
	}
	cs.ServerName = "a.test"
	if state, err := s.unwrap(own, cs); state == nil || err != nil || s.declined != nil {
		t.Fatalf("the ticket as it was: %v, %v, declined %v", state, err, s.declined)
	}
}

// TestClaims reads Extra as others could have left it.
func TestClaims(t *testing.T) {
	ours := (&claim{scope: scopeA, at: time.Unix(1e9, 0)}).append(nil)
	for name, c := range map[string]struct {
		extra [][]byte
		ok    bool
	}{
		"none":          {nil, false},
		"empty":         {[][]byte{{}}, false},
		"another's":     {[][]byte{[]byte("caddy"), []byte(mark)[:5]}, false},
		"mark alone":    {[][]byte{[]byte(mark)}, false},
		"short":         {[][]byte{ours[:len(ours)-1]}, false},
		"long":          {[][]byte{append(bytes.Clone(ours), 0)}, false},
		"twice":         {[][]byte{ours, ours}, false},
		"ours":          {[][]byte{ours}, true},
		"among others'": {[][]byte{[]byte("caddy"), ours, {}}, true},
	} {
		got, ok := findClaim(c.extra)
		if ok != c.ok || ok && (got.scope != scopeA || got.at.Unix() != 1e9) {
			t.Errorf("%s: %v, %v; want %v", name, got, ok, c.ok)
		}
	}
	far := (&claim{scope: scopeA, at: time.Unix(-1<<62, 0)}).append(nil) // as a number that would overflow
	if c, _ := findClaim([][]byte{far}); time.Unix(0, 0).Sub(c.at) <= Lifetime {
		t.Errorf("%v passes for young", c.at)
	}
}

// TestResumed is about what crypto/tls hands on for a session that is resumed.
func TestResumed(t *testing.T) {
	w := newWorld(t)
	deep := w.root.Intermediate("One").Intermediate("Two").Intermediate("Three").Client("deep", testpki.RSA(4096), testpki.Lifetime(1000*time.Hour))
	for _, v := range versions {
		for _, m := range modes {
			for _, c := range []struct {
				name   string
				client *testpki.Cert
			}{{"alice", w.alice}, {"deep", deep}, {"none", nil}} {
				if m.auth == tls.RequireAnyClientCert && c.client == nil {
					continue
				}
				t.Run("A10/"+v.name+"/"+m.name+"/"+c.name, func(t *testing.T) {
					visit := w.newVisit(v.id, new(wallet))
					visit.auth, visit.client = m.auth, c.client
					first := w.visit(visit)
					first.full(t, nil)
					for range 3 {
						w.clock.pass(time.Minute)
						s := w.visit(visit)
						s.resumed(t)
						if got, want := chain(s.state.PeerCertificates), chain(first.state.PeerCertificates); got != want {
							t.Errorf("certificates differ: %d bytes, want %d", len(got), len(want))
						}
						if got, want := chain(s.verified[0].PeerCertificates), chain(first.state.PeerCertificates); got != want {
							t.Errorf("VerifyConnection was given other certificates: %d bytes, want %d", len(got), len(want))
						}
						if len(first.state.VerifiedChains)+len(s.state.VerifiedChains) > 0 {
							t.Error("there are verified chains; crypto/tls was not to verify")
						}
						if got := s.at(); got.Unix() != first.at().Unix() {
							t.Errorf("authenticated at %v, want %v", got, first.at())
						}
						if len(s.wrapResume) != 1 || !s.wrapResume[0] {
							t.Errorf("tickets made: %v, want one for a resumed session", s.wrapResume)
						}
					}
				})
			}
		}
	}
}

// TestAge resumes every twenty minutes. Renewed tickets do not count anew.
func TestAge(t *testing.T) {
	for _, v := range versions {
		t.Run("A05/"+v.name, func(t *testing.T) {
			w := newWorld(t)
			visit := w.newVisit(v.id, new(wallet))
			first := w.visit(visit)
			first.full(t, nil)
			for i := 1; i < 30; i++ {
				w.clock.pass(20 * time.Minute)
				s := w.visit(visit)
				if w.clock.now().Sub(first.at()) >= Lifetime { // the fraction of the second is against the client
					s.full(t, errAge)
					if i%3 != 0 {
						t.Errorf("full handshake after %v", w.clock.now().Sub(first.at()))
					}
					first = s
					continue
				}
				s.resumed(t)
				if s.at().Unix() != first.at().Unix() {
					t.Errorf("authenticated at %v, want %v", s.at(), first.at())
				}
			}
		})
		t.Run("A05/last ticket/"+v.name, func(t *testing.T) {
			w := newWorld(t)
			w.clock.nanos.Store(w.clock.now().Truncate(time.Second).UnixNano())
			visit := w.newVisit(v.id, new(wallet))
			w.visit(visit).full(t, nil)
			w.clock.pass(Lifetime - time.Second)
			w.visit(visit).resumed(t) // renewed a second before the end
			w.clock.pass(time.Second)
			w.visit(visit).resumed(t)
			w.clock.pass(time.Second)
			w.visit(visit).full(t, errAge)
		})
	}
}

// TestSameTicket: in TLS 1.2 a resumed session gets the ticket back that it came with, in TLS 1.3 another one.
func TestSameTicket(t *testing.T) {
	for _, v := range versions {
		t.Run("A05/"+v.name, func(t *testing.T) {
			w := newWorld(t)
			wal := new(wallet)
			visit := w.newVisit(v.id, wal)
			w.visit(visit).full(t, nil)
			first := wal.ticket(t)
			w.clock.pass(59 * time.Minute) // its secret seals no more from now on, and opens
			w.keys.Age()
			w.visit(visit).resumed(t)
			second := wal.ticket(t)
			if same := bytes.Equal(first, second); same != (v.id == tls.VersionTLS12) {
				t.Errorf("the same ticket: %t", same)
			}
			w.clock.pass(time.Minute - time.Second)
			w.visit(visit).resumed(t)
			w.clock.pass(2 * time.Second)
			w.visit(visit).full(t, errAge)
			if bytes.Equal(wal.ticket(t), second) {
				t.Error("a full handshake gave the old ticket")
			}
		})
	}
}

// TestRotation lets two days pass.
func TestRotation(t *testing.T) {
	t.Run("A45/48 hours", func(t *testing.T) {
		w := newWorld(t)
		ids := map[[8]byte]bool{}
		type kept struct {
			*wallet
			at time.Time
		}
		var old []kept
		for range 48 * 6 {
			if age := w.keys.Age(); age < 0 || age >= period {
				t.Fatalf("secret is %v old, want less than %v", age, period)
			}
			wal := new(wallet)
			w.visit(w.newVisit(tls.VersionTLS13, wal)).full(t, nil)
			ids[[8]byte(wal.ticket(t)[1:])] = true
			old = append(old, kept{wal, w.clock.now()})
			w.clock.pass(10 * time.Minute)
			if len(old) > 24 {
				old = old[1:]
			}
			if len(ids)%5 != 0 {
				continue
			}
			for _, k := range old {
				s := w.visit(w.newVisit(tls.VersionTLS13, k.with(t, k.ticket(t))))
				switch age := w.clock.now().Sub(k.at); {
				case age < Lifetime:
					s.resumed(t)
				case age >= 2*period:
					s.full(t, errGeneration)
				case s.declined() != errAge && s.declined() != errGeneration:
					t.Fatalf("ticket %v old: %v", age, s.declined())
				}
			}
		}
		if len(ids) != 48 {
			t.Errorf("%d generations in 48 hours, want 48", len(ids))
		}
	})
	t.Run("A45/unused for long", func(t *testing.T) {
		c := new(clock)
		k := newKeys(c.now)
		first := k.current()
		c.pass(2*period - 1)
		if k.find(first.id[:]) != first || k.current() == first {
			t.Error("want a secret that opens and no longer seals")
		}
		c.pass(1)
		if k.find(first.id[:]) != nil || k.prior != nil {
			t.Error("the secret is kept for longer than two periods")
		}
		last := k.current()
		c.pass(100 * period)
		if k.find(last.id[:]) != nil || k.current() == last {
			t.Error("a secret outlives a pause")
		}
	})
	t.Run("A45/clock set back", func(t *testing.T) {
		c := new(clock)
		c.pass(1000 * time.Hour)
		k := newKeys(c.now)
		first := k.current()
		c.pass(-10 * period)
		if k.current() != first {
			t.Error("rotated though no time has passed")
		}
	})
	t.Run("A45/real clock", func(t *testing.T) {
		k := NewKeys()
		if first := k.current(); k.Age() < 0 || k.Age() > time.Minute || k.current() != first {
			t.Errorf("new keys are %v old", k.Age())
		}
	})
}

// TestKeyPaths looks for a way past the two functions.
func TestKeyPaths(t *testing.T) {
	w := newWorld(t)
	for _, v := range versions {
		t.Run("A04/no functions/"+v.name, func(t *testing.T) {
			// Were the functions lost, crypto/tls would have no key, and give up.
			visit := w.newVisit(v.id, new(wallet))
			visit.lost = true
			if s := w.visit(visit); s.err == nil || !strings.Contains(s.err.Error(), "session ticket keys unavailable") {
				t.Errorf("%v; expected that there is no key", s.err)
			}
			// Without a parent each connection would have a key of its own.
			c := &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}}
			ticket := func(c *tls.Config) []byte {
				w.keys.Session(scopeA).Install(c)
				state, err := c.EncryptTicket(tls.ConnectionState{}, &tls.SessionState{})
				if err != nil {
					t.Fatal(err)
				}
				return state
			}
			b := ticket(c)
			again := &tls.Config{}
			ticket(again)
			for _, other := range []*tls.Config{again, {}} {
				if s, _ := other.DecryptTicket(b, tls.ConnectionState{}); s != nil {
					t.Error("a key is shared")
				}
			}
		})
		t.Run("A04/parent's ticket/"+v.name, func(t *testing.T) {
			// A ticket that a server with the library's keys gave, and its clone that was given ours.
			parent := &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}}
			parent.SetSessionTicketKeys([][32]byte{{1}})
			wal := new(wallet)
			w.visit(w.newVisit(v.id, wal)).full(t, nil)
			state, err := tls.ParseSessionState(plainOf(t, w, wal, v.id))
			if err != nil {
				t.Fatal(err)
			}
			b, err := parent.EncryptTicket(tls.ConnectionState{}, state)
			if err != nil {
				t.Fatal(err)
			}
			visit := w.newVisit(v.id, wal.with(t, b))
			visit.host = func(c *tls.Config) { c.SetSessionTicketKeys([][32]byte{{1}}) }
			s := w.visit(visit)
			if s.state.DidResume || s.err != nil || s.declined() == nil {
				t.Errorf("resumed %v, %v, declined %v; want a full handshake", s.state.DidResume, s.err, s.declined())
			}
		})
	}
}

func plainOf(t *testing.T, w *world, wal *wallet, version uint16) []byte {
	t.Helper()
	plain, err := w.keys.current().open(scopeA, tls.ConnectionState{Version: version, ServerName: "a.test"}, wal.ticket(t))
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// large makes a client certificate of about size bytes.
func large(w *world, size int) *testpki.Cert {
	value, err := asn1.Marshal(bytes.Repeat([]byte{'x'}, size))
	if err != nil {
		w.t.Fatal(err)
	}
	ext := pkix.Extension{Id: asn1.ObjectIdentifier{2, 999, 1}, Value: value}
	return w.root.Client("large", testpki.ExtraExt(ext), testpki.Lifetime(1000*time.Hour))
}

// TestLarge has chains that do not fit into a ticket.
func TestLarge(t *testing.T) {
	w := newWorld(t)
	for _, v := range versions {
		for _, c := range []struct {
			size   int
			sealed bool
		}{{1000, true}, {14500, true}, {16000, false}, {33000, false}, {64000, false}} {
			t.Run(fmt.Sprintf("B22/%s/%d", v.name, c.size), func(t *testing.T) {
				wal := new(wallet)
				visit := w.newVisit(v.id, wal)
				visit.client = large(w, c.size)
				w.visit(visit).full(t, nil)
				if c.sealed {
					if n := len(wal.ticket(t)); n > maxTicket {
						t.Errorf("ticket of %d bytes, want at most %d", n, maxTicket)
					}
					w.visit(visit).resumed(t)
					return
				}
				for range 3 { // and the stand-in, where there is one, does no harm either
					s := w.visit(visit)
					if s.err != nil || s.clientErr != nil || s.state.DidResume {
						t.Fatalf("server %v, client %v, resumed %v; want a full handshake", s.err, s.clientErr, s.state.DidResume)
					}
					if got := s.state.PeerCertificates[0].Raw; !bytes.Equal(got, visit.client.DER()) {
						t.Errorf("certificate of %d bytes, want %d", len(got), len(visit.client.DER()))
					}
				}
				if v.id == tls.VersionTLS13 && !bytes.Equal(wal.ticket(t), []byte{formatNone}) {
					t.Errorf("ticket %x, want the stand-in", wal.ticket(t))
				}
			})
		}
	}
	t.Run("B22/another entry does not fit", func(t *testing.T) {
		state, err := tls.ParseSessionState(plainOf(t, w, func() *wallet {
			wal := new(wallet)
			w.visit(w.newVisit(tls.VersionTLS13, wal)).full(t, nil)
			return wal
		}(), tls.VersionTLS13))
		if err != nil {
			t.Fatal(err)
		}
		s := w.keys.Session(scopeA)
		for size, want := range map[int]bool{10: true, maxTicket: false, 1 << 24: false} { // the last cannot be encoded
			state.Extra = [][]byte{make([]byte, size)}
			b, err := s.wrap(tls.ConnectionState{Version: tls.VersionTLS13}, state)
			if err != nil || len(b) == 0 || (b[0] == formatSealed) != want {
				t.Errorf("%d: %d bytes, %v; sealed must be %v", size, len(b), err, want)
			}
		}
	})
}

// TestLibrary holds what this package assumes of crypto/tls, where it is not seen elsewhere.
func TestLibrary(t *testing.T) {
	w := newWorld(t)
	for _, v := range versions {
		t.Run(v.name+"/an error of WrapSession ends the connection", func(t *testing.T) {
			visit := w.newVisit(v.id, new(wallet))
			visit.scope = Scope{}
			visit.host = func(c *tls.Config) {
				c.WrapSession = func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { return nil, errSize }
			}
			if s := w.visit(visit); s.err != nil {
				t.Fatalf("with tickets off: %v", s.err) // the zero scope switched them off
			}
			sc := &tls.Config{Certificates: []tls.Certificate{w.server.TLS()}, MaxVersion: v.id,
				WrapSession: func(tls.ConnectionState, *tls.SessionState) ([]byte, error) { return nil, errSize }}
			if err := pair(sc, &tls.Config{ServerName: "a.test", RootCAs: w.root.Pool(), ClientSessionCache: new(wallet)}); !errors.Is(err, errSize) {
				t.Errorf("%v; want %v: a ticket could be refused with an error now", err, errSize)
			}
		})
		t.Run(v.name+"/order", func(t *testing.T) {
			var order []string
			visit := w.newVisit(v.id, new(wallet))
			visit.host = func(c *tls.Config) {
				own := c.Certificates[0]
				c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
					order = append(order, "certificate")
					return &own, nil
				}
				c.Certificates = nil
			}
			visit.verify = func(tls.ConnectionState) error { order = append(order, "verify"); return nil }
			s := w.visit(visit)
			s.full(t, nil)
			if got := strings.Join(order, " "); got != "certificate verify" {
				t.Errorf("full: %s", got)
			}
			order = nil
			s = w.visit(visit)
			s.resumed(t)
			want := "certificate verify"
			if v.id == tls.VersionTLS13 {
				want = "verify" // whoever prepares refusals in GetCertificate has to know
			}
			if got := strings.Join(order, " "); got != want || s.unwrapped != 1 {
				t.Errorf("resumed: %s, %d tickets opened; want %s, 1", got, s.unwrapped, want)
			}
		})
		t.Run(v.name+"/Extra is not carried over", func(t *testing.T) {
			visit := w.newVisit(v.id, new(wallet))
			for range 3 {
				w.visit(visit)
			}
			state, err := tls.ParseSessionState(plainOf(t, w, visit.cache.(*wallet), v.id))
			if err != nil || len(state.Extra) != 1 {
				t.Errorf("%v, %d entries, want 1", err, len(state.Extra))
			}
		})
		t.Run(v.name+"/CA no longer in ClientCAs", func(t *testing.T) {
			// In our modes ClientCAs are hints: nothing but VerifyConnection stands between.
			visit := w.newVisit(v.id, new(wallet))
			visit.host = func(c *tls.Config) { c.ClientCAs = w.root.Pool() }
			w.visit(visit).full(t, nil)
			visit.host = func(c *tls.Config) { c.ClientCAs = x509.NewCertPool() }
			w.visit(visit).resumed(t)
			// Where the library verifies, it does not resume.
			visit.auth = tls.VerifyClientCertIfGiven
			if s := w.visit(visit); s.err == nil || s.state.DidResume {
				t.Errorf("%v, resumed %v; want a full handshake that fails", s.err, s.state.DidResume)
			}
		})
	}
}

// pair runs a handshake and returns the server's error.
func pair(server, client *tls.Config) error {
	w := make(chan error, 1)
	sc, cc := memnet.Pipe("192.0.2.80:443", "192.0.2.7:1111")
	go func() {
		tc := tls.Server(sc, server)
		w <- tc.Handshake()
		_ = tc.Close()
	}()
	tc := tls.Client(cc, client)
	_ = tc.Handshake()
	err := <-w
	_ = tc.Close()
	return err
}

// TestManyAtOnce is for the race detector: handshakes while the secrets rotate.
func TestManyAtOnce(t *testing.T) {
	w := newWorld(t)
	var group sync.WaitGroup
	for i := range 50 {
		group.Go(func() {
			v := w.newVisit(versions[i%2].id, new(wallet))
			v.scope = ScopeOf(strconv.Itoa(i % 7))
			for range 6 {
				if s := w.visit(v); s.err != nil || s.clientErr != nil {
					t.Errorf("server %v, client %v", s.err, s.clientErr)
				}
				w.clock.pass(2 * time.Minute)
				w.keys.Age()
			}
		})
	}
	group.Wait()
	if w.keys.Age() >= period {
		t.Errorf("secret is %v old", w.keys.Age())
	}
}

// FuzzUnwrap opens whatever comes. The first byte chooses how much of a ticket is ours.
func FuzzUnwrap(f *testing.F) {
	w := newWorld(f)
	wal := new(wallet)
	w.visit(w.newVisit(tls.VersionTLS13, wal)).full(f, nil)
	own := wal.ticket(f)
	cs := tls.ConnectionState{Version: tls.VersionTLS13, ServerName: "a.test"}
	plain, err := w.keys.current().open(scopeA, cs, own)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(byte(0), own)
	f.Add(byte(0), []byte{})
	f.Add(byte(0), []byte{formatNone})
	f.Add(byte(1), own[headerSize:])
	f.Add(byte(2), plain)
	f.Add(byte(3), []byte(mark))
	f.Fuzz(func(t *testing.T, how byte, b []byte) {
		s := w.keys.Session(scopeA)
		switch g := w.keys.current(); how {
		case 1: // with a header of ours
			b = append(append([]byte{formatSealed}, g.id[:]...), b...)
		case 2: // content that was sealed
			b = g.seal(scopeA, cs, b)
		case 3: // an entry of ours in a session
			state, err := tls.ParseSessionState(plain)
			if err != nil {
				t.Fatal(err)
			}
			state.Extra = [][]byte{b}
			again, err := state.Bytes()
			if err != nil {
				t.Skip()
			}
			b = g.seal(scopeA, cs, again)
		}
		state, err := s.unwrap(b, cs)
		if err != nil {
			t.Fatalf("error %v would end the connection", err)
		}
		if (state != nil) != (s.opened != nil) || state != nil && s.declined != nil || state == nil && s.declined == nil && len(b) > 0 {
			t.Fatalf("state %v, opened %v, declined %v", state, s.opened, s.declined)
		}
		if state != nil && how < 2 && !bytes.Equal(b, own) {
			t.Fatal("a ticket that we did not seal was opened")
		}
	})
}

func BenchmarkTicket(b *testing.B) {
	w := newWorld(b)
	wal := new(wallet)
	w.visit(w.newVisit(tls.VersionTLS13, wal)).full(b, nil)
	own := wal.ticket(b)
	cs := tls.ConnectionState{Version: tls.VersionTLS13, ServerName: "a.test"}
	state, err := w.keys.Session(scopeA).unwrap(own, cs)
	if state == nil {
		b.Fatal(err)
	}
	held := w.keys.current()
	cs.PeerCertificates = w.alice.Presented()
	b.Run("wrap", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			state.Extra = nil
			if t, _ := w.keys.Session(scopeA).wrap(cs, state); len(t) < overhead {
				b.Fatal("not sealed")
			}
		}
	})
	b.Run("unwrap", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if s, _ := w.keys.Session(scopeA).unwrap(own, cs); s == nil {
				b.Fatal("not opened")
			}
		}
	})
	foreign := bytes.Clone(own)
	foreign[3] ^= 1
	long := append(bytes.Clone(own), make([]byte, maxTicket-len(own))...)
	for name, t := range map[string][]byte{"other generation": foreign, "forged, longest": long} {
		b.Run("refuse/"+name, func(b *testing.B) {
			for b.Loop() {
				if s, _ := w.keys.Session(scopeA).unwrap(t, cs); s != nil {
					b.Fatal("opened")
				}
			}
		})
	}
	b.Run("key of a scope", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			held.aead(scopeA)
		}
	})
	b.Run("install", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w.keys.Session(scopeA).Install(new(tls.Config))
		}
	})
	for _, v := range versions {
		for _, kind := range []string{"full", "resumed"} {
			b.Run("handshake/"+v.name+"/"+kind, func(b *testing.B) {
				visit := w.newVisit(v.id, new(wallet))
				w.visit(visit)
				for b.Loop() {
					if kind == "full" {
						visit.cache = new(wallet)
					}
					if s := w.visit(visit); s.err != nil || s.state.DidResume != (kind == "resumed") {
						b.Fatal(s.err, s.state.DidResume)
					}
				}
			})
		}
	}
}
