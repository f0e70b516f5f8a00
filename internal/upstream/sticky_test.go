package upstream

import (
	"bytes"
	"context"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func sticking(conf ...TargetSettings) *Settings {
	s := named(conf...)
	s.Sticky = &Sticky{Cookie: "stick", Lifetime: time.Hour, SameSite: "Lax", Key: bytes.Repeat([]byte("k"), 32)}
	return s
}

// pair is the Cookie field that a browser sends after it was given value.
func pair(setCookie string) []byte {
	v, _, _ := strings.Cut(setCookie, ";")
	return []byte(v)
}

func TestStickyCookieRefused(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := still(t, sticking(w1, w1))
	target := p.members[0].Target
	good := string(pair(string(p.AppendSetCookie(nil, target, true, now))))
	if id, again := p.StickyCookie([]byte(good), now); id != p.members[0].id || again {
		t.Fatalf("the good cookie is not taken: %d", id)
	}
	other := sticking(w1, w1)
	other.Sticky.Key = bytes.Repeat([]byte("x"), 32)
	foreign := sticking(w1, w1)
	foreign.Name = "q"
	raw, _ := base64.RawURLEncoding.DecodeString(good[len("stick="):])
	flip := func(i int) string {
		b := bytes.Clone(raw)
		b[i] ^= 1
		return "stick=" + base64.RawURLEncoding.EncodeToString(b)
	}
	for name, field := range map[string]string{
		"nothing":          "",
		"no value":         "stick=",
		"no cookie":        "stick",
		"another name":     strings.Replace(good, "stick", "Stick", 1),
		"target forged":    flip(0),
		"time forged":      flip(idSize + 3),
		"signature forged": flip(cookieSize - 1),
		"short":            good[:len(good)-1],
		"long":             good + "A",
		"quoted":           `stick="` + good[6:] + `"`,
		"padded":           good + "=",
		"not base64":       "stick=" + strings.Repeat("!", cookieLength),
		"another key":      string(pair(string(still(t, other).AppendSetCookie(nil, target, true, now)))),
		"another upstream": string(pair(string(still(t, foreign).AppendSetCookie(nil, target, true, now)))),
		"too old":          string(pair(string(p.AppendSetCookie(nil, target, true, now.Add(-time.Hour-time.Second))))),
		"from the future":  string(pair(string(p.AppendSetCookie(nil, target, true, now.Add(2*time.Minute))))),
		"far future":       string(pair(string(p.AppendSetCookie(nil, target, true, time.Unix(1<<62, 0))))),
		"behind too many":  strings.Repeat("stick=x; ", maxCookies) + good,
		"the address":      "stick=" + target.Address,
		"a huge one":       "stick=" + strings.Repeat("A", 1<<20),
	} {
		t.Run(name, func(t *testing.T) {
			if id, _ := p.StickyCookie([]byte(field), now); id != 0 {
				t.Errorf("%q is taken for target %d", field[:min(len(field), 80)], id)
			}
		})
	}
	for name, field := range map[string]string{
		"among others":           "a=b; " + good + "; c=d",
		"without blanks":         "a=b;" + good,
		"behind a forged one":    flip(0) + "; " + good,
		"name in another's name": "xstick=1; " + good,
	} {
		t.Run(name, func(t *testing.T) {
			if id, _ := p.StickyCookie([]byte(field), now); id != p.members[0].id {
				t.Errorf("%q is not taken", field)
			}
		})
	}
	if _, again := p.StickyCookie([]byte(good), now.Add(31*time.Minute)); !again {
		t.Error("half of the lifetime is over, and the cookie is not set again")
	}
	if id, _ := still(t, named(w1)).StickyCookie([]byte(good), now); id != 0 {
		t.Error("a pool without stickiness takes a cookie")
	}
}

func TestSetCookie(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	s := sticking(w1)
	for _, tt := range []struct {
		set    func(*Sticky)
		secure bool
		want   string
	}{
		{nil, true, "; Path=/; HttpOnly; Max-Age=3600; Secure; SameSite=Lax"},
		{nil, false, "; Path=/; HttpOnly; Max-Age=3600; SameSite=Lax"},
		{func(k *Sticky) { k.Session, k.Domain, k.SameSite = true, "app.test", "Strict" }, true, "; Path=/; HttpOnly; Domain=app.test; Secure; SameSite=Strict"},
	} {
		k := *s.Sticky
		if tt.set != nil {
			tt.set(&k)
		}
		conf := *s
		conf.Sticky = &k
		p := still(t, &conf)
		line := string(p.AppendSetCookie([]byte("x"), p.members[0].Target, tt.secure, now))[1:]
		if _, attributes, _ := strings.Cut(line, ";"); ";"+attributes != tt.want {
			t.Errorf("got %q, expected %q", ";"+attributes, tt.want)
		}
		if _, err := http.ParseSetCookie(line); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		if value := string(pair(line)); strings.Contains(value, "a:1") || len(value) != len("stick=")+cookieLength {
			t.Errorf("the value %q", value)
		}
	}
}

// TestSticky shows where clients with a cookie are led.
func TestSticky(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "a:1", "b:1", "c:1")
		w.Apply([]*Settings{sticking(w1, w1, w1)})()
		p := w.Pool("p")
		lead := func(ch Choice) string {
			t.Helper()
			c, err := w.Pool("p").AcquireFor(context.Background(), ch)
			if err != nil {
				return reasonOf(err).String()
			}
			defer c.Discard()
			return c.Target.Address
		}
		ch := Choice{Sticky: p.members[1].id}
		for range 10 {
			if got := lead(ch); got != "b:1" {
				t.Fatalf("led to %s", got)
			}
		}
		if p.WantsCookie(p.members[1].Target, ch, false) || !p.WantsCookie(p.members[1].Target, ch, true) || !p.WantsCookie(p.members[0].Target, ch, false) || !p.WantsCookie(p.members[1].Target, Choice{}, false) {
			t.Error("the cookie is not set when it should be")
		}

		p.members[1].down.Store(true)
		p.changed()
		if got := lead(ch); got == "b:1" {
			t.Error("led to a target that is down")
		}
		p.members[1].down.Store(false)
		p.changed()
		if got := lead(Choice{Sticky: 12345}); strings.Contains(got, "_") {
			t.Errorf("a stale cookie: %s", got)
		}
		if got := lead(Choice{Sticky: p.members[1].id, Tried: []*Target{p.members[1].Target}}); got == "b:1" {
			t.Error("a retry is led to the target it failed at")
		}

		draining := sticking(w1, TargetSettings{Weight: 1, State: Draining}, TargetSettings{Weight: 1, State: Disabled})
		draining.ID = "2"
		w.Apply([]*Settings{draining})()
		if got := lead(ch); got != "b:1" {
			t.Errorf("a client of the draining target is led to %s", got)
		}
		for range 5 {
			if got := lead(Choice{}); got != "a:1" {
				t.Errorf("a new client is led to %s", got)
			}
		}
		if got := lead(Choice{Sticky: p.members[2].id}); got != "a:1" {
			t.Errorf("a client of the disabled target is led to %s", got)
		}
		// An idle connection is of no use, a busy one is fine.
		c, _ := w.Pool("p").AcquireFor(context.Background(), ch)
		if err := exchange(t, c); err != nil {
			t.Fatal(err)
		}
		c.Release(true, time.Now())
		if n := c.Target.open; n != 0 {
			t.Errorf("%d connections to the draining target are kept", n)
		}
	})
	t.Run("weight 0", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "a:1", "b:1")
			w.Apply([]*Settings{sticking(w1, TargetSettings{})})()
			c, err := w.Pool("p").AcquireFor(context.Background(), Choice{Sticky: w.Pool("p").members[1].id})
			if err != nil || c.Target.Address != "b:1" {
				t.Fatal(err)
			}
			c.Discard()
		})
	})
}

func TestCookie(t *testing.T) {
	for in, want := range map[string]string{
		"": "-", "a=1": "1", "b=2; a=1": "1", "b=2;a=1;a=3": "1", "a": "-", "=1": "-", "a=": "", "ab=1": "-", " a=1": "1", "a =1": "-", "a=x=y; b": "x=y", ";;;a=1": "1",
	} {
		got := "-"
		if v, _, ok := Cookie([]byte(in), "a"); ok {
			got = string(v)
		}
		if got != want {
			t.Errorf("%q: got %q, expected %q", in, got, want)
		}
	}
}

func FuzzStickyCookie(f *testing.F) {
	s := sticking(w1, w1)
	p := still(f, s)
	now := time.Unix(1_800_000_000, 0)
	f.Add(pair(string(p.AppendSetCookie(nil, p.members[0].Target, true, now))))
	f.Add([]byte("a=b; stick=; stick"))
	f.Fuzz(func(t *testing.T, field []byte) {
		id, _ := p.StickyCookie(field, now)
		if id != 0 && id != p.members[0].id && id != p.members[1].id {
			t.Errorf("%q leads to %d", field, id)
		}
	})
}

func BenchmarkStickyCookie(b *testing.B) {
	p := still(b, sticking(w1, w1))
	now := time.Now()
	field := append([]byte("theme=dark; session=0123456789abcdef; "), pair(string(p.AppendSetCookie(nil, p.members[0].Target, true, now)))...)
	b.ReportAllocs()
	for b.Loop() {
		if id, _ := p.StickyCookie(field, now); id == 0 {
			b.Fatal("not taken")
		}
	}
}
