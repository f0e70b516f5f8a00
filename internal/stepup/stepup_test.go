package stepup

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// desk is a table whose clock stands until it is moved.
type desk struct {
	*Table
	at time.Time
}

func newDesk() *desk {
	d := &desk{at: time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)}
	d.Table = New(func() time.Time { return d.at })
	return d
}

// person is a chain that only its bytes tell apart from another.
func person(name string) []*x509.Certificate { return []*x509.Certificate{{Raw: []byte(name)}} }

var (
	admin  = KeyOf("public", "app.test", "https://app.test", "/admin/*")
	report = KeyOf("public", "app.test", "https://app.test", "/report")
)

// code brings a browser that begins at site to its code.
func (d *desk) code(t testing.TB, site Key, who []*x509.Certificate) (code, step string) {
	t.Helper()
	ask, step := d.Begin(site, "/admin/x?y=1")
	a, err := d.Asked(ask)
	if err != nil || a.Site != site {
		t.Fatalf("Asked: %v, %v", a.Site, err)
	}
	return d.Issue(a, who), step
}

func TestAskRefused(t *testing.T) {
	d := newDesk()
	ask, step := d.Begin(admin, "/admin/")
	raw, _ := base64.RawURLEncoding.DecodeString(ask)
	longer := append(raw[:24:24], append([]byte{0}, raw[24:]...)...)
	other, _ := newDesk().Begin(admin, "/admin/")
	for name, text := range map[string]string{
		"empty": "", "not base64": "!" + ask[1:], "cut": ask[:len(ask)-4], "padded": ask + "=", "of another process": other, "a step": step,
		"longer": base64.RawURLEncoding.EncodeToString(longer), "huge": strings.Repeat("A", 1<<20), "a line end inside": ask[:8] + "\n" + ask[8:],
	} {
		if _, err := d.Asked(text); err != ErrAsk {
			t.Errorf("%s: %v, want %v", name, err, ErrAsk)
		}
	}
	for i := range raw {
		changed := append([]byte(nil), raw...)
		changed[i] ^= 1
		if _, err := d.Asked(base64.RawURLEncoding.EncodeToString(changed)); err != ErrAsk {
			t.Errorf("octet %d changed: %v", i, err)
		}
	}
	d.at = d.at.Add(AskTime)
	if _, err := d.Asked(ask); err != ErrAskOver {
		t.Errorf("after %s: %v, want %v", AskTime, err, ErrAskOver)
	}
}

func TestRedeemRefused(t *testing.T) {
	refused := func(t *testing.T, d *desk, code, step string, want error) {
		t.Helper()
		if r, err := d.Redeem(code, step); err != want || r.Presented != nil {
			t.Errorf("Redeem: %v, %v, want %v", r, err, want)
		}
	}
	alice := person("alice")
	t.Run("a code used before", func(t *testing.T) {
		d := newDesk()
		code, step := d.code(t, admin, alice)
		if _, err := d.Redeem(code, step); err != nil {
			t.Fatal(err)
		}
		refused(t, d, code, step, ErrCode)
	})
	t.Run("a code after its time", func(t *testing.T) {
		d := newDesk()
		code, step := d.code(t, admin, alice)
		d.at = d.at.Add(CodeTime)
		refused(t, d, code, step, ErrCode)
	})
	t.Run("a code that was never given", func(t *testing.T) {
		d := newDesk()
		_, step := d.code(t, admin, alice)
		for _, code := range []string{"", token(), strings.Repeat("A", 1<<16)} {
			refused(t, d, code, step, ErrCode)
		}
	})
	t.Run("another browser, and the code is used up", func(t *testing.T) {
		d := newDesk()
		code, step := d.code(t, admin, alice)
		_, others := d.Begin(admin, "/admin/x?y=1")
		refused(t, d, code, others, ErrBrowser)
		refused(t, d, code, step, ErrCode)
	})
	t.Run("no cookie", func(t *testing.T) {
		d := newDesk()
		code, step := d.code(t, admin, alice)
		refused(t, d, code, "", ErrNoStep)
		refused(t, d, code, step, ErrCode)
	})
	t.Run("a cookie that is none", func(t *testing.T) {
		d := newDesk()
		ask, _ := d.Begin(admin, "/")
		_, foreign := newDesk().Begin(admin, "/")
		for _, bad := range []string{"x", ask, foreign} {
			code, _ := d.code(t, admin, alice)
			refused(t, d, code, bad, ErrStep)
		}
		code, step := d.code(t, admin, alice)
		raw, _ := base64.RawURLEncoding.DecodeString(step)
		raw[60] ^= 1 // of the target: an open redirect
		refused(t, d, code, base64.RawURLEncoding.EncodeToString(raw), ErrStep)
	})
	t.Run("a cookie after its time", func(t *testing.T) {
		d := newDesk()
		ask, step := d.Begin(admin, "/admin/")
		a, _ := d.Asked(ask)
		d.at = d.at.Add(AskTime - time.Second)
		code := d.Issue(a, alice)
		d.at = d.at.Add(time.Second)
		refused(t, d, code, step, ErrStep)
	})
	t.Run("a cookie of another route", func(t *testing.T) {
		d := newDesk()
		code, _ := d.code(t, admin, alice)
		_, step := d.Begin(report, "/report")
		refused(t, d, code, step, ErrBrowser)
	})
	t.Run("the nonce of the step, and another route", func(t *testing.T) {
		d := newDesk()
		code, step := d.code(t, admin, alice)
		body, until, _ := d.open(sealStep, step)
		raw := binary.BigEndian.AppendUint64(nil, uint64(until.Unix()))
		raw = append(append(raw, report[:]...), body[len(report):]...)
		refused(t, d, code, d.seal(sealStep, raw), ErrBrowser)
	})
}

func TestSession(t *testing.T) {
	alice, bob := person("alice"), person("bob")
	open := func(t *testing.T, d *desk, site Key, who []*x509.Certificate, old string) string {
		t.Helper()
		r, err := d.Redeem(d.code(t, site, who))
		if err != nil || r.Site != site || r.Target != "/admin/x?y=1" || r.Presented[0] != who[0] {
			t.Fatalf("Redeem: %+v, %v", r, err)
		}
		return d.Open(r, old)
	}
	t.Run("unknown ids", func(t *testing.T) {
		d := newDesk()
		id := open(t, d, admin, alice, "")
		for _, bad := range []string{"", "x", id[1:], id + "A"} {
			if d.Session(bad) != nil {
				t.Errorf("%q is a session", bad)
			}
		}
		if newDesk().Session(id) != nil {
			t.Error("a session of another process")
		}
	})
	t.Run("over", func(t *testing.T) {
		d := newDesk()
		id := open(t, d, admin, alice, "")
		s := d.Session(id)
		d.at = d.at.Add(5 * time.Minute)
		if s.Good(admin, 5*time.Minute, d.at) {
			t.Error("good for longer than its lifetime")
		}
		if !s.Good(admin, time.Hour, d.at) {
			t.Error("not good within its lifetime")
		}
		d.at = d.at.Add(10 * time.Minute)
		if s.Good(admin, time.Hour, d.at) {
			t.Error("good for longer than 15m")
		}
		if d.Session(id) != nil {
			t.Error("kept for longer than 15m")
		}
	})
	t.Run("another route", func(t *testing.T) {
		d := newDesk()
		if s := d.Session(open(t, d, admin, alice, "")); s.Good(report, time.Hour, d.at) || s.Good(Key{}, time.Hour, d.at) {
			t.Error("good for a route that it was not opened for")
		}
	})
	t.Run("two routes side by side", func(t *testing.T) {
		d := newDesk()
		first := open(t, d, admin, alice, "")
		d.at = d.at.Add(time.Minute)
		second := open(t, d, report, alice, first)
		if d.Session(first) != nil {
			t.Error("the session before goes on: its id was not replaced")
		}
		s := d.Session(second)
		if !s.Good(admin, MaxLifetime, d.at) || !s.Good(report, MaxLifetime, d.at) {
			t.Error("not good for both")
		}
		// The first one's time goes on as it was.
		if d.at = d.at.Add(14 * time.Minute); s.Good(admin, MaxLifetime, d.at) || !s.Good(report, MaxLifetime, d.at) {
			t.Error("the second step-up changed how long the first is good for")
		}
	})
	t.Run("B06/another certificate takes nothing over", func(t *testing.T) {
		d := newDesk()
		first := open(t, d, admin, alice, "")
		s := d.Session(open(t, d, report, bob, first))
		if s.Good(admin, MaxLifetime, d.at) || d.Session(first) != nil {
			t.Error("bob has what alice had")
		}
	})
	t.Run("ended", func(t *testing.T) {
		d := newDesk()
		id := open(t, d, admin, alice, "")
		d.End(id)
		d.End(id)
		if d.Session(id) != nil {
			t.Error("still there")
		}
	})
}

func TestBounds(t *testing.T) {
	d := newDesk()
	t.Run("F11/those without a certificate fill nothing", func(t *testing.T) {
		for range 1000 {
			ask, _ := d.Begin(admin, "/")
			if _, err := d.Asked(ask); err != nil {
				t.Fatal(err)
			}
		}
		if d.codes.order.Len()+d.sessions.order.Len() != 0 {
			t.Error("something is kept")
		}
	})
	t.Run("one certificate", func(t *testing.T) {
		first, step := d.code(t, admin, person("alice"))
		for range maxPerCertificate {
			d.code(t, admin, person("alice"))
		}
		if n := d.codes.order.Len(); n != maxPerCertificate || len(d.codes.of) != 1 {
			t.Errorf("%d codes of one certificate", n)
		}
		if _, err := d.Redeem(first, step); err != ErrCode {
			t.Errorf("the oldest: %v", err)
		}
	})
	t.Run("many certificates", func(t *testing.T) {
		for i := range maxSessions + 100 {
			d.Open(Returned{admin, "/", person(fmt.Sprint(i))}, "")
		}
		if n := d.sessions.order.Len(); n != maxSessions || len(d.sessions.byKey) != n || len(d.sessions.of) != n {
			t.Errorf("%d sessions, %d, %d", n, len(d.sessions.byKey), len(d.sessions.of))
		}
		d.at = d.at.Add(MaxLifetime)
		d.Open(Returned{admin, "/", person("next")}, "")
		if n := d.sessions.order.Len(); n != 1 || d.sessions.bytes != len("next") || len(d.sessions.of) != 1 {
			t.Errorf("%d sessions, %d bytes after their time", n, d.sessions.bytes)
		}
	})
	t.Run("large certificates", func(t *testing.T) {
		for i := range 40 {
			d.Open(Returned{admin, "/", person(fmt.Sprint(i) + strings.Repeat("x", 1<<20))}, "")
		}
		if d.sessions.bytes > maxBytes || d.sessions.order.Len() > 32 {
			t.Errorf("%d bytes", d.sessions.bytes)
		}
	})
}

func TestStepFitsIntoACookie(t *testing.T) {
	_, step := newDesk().Begin(admin, strings.Repeat("x", MaxTarget))
	if n := len(StepCookie) + 1 + len(step); n > 4096 {
		t.Errorf("%d bytes; browsers keep 4096", n)
	}
}

func TestKeys(t *testing.T) {
	if KeyOf("a", "bc") == KeyOf("ab", "c") || KeyOf("a") == KeyOf("a", "") || KeyOf("a") == (Key{}) {
		t.Error("different parts, one key")
	}
	if again := KeyOf("a", "b"); KeyOf("a", "b") != again {
		t.Error("the same parts, two keys")
	}
}

func TestCookies(t *testing.T) {
	for _, c := range []struct {
		name, in, rest, session, step string
		bad                           bool
	}{
		{name: "none", in: "a=1; b=2", rest: "a=1; b=2"},
		{name: "others stay byte by byte", in: `a=1;b="2;3";  c ; =x; é=ü;`, rest: `a=1;b="2;3";  c ; =x; é=ü;`},
		{name: "only ours", in: SessionCookie + "=AbC-_9", session: "AbC-_9"},
		{name: "both", in: StepCookie + "=s; " + SessionCookie + "=c", session: "c", step: "s"},
		{name: "first", in: SessionCookie + "=c; a=1; b=2", rest: "a=1; b=2", session: "c"},
		{name: "between", in: "a=1; " + SessionCookie + "=c; b=2", rest: "a=1; b=2", session: "c"},
		{name: "last", in: "a=1; b=2; " + SessionCookie + "=c", rest: "a=1; b=2", session: "c"},
		{name: "twice", in: SessionCookie + "=c; a=1; " + SessionCookie + "=d", rest: "a=1", session: "d", bad: true},
		{name: "twice, the first empty", in: SessionCookie + "=; " + SessionCookie + "=d", session: "d", bad: true},
		{name: "no value", in: SessionCookie, bad: true},
		{name: "quoted", in: SessionCookie + `="c"`, session: `"c"`, bad: true},
		{name: "in other case", in: "__host-Countersign-CERT=c; a=1", rest: "a=1", session: "c", bad: true},
		{name: "a space behind the name", in: SessionCookie + " =c; a=1", rest: "a=1", session: "c", bad: true},
		{name: "= in the value", in: SessionCookie + "=c=d", session: "c=d", bad: true},
		{name: "a comma", in: SessionCookie + "=c,a=1", session: "c,a=1", bad: true},
		{name: "longer names are not ours", in: SessionCookie + "2=c; x" + StepCookie + "=d", rest: SessionCookie + "2=c; x" + StepCookie + "=d"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got Cookies
			rest, none := got.Read([]byte(c.in))
			if string(rest) != c.rest || none != (c.rest == "") || got != (Cookies{c.session, c.step, c.bad}) {
				t.Errorf("rest %q, none %v, %+v", rest, none, got)
			}
		})
	}
	t.Run("in two fields", func(t *testing.T) {
		var got Cookies
		got.Read([]byte(SessionCookie + "=c"))
		got.Read([]byte(SessionCookie + "=c"))
		if !got.Bad {
			t.Error("not bad")
		}
	})
}

func TestSets(t *testing.T) {
	for in, want := range map[string]bool{
		SessionCookie + "=x; Path=/": true, StepCookie + "=": true, " " + SessionCookie + " =x": true, "__HOST-COUNTERSIGN-CERT=x": true,
		"=" + SessionCookie + "=x": true, " = " + StepCookie + "=x; Secure": true, SessionCookie: true,
		"a=" + SessionCookie: false, "a=1; " + SessionCookie + "=x": false, SessionCookie + "2=x": false, "": false,
	} {
		if got := Sets([]byte(in)); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func FuzzCookies(f *testing.F) {
	f.Add("a=1; " + SessionCookie + "=c; b=2")
	f.Add(StepCookie + "=\"x\"; " + strings.ToUpper(SessionCookie) + " = ;;")
	f.Fuzz(func(t *testing.T, value string) {
		var c, again Cookies
		rest, none := c.Read([]byte(value))
		if again.Read(rest); again != (Cookies{}) {
			t.Fatalf("%q leaves %q", value, rest)
		}
		if none && strings.Trim(string(rest), " \t;") != "" {
			t.Fatalf("%q loses %q", value, rest)
		}
		// What the standard library finds in it are the others.
		for _, k := range (&http.Request{Header: http.Header{"Cookie": {string(rest)}}}).Cookies() {
			if k.Name == SessionCookie || k.Name == StepCookie {
				t.Fatalf("%q leaves %q to net/http", value, k.Name)
			}
		}
	})
}

func FuzzSealed(f *testing.F) {
	d := newDesk()
	f.Add("", "")
	f.Fuzz(func(t *testing.T, ask, step string) {
		if _, err := d.Asked(ask); err == nil {
			t.Fatal("an ask that was not made")
		}
		code, _ := d.code(t, admin, person("alice"))
		if _, err := d.Redeem(code, step); err == nil {
			t.Fatal("a step that was not made")
		}
	})
}
