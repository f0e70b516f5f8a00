package snapshot

import (
	"net/netip"
	"strings"
	"testing"

	"countersign/internal/config"
	"countersign/internal/origin"
)

func TestOriginRefuses(t *testing.T) {
	b := newBench(t)
	const (
		public  = "    listen: 127.0.0.1:8443\n"
		plain   = "    listen: 127.0.0.1:8080\n"
		through = "    listen: 127.0.0.1:8444\n"
		socket  = "    listen: unix:/run/x.sock\n"
		api     = "  api: {targets: [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"]"
	)
	for _, row := range []struct {
		threat, name, old, new, path, text string
	}{
		{"F03", "nobody listed", public, public + "    proxy_protocol: {from: []}\n", "listeners.public.proxy_protocol.from", "has no value"},
		{"F03", "no list", public, public + "    proxy_protocol: {unlisted: refuse}\n", "listeners.public.proxy_protocol", `missing required key "from"`},
		{"F03", "empty", public, public + "    proxy_protocol: {}\n", "listeners.public.proxy_protocol", "has no value"},
		{"F03", "not an address", public, public + "    proxy_protocol: {from: [lb.test]}\n", "listeners.public.proxy_protocol.from[0]", "neither an address nor a prefix"},
		{"F03", "bits behind the prefix", public, public + "    proxy_protocol: {from: [10.0.0.1/8]}\n", "listeners.public.proxy_protocol.from[0]", "bits behind"},
		{"F03", "unlisted", public, public + "    proxy_protocol: {from: [10.0.0.0/8], unlisted: read}\n", "listeners.public.proxy_protocol.unlisted", "read"},
		{"F03", "unix, and no Unix socket", public, public + "    proxy_protocol: {from: [unix]}\n", "listeners.public.proxy_protocol.from[0]", "no Unix socket"},
		{"F03", "Unix socket, and an address", plain, socket + "    proxy_protocol: {from: [10.0.0.0/8]}\n", "listeners.plain.proxy_protocol.from[0]", "no addresses"},
		{"F03", "Unix socket, and unlisted", plain, socket + "    proxy_protocol: {from: [unix], unlisted: plain}\n", "listeners.plain.proxy_protocol.unlisted", "nobody who is not listed"},

		{"D15", "forwarded where bytes are moved", through, through + "    forwarded: {port: true}\n", "listeners.through.forwarded", "no meaning"},
		{"D15", "append and nobody trusted", public, public + "    forwarded: {mode: append}\n", "listeners.public.forwarded", "nobody is trusted"},
		{"D15", "preserve and nobody trusted", public, public + "    forwarded: {mode: preserve_from_trusted}\n", "listeners.public.forwarded", "nobody is trusted"},
		{"D15", "client address and nobody trusted", public, public + "    forwarded: {client_address: x_forwarded_for}\n", "listeners.public.forwarded", "nobody is trusted"},
		{"D15", "trusted for nothing", public, public + "    forwarded: {trusted: [10.0.0.0/8]}\n", "listeners.public.forwarded.trusted", "no meaning"},
		{"D15", "trusted is no address", public, public + "    forwarded: {mode: append, trusted: [10.0.0.0/8, proxy]}\n", "listeners.public.forwarded.trusted[1]", "neither an address nor a prefix"},
		{"D15", "mode", public, public + "    forwarded: {mode: preserve, trusted: [10.0.0.0/8]}\n", "listeners.public.forwarded.mode", "preserve_from_trusted"},
	} {
		t.Run(row.threat+"/"+row.name, func(t *testing.T) {
			yaml := strings.Replace(good, row.old, row.new, 1)
			if yaml == good {
				t.Fatal("nothing replaced")
			}
			s, problems := b.compile(yaml)
			if s != nil {
				t.Error("it compiles")
			}
			for _, p := range problems {
				if p.Path == row.path && strings.Contains(p.Message, row.text) {
					return
				}
			}
			t.Errorf("no problem at %s with %q: %v", row.path, row.text, problems)
		})
	}
	for _, row := range []struct{ name, text, want string }{
		{"version 1 with TLVs", "{version: v1, tlvs: [alpn]}", "has no TLVs"},
		{"twice", "{version: v2, tlvs: [alpn, alpn]}", "is there twice"},
		{"unknown", "{version: v2, tlvs: [ssl]}", "ssl"},
		{"no version", "{tlvs: [alpn]}", "version"},
		{"version 3", "{version: v3}", "v3"},
	} {
		t.Run("announce/"+row.name, func(t *testing.T) {
			yaml := strings.Replace(good, api, api+", proxy_protocol: "+row.text, 1)
			file, problems := config.Parse("countersign.yaml", []byte(yaml))
			c := &compiler{file: file, problems: problems}
			c.announcement("upstreams.api.proxy_protocol", file.Partial.Upstreams["api"].ProxyProtocol)
			for _, p := range c.problems {
				if strings.Contains(p.Message, row.want) {
					return
				}
			}
			t.Errorf("no problem with %q: %v", row.want, c.problems)
		})
	}
}

func TestOriginWarns(t *testing.T) {
	b := newBench(t)
	for _, row := range []struct{ name, old, new, text string }{
		{"F03/everybody", "    listen: 127.0.0.1:8443\n", "    listen: 127.0.0.1:8443\n    proxy_protocol: {from: [0.0.0.0/0]}\n", "everybody"},
		{"D15/everybody", "    listen: 127.0.0.1:8443\n", "    listen: 127.0.0.1:8443\n    forwarded: {mode: append, trusted: [\"::/0\"]}\n", "everybody"},
		{"F03/bytes of who is not listed", "    listen: 127.0.0.1:8444\n", "    listen: 127.0.0.1:8444\n    proxy_protocol: {from: [10.0.0.0/8], unlisted: plain}\n", "a PROXY header among them"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s, problems := b.compile(strings.Replace(good, row.old, row.new, 1))
			if s == nil || len(problems) != 1 || !problems[0].Warning || !strings.Contains(problems[0].Message, row.text) {
				t.Errorf("problems: %v", problems)
			}
		})
	}
}

func TestOrigin(t *testing.T) {
	b := newBench(t)
	s, problems := b.compile(strings.NewReplacer(
		"    listen: 127.0.0.1:8443\n", "    listen: 127.0.0.1:8443\n    proxy_protocol: {from: [10.0.0.0/8, \"2001:db8::1\", \"::ffff:192.0.2.1\"]}\n    forwarded: {mode: append, trusted: [172.16.0.0/12], client_address: forwarded, port: true, rfc7239: true}\n",
		"    listen: 127.0.0.1:8080\n", "    listen: unix:/run/x.sock\n    proxy_protocol: {from: [unix]}\n    forwarded: {mode: preserve_from_trusted, trusted: [10.0.0.0/8]}\n").Replace(good))
	if s == nil || len(problems) > 0 {
		t.Fatalf("problems: %v", problems)
	}
	l := s.Listeners["public"]
	for addr, want := range map[string]bool{"10.1.2.3": true, "2001:db8::1": true, "2001:db8::2": false, "192.0.2.1": true, "192.0.2.2": false} {
		if l.Inbound.From.Contains(netip.MustParseAddr(addr)) != want {
			t.Errorf("%s: listed is %v", addr, !want)
		}
	}
	if f := l.Forwarding; l.Inbound.Unlisted || f.Mode != origin.Append || f.Client != origin.ByForwarded || !f.Port || !f.RFC7239 || !f.Trusted.Contains(netip.MustParseAddr("172.16.0.1")) {
		t.Errorf("%+v %+v", l.Inbound, f)
	}
	l = s.Listeners["plain"]
	if !l.Inbound.From.Unix || l.Forwarding.Mode != origin.Preserve || l.Forwarding.Trusted.Unix || !l.Forwarding.Trusted.Contains(netip.MustParseAddr("10.0.0.1")) {
		t.Errorf("%+v %+v", l.Inbound, l.Forwarding)
	}
	if through := s.Listeners["through"]; through.Inbound != nil || through.Forwarding != nil {
		t.Errorf("%+v", through)
	}
	var c compiler
	a := c.announcement("", &config.Announce{Version: "v2", TLVs: []string{"crc32c", "cn"}})
	if *a != (origin.Announcement{Version: 2, Parts: origin.Checksum | origin.CommonName}) || c.announcement("", nil) != nil || len(c.problems) > 0 {
		t.Errorf("%+v %v", a, c.problems)
	}
}
