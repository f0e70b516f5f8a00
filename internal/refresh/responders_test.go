package refresh

import (
	"bufio"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"countersign/internal/outbound"
	"countersign/internal/testpki"
	"countersign/internal/trust"
)

// office is a responder in memory.
type office struct {
	mu     sync.Mutex
	answer func(q *outbound.Request) ([]byte, error)
	asked  atomic.Int64
	now    atomic.Int64 // under way
	most   atomic.Int64
}

func (o *office) do(ctx context.Context, q *outbound.Request) (*outbound.Response, error) {
	o.asked.Add(1)
	n := o.now.Add(1)
	defer o.now.Add(-1)
	for most := o.most.Load(); n > most && !o.most.CompareAndSwap(most, n); most = o.most.Load() {
	}
	o.mu.Lock()
	answer := o.answer
	o.mu.Unlock()
	if answer == nil {
		<-ctx.Done()
		return nil, fmt.Errorf("hung: %w", ctx.Err())
	}
	body, err := answer(q)
	if err != nil {
		return nil, err
	}
	return &outbound.Response{Body: body, Header: http.Header{}}, nil
}

func (o *office) say(answer func(*outbound.Request) ([]byte, error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = answer
}

func answering(der []byte) func(*outbound.Request) ([]byte, error) {
	return func(*outbound.Request) ([]byte, error) { return der, nil }
}

func asks(t *testing.T, o *office, changed func()) (*Responders, *trust.Answers) {
	answers := trust.NewAnswers(0)
	r := NewResponders(RespondersConfig{Answers: answers, Changed: changed, do: o.do})
	t.Cleanup(r.Close)
	return r, answers
}

func ocspQuery(c, ca *testpki.Cert) *trust.Query {
	return &trust.Query{Cert: c.Cert, Issuer: ca.Cert, Responder: "http://ocsp.test/"}
}

func trouble(r *Responders) string {
	var codes []string
	for _, c := range r.Conditions() {
		codes = append(codes, c.Code)
		if c.Since.IsZero() || c.Text == "" {
			codes = append(codes, "incomplete")
		}
	}
	return strings.Join(codes, " ")
}

func TestResponders(t *testing.T) {
	bubble := func(name string, f func(t *testing.T, root *testpki.Cert, o *office)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, testpki.New(t), new(office)) })
		})
	}
	bubble("C18/a responder that hangs", func(t *testing.T, root *testpki.Cert, o *office) {
		r, _ := asks(t, o, nil)
		start := time.Now()
		for range tolerated {
			if err := r.Ask(t.Context(), ocspQuery(root.Client("c"), root)); err == nil || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
		}
		if d := time.Since(start); d != tolerated*defaultOCSPTimeout {
			t.Error("took", d)
		}
		for range 20 { // now nobody waits any more
			start = time.Now()
			err := r.Ask(t.Context(), ocspQuery(root.Client("c"), root))
			if err == nil || time.Since(start) != 0 || !strings.Contains(err.Error(), "3 times in a row") {
				t.Fatal(err, time.Since(start))
			}
		}
		if n := o.asked.Load(); n != tolerated {
			t.Error("asked", n, "times")
		}
		if c := trouble(r); c != ResponderFailing {
			t.Error("condition", c)
		}
		// One question finds out; the pause doubles up to a minute.
		for _, pause := range []time.Duration{firstPause, 2 * firstPause, 4 * firstPause, maxPause, maxPause} {
			before := o.asked.Load()
			time.Sleep(pause)
			var all sync.WaitGroup
			for range 10 {
				all.Go(func() { r.Ask(t.Context(), ocspQuery(root.Client("c"), root)) })
			}
			all.Wait()
			if n := o.asked.Load() - before; n != 1 {
				t.Errorf("after %v %d questions", pause, n)
			}
			if r.Ask(t.Context(), ocspQuery(root.Client("c"), root)) == nil || o.asked.Load()-before != 1 {
				t.Error("asked within the pause")
			}
		}
		time.Sleep(maxPause)
		c := root.Client("c")
		o.say(answering(root.OCSP(c)))
		if err := r.Ask(t.Context(), ocspQuery(c, root)); err != nil {
			t.Error(err)
		}
		if c := trouble(r); c != "" {
			t.Error("condition", c)
		}
	})
	bubble("C18/a deadline of who waits", func(t *testing.T, root *testpki.Cert, o *office) {
		r, _ := asks(t, o, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		if err := r.Ask(ctx, ocspQuery(root.Client("c"), root)); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 100*time.Millisecond {
			t.Error(err, time.Since(start))
		}
	})
	bubble("C16/answers that cannot be used", func(t *testing.T, root *testpki.Cert, o *office) {
		r, answers := asks(t, o, nil)
		other := root.Client("other")
		o.say(answering(root.OCSP(other)))
		c := root.Client("c")
		for range 20 { // of one certificate once in ten seconds
			if err := r.Ask(t.Context(), ocspQuery(c, root)); err == nil || !strings.Contains(err.Error(), "about serial") {
				t.Fatal(err)
			}
		}
		if n := o.asked.Load(); n != 1 {
			t.Error("asked", n, "times")
		}
		for range 5 { // others are still asked about: one client must not be able to stop that
			if err := r.Ask(t.Context(), ocspQuery(root.Client("d"), root)); err == nil {
				t.Fatal(err)
			}
		}
		if n := o.asked.Load(); n != 6 {
			t.Error("asked", n, "times")
		}
		if _, ok := answers.Lookup(ocspQuery(c, root).Key()); ok {
			t.Error("remembered")
		}
		if c := trouble(r); c != ResponderUnusable {
			t.Error("condition", c)
		}
		if err := r.Ask(t.Context(), ocspQuery(other, root)); err != nil || trouble(r) != "" {
			t.Error(err, trouble(r))
		}
		time.Sleep(unusablePause)
		if r.Ask(t.Context(), ocspQuery(c, root)); o.asked.Load() != 8 {
			t.Error("asked", o.asked.Load(), "times")
		}
	})
	bubble("C16/declined", func(t *testing.T, root *testpki.Cert, o *office) {
		for status, failures := range map[byte]int{6: 0, 5: 0, 3: 1, 2: 1} {
			r, _ := asks(t, o, nil)
			o.say(answering(testpki.OCSPError(status)))
			one := root.Client("one")
			for range 5 { // an error for one certificate says nothing about the others (C18)
				if err := r.Ask(t.Context(), ocspQuery(one, root)); err == nil {
					t.Error(status)
				}
				time.Sleep(unusablePause)
			}
			count := func() int {
				r.mu.Lock()
				defer r.mu.Unlock()
				return r.responders["ocsp.test"].failures
			}
			if n := count(); n > 0 {
				t.Errorf("status %d for one certificate: %d failures", status, n)
			}
			for range 3 {
				_ = r.Ask(t.Context(), ocspQuery(root.Client("c"), root))
			}
			if n := count(); (n > 0) != (failures > 0) {
				t.Errorf("status %d: %d failures", status, n)
			}
			time.Sleep(time.Hour)
		}
	})
	bubble("C17/a responder that knows no nonce", func(t *testing.T, root *testpki.Cert, o *office) {
		r, _ := asks(t, o, nil)
		c := root.Client("c")
		o.say(func(q *outbound.Request) ([]byte, error) {
			if len(q.Body) > 120 {
				return testpki.OCSPError(1), nil
			}
			return root.OCSP(c), nil
		})
		if err := r.Ask(t.Context(), ocspQuery(c, root)); err != nil {
			t.Error(err)
		}
		q := ocspQuery(c, root)
		q.RequireNonce = true
		if err := r.Ask(t.Context(), q); err == nil {
			t.Error("a nonce was required")
		}
	})
	bubble("C13/hosts go with the question", func(t *testing.T, root *testpki.Cert, o *office) {
		r, _ := asks(t, o, nil)
		o.say(func(q *outbound.Request) ([]byte, error) {
			if len(q.Hosts) != 1 || q.Hosts[0] != "ocsp.test" || q.ContentType != "application/ocsp-request" || q.MaxBytes == 0 {
				t.Errorf("%+v", q)
			}
			return nil, errors.New("x")
		})
		q := ocspQuery(root.Client("c"), root)
		q.Hosts = []string{"ocsp.test"}
		r.Ask(t.Context(), q)
		if o.asked.Load() != 1 {
			t.Error("not asked")
		}
	})
	bubble("C19/one exchange for many", func(t *testing.T, root *testpki.Cert, o *office) {
		r, answers := asks(t, o, nil)
		c := root.Client("c")
		o.say(func(*outbound.Request) ([]byte, error) {
			time.Sleep(time.Second)
			return root.OCSP(c), nil
		})
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() {
				if err := r.Ask(t.Context(), ocspQuery(c, root)); err != nil {
					t.Error(err)
				}
			})
			r.Soon(ocspQuery(c, root))
		}
		all.Wait()
		if err := r.Ask(t.Context(), ocspQuery(c, root)); err != nil {
			t.Error(err)
		}
		if n := o.asked.Load(); n != 1 {
			t.Error("asked", n, "times")
		}
		if a, ok := answers.Lookup(ocspQuery(c, root).Key()); !ok || a.Status != trust.Good {
			t.Error(a)
		}
	})
	bubble("C20/revoked while connected", func(t *testing.T, root *testpki.Cert, o *office) {
		var changes atomic.Int64
		r, answers := asks(t, o, func() { changes.Add(1) })
		c := root.Client("c", testpki.Lifetime(1000*time.Hour))
		o.say(func(*outbound.Request) ([]byte, error) { return root.OCSP(c), nil })
		store, err := trust.NewStore("partners", []*x509.Certificate{root.Cert}, nil, nil,
			trust.Options{OCSP: trust.OCSP{Mode: trust.OCSPRequire, Responder: "http://ocsp.test/", Answers: answers}})
		if err != nil {
			t.Fatal(err)
		}
		v := store.Verify(c.Presented(), time.Now())
		if v.Accepted || len(v.Ask) != 1 {
			t.Fatalf("%+v", v)
		}
		if err := r.Ask(t.Context(), v.Ask[0]); err != nil {
			t.Fatal(err)
		}
		if v := store.Verify(c.Presented(), time.Now()); !v.Accepted || len(v.Ask) != 0 {
			t.Fatalf("%+v", v)
		}
		if changes.Load() != 0 {
			t.Error("a first good answer is a change")
		}
		for range 6 { // in use: asked again before it runs out, and never again at a handshake
			time.Sleep(20 * time.Minute)
			if v := store.Verify(c.Presented(), time.Now()); !v.Accepted {
				t.Fatalf("%v", v.Err())
			}
		}
		if n := o.asked.Load(); n < 4 || n > 7 {
			t.Error("asked", n, "times in two hours")
		}
		o.say(func(*outbound.Request) ([]byte, error) { return root.OCSP(c, testpki.OCSPRevoked(1)), nil })
		time.Sleep(31 * time.Minute)
		if a, _ := answers.Lookup(v.Ask[0].Key()); a.Status != trust.Revoked || changes.Load() != 1 {
			t.Error(a, changes.Load(), "changes")
		}
		o.asked.Store(0)
		time.Sleep(3 * time.Hour) // not used any more
		if n := o.asked.Load(); n > 3 {
			t.Error("asked", n, "times for nobody")
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.questions)+len(r.responders) != 0 {
			t.Error(len(r.questions), "questions left,", len(r.responders), "responders")
		}
	})
	bubble("C20/changes that come together", func(t *testing.T, root *testpki.Cert, o *office) {
		var changes atomic.Int64
		r, answers := asks(t, o, func() { changes.Add(1) })
		for range 50 {
			c := root.Client("c")
			o.say(answering(root.OCSP(c, testpki.OCSPRevoked(1))))
			if err := r.Ask(t.Context(), ocspQuery(c, root)); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		if changes.Load() != 1 || answers.Changes() != 50 {
			t.Error(changes.Load(), answers.Changes())
		}
	})
	bubble("C21/5000 questions to one that hangs", func(t *testing.T, root *testpki.Cert, o *office) {
		r, _ := asks(t, o, nil)
		proto := root.Client("c")
		start := time.Now()
		var all sync.WaitGroup
		var prompt atomic.Int64
		before := runtime.NumGoroutine()
		for i := range 5000 {
			q := ocspQuery(proto, root)
			c := *proto.Cert
			q.Cert = withSerial(&c, i)
			all.Go(func() {
				if err := r.Ask(t.Context(), q); err == nil {
					t.Error("no error")
				}
				switch d := time.Since(start); {
				case d == 0:
					prompt.Add(1)
				case d > 2*defaultOCSPTimeout:
					t.Error("waited", d)
				}
			})
		}
		synctest.Wait() // all have an answer or wait
		if n := prompt.Load(); n != 5000-maxAsking-maxWaiting {
			t.Error(n, "prompt errors")
		}
		if n := runtime.NumGoroutine() - before - maxAsking - maxWaiting; n > maxAsking+8 { // those who wait are not ours
			t.Error(n, "goroutines")
		}
		if c := trouble(r); c != ResponderBusy {
			t.Error("condition", c)
		}
		all.Wait()
		// The first to fail make room for others, until one too many has failed.
		if o.most.Load() != maxAsking || o.asked.Load() != maxAsking+tolerated-1 {
			t.Error("at most", o.most.Load(), "at once,", o.asked.Load(), "in all")
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.asking != 0 || r.waiting != 0 || len(r.questions) > maxAsking+maxWaiting {
			t.Error(r.asking, r.waiting, len(r.questions))
		}
	})
	bubble("C21/all responders together", func(t *testing.T, root *testpki.Cert, o *office) {
		r, _ := asks(t, o, nil)
		proto := root.Client("c")
		var all sync.WaitGroup
		for i := range 5000 {
			q := ocspQuery(proto, root)
			q.Responder = fmt.Sprintf("http://r%d.test/", i%50)
			c := *proto.Cert
			q.Cert = withSerial(&c, i)
			all.Go(func() { r.Ask(t.Context(), q) })
		}
		all.Wait()
		if n := o.most.Load(); n != maxAskingAll {
			t.Error("at most", n, "at once")
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.asking != 0 || r.waiting != 0 {
			t.Error(r.asking, r.waiting)
		}
	})
	bubble("C21/questions remembered", func(t *testing.T, root *testpki.Cert, o *office) {
		r, _ := asks(t, o, nil)
		proto := root.Client("c")
		o.say(answering(root.OCSP(proto)))
		if err := r.Ask(t.Context(), ocspQuery(proto, root)); err != nil {
			t.Fatal(err)
		}
		for i := range maxQuestions + 500 {
			q := ocspQuery(proto, root)
			c := *proto.Cert
			q.Cert = withSerial(&c, i)
			if err := r.Ask(t.Context(), q); err == nil {
				t.Fatal("an answer about another")
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if n := len(r.questions); n != maxQuestions || r.questions[ocspQuery(proto, root).Key()] == nil {
			t.Error(n, "questions; or the one that was answered is forgotten")
		}
	})
	bubble("a new configuration", func(t *testing.T, root *testpki.Cert, o *office) {
		r, answers := asks(t, o, nil)
		c := root.Client("c")
		o.say(answering(root.OCSP(c)))
		if err := r.Ask(t.Context(), ocspQuery(c, root)); err != nil {
			t.Fatal(err)
		}
		r.Forget()
		time.Sleep(2 * time.Hour)
		if _, ok := answers.Lookup(ocspQuery(c, root).Key()); !ok || o.asked.Load() != 1 {
			t.Error("asked", o.asked.Load(), "times")
		}
	})
	bubble("the end", func(t *testing.T, root *testpki.Cert, o *office) {
		r, _ := asks(t, o, nil)
		proto := root.Client("c")
		var all sync.WaitGroup
		for i := range 50 {
			q := ocspQuery(proto, root)
			c := *proto.Cert
			q.Cert = withSerial(&c, i)
			all.Go(func() {
				if err := r.Ask(t.Context(), q); err == nil {
					t.Error("no error")
				}
			})
		}
		synctest.Wait()
		start := time.Now()
		r.Close()
		r.Close()
		all.Wait()
		if d := time.Since(start); d != 0 {
			t.Error("took", d)
		}
		if r.Ask(t.Context(), ocspQuery(proto, root)) == nil {
			t.Error("asked after the end")
		}
	})
	bubble("a bug", func(t *testing.T, root *testpki.Cert, o *office) {
		r, _ := asks(t, o, nil)
		o.say(func(*outbound.Request) ([]byte, error) { panic("x") })
		if err := r.Ask(t.Context(), ocspQuery(root.Client("c"), root)); err == nil || !strings.Contains(err.Error(), "bug") {
			t.Error(err)
		}
	})
}

// Two CAs, one serial number, one of them revoked; real sockets and no bubble, for the race detector.
func TestRespondersNoCrossAnswers(t *testing.T) {
	t.Run("C19/over HTTP", func(t *testing.T) {
		a, b := testpki.New(t), testpki.New(t)
		good := a.Client("good")
		bad := b.Client("bad", testpki.Serial(good.Cert.SerialNumber))
		goodDER, badDER := a.OCSP(good), b.OCSP(bad, testpki.OCSPRevoked(1))
		goodQ, badQ := ocspQuery(good, a), ocspQuery(bad, b)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body := make([]byte, 1024)
			n, _ := r.Body.Read(body)
			plain, _ := goodQ.Request(nil)
			// What names the issuer and certificate stands in the same place, with or without a nonce.
			if strings.Contains(string(body[:n]), string(plain[len(plain)-60:])) {
				w.Write(goodDER)
			} else {
				w.Write(badDER)
			}
		}))
		defer server.Close()
		goodQ.Responder, badQ.Responder = server.URL, server.URL
		answers := trust.NewAnswers(0)
		client := outbound.New(outbound.Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
		r := NewResponders(RespondersConfig{Client: client, Answers: answers, Timeout: time.Minute})
		defer r.Close()
		var all sync.WaitGroup
		for i := range 1000 {
			all.Go(func() {
				q, want := goodQ, trust.Good
				if i%2 == 1 {
					q, want = badQ, trust.Revoked
				}
				if err := r.Ask(t.Context(), q); err != nil {
					t.Error(err)
				}
				if a, ok := answers.Lookup(q.Key()); !ok || a.Status != want {
					t.Errorf("%v, want %v", a.Status, want)
				}
			})
		}
		all.Wait()
	})
	t.Run("C13/an address that is not allowed", func(t *testing.T) {
		root := testpki.New(t)
		var asked atomic.Int64
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
		defer server.Close()
		r := NewResponders(RespondersConfig{Client: outbound.New(outbound.Options{}), Answers: trust.NewAnswers(0)})
		defer r.Close()
		q := ocspQuery(root.Client("c"), root)
		q.Responder = server.URL
		if err := r.Ask(t.Context(), q); err == nil || asked.Load() != 0 {
			t.Error(err)
		}
		q.Hosts = []string{"other.test"}
		q.RequireNonce = true // another question
		if err := r.Ask(t.Context(), q); err == nil || asked.Load() != 0 {
			t.Error(err)
		}
	})
}

// The responder that comes with OpenSSL.
func TestRespondersAgainstOpenSSL(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("no openssl")
	}
	root := testpki.New(t)
	delegate := root.Responder("delegate")
	alice, mallory, stranger := root.Client("alice"), root.Client("mallory"), root.Client("stranger")
	dir := t.TempDir()
	ca, caKey := root.WriteFiles(filepath.Join(dir))
	signer, signerKey := delegate.WriteFiles(dir)
	index := filepath.Join(dir, "index.txt")
	stamp := func(t time.Time) string { return t.UTC().Format("060102150405Z") }
	later := time.Now().Add(24 * time.Hour)
	text := fmt.Sprintf("V\t%s\t\t%X\tunknown\t/CN=alice\nR\t%s\t%s,keyCompromise\t%X\tunknown\t/CN=mallory\n",
		stamp(later), alice.Cert.SerialNumber, stamp(later), stamp(time.Now().Add(-time.Hour)), mallory.Cert.SerialNumber)
	for name, content := range map[string]string{index: text, index + ".attr": "unique_subject = no\n"} {
		if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, args := range map[string][]string{
		"delegate":          {"-rsigner", signer, "-rkey", signerKey, "-nmin", "5"},
		"delegate by key":   {"-rsigner", signer, "-rkey", signerKey, "-nmin", "5", "-resp_key_id"},
		"issuer":            {"-rsigner", ca, "-rkey", caKey, "-nmin", "5"},
		"no nextUpdate":     {"-rsigner", signer, "-rkey", signerKey},
		"SHA-1":             {"-rsigner", signer, "-rkey", signerKey, "-rmd", "sha1"},
		"by client's own":   nil,
		"delegate, no cert": {"-rsigner", signer, "-rkey", signerKey, "-resp_no_certs"},
	} {
		t.Run(name, func(t *testing.T) {
			if args == nil {
				c, k := alice.WriteFiles(t.TempDir())
				args = []string{"-rsigner", c, "-rkey", k, "-nmin", "5"}
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cmd := exec.CommandContext(ctx, openssl, append([]string{"ocsp", "-port", "0", "-index", index, "-CA", ca}, args...)...)
			out, w := io.Pipe()
			cmd.Stdout, cmd.Stderr = w, w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() { cancel(); out.Close(); cmd.Wait() }()
			port := ""
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if rest, ok := strings.CutPrefix(lines.Text(), "ACCEPT "); ok {
					address, _, _ := strings.Cut(rest, " ")
					port = address[strings.LastIndexByte(address, ':')+1:]
				}
				if strings.Contains(lines.Text(), "waiting for OCSP client connections") {
					break
				}
			}
			go io.Copy(io.Discard, out)
			address := "127.0.0.1:" + port
			answers := trust.NewAnswers(0)
			r := NewResponders(RespondersConfig{Answers: answers, Timeout: 10 * time.Second,
				Client: outbound.New(outbound.Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})})
			defer r.Close()
			for c, want := range map[*testpki.Cert]trust.Status{alice: trust.Good, mallory: trust.Revoked, stranger: trust.Unknown} {
				q := ocspQuery(c, root)
				q.Responder = "http://" + address + "/"
				q.RequireNonce = true
				err := r.Ask(t.Context(), q)
				a, _ := answers.Lookup(q.Key())
				switch name {
				case "SHA-1", "by client's own", "delegate, no cert":
					if err == nil || a.Status != 0 {
						t.Error(a, err)
					}
				default:
					if err != nil || a.Status != want || want == trust.Revoked && a.Code != 1 {
						t.Errorf("%v, want %v: %v", a.Status, want, err)
					}
				}
			}
		})
	}
}

func withSerial(c *x509.Certificate, n int) *x509.Certificate {
	c.SerialNumber = big.NewInt(int64(n) + 1)
	return c
}
