package origin

import (
	"bytes"
	"net"
	"net/netip"
	"strings"
	"testing"

	"countersign/internal/message"
	"countersign/internal/reason"
)

func ap(s string) netip.AddrPort {
	if a, err := netip.ParseAddrPort(s); err == nil {
		return a
	}
	return netip.AddrPortFrom(netip.MustParseAddr(s), 0)
}

func fields(lines ...string) []message.Field {
	var out []message.Field
	for _, l := range lines {
		name, value, _ := strings.Cut(l, ": ")
		out = append(out, message.Field{Name: []byte(name), Value: []byte(value)})
	}
	return out
}

var proxies = Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:1::/48")}}

// render reads lines that come from an address, and returns what a target would be told.
func render(t *testing.T, f *Forwarding, remote string, lines ...string) string {
	t.Helper()
	in := new(Incoming)
	if why := f.Read(in, fields(lines...), ap(remote)); why != reason.Unset {
		t.Fatalf("refused: %s", why)
	}
	got := string(f.Append(nil, in, &Hop{Client: ap(remote), Local: ap("10.9.9.9:8443"), Secure: true, Host: []byte("a.test:8443")}))
	return strings.TrimSuffix(strings.ReplaceAll(strings.ReplaceAll(got, "X-Forwarded-", ""), "\r\n", " | "), " | ")
}

func TestForwardedRefuses(t *testing.T) {
	many := strings.Repeat("192.0.2.1, ", 30)
	elements := strings.Repeat("for=192.0.2.1, ", 30)
	add := &Forwarding{Mode: Append, Trusted: proxies, RFC7239: true}
	for _, row := range []struct {
		name  string
		f     *Forwarding
		lines []string
		why   reason.Reason
	}{
		{"31 addresses", add, []string{"X-Forwarded-For: " + many + "192.0.2.2"}, reason.TooManyForwarded},
		{"31 addresses in two lines", add, []string{"x-forwarded-for: " + many, "X-FORWARDED-FOR: 192.0.2.2"}, reason.TooManyForwarded},
		{"31 that are no addresses", add, []string{"X-Forwarded-For: " + strings.Repeat("x,", 31)}, reason.TooManyForwarded},
		{"31 elements", add, []string{"Forwarded: " + elements, "Forwarded: for=192.0.2.2"}, reason.TooManyForwarded},
		{"31 addresses, replaced", &Forwarding{Trusted: proxies, Client: ByForwardedFor}, []string{"X-Forwarded-For: " + many + "192.0.2.2"}, reason.TooManyForwarded},
		{"open quote", add, []string{`Forwarded: for="192.0.2.1, for=192.0.2.2`}, reason.BadHeader},
		{"backslash", add, []string{`Forwarded: for="192.0.2.1\", for=192.0.2.2"`}, reason.BadHeader},
		{"backslash in the middle", add, []string{`Forwarded: by="a\b"`}, reason.BadHeader},
		{"space between pairs", add, []string{"Forwarded: proto=http by=x"}, reason.BadHeader},
		{"no value", add, []string{"Forwarded: for="}, reason.BadHeader},
		{"no name", add, []string{"Forwarded: =192.0.2.1"}, reason.BadHeader},
		{"no equals sign", add, []string{"Forwarded: 192.0.2.1"}, reason.BadHeader},
		{"for twice", add, []string{"Forwarded: for=192.0.2.1;FOR=192.0.2.2"}, reason.BadHeader},
		{"IPv6 without quotes", add, []string{"Forwarded: for=[2001:db8::1]"}, reason.BadHeader},
		{"two values", add, []string{`Forwarded: for="192.0.2.1""192.0.2.2"`}, reason.BadHeader},
		{"space in the middle", add, []string{"Forwarded: for=192.0.2.1 for=192.0.2.2"}, reason.BadHeader},
		{"beyond ASCII", add, []string{"Forwarded: host=\"\xc3\xa9\""}, reason.BadHeader},
	} {
		t.Run(row.name, func(t *testing.T) {
			in := new(Incoming)
			if why := row.f.Read(in, fields(row.lines...), ap("10.0.0.1:1")); why != row.why {
				t.Errorf("%s, expected %s", why, row.why)
			}
			if why := row.f.Read(in, fields(row.lines...), ap("192.0.2.9:1")); why != reason.Unset {
				t.Errorf("of who is not trusted nothing is read, and yet %s", why)
			}
		})
	}
}

// TestForwardedMost: the longest lists that are read.
func TestForwardedMost(t *testing.T) {
	f := &Forwarding{Mode: Append, Trusted: proxies, RFC7239: true}
	in := new(Incoming)
	why := f.Read(in, fields("X-Forwarded-For: "+strings.Repeat("192.0.2.1,", MaxHops), "Forwarded: "+strings.Repeat("for=192.0.2.1;,", MaxHops)), ap("10.0.0.1:1"))
	if why != reason.Unset || in.n != MaxHops || in.m != MaxHops {
		t.Errorf("%s, %d and %d elements", why, in.n, in.m)
	}
}

func TestNetworks(t *testing.T) {
	for addr, want := range map[string]bool{"10.0.0.1": true, "::ffff:10.0.0.1": true, "::ffff:11.0.0.1": false, "::a00:1": false, "2001:db8:1::1%eth0": true, "2001:db8:2::1": false, "11.0.0.1": false} {
		if proxies.Contains(netip.MustParseAddr(addr)) != want {
			t.Errorf("D15/%s: listed is %v", addr, !want)
		}
	}
	if proxies.Contains(netip.Addr{}) || new(Networks).Contains(netip.MustParseAddr("10.0.0.1")) {
		t.Error("an address that is not listed")
	}
	for addr, want := range map[string]string{"192.0.2.1:80": "192.0.2.1:80", "[2001:db8::1]:80": "[2001:db8::1]:80", "192.0.2.1:0": "192.0.2.1"} {
		if got := Text(netip.MustParseAddrPort(addr)); got != want {
			t.Errorf("%s is written %s", addr, got)
		}
	}
	if Text(netip.AddrPort{}) != "unix" {
		t.Error(Text(netip.AddrPort{}))
	}
}

// TestForwardedSpoofed: what who is not trusted says changes nothing, in any mode (D15).
func TestForwardedSpoofed(t *testing.T) {
	lines := []string{"X-Forwarded-For: 1.1.1.1", "X-Forwarded-Proto: http", "X-Forwarded-Port: 1", "X-Forwarded-Host: evil.test", "Forwarded: for=1.1.1.1;host=evil.test",
		"x-forwarded-for: 2.2.2.2, 10.0.0.1", "X-FORWARDED-HOST: evil.test"}
	for _, remote := range []string{"192.0.2.9:7", "[::ffff:192.0.2.9]:7", "11.0.0.1:7", "[2001:db8:2::1]:7"} {
		for _, mode := range []Mode{Replace, Append, Preserve} {
			for _, client := range []Basis{ByPeer, ByForwardedFor, ByForwarded} {
				t.Run("D15/from "+remote, func(t *testing.T) {
					f := &Forwarding{Mode: mode, Trusted: proxies, Client: client, RFC7239: true}
					remote := plain(ap(remote)).String()
					for _, n := range [...]int{0, 1, len(lines)} {
						addr := ap(remote).Addr().String()
						node := addr
						if strings.Contains(addr, ":") {
							node = `"[` + addr + `]"`
						}
						want := "For: " + addr + " | Proto: https | Port: 8443 | Host: a.test:8443 | Forwarded: for=" + node + `;host="a.test:8443";proto=https`
						if got := render(t, f, remote, lines[:n]...); got != want {
							t.Errorf("mode %d:\n%s\nexpected\n%s", mode, got, want)
						}
						in := new(Incoming)
						f.Read(in, fields(lines[:n]...), ap(remote))
						if in.Client() != ap(remote) {
							t.Errorf("client %s, expected %s", in.Client(), remote)
						}
					}
				})
			}
		}
	}
}

func TestForwardedFromTrusted(t *testing.T) {
	const proxy = "10.0.0.1:555"
	for _, row := range []struct {
		name  string
		f     Forwarding
		from  string
		lines []string
		want  string
	}{
		{"replace", Forwarding{}, proxy, []string{"X-Forwarded-For: 192.0.2.1"}, "For: 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443"},
		{"replace, with ports", Forwarding{Port: true, RFC7239: true}, "[2001:db8:1::1]:555", nil,
			`For: [2001:db8:1::1]:555 | Proto: https | Port: 8443 | Host: a.test:8443 | Forwarded: for="[2001:db8:1::1]:555";host="a.test:8443";proto=https`},
		{"append to nothing", Forwarding{Mode: Append}, proxy, nil, "For: 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443"},
		{"append", Forwarding{Mode: Append}, proxy, []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: b.test", "X-Forwarded-Port: 80"},
			"For: 192.0.2.1, 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443"},
		{"D15/append from a trusted address in IPv6 form", Forwarding{Mode: Append}, "[::ffff:10.0.0.1]:555", []string{"X-Forwarded-For: 192.0.2.1"},
			"For: 192.0.2.1, 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443"},
		{"append to several lines", Forwarding{Mode: Append, Port: true}, proxy, []string{"X-Forwarded-For: 192.0.2.1, 2001:db8::1", "x-forwarded-for: ,, [2001:db8::2]:80 ,192.0.2.3:99"},
			"For: 192.0.2.1, 2001:db8::1, [2001:db8::2]:80, 192.0.2.3:99, 10.0.0.1:555 | Proto: https | Port: 8443 | Host: a.test:8443"},
		{"hostile elements", Forwarding{Mode: Append}, proxy, []string{`X-Forwarded-For: unknown, _hidden.1, <script>, " , 1.2.3, 1.2.3.4:, 1.2.3.4:70000, 01.2.3.4, ::1%lo, [1.2.3.4]:80, [::1, [::1]x, [::1]:, 127.1, _, _<, ` + strings.Repeat("a", 4000)},
			"For: unknown, _hidden.1, " + strings.Repeat("unknown, ", 15) + "10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443"},
		{"append to Forwarded", Forwarding{Mode: Append, RFC7239: true}, proxy, []string{`Forwarded: for=192.0.2.1;proto=http, For="[2001:db8::1]:80" ; by=_x`, "forwarded: ,;host=x"},
			`For: 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443 | Forwarded: for=192.0.2.1;proto=http, For="[2001:db8::1]:80" ; by=_x, host=x, for=10.0.0.1;host="a.test:8443";proto=https`},
		{"Forwarded where it is not wanted", Forwarding{Mode: Append}, proxy, []string{`Forwarded: for="`}, "For: 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443"},
		{"preserve nothing", Forwarding{Mode: Preserve, RFC7239: true}, proxy, nil,
			`For: 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443 | Forwarded: for=10.0.0.1;host="a.test:8443";proto=https`},
		{"preserve", Forwarding{Mode: Preserve, RFC7239: true}, proxy, []string{"X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: b.test", "X-Forwarded-Port: 80", "Forwarded: for=192.0.2.1"},
			"For: 192.0.2.1 | Proto: http | Port: 80 | Host: b.test | Forwarded: for=192.0.2.1"},
		{"preserve what is no good", Forwarding{Mode: Preserve}, proxy, []string{"X-Forwarded-Proto: gopher", "X-Forwarded-Host: b.test/x", "X-Forwarded-Port: 99999"},
			"For: 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443"},
		{"preserve what is there twice", Forwarding{Mode: Preserve}, proxy, []string{"X-Forwarded-Proto: http", "X-Forwarded-Proto: https", "X-Forwarded-Host: b.test", "X-Forwarded-Host: b.test", "X-Forwarded-Port: 80", "X-Forwarded-Port: 80", "X-Forwarded-Port: 80"},
			"For: 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443"},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.f.Trusted = proxies
			if got := render(t, &row.f, plain(ap(row.from)).String(), row.lines...); got != row.want {
				t.Errorf("%s\nexpected\n%s", got, row.want)
			}
		})
	}
	t.Run("nil", func(t *testing.T) {
		if got := render(t, nil, proxy, "X-Forwarded-For: 1.1.1.1"); got != "For: 10.0.0.1 | Proto: https | Port: 8443 | Host: a.test:8443" {
			t.Error(got)
		}
		var f *Forwarding
		got := string(f.Append(nil, nil, &Hop{Client: ap(proxy)}))
		if got != "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: http\r\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("Unix socket", func(t *testing.T) {
		f := &Forwarding{Mode: Append, Trusted: Networks{Unix: true}, RFC7239: true, Port: true}
		in := new(Incoming)
		f.Read(in, fields("X-Forwarded-For: 192.0.2.1"), netip.AddrPort{})
		if got := string(f.Append(nil, in, &Hop{})); got != "X-Forwarded-For: 192.0.2.1, unknown\r\nX-Forwarded-Proto: http\r\nForwarded: for=unknown;proto=http\r\n" {
			t.Errorf("%q", got)
		}
	})
}

func TestClientAddress(t *testing.T) {
	const proxy = "10.0.0.1:555"
	for _, row := range []struct {
		name   string
		client Basis
		lines  []string
		want   string
	}{
		{"by peer", ByPeer, []string{"X-Forwarded-For: 192.0.2.1"}, proxy},
		{"no header", ByForwardedFor, nil, proxy},
		{"the other header", ByForwardedFor, []string{"Forwarded: for=192.0.2.1"}, proxy},
		{"the other header", ByForwarded, []string{"X-Forwarded-For: 192.0.2.1"}, proxy},
		{"D15/the client's own words", ByForwardedFor, []string{"X-Forwarded-For: 1.1.1.1, 192.0.2.1"}, "192.0.2.1"},
		{"D15/a trusted address in the client's own words", ByForwardedFor, []string{"X-Forwarded-For: 10.0.0.5, 192.0.2.1"}, "192.0.2.1"},
		{"D15/two lines", ByForwardedFor, []string{"X-Forwarded-For: 1.1.1.1", "X-Forwarded-For: 192.0.2.1:80"}, "192.0.2.1:80"},
		{"two proxies", ByForwardedFor, []string{"X-Forwarded-For: 1.1.1.1, 192.0.2.1, 10.0.0.3, ::ffff:10.0.0.2"}, "192.0.2.1"},
		{"proxies only", ByForwardedFor, []string{"X-Forwarded-For: 10.0.0.4, 10.0.0.3"}, "10.0.0.4"},
		{"behind what is no address", ByForwardedFor, []string{"X-Forwarded-For: 192.0.2.1, unknown, 10.0.0.3"}, "10.0.0.3"},
		{"no address at all", ByForwardedFor, []string{"X-Forwarded-For: 192.0.2.1, x"}, proxy},
		{"IPv6", ByForwardedFor, []string{"X-Forwarded-For: 2001:db8::1"}, "2001:db8::1"},
		{"Forwarded", ByForwarded, []string{`Forwarded: for=1.1.1.1, for="[2001:db8::1]:80";proto=http, for=10.0.0.3`}, "[2001:db8::1]:80"},
		{"Forwarded with a comma in quotes", ByForwarded, []string{`Forwarded: for=1.1.1.1;by="x, for=10.0.0.2", for=192.0.2.1`}, "192.0.2.1"},
		{"Forwarded, obfuscated", ByForwarded, []string{`Forwarded: for=192.0.2.1, for=_secret, for=10.0.0.3`}, "10.0.0.3"},
		{"Forwarded without for", ByForwarded, []string{`Forwarded: for=192.0.2.1, proto=http`}, proxy},
		{"Forwarded with IPv6 without brackets", ByForwarded, []string{`Forwarded: for="2001:db8::1"`}, proxy},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := &Forwarding{Trusted: proxies, Client: row.client}
			in := new(Incoming)
			if why := f.Read(in, fields(row.lines...), ap(proxy)); why != reason.Unset || in.Client() != ap(row.want) {
				t.Errorf("client %s, reason %s; expected %s", in.Client(), why, row.want)
			}
		})
	}
}

func TestForwardedAllocations(t *testing.T) {
	f := &Forwarding{Mode: Append, Trusted: proxies, Client: ByForwardedFor, RFC7239: true}
	list := fields("Accept: */*", "X-Forwarded-For: 192.0.2.1, 10.0.0.2", "Forwarded: for=192.0.2.1;proto=http", "X-Forwarded-Proto: http")
	in, dst, hop := new(Incoming), make([]byte, 0, 512), &Hop{Client: ap("10.0.0.1:5"), Local: ap("10.9.9.9:8443"), Host: []byte("a.test")}
	if n := testing.AllocsPerRun(100, func() {
		if f.Read(in, list, hop.Client) != reason.Unset {
			t.Fatal("refused")
		}
		dst = f.Append(dst[:0], in, hop)
	}); n != 0 {
		t.Errorf("%v objects are allocated", n)
	}
}

func BenchmarkForwarded(b *testing.B) {
	f := &Forwarding{Mode: Append, Trusted: proxies, Client: ByForwardedFor, RFC7239: true}
	list := fields("Accept: */*", "X-Forwarded-For: 192.0.2.1, 10.0.0.2", "Forwarded: for=192.0.2.1;proto=http", "X-Forwarded-Proto: http")
	in, dst, hop := new(Incoming), make([]byte, 0, 512), &Hop{Client: ap("10.0.0.1:5"), Local: ap("10.9.9.9:8443"), Host: []byte("a.test")}
	b.ReportAllocs()
	for b.Loop() {
		f.Read(in, list, hop.Client)
		dst = f.Append(dst[:0], in, hop)
	}
}

// FuzzForwarded: whatever a trusted proxy passes on, what targets get is one line for each header, of which the last
// address is ours, and reading it again finds the same addresses.
func FuzzForwarded(f *testing.F) {
	f.Add([]byte("192.0.2.1, [::1]:80,unknown"), []byte(`for="[::1]:80";by=x, for=192.0.2.1`))
	f.Add([]byte("::ffff:1.2.3.4"), []byte(`;;, ,for=_a;host="a b,c"`))
	f.Fuzz(func(t *testing.T, xff, forwarded []byte) {
		if bytes.ContainsAny(xff, "\r\n\x00") || bytes.ContainsAny(forwarded, "\r\n\x00") {
			return // the codec refuses them
		}
		add := &Forwarding{Mode: Append, Trusted: proxies, Client: ByForwardedFor, RFC7239: true}
		list := []message.Field{{Name: []byte("x-forwarded-for"), Value: xff}, {Name: []byte("forwarded"), Value: forwarded}}
		in := new(Incoming)
		hop := &Hop{Client: ap("10.0.0.1:5")}
		if why := add.Read(in, list, hop.Client); why != reason.Unset {
			if why != reason.TooManyForwarded && why != reason.BadHeader {
				t.Fatal(why)
			}
			return
		}
		out := add.Append(nil, in, hop)
		lines := strings.Split(strings.TrimSuffix(string(out), "\r\n"), "\r\n")
		if len(lines) != 3 {
			t.Fatalf("%q", out)
		}
		for _, c := range out {
			if c < ' ' && c != '\r' && c != '\n' && c != '\t' || c >= 0x7f {
				t.Fatalf("%q", out)
			}
		}
		items := strings.Split(strings.TrimPrefix(lines[0], "X-Forwarded-For: "), ", ")
		if len(items) != in.n+1 || items[in.n] != "10.0.0.1" || !strings.HasSuffix(lines[2], "for=10.0.0.1;proto=http") {
			t.Fatalf("%q", out)
		}
		for i, item := range items {
			if item == "unknown" || item[0] == '_' {
				continue
			}
			host := item
			if h, _, err := net.SplitHostPort(item); err == nil {
				host = h
			}
			a, err := netip.ParseAddr(strings.Trim(host, "[]"))
			if err != nil || i < in.n && a.Unmap() != in.hops[i].addr.Addr() {
				t.Fatalf("%q is passed on", item)
			}
		}
		next := new(Incoming)
		if in.n < MaxHops && in.m < MaxHops {
			again := fields(lines...)
			again[0].Value, again[2].Value = []byte(strings.TrimPrefix(lines[0], "X-Forwarded-For: ")), []byte(strings.TrimPrefix(lines[2], "Forwarded: "))
			if why := add.Read(next, again, ap("10.0.0.2:1")); why != reason.Unset || next.n != in.n+1 || next.m != in.m+1 {
				t.Fatalf("read again: %s, %d and %d elements in place of %d and %d", why, next.n, next.m, in.n+1, in.m+1)
			}
			for i := range in.m {
				if next.elements[i].addr != in.elements[i].addr {
					t.Fatalf("element %d", i)
				}
			}
		}
	})
}
