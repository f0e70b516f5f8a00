package frontend

import (
	"crypto/tls"
	"time"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/tracing"
)

// beginTrace decides whether the request at hand is traced, once it is known whom it came from; why is what was decided
// about it otherwise. A parent of a request that is refused is never honoured.
func (c *lane) beginTrace(set *tracing.Settings, req *message.Request, why reason.Reason) {
	if c.span == nil {
		c.span = new(tracing.Span)
	}
	believed := (why == reason.Unset || why == reason.AnsweredHere) && c.believed()
	if !c.span.Begin(set, req.Fields, believed) {
		return
	}
	c.exchange.Trace = c.span
	if c.span.Sampled && why == reason.Unset {
		c.span.Asked = time.Now()
	}
}

// believed reports whether the connection is one of a proxy in front that is trusted: by its certificate, or by its address.
func (c *lane) believed() bool {
	return c.via.by != nil || c.forwarding != nil && c.forwarding.Trusted.Contains(c.from.Client.Addr())
}

// endTrace hands over what is known of a traced request when it is over.
func (c *lane) endTrace() {
	e := tracing.End{Span: c.span, Request: &c.rec, Client: c.client, Listener: c.listener.Name, Ref: c.ref, Peer: c.peer, SNI: c.sni}
	switch {
	case !c.span.Asked.IsZero(): // it was let in
		e.Client = identity.Present(c.sender)
	case c.via.used:
		e.Client = c.via.client
	}
	if c.secure != nil {
		e.TLS = tls.VersionName(c.secure.ConnectionState().Version)
	}
	c.f.traces.Take(&e)
	c.span.Sampled = false
}
