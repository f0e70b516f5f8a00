package upstream

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// nameServer answers every question for an IPv4 address with an alias and an address of these times to live.
func nameServer(t *testing.T, alias, address uint32) func(context.Context, string, string) (net.Conn, error) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			if q.Type == dnsmessage.TypeA {
				other := dnsmessage.MustNewName("other.test.")
				m.Answers = []dnsmessage.Resource{
					{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET, TTL: alias}, Body: &dnsmessage.CNAMEResource{CNAME: other}},
					{Header: dnsmessage.ResourceHeader{Name: other, Class: dnsmessage.ClassINET, TTL: address}, Body: &dnsmessage.AResource{A: [4]byte{10, 0, 0, 7}}},
				}
			}
			if out, err := m.Pack(); err == nil {
				_, _ = pc.WriteTo(out, from)
			}
		}
	}()
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", pc.LocalAddr().String())
	}
}

// TestTTL: what the records of an answer say is heard, the least of it.
func TestTTL(t *testing.T) {
	for _, c := range []struct {
		alias, address uint32
		want           time.Duration
	}{{300, 60, time.Minute}, {20, 60, 20 * time.Second}, {300, 0, time.Second}} {
		o := overhearing{dial: nameServer(t, c.alias, c.address)}
		addrs, ttl, err := o.LookupTTL(t.Context(), "ip", "name.test.")
		if err != nil || len(addrs) != 1 || addrs[0] != netip.MustParseAddr("10.0.0.7") || ttl != c.want {
			t.Errorf("%v %s %v, expected %s", addrs, ttl, err, c.want)
		}
	}
	if _, ttl, err := (overhearing{}).LookupTTL(t.Context(), "ip", "localhost"); err != nil || ttl != 0 {
		t.Errorf("the hosts file: %s %v", ttl, err)
	}
	var e ear
	for _, junk := range []string{"", "x", "\x00\x01\x81\x80\x00\x01\xff\xff\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"} {
		if e.hear([]byte(junk)); e.heard {
			t.Errorf("%q says something", junk)
		}
	}
}

// TestNextLookup: a name is looked up again when its answer is over, but not all the time, and not later than it is said.
func TestNextLookup(t *testing.T) {
	for ttl, want := range map[time.Duration]time.Duration{0: time.Minute, time.Second: 5 * time.Second, 20 * time.Second: 20 * time.Second, time.Hour: time.Minute} {
		if got := nextLookup(ttl, time.Minute); got != want {
			t.Errorf("H17/%s: %s, expected %s", ttl, got, want)
		}
	}
}
