package outbound

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/testpki"
)

var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// server counts the connections made to it.
type server struct {
	*httptest.Server
	conns atomic.Int64
}

func (s *server) port() string {
	_, port, _ := net.SplitHostPort(s.Listener.Addr().String())
	return port
}

func serve(t *testing.T, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{Server: httptest.NewUnstartedServer(h)}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			s.conns.Add(1)
		}
	}
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return s
}

// raw answers every connection with f.
func raw(t *testing.T, f func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.Read(make([]byte, 4096))
				f(c)
			}()
		}
	}()
	return l.Addr().String()
}

// dns is a resolver whose n-th look-up of a name has the n-th list of addresses, and the last one from then on.
func dns(t *testing.T, answers ...[]string) (*net.Resolver, *atomic.Int64) {
	asked := new(atomic.Int64)
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			for {
				var size [2]byte
				if _, err := io.ReadFull(theirs, size[:]); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(size[:]))
				if _, err := io.ReadFull(theirs, query); err != nil {
					return
				}
				end := 12
				for query[end] != 0 {
					end += int(query[end]) + 1
				}
				end += 5
				kind := binary.BigEndian.Uint16(query[end-4:])
				reply := append([]byte{query[0], query[1], 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0}, query[12:end]...)
				n := int(asked.Load())
				if kind == 1 {
					n = int(asked.Add(1)) - 1
				}
				for _, s := range answers[min(n, len(answers)-1)] {
					a := netip.MustParseAddr(s)
					if a.Is4() != (kind == 1) {
						continue
					}
					reply[7]++
					reply = append(reply, 0xc0, 12, 0, byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(a.BitLen()/8))
					reply = append(reply, a.AsSlice()...)
				}
				if _, err := theirs.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(reply))), reply...)); err != nil {
					return
				}
			}
		}()
		return ours, nil
	}}, asked
}

// dialled notes the addresses that a client made with o connects to.
func dialled(o Options) (*Client, func() []string) {
	var mu sync.Mutex
	var list []string
	o.dialing = func(a string) {
		mu.Lock()
		defer mu.Unlock()
		list = append(list, a)
	}
	return New(o), func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(list)
	}
}

func refused(t *testing.T, c *Client, r *Request, want string) error {
	t.Helper()
	got, err := c.Do(t.Context(), r)
	if err == nil {
		t.Fatalf("%.200s: not refused: %d bytes", r.URL, len(got.Body))
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("%.200s: %v; want it to say %q", r.URL, err, want)
	}
	if len(err.Error()) > 500 {
		t.Errorf("%.200s: error of %d bytes", r.URL, len(err.Error()))
	}
	return err
}

// Every way to write an address that only this machine or network can reach ends before a connection.
func TestNotDialled(t *testing.T) {
	local := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") })
	port := local.port()
	for _, c := range []struct{ id, url, want string }{
		{"G07/metadata service", "http://169.254.169.254/latest/meta-data/", "link-local"},
		{"G07/metadata service, v6", "http://[fd00:ec2::254]/", "private (RFC 4193)"},
		{"G07/loopback", "http://127.0.0.1:" + port + "/", "127.0.0.0/8"},
		{"G07/loopback, another", "http://127.255.255.254:" + port + "/", "loopback"},
		{"G07/loopback by name", "http://localhost:" + port + "/", "loopback"},
		{"G07/loopback v6", "http://[::1]:" + port + "/", "loopback"},
		{"G07/loopback v6, long", "http://[0:0:0::0:1]:" + port + "/", "loopback"},
		{"G07/zero", "http://0.0.0.0:" + port + "/", "of this network"},
		{"G07/unspecified v6", "http://[::]:" + port + "/", "unspecified"},
		{"G07/short form", "http://127.1:" + port + "/", "four decimal numbers"},
		{"G07/decimal", "http://2130706433:" + port + "/", "four decimal numbers"},
		{"G07/octal", "http://0177.0.0.1:" + port + "/", "four decimal numbers"},
		{"G07/hexadecimal", "http://0x7f000001:" + port + "/", "four decimal numbers"},
		{"G07/hexadecimal parts", "http://0x7f.0.0.0x1:" + port + "/", "four decimal numbers"},
		{"G07/trailing dot", "http://127.0.0.1.:" + port + "/", "four decimal numbers"},
		{"G07/IPv4-mapped", "http://[::ffff:7f00:1]:" + port + "/", "loopback"},
		{"G07/IPv4-mapped, dotted", "http://[::ffff:127.0.0.1]:" + port + "/", "loopback"},
		{"G07/IPv4-compatible", "http://[::127.0.0.1]:" + port + "/", "not global unicast"},
		{"G07/NAT64 of loopback", "http://[64:ff9b::7f00:1]/", "loopback"},
		{"G07/NAT64 of private", "http://[64:ff9b::10.1.2.3]/", "10.0.0.0/8"},
		{"G07/local NAT64", "http://[64:ff9b:1::a01:203]/", "RFC 8215"},
		{"G07/6to4 of loopback", "http://[2002:7f00:1::]/", "6to4"},
		{"G07/Teredo", "http://[2001:0:7f00:1::1]/", "Teredo"},
		{"G07/private 10", "http://10.1.2.3/", "add 10.0.0.0/8, or the part of it that is needed, to outbound.allow"},
		{"G07/private 172.16", "http://172.31.255.255/", "172.16.0.0/12"},
		{"G07/private 192.168", "https://192.168.1.1/", "192.168.0.0/16"},
		{"G07/carrier", "http://100.127.0.1/", "RFC 6598"},
		{"G07/multicast", "http://239.255.255.250:1900/", "multicast"},
		{"G07/broadcast", "http://255.255.255.255/", "reserved"},
		{"G07/benchmark", "http://198.19.0.1/", "benchmarks"},
		{"G07/documentation", "http://192.0.2.1/", "documentation"},
		{"G07/link-local v6", "http://[fe80::1]/", "link-local"},
		{"G07/zone", "http://[fe80::1%25lo]:" + port + "/", "without zone"},
		{"G07/multicast v6", "http://[ff02::1]/", "multicast"},
		{"G07/site-local v6", "http://[fec0::1]/", "not global unicast"},
		{"G07/user info", "http://public.test@127.0.0.1:" + port + "/", "no user or password"},
		{"G07/password", "http://a:b@127.0.0.1:" + port + "/", "no user or password"},
		{"G07/backslash", `http://public.test\@127.0.0.1:` + port + "/", "not a URL"},
		{"G07/escaped host", "http://127.0.0.%31:" + port + "/", "not a URL"},
		{"G07/full-width digits", "http://１２７.0.0.1:" + port + "/", "ASCII"},
		{"G07/enclosed digits", "http://①②⑦.⓪.⓪.①:" + port + "/", "ASCII"},
		{"G07/newline", "http://127.0.0.1:" + port + "/\r\nHost: x", "not a URL"},
		{"C13/metadata service", "http://169.254.169.254/ca.crl", "link-local"},
		{"C13/ldap", "ldap://127.0.0.1:" + port + "/cn=ca?certificateRevocationList", "scheme http or https"},
		{"C13/ldaps", "ldaps://127.0.0.1:" + port + "/", "scheme http or https"},
		{"C13/file", "file:///etc/passwd", "scheme http or https"},
		{"C13/file with host", "file://127.0.0.1:" + port + "/etc/passwd", "scheme http or https"},
		{"C13/gopher", "gopher://127.0.0.1:" + port + "/_x", "scheme http or https"},
		{"C13/ftp", "ftp://127.0.0.1:" + port + "/ca.crl", "scheme http or https"},
		{"C13/data", "data:,x", "scheme http or https"},
		{"C13/unix", "unix:///var/run/docker.sock", "scheme http or https"},
		{"C13/no scheme", "//127.0.0.1:" + port + "/", "scheme http or https"},
		{"C13/opaque", "http:127.0.0.1:" + port, "expected a host"},
		{"C13/no host", "http:///ca.crl", "expected a host"},
		{"C13/empty", "", "scheme http or https"},
		{"C13/port zero", "http://127.0.0.1:0/", "port from 1"},
		{"C13/port too high", "http://127.0.0.1:65536/", "port from 1"},
		{"C13/label of dots", "http://a..b/", "host name of ASCII"},
		{"C13/long", "http://127.0.0.1:" + port + "/" + strings.Repeat("a", maxURL), "at most 2048 bytes"},
	} {
		t.Run(c.id, func(t *testing.T) {
			client, conns := dialled(Options{})
			refused(t, client, &Request{URL: c.url}, c.want)
			if got := conns(); len(got) > 0 {
				t.Errorf("connected to %v", got)
			}
		})
	}
	if n := local.conns.Load(); n > 0 {
		t.Errorf("%d connections arrived", n)
	}
}

func TestAddresses(t *testing.T) {
	for _, s := range []string{"1.1.1.1", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0", "172.15.0.1",
		"172.32.0.1", "192.0.1.1", "192.167.1.1", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "2600::1",
		"2001:200::1", "2a00::", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2620:4f:8000::1"} {
		if n, no := refuse(netip.MustParseAddr(s), nil); no {
			t.Errorf("%s refused: %s", s, n.what)
		}
	}
	ten := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("fe80::/10")}
	for s, allowed := range map[string]bool{"10.1.2.3": true, "10.2.0.1": false, "::ffff:10.1.2.3": true, "64:ff9b::10.1.2.3": true,
		"64:ff9b::10.2.2.3": false, "2002:a01:203::": false, "fe80::1%eth0": true, "127.0.0.1": false} {
		if _, no := refuse(netip.MustParseAddr(s), ten); no == allowed {
			t.Errorf("%s: refused %v with 10.1.0.0/16 allowed", s, no)
		}
	}
	t.Run("typed", func(t *testing.T) {
		var address *AddressError
		err := refused(t, New(Options{}), &Request{URL: "http://10.1.2.3/x?token=secret"}, "expected a public address, found 10.1.2.3")
		if !errors.As(err, &address) || address.Host != "10.1.2.3:80" || address.Address != "10.1.2.3" {
			t.Errorf("%#v", err)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows more than the host: %v", err)
		}
	})
}

func TestDNS(t *testing.T) {
	local := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/again" {
			io.WriteString(w, "second")
			return
		}
		http.Redirect(w, r, "/again", http.StatusFound)
	})
	t.Run("G07/a name of a private address", func(t *testing.T) {
		resolver, _ := dns(t, []string{"127.0.0.1", "::1"})
		client, conns := dialled(Options{Resolver: resolver})
		err := refused(t, client, &Request{URL: "http://public.test:" + local.port() + "/"}, "public.test:"+local.port()+": expected a public address")
		var address *AddressError
		if !errors.As(err, &address) || len(conns()) > 0 || local.conns.Load() > 0 {
			t.Errorf("%v, connected to %v", err, conns())
		}
	})
	t.Run("G07/DNS flip between look-ups", func(t *testing.T) {
		// The first answer is an address that is allowed, every later one is not. A client that looks up to judge and again
		// to connect would connect to the second.
		resolver, asked := dns(t, []string{"127.0.0.1"}, []string{"127.0.0.2"})
		client, conns := dialled(Options{Resolver: resolver, Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}})
		refused(t, client, &Request{URL: "http://public.test:" + local.port() + "/"}, "found 127.0.0.2") // the redirect looks up again
		if got := conns(); !slices.Equal(got, []string{"127.0.0.1:" + local.port()}) || asked.Load() != 2 {
			t.Errorf("connected to %v after %d look-ups", got, asked.Load())
		}
	})
	t.Run("G07/one good address among bad ones", func(t *testing.T) {
		resolver, _ := dns(t, []string{"169.254.169.254", "10.0.0.1", "127.0.0.1"})
		client, conns := dialled(Options{Resolver: resolver, Allow: loopback[:1]})
		got, err := client.Do(t.Context(), &Request{URL: "http://public.test:" + local.port() + "/again"})
		if err != nil || string(got.Body) != "second" || !slices.Equal(conns(), []string{"127.0.0.1:" + local.port()}) {
			t.Errorf("%v, connected to %v", err, conns())
		}
	})
}

func TestRedirects(t *testing.T) {
	other := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "other") })
	pki := testpki.New(t)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to := r.URL.Query().Get("to"); to != "" {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		io.WriteString(w, "secure "+r.URL.Path)
	}))
	secure.TLS = tlsConfig(pki.Server("127.0.0.1"))
	secure.StartTLS()
	defer secure.Close()
	local := serve(t, func(w http.ResponseWriter, r *http.Request) {
		var n int
		if _, err := fmt.Sscanf(r.URL.Path, "/hop/%d", &n); err == nil && n > 0 {
			http.Redirect(w, r, fmt.Sprintf("/hop/%d", n-1), http.StatusMovedPermanently)
			return
		}
		if to, ok := r.URL.Query()["to"]; ok {
			w.Header()["Location"] = to
			w.WriteHeader(http.StatusFound)
			return
		}
		if r.Header.Get("Referer")+r.Header.Get("Cookie")+r.Header.Get("Authorization") != "" {
			w.WriteHeader(http.StatusTeapot)
		}
		w.Header().Set("Set-Cookie", "a=b")
		io.WriteString(w, "here")
	})
	for _, c := range []struct{ id, to, want string }{
		{"G07/302 to another host", "http://localhost:" + other.port() + "/", "redirect within the host"},
		{"G07/302 to another port", "http://127.0.0.1:" + other.port() + "/", "redirect within the host"},
		{"G07/302 to the metadata service", "http://169.254.169.254/latest/", "redirect within the host"},
		{"G07/302 without scheme to another host", "//localhost/", "redirect within the host"},
		{"G07/302 to a file", "file:///etc/passwd", "redirect within the host"},
		{"G07/302 to gopher on the host", "gopher://127.0.0.1:" + local.port() + "/", "redirect within the host"},
		{"G07/302 with user info", "http://a:b@127.0.0.1:" + local.port() + "/", "no user or password"},
		{"G07/302 to what is no URL", "http://127.0.0.1:" + local.port() + "/%zz", "without one that is a URL"},
		{"G07/302 to nowhere", "", "without one that is a URL"},
	} {
		t.Run(c.id, func(t *testing.T) {
			client, conns := dialled(Options{Allow: loopback})
			refused(t, client, &Request{URL: local.URL + "/?to=" + url.QueryEscape(c.to)}, c.want)
			if got := conns(); len(got) != 1 {
				t.Errorf("connected to %v", got)
			}
		})
	}
	if n := other.conns.Load(); n > 0 {
		t.Errorf("%d connections to the other server", n)
	}
	c := New(Options{Allow: loopback, Roots: pki.Pool()})
	t.Run("G07/too many", func(t *testing.T) { refused(t, c, &Request{URL: local.URL + "/hop/4"}, "at most 3 redirects") })
	t.Run("G07/from https to http", func(t *testing.T) {
		refused(t, c, &Request{URL: secure.URL + "/?to=" + url.QueryEscape(local.URL)}, "redirect within the host")
	})
	t.Run("G07/a POST", func(t *testing.T) {
		refused(t, c, &Request{URL: local.URL + "/hop/1", Body: []byte("x")}, "found a redirect")
	})
	t.Run("G07/to https on a host that is not allowed", func(t *testing.T) {
		hosts := []string{strings.TrimPrefix(local.URL, "http://")}
		refused(t, c, &Request{URL: local.URL + "/?to=" + url.QueryEscape(secure.URL), Hosts: hosts}, "one of the hosts that are allowed")
	})
	t.Run("three, without cookie or Referer", func(t *testing.T) {
		got, err := c.Do(t.Context(), &Request{URL: local.URL + "/hop/3"})
		if err != nil || string(got.Body) != "here" {
			t.Error(got, err)
		}
	})
	t.Run("from http to https", func(t *testing.T) {
		got, err := c.Do(t.Context(), &Request{URL: local.URL + "/?to=" + url.QueryEscape(secure.URL+"/x")})
		if err != nil || string(got.Body) != "secure /x" {
			t.Error(got, err)
		}
	})
}

func TestHosts(t *testing.T) {
	local := serve(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") })
	address := strings.TrimPrefix(local.URL, "http://")
	resolver, asked := dns(t, []string{"127.0.0.1"})
	c := New(Options{Allow: loopback, Resolver: resolver})
	for _, h := range [][]string{{}, {"127.0.0.1"}, {"127.0.0.1:80"}, {"pki.test", "other.test"}, {"*"}, {""}} {
		refused(t, c, &Request{URL: local.URL, Hosts: h}, `add "`+address+`" to them`)
	}
	for _, u := range []string{"http://pki.test:8080/", "http://a.pki.test/", "http://pki.test.evil.test/", "http://evil.test/pki.test",
		"http://evil.test#pki.test", "http://pki.test./", "http://evilpki.test/"} {
		refused(t, c, &Request{URL: u, Hosts: []string{"pki.test"}}, "hosts that are allowed")
	}
	if n := local.conns.Load() + asked.Load(); n > 0 {
		t.Errorf("%d connections or look-ups", n)
	}
	if _, err := c.Do(t.Context(), &Request{URL: local.URL, Hosts: []string{address}}); err != nil {
		t.Error(err)
	}
	for _, u := range []string{"http://PKI.test/", "https://pki.test/", "http://pki.test:80/", "https://pki.test:443/"} {
		if _, _, err := parse(u, []string{"pki.test"}); err != nil {
			t.Error(err)
		}
	}
}

// What a server can do to keep us busy.
func TestBounds(t *testing.T) {
	client := New(Options{Allow: loopback})
	quick := New(Options{Allow: loopback, Timeout: 150 * time.Millisecond})
	get := func(address string) *Request {
		return &Request{URL: "http://" + address + "/ca.crl?token=secret", MaxBytes: 1 << 20}
	}
	hang := make(chan struct{})
	defer close(hang)

	before := runtime.NumGoroutine()
	within := func(t *testing.T, address string) {
		t.Helper()
		start := time.Now()
		err := refused(t, quick, get(address), "within 150ms")
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 20*time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	}
	t.Run("C14/hung", func(t *testing.T) { within(t, raw(t, func(net.Conn) { <-hang })) })
	t.Run("C14/hung in the head", func(t *testing.T) {
		within(t, raw(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nX: "); <-hang }))
	})
	t.Run("C14/slow drip", func(t *testing.T) {
		within(t, raw(t, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
			for {
				if _, err := c.Write([]byte("x")); err != nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}))
	})
	t.Run("C14/the last byte never comes", func(t *testing.T) {
		address := raw(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"+strings.Repeat("x", 10)); <-hang })
		r := get(address)
		r.MaxBytes = 10
		refused(t, quick, r, "within 150ms")
	})
	t.Run("C14/a deadline of the request", func(t *testing.T) {
		r := get(raw(t, func(net.Conn) { <-hang }))
		r.Timeout = 50 * time.Millisecond
		refused(t, client, r, "within 50ms")
	})
	t.Run("C14/the caller's end", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		if _, err := client.Do(ctx, get(raw(t, func(net.Conn) { <-hang }))); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("C14/hung in the TLS handshake", func(t *testing.T) {
		address := raw(t, func(net.Conn) { <-hang })
		_, err := quick.Do(t.Context(), &Request{URL: "https://" + address})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
	t.Run("C12/endless body", func(t *testing.T) {
		var sent atomic.Int64
		done := make(chan struct{})
		address := raw(t, func(c net.Conn) {
			defer close(done)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
			for chunk := make([]byte, 64<<10); sent.Load() < 10<<30; {
				n, err := c.Write(chunk)
				sent.Add(int64(n))
				if err != nil {
					return
				}
			}
		})
		refused(t, client, get(address), "at most 1048576 bytes")
		if <-done; sent.Load() > 64<<20 {
			t.Errorf("took %d bytes", sent.Load())
		}
	})
	t.Run("C12/10 GB announced", func(t *testing.T) {
		refused(t, client, get(raw(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n"); <-hang })), "at most 1048576 bytes")
	})
	t.Run("C12/compressed", func(t *testing.T) {
		local := serve(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("Accept-Encoding") != "identity" {
				w.WriteHeader(http.StatusTeapot)
			}
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			z.Write(make([]byte, 100<<20))
			z.Close()
		})
		refused(t, client, get(strings.TrimPrefix(local.URL, "http://")), `Content-Encoding "gzip"`)
	})
	t.Run("C12/chunked body over the limit", func(t *testing.T) {
		local := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			for range 20 {
				w.Write(make([]byte, 64<<10))
				w.(http.Flusher).Flush()
			}
		})
		refused(t, client, get(strings.TrimPrefix(local.URL, "http://")), "at most 1048576 bytes")
	})
	t.Run("C14/endless head", func(t *testing.T) {
		refused(t, client, get(raw(t, func(c net.Conn) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := io.WriteString(c, "X: "+strings.Repeat("y", 1000)+"\r\n"); err != nil {
					return
				}
			}
		})), "exceeded")
	})
	t.Run("C14/endless early answers", func(t *testing.T) {
		refused(t, client, get(raw(t, func(c net.Conn) {
			for {
				if _, err := io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nX: "+strings.Repeat("y", 1000)+"\r\n\r\n"); err != nil {
					return
				}
			}
		})), "127.0.0.1")
	})
	t.Run("F13/a long text of the server", func(t *testing.T) {
		err := refused(t, client, get(raw(t, func(c net.Conn) { io.WriteString(c, "\x1b[31m"+strings.Repeat("é", 5000)+"\r\n\r\n") })), "127.0.0.1")
		if strings.ContainsAny(err.Error(), "\x1b\r\n") {
			t.Errorf("%q", err)
		}
	})
	t.Run("C14/cut short", func(t *testing.T) {
		refused(t, client, get(raw(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nxxx") })), "unexpected EOF")
	})
	t.Run("C14/nobody listens", func(t *testing.T) {
		l, _ := net.Listen("tcp", "127.0.0.1:0")
		address := l.Addr().String()
		l.Close()
		refused(t, client, get(address), "refused")
	})
	for _, status := range []int{404, 500, 204, 206, 304, 300, 401, 407} {
		t.Run(fmt.Sprint("C14/status ", status), func(t *testing.T) {
			local := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
			err := refused(t, client, get(strings.TrimPrefix(local.URL, "http://")), fmt.Sprint("expected status 200, found ", status))
			var s *StatusError
			if !errors.As(err, &s) || s.Status != status || strings.Contains(err.Error(), "secret") {
				t.Errorf("%#v", err)
			}
		})
	}
	t.Run("C14/HTML with 200", func(t *testing.T) {
		local := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "Text/HTML; charset=utf-8")
			io.WriteString(w, "<html>sorry")
		})
		got, err := client.Do(t.Context(), get(strings.TrimPrefix(local.URL, "http://")))
		if err != nil || got.ContentType() != "text/html" {
			t.Error(got, err)
		}
	})
	t.Run("nothing is left", func(t *testing.T) {
		client.transport.CloseIdleConnections()
		for range 100 {
			if runtime.NumGoroutine() <= before+40 { // the servers' own
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%d goroutines, %d before", runtime.NumGoroutine(), before)
	})
}

func TestExchange(t *testing.T) {
	local := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"one"`)
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2006 15:04:05 GMT")
		if r.Header.Get("If-None-Match") == `"one"` || r.Header.Get("If-Modified-Since") == "Mon, 02 Jan 2006 15:04:05 GMT" {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %q %q %q %s", r.Method, r.URL, r.Header.Get("Content-Type"), r.Header.Get("Accept"), r.Header.Get("User-Agent"), body)
	})
	resolver, _ := dns(t, []string{"127.0.0.1"})
	c := New(Options{Allow: loopback, Resolver: resolver})
	do := func(r *Request) string {
		t.Helper()
		got, err := c.Do(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if got.ETag != `"one"` || got.LastModified == "" {
			t.Errorf("%+v", got)
		}
		if got.NotModified != (got.Body == nil) {
			t.Errorf("%+v", got)
		}
		return string(got.Body)
	}
	if c.transport.Proxy != nil { // net/http reads the environment once, so a request cannot tell
		t.Error("a proxy could come in")
	}
	url := "http://pki.test:" + local.port() + "/a%2Fb?c=d#e"
	for _, x := range []struct {
		r    Request
		want string
	}{
		{Request{URL: url, Accept: "application/pkix-crl"}, `GET /a%2Fb?c=d "" "application/pkix-crl" "countersign" `},
		{Request{URL: url, Body: []byte("body"), ContentType: "application/ocsp-request"}, `POST /a%2Fb?c=d "application/ocsp-request" "" "countersign" body`},
		{Request{URL: url, ETag: `"one"`}, ""},
		{Request{URL: url, LastModified: "Mon, 02 Jan 2006 15:04:05 GMT"}, ""},
		{Request{URL: url, ETag: `"two"`, MaxBytes: 39}, `GET /a%2Fb?c=d "" "" "countersign" `},
	} {
		if got := do(&x.r); got != x.want {
			t.Errorf("got %s, want %s", got, x.want)
		}
	}
	t.Run("body of exactly the limit", func(t *testing.T) {
		exact := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(bytes.Repeat([]byte("x"), 1000)) })
		if got, err := c.Do(t.Context(), &Request{URL: exact.URL, MaxBytes: 1000}); err != nil || len(got.Body) != 1000 {
			t.Error(err)
		}
		refused(t, c, &Request{URL: exact.URL, MaxBytes: 999}, "at most 999 bytes")
	})
	t.Run("a server nobody vouches for", func(t *testing.T) {
		pki := testpki.New(t)
		s := httptest.NewUnstartedServer(http.NotFoundHandler())
		s.Config.ErrorLog = log.New(io.Discard, "", 0)
		s.TLS = tlsConfig(pki.Server("127.0.0.1"))
		s.StartTLS()
		defer s.Close()
		refused(t, c, &Request{URL: s.URL}, "unknown authority")
		refused(t, New(Options{Allow: loopback, Roots: pki.Pool(), Resolver: resolver}),
			&Request{URL: strings.Replace(s.URL, "127.0.0.1", "other.test", 1)}, "other.test")
	})
}

func tlsConfig(c *testpki.Cert) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{c.TLS()}}
}
