package origin

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"

	"countersign/internal/reason"
)

// peer is who connects in these tests.
var peer = netip.MustParseAddrPort("10.0.0.7:40000")

// v2 makes a header of version 2.
func v2(command, family byte, block string) string {
	b := append([]byte(proxyproto.SIGV2), command, family)
	b = binary.BigEndian.AppendUint16(b, uint16(len(block)))
	return string(b) + block
}

func tlv(kind byte, value string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(value)))) + value
}

// sealed is a version 2 header with its checksum, for block with a checksum of zeros at its end.
func sealed(command, family byte, block string) string {
	b := []byte(v2(command, family, block+tlv(3, "\x00\x00\x00\x00")))
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return string(b)
}

const (
	addrs4 = "\xc0\x00\x02\x01\xc6\x33\x64\x02\x30\x39\x01\xbb" // 192.0.2.1:12345 to 198.51.100.2:443
	addrs6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02" + "\x30\x39\x01\xbb"
	mapped = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc6\x33\x64\x02" + "\x30\x39\x01\xbb"
	hello = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" // what comes next
)

func TestReadProxyRefuses(t *testing.T) {
	long := strings.Repeat("f", 5000)
	for _, row := range []struct{ name, send, found string }{
		{"nothing", "", "an end after 0 bytes"},
		{"TLS", hello, `\x16\x03\x01`},
		{"HTTP", "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", "GET"},
		{"another word", "PROXYING TCP4 192.0.2.1 198.51.100.2 1 2\r\n", "PROXYI"},
		{"lower case", "proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n", "proxy"},
		{"almost the signature", "\r\n\r\n\x00\r\nQUIX\n", `QUIX`},

		{"F03/half of a line", "PROXY TCP4 192.0.2.1 198.", "an end after 25 bytes"},
		{"F03/half of a signature", "\r\n\r\n\x00\r\nQ", "an end after 8 bytes"},
		{"F03/half of a fixed part", v2(0x21, 0x11, addrs4)[:15], "an end after 15 bytes"},
		{"F03/half of an address", v2(0x21, 0x11, addrs4)[:20], "an end after 20 bytes"},
		{"F03/line too long", "PROXY UNKNOWN " + long, "a longer one"},
		{"F03/line of 108", "PROXY UNKNOWN " + long[:108-16] + "\r\n", "a longer one"},
		{"F03/block too long", v2(0x21, 0x11, addrs4+tlv(0xe0, long[:4082])), "4097"},
		{"F03/the longest length", string(proxyproto.SIGV2) + "\x21\x11\xff\xff", "65535"},
		{"F03/LOCAL too long", v2(0x20, 0x00, long), "5000"},

		{"no CR", "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n   ", ""},
		{"LF inside", "PROXY TCP4 192.0.2.1\n198.51.100.2 1 2\r\n", ""},
		{"CR inside", "PROXY TCP4 192.0.2.1\r198.51.100.2 1 2\r\n", ""},
		{"two spaces", "PROXY  TCP4 192.0.2.1 198.51.100.2 1 2\r\n", ""},
		{"tab", "PROXY TCP4\t192.0.2.1 198.51.100.2 1 2\r\n", ""},
		{"space at the end", "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n", ""},
		{"a field more", "PROXY TCP4 192.0.2.1 198.51.100.2 1 2 3\r\n", ""},
		{"a field less", "PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n", ""},
		{"no fields", "PROXY TCP4\r\n       ", ""},
		{"unknown family", "PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n", ""},
		{"family in lower case", "PROXY tcp4 192.0.2.1 198.51.100.2 1 2\r\n", ""},
		{"address of the other family", "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n", ""},
		{"IPv4 in TCP6", "PROXY TCP6 192.0.2.1 198.51.100.2 1 2\r\n", ""},
		{"leading zeros", "PROXY TCP4 192.0.02.1 198.51.100.2 1 2\r\n", ""},
		{"hexadecimal", "PROXY TCP4 0xc0.0.2.1 198.51.100.2 1 2\r\n", ""},
		{"one number", "PROXY TCP4 3221225985 198.51.100.2 1 2\r\n", ""},
		{"zone", "PROXY TCP6 fe80::1%eth0 fe80::2 1 2\r\n", ""},
		{"brackets", "PROXY TCP6 [2001:db8::1] [2001:db8::2] 1 2\r\n", ""},
		{"a name", "PROXY TCP4 localhost localhost 1 2\r\n", ""},
		{"port too large", "PROXY TCP4 192.0.2.1 198.51.100.2 65536 2\r\n", ""},
		{"port with sign", "PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n", ""},
		{"port with zero", "PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n", ""},
		{"NUL", "PROXY TCP4 192.0.2.1\x00 198.51.100.2 1 2\r\n", ""},

		{"version 1 in binary", v2(0x11, 0x11, addrs4), ""},
		{"version 3", v2(0x31, 0x11, addrs4), ""},
		{"unknown command", v2(0x22, 0x11, addrs4), ""},
		{"unknown family in binary", v2(0x21, 0x41, addrs4), ""},
		{"unknown transport", v2(0x21, 0x13, addrs4), ""},
		{"unknown transport, LOCAL", v2(0x20, 0x13, addrs4), ""},
		{"block too short", v2(0x21, 0x11, addrs4[:11]), ""},
		{"block too short, IPv6", v2(0x21, 0x21, addrs4), ""},
		{"block too short, Unix", v2(0x21, 0x31, addrs6), ""},
		{"TLV without length", v2(0x21, 0x11, addrs4+"\x01\x00"), "2 bytes"},
		{"TLV longer than the block", v2(0x21, 0x11, addrs4+"\x01\x00\x05abc"), "3"},
		{"TLV twice", v2(0x21, 0x11, addrs4+tlv(2, "a.test")+tlv(2, "b.test")), "two"},
		{"TLV in UNSPEC longer than the block", v2(0x21, 0x00, "\x01\x00\x05abc"), "3"},
		{"authority too long", v2(0x21, 0x11, addrs4+tlv(2, long[:256])), "256"},
		{"unique id too long", v2(0x21, 0x11, addrs4+tlv(5, long[:129])), "129"},
		{"checksum too short", v2(0x21, 0x11, addrs4+tlv(3, "abc")), "3"},
		{"checksum wrong", v2(0x21, 0x11, addrs4+tlv(3, "abcd")), ""},
		{"checksum of another header", strings.Replace(sealed(0x21, 0x11, addrs4), "\xc0\x00\x02\x01", "\xc0\x00\x02\x09", 1), ""},
		{"checksum twice", v2(0x21, 0x11, sealed(0x21, 0x11, addrs4)[16:]+tlv(3, "abcd")), ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			for i, cut := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.DataErrReader} {
				o := Origin{Peer: peer, Client: peer}
				err := ReadProxy(cut(strings.NewReader(row.send)), &o)
				var refusal *reason.Refusal
				if !errors.As(err, &refusal) || refusal.Reason != reason.ProxyHeaderInvalid {
					t.Fatalf("error %v, origin %+v; expected proxy_header_invalid", err, o)
				}
				if i == 0 && !strings.Contains(refusal.Found, row.found) || len(refusal.Error()) > 512 {
					t.Errorf("refused with %q, expected to find %q", refusal.Error(), row.found)
				}
			}
		})
	}
}

// TestReadProxyTimeout: a header that never comes whole ends with its deadline, whatever part of it came.
func TestReadProxyTimeout(t *testing.T) {
	whole := sealed(0x21, 0x21, addrs6)
	for _, part := range []string{"", "P", "PROXY TCP4 192.0.2.1 ", "PROXY TCP4 192.0.2.1 198.51.100.2 1 2\r", whole[:4], whole[:13], whole[:30], whole[:len(whole)-1]} {
		t.Run("F03/half header "+part[:min(len(part), 5)], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := net.Pipe()
				defer client.Close()
				go func() { _, _ = client.Write([]byte(part)) }()
				start := time.Now()
				_ = server.SetReadDeadline(start.Add(10 * time.Second))
				in := &Inbound{From: Networks{Unix: true}}
				_, err := in.Accept(server)
				var refusal *reason.Refusal
				if !errors.As(err, &refusal) || refusal.Reason != reason.ProxyHeaderTimeout {
					t.Errorf("error %v, expected proxy_header_timeout", err)
				}
				if d := time.Since(start); d != 10*time.Second {
					t.Errorf("it took %s, expected 10s", d)
				}
				server.Close()
			})
		})
	}
}

// from is a connection with addresses of our choice.
type from struct {
	net.Conn
	r             io.Reader
	remote, local net.Addr
}

func (c from) Read(p []byte) (int, error) { return c.r.Read(p) }
func (c from) RemoteAddr() net.Addr       { return c.remote }
func (c from) LocalAddr() net.Addr        { return c.local }

// TestAccept: who may send a header, must; who may not, is refused before a byte is read.
func TestAccept(t *testing.T) {
	listed := Networks{Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8:1::/48")}}
	unix := &net.UnixAddr{Name: "/run/x", Net: "unix"}
	tcp := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	header := "PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n"
	for _, row := range []struct {
		name   string
		in     *Inbound
		remote net.Addr
		send   string
		why    reason.Reason
		client string
		left   string
	}{
		{"F03/header from elsewhere", &Inbound{From: listed}, tcp("11.0.0.1:1"), header, reason.ProxySourceRefused, "", header},
		{"F03/no header from elsewhere", &Inbound{From: listed}, tcp("11.0.0.1:1"), hello, reason.ProxySourceRefused, "", hello},
		{"F03/nobody listed", &Inbound{}, tcp("10.0.0.1:1"), header, reason.ProxySourceRefused, "", header},
		{"F03/Unix socket not listed", &Inbound{From: listed}, unix, header, reason.ProxySourceRefused, "", header},
		{"F03/address, where a Unix socket is listed", &Inbound{From: Networks{Unix: true}}, tcp("10.0.0.1:1"), header, reason.ProxySourceRefused, "", header},
		{"F03/no header from a listed one", &Inbound{From: listed}, tcp("10.0.0.1:1"), hello, reason.ProxyHeaderInvalid, "", ""},
		{"F03/no header, others are plain", &Inbound{From: listed, Unlisted: true}, tcp("10.0.0.1:1"), hello, reason.ProxyHeaderInvalid, "", ""},
		{"header of one that is plain is not read", &Inbound{From: listed, Unlisted: true}, tcp("11.0.0.1:1"), header, reason.Unset, "11.0.0.1:1", header},
		{"no configuration", nil, tcp("10.0.0.1:1"), header, reason.Unset, "10.0.0.1:1", header},
		{"listed", &Inbound{From: listed}, tcp("10.0.0.1:1"), header + hello, reason.Unset, "192.0.2.1:12345", hello},
		{"D15/listed as IPv4 in IPv6", &Inbound{From: listed}, tcp("[::ffff:10.0.0.1]:1"), header + hello, reason.Unset, "192.0.2.1:12345", hello},
		{"listed, IPv6", &Inbound{From: listed}, tcp("[2001:db8:1::5]:1"), header + hello, reason.Unset, "192.0.2.1:12345", hello},
		{"Unix socket", &Inbound{From: Networks{Unix: true}}, unix, header + hello, reason.Unset, "192.0.2.1:12345", hello},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := strings.NewReader(row.send)
			o, err := row.in.Accept(from{r: r, remote: row.remote, local: tcp("10.0.0.9:443")})
			var refusal *reason.Refusal
			if row.why != reason.Unset {
				if !errors.As(err, &refusal) || refusal.Reason != row.why {
					t.Fatalf("error %v, expected %s", err, row.why)
				}
			} else if err != nil || o.Client.String() != row.client {
				t.Fatalf("client %s, error %v; expected %s", o.Client, err, row.client)
			}
			if left, _ := io.ReadAll(r); row.why != reason.ProxyHeaderInvalid && string(left) != row.left {
				t.Errorf("left %q, expected %q", left, row.left)
			}
			if row.remote != unix && o.Peer.Addr() != netip.MustParseAddrPort(row.remote.String()).Addr().Unmap() {
				t.Errorf("peer %s, expected %s", o.Peer, row.remote)
			}
		})
	}
}

func TestReadProxy(t *testing.T) {
	local := netip.MustParseAddrPort("10.0.0.9:443")
	own := Origin{Peer: peer, Client: peer, Local: local}
	told := func(version uint8, client, dest string) Origin {
		return Origin{Peer: peer, Client: netip.MustParseAddrPort(client), Local: netip.MustParseAddrPort(dest), Header: version}
	}
	kept := func(version uint8) Origin {
		o := own
		o.Header = version
		return o
	}
	with := func(o Origin, alpn, authority, id string) Origin {
		o.ALPN, o.Authority, o.UniqueID = alpn, authority, id
		return o
	}
	four := told(2, "192.0.2.1:12345", "198.51.100.2:443")
	long := strings.Repeat("u", 128)
	for _, row := range []struct {
		name, send string
		want       Origin
	}{
		{"TCP4", "PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n", told(1, "192.0.2.1:12345", "198.51.100.2:443")},
		{"the shortest TCP4", "PROXY TCP4 1.1.1.1 1.1.1.1 1 1\r\n", told(1, "1.1.1.1:1", "1.1.1.1:1")},
		{"the longest TCP4", "PROXY TCP4 255.255.255.255 255.255.255.254 65535 65534\r\n", told(1, "255.255.255.255:65535", "255.255.255.254:65534")},
		{"port 0", "PROXY TCP4 192.0.2.1 198.51.100.2 0 0\r\n", told(1, "192.0.2.1:0", "198.51.100.2:0")},
		{"TCP6", "PROXY TCP6 2001:db8::1 2001:db8::2 12345 443\r\n", told(1, "[2001:db8::1]:12345", "[2001:db8::2]:443")},
		{"the shortest TCP6", "PROXY TCP6 :: :: 1 1\r\n", told(1, "[::]:1", "[::]:1")},
		{"the longest TCP6", "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe 65535 65534\r\n",
			told(1, "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe]:65534")},
		{"D15/IPv4 in TCP6", "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:198.51.100.2 12345 443\r\n", told(1, "192.0.2.1:12345", "198.51.100.2:443")},
		{"UNKNOWN", "PROXY UNKNOWN\r\n", kept(1)},
		{"UNKNOWN with addresses", "PROXY UNKNOWN 192.0.2.1 198.51.100.2 12345 443\r\n", kept(1)},
		{"the longest UNKNOWN", "PROXY UNKNOWN " + strings.Repeat("f", 107-16) + "\r\n", kept(1)},
		{"UNKNOWN with a CR", "PROXY UNKNOWN a\rb\r\r\n", kept(1)},

		{"IPv4", v2(0x21, 0x11, addrs4), four},
		{"IPv6", v2(0x21, 0x21, addrs6), told(2, "[2001:db8::1]:12345", "[2001:db8::2]:443")},
		{"D15/IPv4 in IPv6", v2(0x21, 0x21, mapped), told(2, "192.0.2.1:12345", "198.51.100.2:443")},
		{"LOCAL", v2(0x20, 0x00, ""), kept(2)},
		{"LOCAL with addresses", v2(0x20, 0x11, addrs4), kept(2)},
		{"LOCAL with half an address", v2(0x20, 0x21, addrs4), kept(2)},
		{"LOCAL with TLVs", v2(0x20, 0x11, addrs4+tlv(2, "a.test")), kept(2)},
		{"LOCAL with anything", v2(0x20, 0x00, "\x01\xff\xff"), kept(2)},
		{"UNSPEC", v2(0x21, 0x00, ""), kept(2)},
		{"UNSPEC with TLVs", v2(0x21, 0x00, tlv(2, "a.test")), with(kept(2), "", "a.test", "")},
		{"UDP", v2(0x21, 0x12, addrs4), kept(2)},
		{"Unix", v2(0x21, 0x31, strings.Repeat("a", 216)+tlv(1, "h2")), with(kept(2), "h2", "", "")},
		{"TLVs", v2(0x21, 0x11, addrs4+tlv(1, "h2")+tlv(4, "padding")+tlv(2, "a.test")+tlv(5, long)+tlv(0x20, "\x01\x00\x00\x00\x00")+tlv(0xee, "")),
			with(four, "h2", "a.test", long)},
		{"empty TLVs", v2(0x21, 0x11, addrs4+tlv(2, "")+tlv(4, "")+tlv(4, "")), four},
		{"hostile text", v2(0x21, 0x11, addrs4+tlv(2, "a\r\n\x00\xff")), with(four, "", "a\r\n\x00\xff", "")},
		{"checksum", sealed(0x21, 0x11, addrs4+tlv(2, "a.test")), with(four, "", "a.test", "")},
		{"checksum of UNSPEC", sealed(0x21, 0x00, ""), kept(2)},
		{"checksum in the middle", middle(), with(four, "", "a.test", "")},
		{"the longest block", v2(0x21, 0x11, addrs4+tlv(0xe0, strings.Repeat("x", 4096-12-3))), four},
	} {
		t.Run(row.name, func(t *testing.T) {
			for _, next := range []string{hello, "\n", "\r\n", "PROXY TCP4 9.9.9.9 9.9.9.9 9 9\r\n", ""} {
				for _, cut := range []func(io.Reader) io.Reader{func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader} {
					r := strings.NewReader(row.send + next)
					o := own
					if err := ReadProxy(cut(r), &o); err != nil || o != row.want {
						t.Fatalf("%+v, error %v; expected %+v", o, err, row.want)
					}
					if left, _ := io.ReadAll(r); string(left) != next {
						t.Fatalf("left %q, expected %q", left, next)
					}
				}
			}
		})
	}
}

// middle is a header whose checksum is not its last TLV.
func middle() string {
	b := []byte(v2(0x21, 0x11, addrs4+tlv(3, "\x00\x00\x00\x00")+tlv(2, "a.test")))
	binary.BigEndian.PutUint32(b[16+12+3:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return string(b)
}

// FuzzReadProxy: a header is accepted only if the library accepts the same bytes, says the same of them and ends where it
// ends; how it is cut into packets makes no difference.
func FuzzReadProxy(f *testing.F) {
	for _, s := range []string{"PROXY TCP4 192.0.2.1 198.51.100.2 12345 443\r\n" + hello, "PROXY UNKNOWN a\r\n", "PROXY TCP6 ::1 :: 1 1\r\nx",
		v2(0x20, 0x00, ""), v2(0x21, 0x31, strings.Repeat("a", 216)), sealed(0x21, 0x21, addrs6+tlv(5, "id")) + hello, middle(), v2(0x21, 0x00, tlv(4, "")), v2(0x21, 0x12, addrs4)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r := bytes.NewReader(data)
		o := Origin{Peer: peer, Client: peer}
		err := ReadProxy(r, &o)
		again := Origin{Peer: peer, Client: peer}
		r2 := bytes.NewReader(data)
		err2 := ReadProxy(iotest.OneByteReader(r2), &again)
		if (err == nil) != (err2 == nil) || err == nil && (o != again || r.Len() != r2.Len()) {
			t.Fatalf("at once: %+v, %v, %d bytes left; byte by byte: %+v, %v, %d", o, err, r.Len(), again, err2, r2.Len())
		}
		var refusal *reason.Refusal
		if err != nil {
			if !errors.As(err, &refusal) || refusal.Reason != reason.ProxyHeaderInvalid || len(err.Error()) > 512 {
				t.Fatalf("error %v", err)
			}
			return
		}
		used := data[:len(data)-r.Len()]
		if len(used) > fixed+maxBlock || o.Header == 1 && len(used) > maxLine || len(o.Authority) > 255 || len(o.ALPN) > 255 || len(o.UniqueID) > 128 {
			t.Fatalf("%d bytes were accepted: %+v", len(used), o)
		}
		if o.Header == 2 && used[12] == 0x21 && used[13] == 0 {
			return // the library refuses it
		}
		buf := bufio.NewReaderSize(bytes.NewReader(data), len(data)+16)
		h, err := proxyproto.Read(buf)
		if err != nil || buf.Buffered() != r.Len() {
			t.Fatalf("the library says %v with %d bytes left, here it was %d", err, buf.Buffered(), r.Len())
		}
		src, dst, ok := h.TCPAddrs()
		if ok = ok && h.Command.IsProxy(); ok && (o.Client.Port() != uint16(src.Port) || !src.IP.Equal(o.Client.Addr().AsSlice()) || !dst.IP.Equal(o.Local.Addr().AsSlice())) {
			t.Fatalf("%s to %s, here %+v", src, dst, o)
		} else if !ok && o.Client != peer {
			t.Fatalf("no address there, and here %+v", o)
		}
	})
}
