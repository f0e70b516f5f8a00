package tls13

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"countersign/internal/socket"
	"countersign/internal/testpki"
)

// peer is a client behind its handshake that writes records as it likes.
type peer struct {
	t       testing.TB
	wire    *socket.Conn
	in, out half
}

// rig is a handshake over loopback, of which crypto/tls does both sides.
type rig struct {
	client, server *tls.Config
}

func newRig(t testing.TB) *rig {
	ca := testpki.New(t)
	return &rig{
		client: &tls.Config{ServerName: "a.test", RootCAs: ca.Pool(), MinVersion: tls.VersionTLS13,
			ClientSessionCache: tls.NewLRUClientSessionCache(1)}, // without it crypto/tls asks for no tickets
		server: &tls.Config{Certificates: []tls.Certificate{ca.Server("a.test").TLS()}},
	}
}

// noting is a connection whose writes a Handover is told of.
type noting struct {
	*socket.Conn
	h *Handover
}

func (n noting) Write(p []byte) (int, error) {
	n.h.Sent(p)
	return n.Conn.Write(p)
}

func pair(t testing.TB) (client, server *net.TCPConn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	_, _ = c.SetDeadline(deadline), s.SetDeadline(deadline)
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// shake does the handshake. It returns the server's side as crypto/tls has it, with what Take needs, and the client's.
func (r *rig) shake(t testing.TB) (*tls.Conn, *socket.Conn, *Handover, *peer) {
	t.Helper()
	near, far := pair(t)
	h, own := new(Handover), new(Handover)
	server := r.server.Clone()
	server.KeyLogWriter = h
	seal := server.WrapSession
	if seal == nil {
		seal = server.EncryptTicket
	}
	server.WrapSession = func(cs tls.ConnectionState, state *tls.SessionState) ([]byte, error) {
		h.Tickets++
		return seal(cs, state)
	}
	client := r.client.Clone()
	client.KeyLogWriter = own
	wire, back := socket.New(far, true), socket.New(near, true)
	wire.InSteps(true)
	back.InSteps(true)
	tc, cc := tls.Server(noting{wire, h}, server), tls.Client(back, client)
	done := make(chan error, 1)
	go func() { done <- cc.Handshake() }()
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p := &peer{t: t, wire: back}
	s := suites[cc.ConnectionState().CipherSuite]
	if s == nil || p.out.start(s, own.client) != nil || p.in.start(s, own.server) != nil {
		t.Fatal("no secrets on the client's side")
	}
	return tc, wire, h, p
}

// taken is shake with the server's side taken over.
func (r *rig) taken(t testing.TB) (*Conn, *peer) {
	t.Helper()
	tc, wire, h, p := r.shake(t)
	wire.InSteps(false)
	c := Take(tc, wire, h, nil)
	if c == nil {
		t.Fatal("it was not taken over")
	}
	return c, p
}

// record makes the next record of the client, padded with zeros.
func (p *peer) record(kind byte, content []byte, padding int) []byte {
	size := len(content) + 1 + padding + tagSize
	header := []byte{protected, 3, 3, byte(size >> 8), byte(size)}
	inner := append(append(append([]byte{}, content...), kind), make([]byte, padding)...)
	sealed := p.out.aead.Seal(nil, p.out.nonce(), inner, header)
	p.out.seq++
	return append(header, sealed...)
}

func (p *peer) send(b []byte) {
	p.t.Helper()
	if _, err := p.wire.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// next reads the next record of the server, session tickets left out.
func (p *peer) next() (kind byte, content []byte, err error) {
	for {
		header := make([]byte, headerSize)
		if _, err := io.ReadFull(p.wire, header); err != nil {
			return 0, nil, err
		}
		sealed := make([]byte, int(header[3])<<8|int(header[4]))
		if _, err := io.ReadFull(p.wire, sealed); err != nil {
			return 0, nil, err
		}
		inner, err := p.in.aead.Open(nil, p.in.nonce(), sealed, header)
		if err != nil {
			return 0, nil, err
		}
		p.in.seq++
		for len(inner) > 0 && inner[len(inner)-1] == 0 {
			inner = inner[:len(inner)-1]
		}
		if len(inner) == 0 {
			return 0, nil, errors.New("a record without a type")
		}
		kind, content = inner[len(inner)-1], inner[:len(inner)-1]
		if kind != handshake || content[0] != 4 {
			return kind, content, nil
		}
	}
}

// data reads n bytes of application data.
func (p *peer) data(n int) []byte {
	p.t.Helper()
	var b []byte
	for len(b) < n {
		kind, content, err := p.next()
		if err != nil || kind != applicationData {
			p.t.Fatalf("a record of type %d, %v, behind %d of %d bytes", kind, err, len(b), n)
		}
		b = append(b, content...)
	}
	return b
}
