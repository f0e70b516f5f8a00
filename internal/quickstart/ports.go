package quickstart

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"syscall"
)

// ports are where everything listens, on 127.0.0.1.
type ports struct{ public, passthrough, ops, http, https, mtls int }

// defaultBase is the first of six ports in a row.
const defaultBase = 8443

// portsFrom lays out the six ports that begin with base; all zero for base 0, which lets the system choose.
func portsFrom(base int) (ports, error) {
	if base == 0 {
		return ports{}, nil
	}
	if base < 1 || base > 65535-5 {
		return ports{}, fmt.Errorf("--port-base: expected 1 to %d, because six ports from there on are used; found %d", 65535-5, max(base, 0))
	}
	return ports{base, base + 1, base + 2, base + 3, base + 4, base + 5}, nil
}

// sockets are the bound ports. They are bound before anything is written, so that a busy port changes nothing.
type sockets struct {
	ports
	mu    sync.Mutex
	bound map[string]net.Listener // by address
}

// use is one port and what it is for.
type use struct {
	port *int
	what string
}

func (p *ports) uses() []use {
	return []use{
		{&p.public, `listener "public" (https)`},
		{&p.passthrough, `listener "passthrough"`},
		{&p.ops, `"ops" (health and metrics)`},
		{&p.http, "backend 1 (http)"},
		{&p.https, "backend 2 (https)"},
		{&p.mtls, "backend 3 (https, requires a client certificate)"},
	}
}

// bind takes the ports, and reports all that cannot be had.
func bind(p ports) (*sockets, error) {
	s := &sockets{ports: p, bound: make(map[string]net.Listener)}
	var problems []error
	busy := false
	for _, u := range s.uses() {
		l, err := listen(address(*u.port))
		if err != nil {
			busy = busy || errors.Is(err, syscall.EADDRINUSE)
			problems = append(problems, portError(*u.port, u.what, err))
			continue
		}
		*u.port = l.Addr().(*net.TCPAddr).Port
		s.bound[l.Addr().String()] = l
	}
	if len(problems) > 0 {
		s.close()
		next := "choose other ports with --port-base N (N to N+5 are used)"
		if busy {
			next = "end the program that has it (ss -ltnp names it; perhaps another quickstart), or " + next
		}
		return nil, fmt.Errorf("%w\n%s", errors.Join(problems...), next)
	}
	return s, nil
}

func portError(port int, what string, err error) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("port %d is busy: %s cannot listen on %s", port, what, address(port))
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("port %d is not allowed: %s cannot listen on %s (ports below 1024 need a privilege)", port, what, address(port))
	}
	return fmt.Errorf("port %d: %s cannot listen on %s: %w", port, what, address(port), err)
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// listen opens a plain TCP socket: sandboxes that know TCP do not know MPTCP, which Go would try first.
func listen(address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	return lc.Listen(context.Background(), "tcp", address)
}

// take hands over the socket bound to an address, or binds it if there is none: the daemon opens its listeners with it.
func (s *sockets) take(address string) (net.Listener, error) {
	s.mu.Lock()
	l := s.bound[address]
	delete(s.bound, address)
	s.mu.Unlock()
	if l != nil {
		return l, nil
	}
	return listen(address)
}

// release gives up a port that somebody else is about to bind: the daemon binds the one of ops itself.
func (s *sockets) release(port int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.bound[address(port)]; l != nil {
		l.Close()
		delete(s.bound, address(port))
	}
}

func (s *sockets) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.bound {
		l.Close()
	}
}
