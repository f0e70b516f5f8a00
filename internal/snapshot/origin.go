package snapshot

import (
	"slices"
	"strings"

	"countersign/internal/config"
	"countersign/internal/origin"
)

// networks compiles addresses of which something is believed. On a Unix socket there is one: unix.
func (c *compiler) networks(path string, list []string, socket bool) origin.Networks {
	var out origin.Networks
	for i, text := range list {
		at := config.Path(path, i)
		switch {
		case text == "unix" && socket:
			out.Unix = true
		case text == "unix":
			c.problem(at, "write the addresses of the proxies", "the listener has no Unix socket")
		case socket:
			c.problem(at, "write unix; the permissions of the socket and its folder decide who may connect", "a Unix socket has no addresses")
		default:
			prefix, ok := c.prefix(at, text)
			if !ok {
				continue
			}
			if prefix.Bits() == 0 {
				c.warn(at, "list the addresses of your proxies", "everybody who connects from %s is believed about addresses", text)
			}
			out.Prefixes = append(out.Prefixes, prefix)
		}
	}
	return out
}

// origin compiles whom a listener believes about where connections and requests come from.
func (c *compiler) origin(path string, out *Listener, l *config.Listener) {
	socket := strings.HasPrefix(l.Listen, "unix:")
	if p := l.ProxyProtocol; p != nil {
		at := config.Path(path, "proxy_protocol")
		from := c.networks(config.Path(at, "from"), p.From, socket)
		// The list of a Unix socket could only have the one word that fits it.
		if socket && p.Unlisted != "" {
			c.problem(config.Path(at, "unlisted"), "remove it", "on a Unix socket there is nobody who is not listed")
		}
		if p.Unlisted == "plain" && (out.Protocol == TCP || out.Protocol == Passthrough) {
			c.warn(config.Path(at, "unlisted"), "use refuse, or see that no target reads PROXY headers",
				"on a listener of protocol %s the bytes of a client that is not listed reach the target as they are, a PROXY header among them", out.Protocol)
		}
		out.Inbound = &origin.Inbound{From: from, Unlisted: p.Unlisted == "plain"}
	}
	f := l.Forwarded
	if f == nil {
		return
	}
	at := config.Path(path, "forwarded")
	if !out.Protocol.Requests() && out.Protocol != 0 {
		c.problem(at, "remove it, or use protocol https or http", "forwarded has no meaning on a listener of protocol %s", out.Protocol)
		return
	}
	o := &origin.Forwarding{Trusted: c.networks(config.Path(at, "trusted"), f.Trusted, socket && l.ProxyProtocol == nil), Port: f.Port, RFC7239: f.RFC7239}
	switch f.Mode {
	case "append":
		o.Mode = origin.Append
	case "preserve_from_trusted":
		o.Mode = origin.Preserve
	}
	switch f.ClientAddress {
	case "x_forwarded_for":
		o.Client = origin.ByForwardedFor
	case "forwarded":
		o.Client = origin.ByForwarded
	}
	switch reads := !o.Static(); {
	case reads && len(f.Trusted) == 0:
		c.problem(at, "add trusted: [the addresses of your proxies]", "nobody is trusted, so no header would ever be read")
	case !reads && len(f.Trusted) > 0:
		c.problem(config.Path(at, "trusted"), "set mode: append or client_address: x_forwarded_for, or remove trusted", "trusted has no meaning where every header is replaced")
	}
	out.Forwarding = o
}

// announcement compiles what targets are told in a PROXY header; nil for nothing.
func (c *compiler) announcement(path string, a *config.Announce) *origin.Announcement {
	if a == nil {
		return nil
	}
	out := &origin.Announcement{Version: 1}
	if a.Version == "v2" {
		out.Version = 2
	}
	for i, name := range a.TLVs {
		part, ok := origin.ParsePart(name)
		if ok && slices.Contains(a.TLVs[:i], name) {
			c.problem(config.Path(path, "tlvs", i), "remove one", "%s is there twice", name)
		}
		out.Parts |= part
	}
	if out.Version == 1 && len(a.TLVs) > 0 {
		c.problem(config.Path(path, "tlvs"), "use version: v2, or remove tlvs", "version 1 of the PROXY protocol has no TLVs")
	}
	return out
}
