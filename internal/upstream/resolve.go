package upstream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"time"
)

// Resolver turns names into addresses; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// DNS is how names of targets become addresses.
type DNS struct {
	// All makes every address of a name a target; otherwise a name is one target, whose addresses are tried one after the
	// other.
	All bool
	// Refresh is the longest time between lookups. An answer that says it is good for less is renewed then.
	Refresh time.Duration
}

const (
	lookupTime   = 5 * time.Second // for one lookup
	maxAddresses = 256             // of one name
)

// resolve keeps the addresses of the pool's names up to date until the pool's context ends. No request waits for it.
func (p *Pool) resolve() {
	if p.names == nil {
		return
	}
	seen := make(map[string]bool)
	for _, t := range p.Targets {
		host, _, err := net.SplitHostPort(t.Address)
		if err != nil || seen[host] || t.State == Disabled || !isName(host) {
			continue
		}
		seen[host] = true
		go p.follow(host)
	}
}

func isName(host string) bool {
	_, err := netip.ParseAddr(host)
	return err != nil
}

// follow looks a name up again and again. Nobody waits for it to end: a resolver may take longer than it is allowed to.
func (p *Pool) follow(host string) {
	for p.ctx.Err() == nil {
		timer := time.NewTimer(p.renew(host))
		select {
		case <-p.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// renew looks a name up, takes the answer in and returns the time until the next lookup. A panic costs no more than that
// one (F16).
func (p *Pool) renew(host string) (wait time.Duration) {
	defer func() {
		if v := recover(); v != nil {
			p.caught("panic behind a lookup", host, v)
			wait = lookupTime
		}
	}()
	refresh := p.DNS.Refresh
	if refresh <= 0 {
		refresh = 30 * time.Second
	}
	addrs, ttl, err := p.lookup(host)
	next := nextLookup(ttl, refresh)
	wait = next - next/20 + rand.N(next/10+1)
	if !p.resolved(host, addrs, err) {
		wait = min(wait, lookupTime) // there is no last good answer yet
	}
	return wait
}

// minLookup is the least time between two lookups of a name.
const minLookup = 5 * time.Second

// nextLookup is when a name is looked up again whose answer is good for ttl; 0 is not known.
func nextLookup(ttl, refresh time.Duration) time.Duration {
	if ttl == 0 {
		return refresh
	}
	return min(max(ttl, minLookup), refresh)
}

// lookup asks once. The addresses are in order, without doubles, and none of them is one that cannot be a target.
func (p *Pool) lookup(host string) (addrs []netip.Addr, ttl time.Duration, err error) {
	defer func() {
		if v := recover(); v != nil {
			addrs, ttl, err = nil, 0, fmt.Errorf("panic in a lookup: %v", v)
		}
	}()
	ctx, cancel := context.WithTimeout(p.ctx, lookupTime)
	defer cancel()
	var found []netip.Addr
	if r, ok := p.names.(expiring); ok {
		found, ttl, err = r.LookupTTL(ctx, "ip", host)
	} else {
		found, err = p.names.LookupNetIP(ctx, "ip", host)
	}
	if err != nil {
		return nil, 0, err
	}
	for _, a := range found {
		if a = a.Unmap(); a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() {
			addrs = append(addrs, a)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	switch n := len(addrs); {
	case n == 0:
		return nil, 0, errors.New("the answer has no address")
	case n > maxAddresses:
		p.log.Warn("name has too many addresses", "upstream", p.Name, "name", host, "expected", maxAddresses, "found", n)
		addrs = addrs[:maxAddresses]
	}
	return addrs, ttl, nil
}

// resolved takes an answer in. The last good one stays when there is none. It reports whether there is one at all.
func (p *Pool) resolved(host string, addrs []netip.Addr, err error) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx.Err() != nil || p.stopped { // another pool may have these targets by now
		return true
	}
	before := p.answers[host]
	if err != nil {
		if !p.lost[host] {
			p.lost[host] = true
			p.log.Warn("name cannot be resolved; its last addresses stay in use", "upstream", p.Name, "name", host, "addresses", len(before), "error", err)
		}
		return len(before) > 0
	}
	if p.lost[host] {
		delete(p.lost, host)
		p.log.Info("name can be resolved again", "upstream", p.Name, "name", host)
	}
	if !slices.Equal(before, addrs) {
		settled := false
		defer func() {
			if !settled { // a panic: the next answer is to be new again
				p.answers[host] = before
			}
		}()
		p.answers[host] = addrs
		if before != nil {
			p.log.Info("name has other addresses", "upstream", p.Name, "name", host, "before", len(before), "now", len(addrs))
		}
		p.settle(nil)
		settled = true
	}
	return true
}

// head is how much earlier an address is tried than the next one (RFC 8305, section 8).
const head = 250 * time.Millisecond

// reach dials one address. A panic in the dialer is an error of that address and nothing else (F16): what the caller has
// counted stays right.
func (p *Pool) reach(ctx context.Context, address string) (c net.Conn, err error) {
	defer func() {
		if v := recover(); v != nil {
			p.caught("panic in a dialer", address, v)
			c, err = nil, errors.New("panic in a dialer")
		}
	}()
	return p.dial(ctx, "tcp", address)
}

// connect opens a network connection to the target: to its address, or to those that its name has, of which the first to
// answer wins. A name without an answer yet is left to the dialer.
func (p *Pool) connect(ctx context.Context, t *Target) (net.Conn, error) {
	addrs := t.addrs.Load()
	if addrs == nil {
		return p.reach(ctx, t.Address)
	}
	order := interleave(*addrs)
	if len(order) == 1 {
		return p.reach(ctx, order[0].String())
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	var first error
	started, ended := 0, 0
	start := func() {
		address := order[started].String()
		started++
		go func() {
			c, err := p.reach(ctx, address)
			select {
			case results <- result{c, err}:
			case <-ctx.Done():
				if c != nil {
					c.Close() // too late
				}
			}
		}()
	}
	start()
	timer := time.NewTimer(head)
	defer timer.Stop()
	for {
		select {
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			if first == nil {
				first = r.err
			}
			if ended++; ended == len(order) {
				return nil, first
			}
			if started < len(order) {
				start()
				timer.Reset(head)
			}
		case <-timer.C:
			if started < len(order) {
				start()
				timer.Reset(head)
			}
		case <-ctx.Done():
			if first == nil {
				first = ctx.Err()
			}
			return nil, first
		}
	}
}

// maxDials bounds how many addresses of a name one connection may try.
const maxDials = 8

// interleave puts addresses of both families in turn, IPv6 first (RFC 8305, section 4), beginning anywhere.
func interleave(addrs []netip.AddrPort) []netip.AddrPort {
	if len(addrs) == 1 {
		return addrs
	}
	var six, four []netip.AddrPort
	at := rand.IntN(len(addrs))
	for i := range addrs {
		if a := addrs[(at+i)%len(addrs)]; a.Addr().Is6() {
			six = append(six, a)
		} else {
			four = append(four, a)
		}
	}
	out := make([]netip.AddrPort, 0, len(addrs))
	for i := range max(len(six), len(four)) {
		if i < len(six) {
			out = append(out, six[i])
		}
		if i < len(four) {
			out = append(out, four[i])
		}
	}
	return out[:min(len(out), maxDials)]
}
