package identity

import (
	"crypto/x509"
	"fmt"
	"strings"
	"testing"

	"countersign/internal/message"
	"countersign/internal/reason"
)

func TestNewStyle(t *testing.T) {
	alb := func(key, name string) Options {
		return Options{Dialects: []Dialect{ALB}, Rename: map[string]string{key: name}}
	}
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"unknown dialect", Options{Dialects: []Dialect{99}}, "dialect(99) is not an identity dialect"},
		{"no dialect", Options{Dialects: []Dialect{0}}, "dialect(0) is not an identity dialect"},
		{"D04/dialect twice", Options{Dialects: []Dialect{ALB, XFCC, ALB}}, "identity dialect alb is named twice"},
		{"chain nowhere", Options{Dialects: []Dialect{ALB}, Chain: true}, "the chain needs one of the identity dialects [rfc9440 xfcc traefik gcp]"},
		{"xfcc option nowhere", Options{XFCCAppend: true}, "an option of xfcc needs one of the identity dialects [xfcc]"},
		{"rename nowhere", Options{Dialects: []Dialect{XFCC}, Rename: map[string]string{"leaf": "A"}}, "renaming headers needs one of the identity dialects [alb]"},
		{"unknown header", alb("sha256", "A"), "there is no such header; there are serial_number, issuer, subject, validity, leaf, clientcert"},
		{"empty", alb("leaf", ""), "the name is empty"},
		{"D03/underscore", alb("leaf", "X_Leaf"), "underscore"},
		{"D07/CR LF", alb("leaf", "X-Leaf: a\r\nX-Admin"), "RFC 9110"},
		{"D07/space", alb("leaf", "X Leaf"), "RFC 9110"},
		{"D07/colon", alb("leaf", "X-Leaf:"), "RFC 9110"},
		{"D07/non-ASCII", alb("leaf", "X-Läaf"), "RFC 9110"},
		{"D07/NUL", alb("leaf", "X\x00"), "RFC 9110"},
		{"long", alb("leaf", strings.Repeat("a", 129)), "longer than 128"},
		{"nothing but punctuation", alb("leaf", "--.-"), "no letter or digit"},
		{"D04/twice", Options{Dialects: []Dialect{ALB}, Rename: map[string]string{"leaf": "X-Who", "subject": "x.WHO"}}, "rename subject to \"x.WHO\": another header has that name"},
		{"D04/another of ALB's", alb("leaf", "x-amzn-mtls-clientcert-subject"), "that is a header of identity dialect alb"},
		{"A39/another dialect's", alb("clientcert", "Client-Cert"), "that is a header of identity dialect rfc9440"},
		{"A39/another dialect's, folded", alb("clientcert", "x.forwarded.client.cert"), "that is a header of identity dialect xfcc"},
		{"host", alb("leaf", "HOST"), "a meaning of its own"},
		{"framing", alb("leaf", "Content-Length"), "a meaning of its own"},
		{"framing, folded", alb("leaf", "Transfer.Encoding"), "a meaning of its own"},
		{"D15/origin", alb("leaf", "X-Forwarded-For"), "a meaning of its own"},
		{"authorization", alb("leaf", "authorization"), "a meaning of its own"},
		{"D16/httpoxy", alb("leaf", "Proxy"), "a meaning of its own"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := NewStyle(c.o)
			if s != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
	t.Run("all that is wrong at once", func(t *testing.T) {
		_, err := NewStyle(Options{Dialects: []Dialect{99, RFC9440, RFC9440}, Rename: map[string]string{"leaf": "Host", "x": "y"}})
		if n := strings.Count(fmt.Sprint(err), "\n") + 1; n != 5 {
			t.Errorf("%d lines: %v", n, err)
		}
	})
}

func TestRename(t *testing.T) {
	s := styleOf(t, Options{Dialects: []Dialect{ALB}, Rename: map[string]string{
		"serial_number": "x-USER-serial", "leaf": "X.User.Leaf", "clientcert": "X-User-Chain", "issuer": "X-Amzn-Mtls-Clientcert-Issuer",
	}})
	leaf := golden(t)
	out, _, err := s.Append(nil, client(t, leaf), ForwardedCerts{})
	if err != nil {
		t.Fatal(err)
	}
	names, _ := lines(t, out)
	if want := "x-USER-serial X-Amzn-Mtls-Clientcert-Issuer X-Amzn-Mtls-Clientcert-Subject X-Amzn-Mtls-Clientcert-Validity X.User.Leaf"; strings.Join(names, " ") != want {
		t.Errorf("got %q", names)
	}
	if out, _, _ = s.Append(nil, PassthroughChain([]*x509.Certificate{leaf}), ForwardedCerts{}); string(out) != "X-User-Chain: "+goldenLeaf+"\r\n" {
		t.Errorf("D09: passthrough sent %q", out)
	}
	for _, name := range []string{"x-USER-serial", "X.User.Leaf", "X-User-Chain", "X-Amzn-Mtls-Clientcert-Leaf", "Client-Cert", "X-SSL-Client-Verify"} {
		for how, spelling := range spellings(name) {
			t.Run(how+"/"+name, func(t *testing.T) {
				if !guard(s).Protected([]byte(spelling)) {
					t.Errorf("%q passes", spelling)
				}
			})
		}
	}
	for _, name := range append([]string{"X-User", "X-User-Serial-2", "X-User-Lea"}, ordinary...) {
		for _, s := range []*Style{s, {}, nil} {
			if guard(s).Protected([]byte(name)) {
				t.Errorf("%q is removed", name)
			}
		}
	}
	all := append(fields(), []byte("x-user-leaf"), []byte("X-User-Other"))
	g := guard(s)
	if n := testing.AllocsPerRun(100, func() {
		for _, name := range all {
			g.Protected(name)
		}
	}); n != 0 {
		t.Errorf("Protected: %v allocations", n)
	}
}

// TestSize walks chains and leaves over the cap: the chain goes first, then everything, and no value is cut.
func TestSize(t *testing.T) {
	name := rawName([]attr{utf8Attr(oidCN, "big")})
	small := parse(t, certDER(t, name, 0))
	for d := RFC9440; d < dialects; d++ {
		for _, kib := range []int{0, 3, 7, 15, 60} {
			for _, ofLeaf := range []bool{false, true} {
				t.Run(fmt.Sprintf("D11/%s/%d KiB/leaf %v", d, kib, ofLeaf), func(t *testing.T) {
					big := parse(t, certDER(t, name, kib<<10))
					leaf, middle := small, big
					if ofLeaf {
						leaf, middle = big, small
					}
					id, err := FromChain([]*x509.Certificate{leaf, middle, small})
					if err != nil {
						t.Fatal(err)
					}
					style := whole(t, d)
					dst := []byte("Host: a\r\n")
					out, dropped, err := style.Append(dst, Present(id), ForwardedCerts{})
					if err != nil {
						if reasonOf(err) != reason.IdentityTooLarge || string(out) != string(dst) || dropped || !strings.Contains(err.Error(), "16384") {
							t.Errorf("got %q, %v, %v", out, dropped, err)
						}
						if !ofLeaf || kib < 7 {
							t.Errorf("refused: %v", err)
						}
						return
					}
					if len(out)-len(dst) > MaxHeaders {
						t.Errorf("%d bytes", len(out)-len(dst))
					}
					if ofLeaf && kib >= 15 && d != PSD2Headers { // which carries no certificate
						t.Error("not refused")
					}
					s := &specimen{leaf: leaf, chain: []*x509.Certificate{middle}, subject: [][]av{{{"CN", "big"}}}}
					_, values := lines(t, out[len(dst):])
					if !dropped {
						if d == Traefik { // it reads alternative names, which these have none of
							return
						}
						if err := checks[d](s, values); err != nil {
							t.Error(err)
						}
						return
					}
					if kib < 7 {
						t.Error("the chain was left out without need")
					}
					if d == GCP && values["X-Client-Cert-Error"] != "client_cert_validated_chain_exceeded_size_limit" {
						t.Errorf("error: %q", values["X-Client-Cert-Error"])
					}
					if without, _, err := styleOf(t, Options{Dialects: []Dialect{d}, XFCCCert: d == XFCC}).Append(dst, Present(id), ForwardedCerts{}); err != nil || d != GCP && string(out) != string(without) {
						t.Errorf("got %q, want %q, %v", out, without, err)
					}
				})
			}
		}
	}
	t.Run("D11/passthrough chain", func(t *testing.T) {
		s := styleOf(t, Options{Dialects: []Dialect{ALB}})
		big := parse(t, certDER(t, name, 7<<10))
		if out, _, err := s.Append(nil, PassthroughChain([]*x509.Certificate{big, big}), ForwardedCerts{}); reasonOf(err) != reason.IdentityTooLarge || len(out) > 0 {
			t.Errorf("got %d bytes, %v", len(out), err)
		}
	})
}

func fieldsOf(pairs ...string) (fields []message.Field) {
	for i := 0; i < len(pairs); i += 2 {
		fields = append(fields, message.Field{Name: []byte(pairs[i]), Value: []byte(pairs[i+1])})
	}
	return fields
}

func TestXFCCAppend(t *testing.T) {
	const header = "X-Forwarded-Client-Cert"
	const theirs = `By=spiffe://a;Hash=00;Subject="CN=a\,b"`
	prior, err := ParseForwardedCerts(fieldsOf("Host", "a", header, theirs))
	if err != nil {
		t.Fatal(err)
	}
	c := client(t, golden(t))
	for _, test := range []struct {
		name     string
		appends  bool
		prior    ForwardedCerts
		elements int
	}{
		{"D04/set, nothing before", false, ForwardedCerts{}, 1},
		{"D04/set, whatever was before", false, prior, 1},
		{"D04/append, nothing before", true, ForwardedCerts{}, 1},
		{"D04/append", true, prior, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			out, _, err := styleOf(t, Options{Dialects: []Dialect{XFCC}, XFCCAppend: test.appends}).Append(nil, c, test.prior)
			if err != nil {
				t.Fatal(err)
			}
			_, values := lines(t, out)
			elements, err := xfcc(values[header], false)
			if err != nil || len(elements) != test.elements {
				t.Fatalf("%s: %v, %v", values[header], elements, err)
			}
			if test.elements == 2 && !strings.HasPrefix(values[header], theirs+",Hash=") {
				t.Errorf("got %s", values[header])
			}
			if last := elements[len(elements)-1]; last[0].name != "Hash" || len(last[0].text) != 64 {
				t.Errorf("ours is not the last: %v", last)
			}
		})
	}
	t.Run("D11/over the cap", func(t *testing.T) {
		prior, err := ParseForwardedCerts(fieldsOf(header, "URI="+strings.Repeat("a", MaxHeaders-10)))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := styleOf(t, Options{Dialects: []Dialect{XFCC}, XFCCAppend: true}).Append(nil, c, prior); reasonOf(err) != reason.IdentityTooLarge {
			t.Errorf("got %v", err)
		}
	})
}

// TestAppendIsPure renders from many goroutines: an upgrade, a retry or another connection gets the same bytes, whatever is
// rendered beside it.
func TestAppendIsPure(t *testing.T) {
	style := styleOf(t, Options{Dialects: []Dialect{RFC9440, ALB, XFCC, XSSLClient, Traefik, GCP}})
	for _, s := range hostileSpecimens(t)[:20] {
		want, _, err := style.Append(nil, s.client, ForwardedCerts{})
		if err != nil {
			continue // over the cap
		}
		t.Run("D12/"+s.text, func(t *testing.T) {
			t.Parallel()
			for range 20 {
				if got, _, err := style.Append([]byte("x"), s.client, ForwardedCerts{}); err != nil || string(got) != "x"+string(want) {
					t.Fatalf("got %q, %v, want %q", got, err, want)
				}
			}
		})
	}
}

// TestRendered: what is kept of a rendering is for the very style and identity it is of, and is what that renders.
func TestRendered(t *testing.T) {
	fresh := func(cn string, padding int) Client {
		return client(t, parse(t, certDER(t, rawName([]attr{utf8Attr(oidCN, cn)}), padding)))
	}
	prior, err := ParseForwardedCerts(fieldsOf("Host", "a", "X-Forwarded-Client-Cert", "Hash=00"))
	if err != nil {
		t.Fatal(err)
	}
	var styles []*Style
	for _, o := range []Options{{Dialects: []Dialect{XSSLClient}}, {Dialects: []Dialect{XSSLClient, ALB}}, {Dialects: []Dialect{ALB}, Rename: map[string]string{ALBAttributes()[0]: "X-Serial"}},
		{Dialects: []Dialect{XFCC}}, {Dialects: []Dialect{XFCC}, XFCCAppend: true}} {
		styles = append(styles, styleOf(t, o))
	}
	alice, bob := fresh("alice", 600), fresh("bob", 600)
	for round := range 3 {
		for i, s := range styles {
			for _, who := range []struct {
				cn string
				c  Client
			}{{"alice", alice}, {"bob", bob}} {
				for _, before := range []ForwardedCerts{prior, {}, prior} {
					want, _, err := s.Append([]byte("x"), fresh(who.cn, 600), before)
					if err != nil {
						t.Fatal(err)
					}
					if got, _, err := s.Append([]byte("x"), who.c, before); err != nil || string(got) != string(want) {
						t.Errorf("D12: round %d, style %d, %s: %q, %v; expected %q", round, i, who.cn, got, err, want)
					}
				}
			}
		}
	}
	if r := alice.id.lines.Load(); r == nil || r.style != styles[3] {
		t.Errorf("kept %v; expected what was rendered last, but for styles that add to the words of others", r)
	}
	// Another style of the same options finds it, and one that differs in anything does not.
	kept := func(o Options) bool {
		s, before := styleOf(t, o), alice.id.lines.Load()
		if _, _, err := s.Append(nil, alice, ForwardedCerts{}); err != nil {
			t.Fatal(err)
		}
		return alice.id.lines.Load() == before
	}
	if !kept(Options{Dialects: []Dialect{XFCC}}) {
		t.Error("rendered again for a style of the same options")
	}
	for _, pair := range [][2]Options{
		{{Dialects: []Dialect{XFCC}}, {Dialects: []Dialect{XFCC}, Chain: true}},
		{{Dialects: []Dialect{XFCC}}, {Dialects: []Dialect{XFCC}, XFCCCert: true}},
		{{Dialects: []Dialect{ALB, XFCC}}, {Dialects: []Dialect{XFCC, ALB}}},
		{{Dialects: []Dialect{ALB}}, {Dialects: []Dialect{ALB}, Rename: map[string]string{ALBAttributes()[0]: "X-Serial"}}},
	} {
		kept(pair[0])
		kept(pair[0])
		if kept(pair[1]) {
			t.Errorf("what was rendered for %+v is taken for %+v", pair[0], pair[1])
		}
	}
	once := fresh("carol", 300)
	for i := range 3 {
		if _, _, err := styles[0].Append(nil, once, ForwardedCerts{}); err != nil {
			t.Fatal(err)
		}
		if r := once.id.lines.Load(); (r.text != "") != (i > 0) {
			t.Errorf("rendered %d times: %q is kept", i+1, r.text)
		}
	}
	if out, _, _ := styles[0].Append(nil, Absent(reason.Unset), ForwardedCerts{}); strings.Contains(string(out), "alice") {
		t.Errorf("of nobody: %q", out)
	}
	// What is kept is bounded by the certificate: a long name and all dialects are not.
	long := fresh(strings.Repeat("a", 400), 0)
	all := styleOf(t, Options{Dialects: []Dialect{RFC9440, ALB, XFCC, XSSLClient, Traefik, GCP}})
	_, _, _ = all.Append(nil, long, ForwardedCerts{})
	if out, _, err := all.Append(nil, long, ForwardedCerts{}); err != nil || len(out) <= keepsLines*len(long.id.Leaf().Raw) || long.id.lines.Load() != nil {
		t.Errorf("F13: %d bytes of headers of a certificate of %d are kept: %v", len(out), len(long.id.Leaf().Raw), err)
	}
}

// guard is what protects the headers of one style.
func guard(s *Style) *Guard {
	if s == nil {
		return nil
	}
	return NewGuard([]*Style{s})
}
