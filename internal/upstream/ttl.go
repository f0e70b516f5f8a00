package upstream

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// expiring is a Resolver that knows how long an answer is good for; 0 is not known, as for a name in the hosts file.
type expiring interface {
	LookupTTL(ctx context.Context, network, host string) ([]netip.Addr, time.Duration, error)
}

// overhearing is Go's resolver, of which it overhears how long answers are good for: the resolver itself does not tell.
// The zero value asks the servers of the system.
type overhearing struct {
	dial func(ctx context.Context, network, address string) (net.Conn, error) // nil means the ordinary one
}

// LookupNetIP is that of net.Resolver.
func (o overhearing) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	addrs, _, err := o.LookupTTL(ctx, network, host)
	return addrs, err
}

// LookupTTL returns the least time to live of all records that led to the addresses.
func (o overhearing) LookupTTL(ctx context.Context, network, host string) ([]netip.Addr, time.Duration, error) {
	dial := o.dial
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	var e ear
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if u, ok := c.(*net.UDPConn); ok {
			return &overheard{u, &e}, err
		}
		return c, err
	}}
	addrs, err := r.LookupNetIP(ctx, network, host)
	return addrs, e.least(), err
}

// ear keeps the least time to live that was heard. Addresses of both families are asked for at once.
type ear struct {
	mu    sync.Mutex
	heard bool
	ttl   uint32
}

func (e *ear) least() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.heard {
		return 0
	}
	return max(time.Duration(e.ttl)*time.Second, time.Second) // 0 is "do not keep", and not "not known"
}

// hear takes in a message. What is none says nothing: the resolver refuses it too.
func (e *ear) hear(message []byte) {
	var p dnsmessage.Parser
	if _, err := p.Start(message); err != nil || p.SkipAllQuestions() != nil {
		return
	}
	for {
		h, err := p.AnswerHeader()
		if err != nil {
			return
		}
		switch h.Type {
		case dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeCNAME:
			e.mu.Lock()
			if !e.heard || h.TTL < e.ttl {
				e.heard, e.ttl = true, h.TTL
			}
			e.mu.Unlock()
		}
		if p.SkipAnswer() != nil {
			return
		}
	}
}

// overheard is the connection to a server. It stays a packet connection, which is how the resolver tells UDP from TCP.
type overheard struct {
	*net.UDPConn
	ear *ear
}

func (o *overheard) Read(b []byte) (int, error) {
	n, err := o.UDPConn.Read(b)
	if err == nil {
		o.ear.hear(b[:n])
	}
	return n, err
}
