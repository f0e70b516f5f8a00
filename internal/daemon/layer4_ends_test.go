package daemon_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
	"github.com/pires/go-proxyproto/tlvparse"
)

// TestLayer4Drain: at the end of the program tunnels may finish, and those that do not in time are cut, which neither side
// can take for a proper end.
func TestLayer4Drain(t *testing.T) {
	for _, kind := range bytesKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			w := newL4(t, kind, false, map[string]l4Case{
				"main":  {},
				"queue": {"", "targets: [N1], max_connections: 1, max_pending: 5, queue_timeout: 1m"},
			})
			finishes, goesOn, first := w.open(t, "main", 1, ""), w.open(t, "main", 1, ""), w.open(t, "queue", 1, "")
			for _, c := range []*l4Client{finishes, goesOn, first} {
				c.serves(t)
			}
			waits := w.open(t, "queue", 2, "")
			go waits.knock()
			w.awaitMetric(pendingOf("queue"), "1")
			addr, done := w.addr("main"), make(chan struct{})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go func() { w.main.Shutdown(ctx); close(done) }()
			await(t, 20*time.Second, "the end of accepting", func() bool {
				c, err := from(3, addr)
				if err == nil {
					c.Close()
				}
				return err != nil
			})
			for range 3 {
				finishes.serves(t)
				goesOn.serves(t)
			}
			finishes.Close()
			w.recorded(t, finishes, "tunnel_closed")
			select {
			case <-done:
				t.Fatal("the drain ended with a tunnel open")
			default:
			}
			for _, n := range w.targets { // nobody looks at proper ends any more
				for len(n.ends) > 0 {
					<-n.ends
				}
			}
			at := goesOn.serves(t)
			cancel()
			select {
			case <-done:
			case <-time.After(20 * time.Second):
				t.Fatal("the drain does not end")
			}
			for _, c := range []*l4Client{goesOn, first} {
				if b, err := io.ReadAll(c.r); err == nil || len(b) > 0 {
					t.Errorf("E21/a tunnel that was cut ended with %q and %v, as if that were all", b, err)
				}
				if rec := w.recorded(t, c, "shutdown_forced"); rec["kind"] != "tunnel" || rec["fault"] != "operator" || rec["target"] == nil || rec["bytes_in"] == 0.0 || rec["bytes_out"] == 0.0 {
					t.Errorf("record: %v", rec)
				}
			}
			// It may have been given the place of the one that was cut right before it, and has moved nothing there.
			if rec := w.recorded(t, waits, "shutdown_forced"); rec["kind"] != "tunnel" || rec["bytes_out"] != 0.0 || rec["detail"] != nil {
				t.Errorf("record of who waited: %v", rec)
			}
			for _, n := range w.targets {
				if n.name != at {
					continue
				}
				select {
				case err := <-n.ends:
					if err == io.EOF {
						t.Errorf("E21/the target takes the end of what was cut for a proper one")
					}
				case <-time.After(20 * time.Second):
					t.Error("the target's connection goes on")
				}
			}
		})
	}
}

// TestForcedShutdown: whatever is cut at the end of the drain is recorded as that, and not as the client's doing.
func TestForcedShutdown(t *testing.T) {
	w, _, _, _ := enforceWorld(t)
	var open []*held
	for _, k := range kinds[1:] { // an idle one ends well
		open = append(open, w.hold(t, k.name, w.client("a.test", alice(w))))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.main.Shutdown(ctx)
	for i, h := range open {
		t.Run(h.kind, func(t *testing.T) {
			w.find(t, append([]string{"client=" + h.conn.LocalAddr().String(), "reason=shutdown_forced", "fault=operator"}, kinds[1+i].record...)...)
		})
	}
}

// slowly is a connection that sends the second half of what is written first only when it may.
type slowly struct {
	net.Conn
	half chan struct{} // closed when the first half is sent
	rest chan struct{} // closed when the other one may be
	sent bool
}

func (s *slowly) Write(p []byte) (int, error) {
	if s.sent {
		return s.Conn.Write(p)
	}
	s.sent = true
	n, err := s.Conn.Write(p[:len(p)/2])
	close(s.half)
	if err != nil {
		return n, err
	}
	<-s.rest
	m, err := s.Conn.Write(p[n:])
	return n + m, err
}

// TestLayer4Reload: a configuration that changes targets, and tunnels that were there before.
func TestLayer4Reload(t *testing.T) {
	for _, kind := range bytesKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			main := map[string]l4Case{"main": {}}
			w := newL4(t, kind, false, main)
			at := map[string]*l4Client{}
			for range 3 {
				c := w.open(t, "main", 1, "")
				at[c.serves(t)] = c
			}
			for _, state := range []string{"draining", "disabled"} {
				w.reload(w.conf(map[string]l4Case{"main": {"", "targets: [N1, {url: N2, state: " + state + "}, N3]"}}), "")
				if got := w.spread(t, 6, "main"); got != "map[one:3 three:3]" {
					t.Errorf("%s: %s", state, got)
				}
				for name, c := range at {
					if who := c.serves(t); who != name {
						t.Errorf("%s: the tunnel to %s is at %s", state, name, who)
					}
				}
			}
			w.reload(w.conf(map[string]l4Case{"main": {"", "targets: [N1, N3]"}}), "")
			at["two"].serves(t)
			w.reload(w.conf(main), "")
			if got := w.spread(t, 6, "main"); got != "map[one:2 three:2 two:2]" {
				t.Errorf("back: %s", got)
			}
			// begun is a client whose first bytes came before a reload, and of which the rest comes after that. Those of kind
			// tcp have nothing that can take so long.
			begun := func(next string, gone bool) *l4Client {
				t.Helper()
				raw := must(from(9, w.addr("main")))(t)
				t.Cleanup(func() { raw.Close() })
				_ = raw.SetDeadline(time.Now().Add(30 * time.Second))
				wire := &counted{TCPConn: raw.(*net.TCPConn)}
				through := &slowly{Conn: wire, half: make(chan struct{}), rest: make(chan struct{})}
				c := w.speak(wire, through)
				go c.knock()
				<-through.half
				await(t, 10*time.Second, "the connection to be accepted", func() bool {
					return w.metric(`countersign_connections{listener="main"}`) != "0"
				})
				w.reload(next, "")
				if gone {
					w.awaitMetric(gauge("connections", "main", w.targets[0].addr), "")
				}
				close(through.rest)
				return c
			}
			if kind == "tcp" {
				return
			}
			for _, c := range at {
				c.wire.Close()
			}
			w.left("main", 0)
			t.Run("the upstream is gone when the handshake ends", func(t *testing.T) {
				other := strings.ReplaceAll(w.conf(main), "upstream: main", "upstream: other")
				other = strings.ReplaceAll(other, "  main: {targets", "  other: {targets")
				begun(other, true).serves(t)
			})
			w.reload(w.conf(main), "")
			t.Run("the upstream is one for requests when the handshake ends", func(t *testing.T) {
				web := newNode(t, "web")
				other := strings.ReplaceAll(w.conf(main), "upstream: main", "upstream: other")
				other = strings.ReplaceAll(other, "  main: {targets", "  other: {targets")
				other += `  main: {targets: ["http://` + web.addr + "\"]}\n"
				other = strings.ReplaceAll(other, "\nupstreams:", "\n  web: {listen: 127.0.0.1:0, protocol: http, hosts: [{names: [w.test], routes: [{upstream: main}]}]}\nupstreams:")
				begun(other, false).serves(t)
				if n := web.accepted.Load(); n != 0 {
					t.Errorf("%d connections whose bytes nobody looked at got to a target of requests", n)
				}
			})
		})
	}
}

// TestLayer4Records: what is recorded of each connection, what targets are told of it, and its ends.
func TestLayer4Records(t *testing.T) {
	for _, kind := range bytesKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			const tell = "proxy_protocol: {version: v2, tlvs: [authority, unique_id, tls, cn, client_cert, crc32c]}"
			w := newL4(t, kind, true, map[string]l4Case{
				"out":  {"", tell},
				"v1":   {"", "proxy_protocol: {version: v1}"},
				"in":   {"proxy_protocol: {from: [127.9.9.7]}, limits: {handshake: 500ms}", tell},
				"slow": {"proxy_protocol: {from: [127.9.9.7]}, limits: {handshake: 5s}", tell},
				"idle": {"limits: {tunnel_idle: 500ms}", tell},
				"life": {"limits: {lifetime: 1s}", tell},
			})
			// head is the PROXY header of the connection that a target was asked over last.
			head := func(t *testing.T, who string) *proxyproto.Header {
				t.Helper()
				for _, n := range w.targets {
					if n.name == who {
						select {
						case h := <-n.heads:
							return h
						case <-time.After(20 * time.Second):
						}
					}
				}
				t.Fatalf("no PROXY header came to %q", who)
				return nil
			}
			t.Run("F03/proxy_source_refused", func(t *testing.T) { w.refused(t, "in", 8, "proxy_source_refused") })
			t.Run("F03/proxy_header_invalid", func(t *testing.T) { w.refused(t, "in", 7, "proxy_header_invalid") })
			t.Run("F03/proxy_header_timeout", func(t *testing.T) {
				c := w.open(t, "in", 7, "PROXY TCP4 ")
				_, _ = io.ReadAll(c.wire)
				w.recorded(t, c, "proxy_header_timeout")
			})
			if kind != "tcp" {
				t.Run("F03/header and handshake share their time", func(t *testing.T) {
					began := time.Now()
					c := w.open(t, "slow", 7, "")
					time.Sleep(4 * time.Second)
					_, _ = io.WriteString(c.wire, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
					_, _ = io.ReadAll(c.wire)
					w.find(t, "client=192.0.2.1:1", "reason=hello_timeout")
					if d := time.Since(began); d > 8500*time.Millisecond+stood(began) {
						t.Errorf("ended after %v, expected 5 s", d)
					}
				})
			}
			// talk says something both ways, ends and waits for the record, whose client is named.
			talk := func(t *testing.T, listener string, last byte, lead, client string) (rec map[string]any, h *proxyproto.Header) {
				t.Helper()
				c := w.open(t, listener, last, lead)
				who := c.serves(t)
				h = head(t, who)
				up := make([]byte, 3<<20)
				_, _ = rand.Read(up)
				go func() {
					_, _ = c.Write(append([]byte("echo\n"), up...))
					_ = c.Conn.(interface{ CloseWrite() error }).CloseWrite() // and listens
				}()
				down, err := io.ReadAll(c.r)
				if err != nil || !bytes.Equal(down, up) {
					t.Errorf("%d bytes of %d came back, %v", len(down), len(up), err)
				}
				c.wire.Close()
				if client == "" {
					client = c.wire.LocalAddr().String()
				}
				rec = w.find(t, "client="+client, "kind=tunnel", "reason=tunnel_closed")
				in, out := int64(len("hello\necho\n")+len(up)), int64(len(who)+len(" hello\n")+len(up))
				if kind == "passthrough" { // the client's TLS is what was moved
					in, out = c.wire.out, c.wire.in
				}
				if rec["bytes_in"] != float64(in) || rec["bytes_out"] != float64(out) {
					t.Errorf("%v bytes in and %v out, expected %d and %d", rec["bytes_in"], rec["bytes_out"], in, out)
				}
				target := ""
				for _, n := range w.targets {
					if n.name == who {
						target = n.addr
					}
				}
				sni := map[bool]any{true: nil, false: "a.test"}[kind == "tcp"]
				if rec["listener"] != listener || rec["upstream"] != listener || rec["target"] != target || rec["sni"] != sni || rec["host"] != sni || rec["duration_us"].(float64) <= 0 || rec["ref"] == "" {
					t.Errorf("record: %v", rec)
				}
				if named := rec["client_certificate"]; kind == "tls" && !strings.Contains(fmt.Sprint(named), "subject:CN=alice") || kind != "tls" && named != nil {
					t.Errorf("record: client certificate %v", named)
				}
				if n := strings.Count(w.log.String(), `"ref":"`+fmt.Sprint(rec["ref"])+`"`); n != map[bool]int{true: 2, false: 1}[kind == "tls"] {
					t.Errorf("%d records of one connection", n) // of kind tls the handshake has one of its own
				}
				return rec, h
			}
			told := func(t *testing.T, rec map[string]any, h *proxyproto.Header, client, local string) {
				t.Helper()
				src, dst, ok := h.TCPAddrs()
				if !ok || src.AddrPort() != netip.MustParseAddrPort(client) || dst.AddrPort() != netip.MustParseAddrPort(local) {
					t.Errorf("PROXY header: %v to %v, expected %s to %s", src, dst, client, local)
				}
				tlvs, err := h.TLVs()
				if err != nil {
					t.Fatal(err)
				}
				var ssl *tlvparse.PP2SSL
				values := map[proxyproto.PP2Type]string{}
				for _, tlv := range tlvs {
					values[tlv.Type] = string(tlv.Value)
					if tlv.Type == proxyproto.PP2_TYPE_SSL {
						s, err := tlvparse.SSL(tlv)
						if err != nil {
							t.Fatal(err)
						}
						ssl = &s
					}
				}
				if values[proxyproto.PP2_TYPE_UNIQUE_ID] != rec["ref"] || values[proxyproto.PP2_TYPE_AUTHORITY] != map[bool]string{true: "", false: "a.test"}[kind == "tcp"] {
					t.Errorf("PROXY header says %q", values)
				}
				if kind != "tls" {
					if ssl != nil {
						t.Errorf("PROXY header speaks of TLS that does not end here: %v", ssl)
					}
					return
				}
				if ssl == nil {
					t.Fatal("PROXY header without TLS")
				}
				version, _ := ssl.SSLVersion()
				cn, _ := ssl.ClientCN()
				cert := ""
				for _, tlv := range ssl.TLV {
					if tlv.Type == proxyproto.PP2_SUBTYPE_SSL_CLIENT_CERT {
						cert = string(tlv.Value)
					}
				}
				if ssl.Verify != 0 || version != "TLSv1.3" || cn != "alice" || cert != string(alice(w.world).DER()) {
					t.Errorf("PROXY header: verify %d, %s, %q, a certificate of %d bytes", ssl.Verify, version, cn, len(cert))
				}
			}
			t.Run("D13/told in version 2", func(t *testing.T) {
				rec, h := talk(t, "out", 1, "", "")
				told(t, rec, h, rec["client"].(string), w.addr("out"))
			})
			t.Run("D13/told in version 1", func(t *testing.T) {
				rec, h := talk(t, "v1", 1, "", "")
				if src, _, ok := h.TCPAddrs(); !ok || h.Version != 1 || src.String() != rec["client"] {
					t.Errorf("%v, expected %v", h, rec["client"])
				}
			})
			t.Run("D13/told by a proxy, and on", func(t *testing.T) {
				rec, h := talk(t, "slow", 7, "PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\n", "203.0.113.7:4711")
				told(t, rec, h, "203.0.113.7:4711", "198.51.100.1:443")
				lead := append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"), 203, 0, 113, 9, 198, 51, 100, 1)
				lead = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(lead, 4712), 443)
				rec, h = talk(t, "slow", 7, string(lead), "203.0.113.9:4712")
				told(t, rec, h, "203.0.113.9:4712", "198.51.100.1:443")
			})
			t.Run("H08/the target ends first", func(t *testing.T) {
				c := w.open(t, "out", 1, "")
				who := c.serves(t)
				head(t, who)
				fmt.Fprint(c, "end\n")
				if got, err := io.ReadAll(c.r); string(got) != "bye\n" || err != nil {
					t.Errorf("%q %v", got, err)
				}
				fmt.Fprint(c, "more")
				c.Close()
				for _, n := range w.targets {
					if n.name == who {
						select {
						case got := <-n.rest:
							if got != "more" {
								t.Errorf("after its end the target got %q", got)
							}
						case <-time.After(20 * time.Second):
							t.Error("the target's connection goes on")
						}
					}
				}
				w.recorded(t, c, "tunnel_closed")
			})
			for listener, why := range map[string]string{"idle": "idle_closed", "life": "lifetime_reached"} {
				t.Run("F02/"+why, func(t *testing.T) {
					c := w.open(t, listener, 1, "")
					c.serves(t)
					var mu sync.Mutex
					var unsent error
					if listener == "life" {
						stop := make(chan struct{})
						defer close(stop)
						go func() { // never idle
							for {
								select {
								case <-stop:
									return
								case <-time.After(50 * time.Millisecond):
									mu.Lock()
									if _, err := io.WriteString(c, "tick\n"); unsent == nil {
										unsent = err
									}
									mu.Unlock()
								}
							}
						}()
					}
					_, err := io.Copy(io.Discard, c.r)
					mu.Lock() // a reset is told once, to the reader or to the writer
					if err == nil && !errors.Is(unsent, syscall.ECONNRESET) {
						t.Error("E21/it ended as if that were all")
					}
					mu.Unlock()
					if rec := w.recorded(t, c, why); rec["kind"] != "tunnel" || rec["bytes_in"] == 0.0 || rec["bytes_out"] == 0.0 {
						t.Errorf("record: %v", rec)
					}
				})
			}
		})
	}
}
