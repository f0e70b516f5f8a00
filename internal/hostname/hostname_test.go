package hostname

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

var long63 = strings.Repeat("a", 63)

// long253 is a name of exactly MaxLen bytes.
var long253 = strings.Join([]string{long63, long63, long63, strings.Repeat("b", 61)}, ".")

func TestA14(t *testing.T) {
	t.Run("A14/refused", func(t *testing.T) {
		for host, want := range map[string]error{
			"":                    ErrEmpty,
			":443":                ErrEmpty,
			".":                   ErrEmptyLabel,
			"..":                  ErrEmptyLabel,
			"a.test..":            ErrEmptyLabel,
			"a..test":             ErrEmptyLabel,
			".a.test":             ErrEmptyLabel,
			"a.test,b.test":       ErrCharacter,
			"user@a.test":         ErrCharacter,
			"user:pw@a.test":      ErrPort,
			"a.test/":             ErrCharacter,
			"https://a.test":      ErrPort,
			"a.test\x00":          ErrCharacter,
			"a.test\x00.b.test":   ErrCharacter,
			" a.test":             ErrCharacter,
			"a.test ":             ErrCharacter,
			"a_b.test":            ErrCharacter,
			"a%2etest":            ErrCharacter,
			"bücher.test":         ErrNonASCII,
			"a\u3002test":         ErrNonASCII, // ideographic full stop, which IDNA would map to a dot
			"\u212Aube.test":      ErrNonASCII, // Kelvin sign, which case folding would map to k
			"*.w.test":            ErrWildcard,
			"-a.test":             ErrHyphen,
			"a-.test":             ErrHyphen,
			long63 + "a.test":     ErrLongLabel,
			long253 + "b":         ErrTooLong,
			"a.test:":             ErrPort,
			"a.test:0":            ErrPort,
			"a.test:080":          ErrPort,
			"a.test:65536":        ErrPort,
			"a.test:99999999":     ErrPort,
			"a.test:+80":          ErrPort,
			"a.test:80:80":        ErrPort,
			"2001:db8::1":         ErrPort,
			"[2001:db8::1":        ErrIPv6,
			"[2001:db8::1]x":      ErrIPv6,
			"[2001:db8::1]:":      ErrPort,
			"[fe80::1%eth0]":      ErrIPv6,
			"[fe80::1%25eth0]:80": ErrIPv6,
			"[10.0.0.1]":          ErrIPv6,
			"[]":                  ErrIPv6,
			"[v1.x]":              ErrIPv6,
			"127.1":               ErrNumeric,
			"2130706433":          ErrNumeric,
			"0x7f.1":              ErrNumeric,
			"0x7f000001":          ErrNumeric,
			"a.0x":                ErrNumeric,
			"010.0.0.1":           ErrNumeric,
			"256.0.0.1":           ErrNumeric,
			"1.2.3.4.5":           ErrNumeric,
		} {
			dst := []byte("kept")
			out, port, err := AppendCanonicalHost(dst, []byte(host))
			if err != want || port != 0 || string(out) != "kept" {
				t.Errorf("%q = %q, %d, %v; want %v and dst as it was", host, out, port, err, want)
			}
		}
	})
	t.Run("A14/one_spelling", func(t *testing.T) {
		for host, want := range map[string]struct {
			name string
			port uint16
		}{
			"a.test":                       {"a.test", 0},
			"A.TEST.:443":                  {"a.test", 443},
			"A.Test.":                      {"a.test", 0},
			"localhost:1":                  {"localhost", 1},
			"xn--BCHER-kva.test:65535":     {"xn--bcher-kva.test", 65535},
			"a--b.test":                    {"a--b.test", 0},
			"0x7g.test":                    {"0x7g.test", 0},
			"1.2.3.4.test":                 {"1.2.3.4.test", 0},
			"10.0.0.1:8443":                {"10.0.0.1", 8443},
			"[2001:DB8:0:0::1]:8443":       {"[2001:db8::1]", 8443},
			"[::FFFF:10.0.0.1]":            {"[::ffff:10.0.0.1]", 0},
			long253 + ".":                  {long253, 0},
			strings.ToUpper(long63) + ".t": {long63 + ".t", 0},
		} {
			out, port, err := AppendCanonicalHost([]byte("x"), []byte(host))
			if err != nil || string(out) != "x"+want.name || port != want.port {
				t.Errorf("%q = %q, %d, %v; want %q, %d", host, out, port, err, "x"+want.name, want.port)
			}
		}
	})
}

func TestA19(t *testing.T) {
	t.Run("A19/refused", func(t *testing.T) {
		for sni, want := range map[string]error{
			"*.test.zz":        ErrWildcard,
			"*.w.test":         ErrWildcard,
			"a\x00.test":       ErrCharacter,
			"..aa":             ErrEmptyLabel,
			"../../etc/passwd": ErrEmptyLabel,
			"a..test":          ErrEmptyLabel,
			"\xff\xfe.test":    ErrNonASCII,
			"a.test\r\nx":      ErrCharacter,
			"a.test:443":       ErrCharacter,
			"10.0.0.1":         ErrAddress,
			"[2001:db8::1]":    ErrCharacter,
			"2001:db8::1":      ErrCharacter,
			"":                 ErrEmpty,
		} {
			if out, err := AppendCanonicalSNI(nil, []byte(sni)); err != want || len(out) != 0 {
				t.Errorf("%q = %q, %v; want %v", sni, out, err, want)
			}
		}
	})
	t.Run("A19/wildcard_is_no_key", func(t *testing.T) {
		var table Table[int]
		if err := table.Add("*.w.test", 1); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"*.w.test", "w.test", ".w.test", "a.b.w.test", "A.w.test.", ""} {
			if _, ok := table.Lookup([]byte(name)); ok {
				t.Errorf("%q was found", name)
			}
		}
	})
}

func TestPatternRefused(t *testing.T) {
	for name, want := range map[string]string{
		"":                         "is empty",
		"*":                        "stands for one label",
		"*.":                       "is empty",
		"*.test":                   "at least two labels",
		"*.*.test":                 "one \"*.\" at the start",
		"a.*.test":                 "stands for one label",
		"f*.w.test":                "stands for one label",
		"*.w.test:443":             "other than letters",
		"*.0.0.1":                  "not an IPv4",
		"*." + long253:             "longer than 253",
		"*." + long253[2:]:         "", // 2+251 bytes
		"a.test:443":               "leave the port to the listener",
		"bücher.test":              "punycode",
		"*.bücher.test":            "punycode",
		"2001:db8::1":              "[2001:db8::1]",
		"a_b.test":                 "other than letters",
		"https://a.test":           "port",
		strings.Repeat("\n", 4096): "longer than 253",
	} {
		_, _, err := Pattern(name)
		if want == "" {
			if err != nil {
				t.Errorf("%q: %v; want no error", name, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want text %q", name, err, want)
		} else if len(err.Error()) > 2*4*MaxLen {
			t.Errorf("error of %d bytes echoes too much", len(err.Error()))
		}
	}
}

func TestPattern(t *testing.T) {
	for name, want := range map[string]struct {
		canonical string
		wildcard  bool
	}{
		"API.Test.":            {"api.test", false},
		"*.Partners.TEST.":     {"*.partners.test", true},
		"localhost":            {"localhost", false},
		"10.0.0.1":             {"10.0.0.1", false},
		"[2001:DB8::0:1]":      {"[2001:db8::1]", false},
		"*.xn--BCHER-kva.test": {"*.xn--bcher-kva.test", true},
	} {
		canonical, wildcard, err := Pattern(name)
		if err != nil || canonical != want.canonical || wildcard != want.wildcard {
			t.Errorf("%q = %q, %v, %v; want %q, %v", name, canonical, wildcard, err, want.canonical, want.wildcard)
		}
	}
}

// One table yields certificate, policy and routes, so wildcards are met everywhere or nowhere.
func TestA15(t *testing.T) {
	t.Run("A15/same_table_for_sni_and_host", func(t *testing.T) {
		var table Table[string]
		for pattern, policy := range map[string]string{"a.test": "off", "*.w.test": "require"} {
			if err := table.Add(pattern, policy); err != nil {
				t.Fatal(err)
			}
		}
		sni, _ := AppendCanonicalSNI(nil, []byte("A.test"))
		host, _, _ := AppendCanonicalHost(nil, []byte("X.w.test.:8443"))
		underSNI, _ := table.Lookup(sni)
		underHost, _ := table.Lookup(host)
		if underSNI != "off" || underHost != "require" {
			t.Errorf("got %q under SNI and %q under Host, want off and require: a 421", underSNI, underHost)
		}
	})
}

func TestA20(t *testing.T) {
	patterns := []string{"*.w.test", "pub.w.test", "*.pub.w.test", "w.test"}
	t.Run("A20/duplicate_is_an_error", func(t *testing.T) {
		var table Table[int]
		for _, pattern := range append(patterns, "PUB.w.test.", "*.W.test") {
			err := table.Add(pattern, 0)
			if pattern == "PUB.w.test." || pattern == "*.W.test" {
				if err == nil || !strings.Contains(err.Error(), "found twice") || !strings.Contains(err.Error(), strings.ToLower(strings.TrimSuffix(pattern, "."))) {
					t.Errorf("%q: %v; want an error that names it", pattern, err)
				}
			} else if err != nil {
				t.Error(err)
			}
		}
		if table.Len() != len(patterns) {
			t.Errorf("%d patterns, want %d", table.Len(), len(patterns))
		}
	})
	t.Run("A20/most_specific_in_any_order", func(t *testing.T) {
		for range 100 {
			for shift := range patterns {
				var table Table[string]
				for i := range patterns {
					p := patterns[(i+shift)%len(patterns)]
					if err := table.Add(p, p); err != nil {
						t.Fatal(err)
					}
				}
				for name, want := range map[string]string{
					"pub.w.test": "pub.w.test", "x.w.test": "*.w.test", "x.pub.w.test": "*.pub.w.test", "w.test": "w.test",
					"x.y.w.test": "", "test": "", "y.test": "",
				} {
					if got, ok := table.Lookup([]byte(name)); got != want || ok != (want != "") {
						t.Fatalf("%s got %q, want %q", name, got, want)
					}
				}
			}
		}
	})
}

func TestNoAllocation(t *testing.T) {
	var table Table[int]
	for i := range 10_000 {
		if err := table.Add(fmt.Sprintf("h%d.test", i), i); err != nil {
			t.Fatal(err)
		}
	}
	_ = table.Add("*.w.test", -1)
	buf := make([]byte, 0, MaxLen)
	good, wild, bad, address := []byte("H4711.Test.:443"), []byte("x.w.test"), []byte("a,b"), []byte("10.0.0.1:80")
	if n := testing.AllocsPerRun(100, func() {
		name, _, err := AppendCanonicalHost(buf, good)
		v, ok := table.Lookup(name)
		if err != nil || !ok || v != 4711 {
			t.Fatal(v, ok, err)
		}
		name, _ = AppendCanonicalSNI(buf, wild)
		if v, _ := table.Lookup(name); v != -1 {
			t.Fatal(v)
		}
		if _, _, err := AppendCanonicalHost(buf, bad); !errors.Is(err, ErrCharacter) {
			t.Fatal(err)
		}
		if _, _, err := AppendCanonicalHost(buf, address); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"a.test", "A.TEST.:443", "[::1]:80", "[::ffff:1.2.3.4]", "10.0.0.1.", "xn--a.b", "a..b", "*.w.test", "0x1", "[", ":"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, host []byte) {
		once, _, err := AppendCanonicalHost(nil, host)
		if err == nil {
			twice, port, err := AppendCanonicalHost(nil, once)
			if err != nil || port != 0 || string(twice) != string(once) {
				t.Errorf("%q -> %q -> %q, %d, %v: not idempotent", host, once, twice, port, err)
			}
			for _, c := range once {
				if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789.-:[]", rune(c)) {
					t.Errorf("%q -> %q has %q", host, once, c)
				}
			}
		} else if len(once) != 0 {
			t.Errorf("%q: %v, and still %q", host, err, once)
		}
		if sni, err := AppendCanonicalSNI(nil, host); err == nil {
			asHost, port, err := AppendCanonicalHost(nil, host)
			if err != nil || port != 0 || string(asHost) != string(sni) {
				t.Errorf("%q is %q as SNI and %q as Host (%v)", host, sni, asHost, err)
			}
		}
	})
}
