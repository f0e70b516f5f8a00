package refresh

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/outbound"
	"countersign/internal/testpki"
)

// vault is an https server that gives out one CA bundle.
type vault struct {
	*httptest.Server
	page    atomic.Pointer[page]
	endless atomic.Bool
	asked   atomic.Int64
	conns   atomic.Int64
}

func newVault(t *testing.T, body []byte) *vault {
	v := &vault{}
	v.put(page{body: body})
	v.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.asked.Add(1)
		p := v.page.Load()
		if p.hang {
			<-r.Context().Done()
			return
		}
		if v.endless.Load() {
			for block := bytes.Repeat([]byte("#"), 64<<10); ; {
				if _, err := w.Write(block); err != nil {
					return
				}
			}
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
			w.Header().Set("Location", string(p.body))
			w.WriteHeader(p.status)
		}
		_, _ = w.Write(p.body)
	}))
	v.Config.ErrorLog = log.New(new(bytes.Buffer), "", 0)
	v.Listener = &counting{v.Listener, &v.conns}
	v.StartTLS()
	t.Cleanup(func() { v.CloseClientConnections(); v.Close() })
	return v
}

func (v *vault) put(p page) { v.page.Store(&p) }

// client trusts the vault's certificate, and may go to loopback.
func (v *vault) client() *outbound.Client {
	roots := v.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	return outbound.New(outbound.Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Roots: roots, Timeout: time.Minute})
}

// tray is a Bundles under test.
type tray struct {
	*Bundles
	t       *testing.T
	changed atomic.Int64
	every   time.Duration
}

func newTray(t *testing.T, dir string, client *outbound.Client) *tray {
	t.Helper()
	y := &tray{t: t, every: time.Hour}
	b, err := NewBundles(BundlesConfig{Dir: dir, Client: client, Log: slog.New(slog.DiscardHandler), Changed: func() { y.changed.Add(1) }})
	if err != nil {
		t.Fatal(err)
	}
	y.Bundles = b
	t.Cleanup(b.Close)
	return y
}

// again fetches a URL once more: another interval is a new wish.
func (y *tray) again(url string) {
	y.t.Helper()
	y.every += time.Second
	y.Want(map[string]time.Duration{url: y.every})
	ctx, cancel := context.WithTimeout(y.t.Context(), 30*time.Second)
	defer cancel()
	y.Ready(ctx)
	if ctx.Err() != nil {
		y.t.Fatal("not tried within 30 s")
	}
}

func (y *tray) has(url string, want []byte) {
	y.t.Helper()
	if got, err := y.Fetched(url); err != nil || !bytes.Equal(got, want) {
		y.t.Errorf("%q, %v", got, err)
	}
}

func (y *tray) condition() string {
	var all []string
	for _, c := range y.Conditions() {
		if c.Code != BundleFetch || c.Since.IsZero() {
			y.t.Errorf("%+v", c)
		}
		all = append(all, c.Text)
	}
	return strings.Join(all, "\n")
}

// TestBundleRefused: what is no CA bundle is never taken, and the last good one stays.
func TestBundleRefused(t *testing.T) {
	root := testpki.New(t)
	good := root.PEM()
	for _, c := range []struct {
		id   string
		page page
		want string
	}{
		{"C14/a page with 200", page{body: []byte("<html>log in</html>"), kind: "text/html; charset=utf-8"}, "(text/html) is no CA bundle"},
		{"C14/404", page{status: 404, body: []byte("gone")}, "expected status 200, found 404"},
		{"C14/500 with a bundle", page{status: 500, body: good}, "found 500"},
		{"A22/nothing", page{}, "is no CA bundle"},
		{"A22/cut", page{body: good[:len(good)/2]}, "is no CA bundle"},
		{"B05/a leaf", page{body: root.Server("a.test").PEM()}, "expected a CA certificate"},
		{"B24/a leaf among CAs", page{body: append(append([]byte{}, good...), root.Client("x").DER()...)}, "is no CA bundle"},
		{"B24/a list", page{body: root.CRL()}, "is no CA bundle"},
		{"B16/a weak CA", page{body: testpki.New(t, testpki.RSA(1024)).PEM()}, "RSA of 1024"},
		{"G07/redirected elsewhere", page{status: 302, body: []byte("http://169.254.169.254/latest")}, "redirect"},
	} {
		t.Run(c.id, func(t *testing.T) {
			v := newVault(t, nil)
			v.put(c.page)
			y := newTray(t, t.TempDir(), v.client())
			y.again(v.URL)
			if data, err := y.Fetched(v.URL); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("first: %q, %v", data, err)
			}
			if y.changed.Load() != 0 || !strings.Contains(y.condition(), c.want) || strings.Contains(y.condition(), "last good") {
				t.Errorf("changed %d times; %s", y.changed.Load(), y.condition())
			}
			v.put(page{body: good})
			y.again(v.URL)
			y.has(v.URL, good)
			if y.condition() != "" {
				t.Errorf("put right: %s", y.condition())
			}
			v.put(c.page)
			y.again(v.URL)
			y.has(v.URL, good)
			if text := y.condition(); !strings.Contains(text, c.want) || !strings.Contains(text, "the last good bundle stays in force") || len(text) > maxText {
				t.Errorf("later: %s", text)
			}
		})
	}
	t.Run("C12/an endless body", func(t *testing.T) {
		v := newVault(t, good)
		y := newTray(t, "", v.client())
		y.again(v.URL)
		v.endless.Store(true)
		y.again(v.URL)
		y.has(v.URL, good)
		if !strings.Contains(y.condition(), "at most 16777216 bytes") {
			t.Error(y.condition())
		}
	})
	t.Run("G07/a private address", func(t *testing.T) {
		v := newVault(t, good)
		y := newTray(t, t.TempDir(), outbound.New(outbound.Options{}))
		y.again(v.URL)
		if v.conns.Load() != 0 || y.condition() == "" {
			t.Errorf("%d connections; %s", v.conns.Load(), y.condition())
		}
	})
	t.Run("G07/a server that cannot prove its name", func(t *testing.T) {
		v := newVault(t, good)
		y := newTray(t, t.TempDir(), outbound.New(outbound.Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}))
		y.again(v.URL)
		if v.asked.Load() != 0 || !strings.Contains(y.condition(), "certificate") {
			t.Errorf("%d requests; %s", v.asked.Load(), y.condition())
		}
	})
}

// TestBundles: what is fetched is told once, kept on disk, and asked for no longer than wanted.
func TestBundles(t *testing.T) {
	root, second := testpki.New(t), testpki.New(t)
	good := root.PEM()
	down := func(v *vault) { v.CloseClientConnections(); v.Close() }
	t.Run("C14/kept over a restart", func(t *testing.T) {
		v, dir := newVault(t, good), t.TempDir()
		y := newTray(t, dir, v.client())
		if _, err := y.Fetched(v.URL); err == nil {
			t.Error("there is one before it was fetched")
		}
		y.again(v.URL)
		y.has(v.URL, good)
		waitFor(t, func() bool { return y.changed.Load() == 1 })
		y.Close()
		down(v)
		y = newTray(t, dir, v.client())
		y.has(v.URL, good) // before anything was asked
		y.again(v.URL)
		y.has(v.URL, good)
		if !strings.Contains(y.condition(), "the last good bundle stays in force") || y.changed.Load() != 0 {
			t.Errorf("changed %d times; %s", y.changed.Load(), y.condition())
		}
		files, err := os.ReadDir(dir)
		if err != nil || len(files) != 1 {
			t.Errorf("%v %v", files, err)
		}
		for _, f := range files {
			if info, err := f.Info(); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v %v", info, err)
			}
		}
	})
	t.Run("C14/damaged on disk", func(t *testing.T) {
		v, dir := newVault(t, good), t.TempDir()
		y := newTray(t, dir, v.client())
		y.again(v.URL)
		if err := os.WriteFile(y.file(v.URL), good[:99], 0o600); err != nil {
			t.Fatal(err)
		}
		y.Close()
		down(v)
		y = newTray(t, dir, v.client())
		y.again(v.URL)
		if data, err := y.Fetched(v.URL); err == nil {
			t.Errorf("%q", data)
		}
	})
	t.Run("C14/another interval, no folder, and the server down", func(t *testing.T) {
		v := newVault(t, good)
		y := newTray(t, "", v.client())
		y.again(v.URL)
		down(v)
		y.every += time.Second
		y.Want(map[string]time.Duration{v.URL: y.every})
		y.has(v.URL, good)
	})
	t.Run("unchanged", func(t *testing.T) {
		v := newVault(t, nil)
		v.put(page{body: good, etag: `"1"`})
		y := newTray(t, t.TempDir(), v.client())
		y.Want(map[string]time.Duration{v.URL: time.Second})
		waitFor(t, func() bool { return v.asked.Load() >= 2 })
		y.has(v.URL, good)
		if y.changed.Load() != 1 || y.condition() != "" {
			t.Errorf("changed %d times; %s", y.changed.Load(), y.condition())
		}
		v.put(page{body: second.PEM(), etag: `"2"`})
		waitFor(t, func() bool { return y.changed.Load() == 2 })
		y.has(v.URL, second.PEM())
	})
	t.Run("G08/a URL is no file name", func(t *testing.T) {
		v, dir := newVault(t, good), t.TempDir()
		inner := filepath.Join(dir, "a", "b")
		y := newTray(t, inner, v.client())
		url := v.URL + "/../../../x?a=/../%2e%2e/y"
		y.again(url)
		y.has(url, good)
		if files, _ := os.ReadDir(dir); len(files) != 1 {
			t.Errorf("%v", files)
		}
		if files, _ := os.ReadDir(inner); len(files) != 1 {
			t.Errorf("%v", files)
		}
	})
	t.Run("not wanted any more", func(t *testing.T) {
		v := newVault(t, good)
		y := newTray(t, "", v.client())
		y.Want(map[string]time.Duration{v.URL: time.Second})
		y.Ready(t.Context())
		y.Want(nil)
		n := v.asked.Load()
		time.Sleep(1500 * time.Millisecond)
		if v.asked.Load() != n {
			t.Error("it is asked for")
		}
		if _, err := y.Fetched(v.URL); err == nil || y.condition() != "" {
			t.Errorf("%v; %s", err, y.condition())
		}
	})
	t.Run("C14/a server that says nothing", func(t *testing.T) {
		v := newVault(t, nil)
		v.put(page{hang: true})
		y := newTray(t, "", v.client())
		y.Want(map[string]time.Duration{v.URL: 0})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		y.Ready(ctx)
		y.Close()
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("took %s", took)
		}
	})
	t.Run("C14/a folder that cannot be", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := NewBundles(BundlesConfig{Dir: filepath.Join(file, "x")}); err == nil || !strings.Contains(err.Error(), "expected a folder") {
			t.Error(err)
		}
	})
	t.Run("C14/a folder that is gone", func(t *testing.T) {
		v, dir := newVault(t, good), filepath.Join(t.TempDir(), "x")
		y := newTray(t, dir, v.client())
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		y.again(v.URL)
		y.has(v.URL, good)
	})
}

// counting counts connections.
type counting struct {
	net.Listener
	n *atomic.Int64
}

func (l *counting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.n.Add(1)
	}
	return c, err
}

func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited 10 s in vain")
		}
	}
}
