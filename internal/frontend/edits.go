package frontend

import (
	"math/rand/v2"

	"countersign/internal/edit"
	"countersign/internal/forward"
	"countersign/internal/hostname"
	"countersign/internal/message"
	"countersign/internal/reason"
	"countersign/internal/route"
	"countersign/internal/snapshot"
)

// edit does what a route does besides forwarding, for a request that is let in: it answers by itself, or changes heads on
// the way. What is changed is for the target and the client; policies and records go by what came.
func (c *lane) edit(req *message.Request, read route.Path, host *snapshot.Host, to *snapshot.Route) reason.Reason {
	x := &c.exchange
	x.Edits = forward.Edits{}
	if !to.AnswersHere() && to.Request == nil && to.Response == nil && to.Mirror == nil {
		return reason.Unset
	}
	facts := c.edits(req, host)
	if to.AnswersHere() {
		why := c.answerRoute(req, to, facts)
		if e := to.Response; e != nil && why == reason.AnsweredHere {
			c.reply.Fields = e.Apply(c.reply.Fields, facts)
		}
		return why
	}
	x.Edits.Response, x.Edits.Facts = to.Response, *facts
	if to.Mirror.Takes(rand.Uint64()) {
		x.Edits.Mirror = to.Mirror.Upstream
	}
	e := to.Request
	if e == nil {
		return reason.Unset
	}
	x.Edits.Facts.RequestID = e.RequestID(nil, req.Fields, &x.Edits.Facts)
	path, why := e.Path(nil, req.Path, read)
	if why != reason.Unset {
		return why
	}
	x.Edits.Request, x.Edits.Path, x.Edits.Host = e, path, e.Host(req.Host)
	x.Edits.Query, x.Edits.HasQuery = e.Query(nil, req.Query, req.HasQuery)
	if c.book.More() {
		c.rec.RewrittenHost, c.rec.RewrittenURI = append(c.rec.RewrittenHost[:0], x.Edits.Host...), append(c.rec.RewrittenURI[:0], path...)
	}
	return reason.Unset
}

// answerRoute makes the answer of a route that has one.
func (c *lane) answerRoute(req *message.Request, to *snapshot.Route, facts *edit.Facts) reason.Reason {
	if to.Redirect != nil {
		location, why := to.Redirect.Location(nil, req, facts)
		if why != reason.Unset {
			return why
		}
		c.reply = ours(to.Redirect.Status, nil, message.Field{Name: []byte("Location"), Value: location})
		c.rec.RedirectURL, c.rec.Actions = string(location), "redirect"
	} else {
		status, fields, body := to.Answer.For(req)
		c.reply = forward.Answer{Status: status, Fields: fields[:len(fields):len(fields)], Body: body}
		c.rec.Actions = "fixed-response"
	}
	c.rec.Status = c.reply.Status
	return reason.AnsweredHere
}

// edits gathers what changes to heads may say about the request.
func (c *lane) edits(req *message.Request, host *snapshot.Host) *edit.Facts {
	f := &edit.Facts{Secure: c.secure != nil, Host: []byte(c.askedName), Client: c.address(), Now: c.rec.Start, Random: [2]uint64{rand.Uint64(), rand.Uint64()}}
	if c.askedName == "" {
		f.Host = []byte(host.Name)
	}
	if _, port, err := hostname.AppendCanonicalHost(nil, req.Host); err == nil && port != 0 {
		f.Port = port
	} else if f.Port = 80; f.Secure {
		f.Port = 443
	}
	return f
}
