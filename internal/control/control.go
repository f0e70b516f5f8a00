// Package control owns the Unix socket by which the operator of a running program asks how it is, and has it hand out the
// TLS secrets of a listener for a while. Only the user the program runs as, and root, get an answer.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/internal/refresh"
)

// Bounds on who asks. Answers are small; the stream of a key log has deadlines of its own.
const (
	maxConnections = 16
	maxBody        = 4 << 10
	maxHead        = 8 << 10
	requestTime    = 10 * time.Second
	idleTime       = time.Minute
)

// Config says what a Server tells of. Nil functions mean that there is nothing to tell.
type Config struct {
	// Status is what GET /status answers.
	Status func() *Status
	// LogKeys has the TLS secrets of new connections of a listener written to w, in NSS's key log format, until end is
	// called. Writes come from handshakes, so w never waits.
	LogKeys func(listener string, w io.Writer) (end func())
	// Note writes a record of what was done, as a kind and texts by name.
	Note func(kind string, texts ...[2]string)
	// Listen opens the socket, with mode 0600.
	Listen func(address string) (net.Listener, error)
	Log    *slog.Logger
	// Metrics is where the metrics go.
	Metrics prometheus.Registerer
	// Panicked counts a caught panic.
	Panicked func()
	// Peer tells who has connected; nil means by the system's word (SO_PEERCRED).
	Peer func(net.Conn) (Peer, error)
}

// Peer is the process at the other end of the socket, as it was when it connected.
type Peer struct {
	UID uint32
	PID int32
}

// String is for records.
func (p Peer) String() string { return fmt.Sprintf("uid %d, pid %d", p.UID, p.PID) }

// Server answers on the socket of the configuration in force, if it names one. Make it with New; end it with Close.
type Server struct {
	c       Config
	handler http.Handler
	own     uint32
	keys    keys
	stop    context.Context
	end     context.CancelFunc

	mu      sync.Mutex
	current *served
	next    *served
	changed bool
}

// served is a socket and what answers on it.
type served struct {
	address string
	sock    net.Listener
	server  *http.Server
}

// New makes a server that has no socket yet.
func New(c Config) *Server {
	s := &Server{c: c, own: uint32(os.Geteuid())}
	s.stop, s.end = context.WithCancel(context.Background())
	if s.c.Peer == nil {
		s.c.Peer = peerOf
	}
	s.keys.init(s)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", s.status)
	mux.HandleFunc("POST /keylog", s.keylog)
	s.handler = s.guarded(mux)
	return s
}

// Bind opens the socket of a new configuration (unix:/path, or empty for none) if it differs, without giving up the old
// one yet. Settle follows.
func (s *Server) Bind(address string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.next, s.changed = nil, false
	if s.current != nil && s.current.address == address || s.current == nil && address == "" {
		return nil
	}
	s.changed = true
	if address == "" {
		return nil
	}
	if err := checkPlace(pathOf(address), s.own, false); err != nil {
		return fmt.Errorf("control does not listen on %s: %w", address, err)
	}
	sock, err := s.c.Listen(address)
	if err != nil {
		next := "choose another path, or end the program that has it"
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			next = "make its folder, writable for this program and nobody else"
		}
		return fmt.Errorf("control cannot listen on %s: %w; %s", address, err, next)
	}
	s.next = &served{address: address, sock: sock, server: &http.Server{Handler: s.handler, ConnContext: s.greet,
		ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHead, ErrorLog: log.New(io.Discard, "", 0)}}
	return nil
}

// Settle serves what Bind opened if the configuration was put in force, and closes it otherwise.
func (s *Server) Settle(inForce bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.changed:
	case !inForce:
		if s.next != nil {
			s.next.sock.Close()
		}
	default:
		if s.current != nil {
			s.current.server.Close() // a key log on it ends with its connection
		}
		s.current = s.next
		if n := s.current; n != nil {
			go s.serve(n)
		}
	}
	s.next, s.changed = nil, false
}

func (s *Server) serve(n *served) {
	defer s.caught()
	_ = n.server.Serve(&few{n.sock, make(chan struct{}, maxConnections)})
}

// Close ends the socket, and a key log that is open.
func (s *Server) Close() {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s.current.server.Shutdown(ctx) != nil {
			s.current.server.Close()
		}
		s.current = nil
	}
}

// Conditions is what is done for somebody just now that the operator should know of.
func (s *Server) Conditions() []refresh.Condition { return s.keys.conditions() }

// caught keeps a panic from ending the program (F16).
func (s *Server) caught() {
	if v := recover(); v != nil {
		s.panicked(v)
	}
}

func (s *Server) panicked(v any) {
	if s.c.Panicked != nil {
		s.c.Panicked()
	}
	s.c.Log.Error("control: bug", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
}

// peerKey is where a connection's context has who is at the other end: a Peer, or the error that says why it is not known.
type peerKey struct{}

// greet asks the system who has connected.
func (s *Server) greet(ctx context.Context, c net.Conn) context.Context {
	if counted, ok := c.(*one); ok {
		c = counted.Conn
	}
	who, err := s.c.Peer(c)
	if err != nil {
		return context.WithValue(ctx, peerKey{}, err)
	}
	return context.WithValue(ctx, peerKey{}, who)
}

// guarded lets through whoever may ask. The socket's mode keeps others out already; should somebody change it, or pass a
// connection on, this still holds.
func (s *Server) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if v := recover(); v != nil {
				s.panicked(v)
				panic(http.ErrAbortHandler) // what was sent must not look like all
			}
		}()
		switch who := r.Context().Value(peerKey{}).(type) {
		case Peer:
			if who.UID == s.own || who.UID == 0 {
				next.ServeHTTP(w, r)
				return
			}
			s.c.Log.Warn("control: refused", "who", who.String())
			fail(w, http.StatusForbidden, fmt.Sprintf("expected user %d or root, found user %d; run this as that user", s.own, who.UID))
		case error:
			fail(w, http.StatusForbidden, "it is not known who asks: "+who.Error())
		default:
			fail(w, http.StatusForbidden, "it is not known who asks")
		}
	})
}

// failure is the answer to what cannot be done.
type failure struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, status int, text string) { answer(w, status, failure{text}) }

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v)
}

func (s *Server) status(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, s.c.Status())
}

// decode reads the one JSON value of a request's body into v. Unknown keys are errors: half of what was asked for is
// something else.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("expected one JSON value, found more")
	}
	return nil
}

// few is a listener that has at most as many connections open as there is room in its channel; others wait in the queue of
// the system.
type few struct {
	net.Listener
	room chan struct{}
}

// one is a connection that gives its place back when it is closed.
type one struct {
	net.Conn
	leave func()
}

// Accept waits for room, and then for a connection.
func (l *few) Accept() (net.Conn, error) {
	l.room <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &one{c, sync.OnceFunc(func() { <-l.room })}, nil
}

// Close closes the connection, once.
func (c *one) Close() error {
	defer c.leave()
	return c.Conn.Close()
}

// Status is how the program is. Names are those of the configuration.
type Status struct {
	Version       string        `json:"version"`
	Revision      string        `json:"revision,omitempty"`
	Started       time.Time     `json:"started"`
	Draining      bool          `json:"draining"`
	Memory        string        `json:"memory"` // calm, tight or critical
	Configuration Configuration `json:"configuration"`
	Listeners     []Listener    `json:"listeners"`
	Upstreams     []Upstream    `json:"upstreams"`
	Conditions    []Condition   `json:"conditions"`
}

// Configuration is what is in force.
type Configuration struct {
	File   string    `json:"file"`
	Hash   string    `json:"hash"`
	Loaded time.Time `json:"loaded"`
}

// Listener is a listener and what it has done since the program was started.
type Listener struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	Protocol string `json:"protocol"`
	// Terminates says that the client's TLS ends here, so that there are secrets to log.
	Terminates  bool   `json:"terminates_tls"`
	Connections uint64 `json:"connections"`
	// Accepted and Refused are handshakes, Requests requests and tunnels that ended.
	Accepted uint64 `json:"handshakes_accepted"`
	Refused  uint64 `json:"handshakes_refused"`
	Requests uint64 `json:"requests"`
}

// Upstream is a pool and its targets.
type Upstream struct {
	Name     string   `json:"name"`
	Pending  int      `json:"pending"`
	FailOpen bool     `json:"fail_open"`
	Targets  []Target `json:"targets"`
}

// Target is one target. State is ready, unhealthy, ejected, draining or disabled.
type Target struct {
	Address string `json:"address"`
	State   string `json:"state"`
	Open    int    `json:"open"`
	Idle    int    `json:"idle"`
	Busy    int    `json:"busy"`
}

// Condition is something that needs the operator.
type Condition struct {
	Code  string    `json:"code"`
	Text  string    `json:"text"`
	Since time.Time `json:"since"`
}

// pathOf is the path of an address of the configuration.
func pathOf(address string) string { return strings.TrimPrefix(address, "unix:") }
