package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/internal/refresh"
)

// KeyLogOpen is the code of the condition that stands while TLS secrets are handed out.
const KeyLogOpen = "key_log_open"

const (
	// MaxKeyLog is the longest that a key log may be open.
	MaxKeyLog = 10 * time.Minute
	// maxWaiting bounds the lines that wait for the caller to take them, about 5,000 handshakes. What is more is dropped
	// and counted: a handshake never waits.
	maxWaiting = 4 << 20
	writeTime  = 5 * time.Second
	// lastTime is how long after its end what was logged before may still be sent.
	lastTime = time.Second
)

// KeyLogRequest asks for the TLS secrets of a listener.
type KeyLogRequest struct {
	Listener string `json:"listener"`
	// Seconds is how long, 1 to 600.
	Seconds int `json:"seconds"`
}

// keys is the key log, of which at most one is open.
type keys struct {
	opened  prometheus.Counter
	lines   *prometheus.CounterVec
	isOpen  prometheus.Gauge
	sent    prometheus.Counter
	dropped prometheus.Counter

	mu   sync.Mutex
	open *openLog
}

// openLog is what is known of a key log that is open.
type openLog struct {
	listener string
	who      Peer
	since    time.Time
	until    time.Time
}

func (k *keys) init(s *Server) {
	k.opened = prometheus.NewCounter(prometheus.CounterOpts{Name: "countersign_key_logs_total",
		Help: "Times that somebody was handed the TLS secrets of a listener's connections, through the control socket."})
	k.isOpen = prometheus.NewGauge(prometheus.GaugeOpts{Name: "countersign_key_log_open",
		Help: "1 while the TLS secrets of a listener's new connections are handed out through the control socket, else 0."})
	k.lines = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_key_log_lines_total",
		Help: "Lines of key logs that were handed out (sent), and that were not because the caller was too slow or left (dropped)."}, []string{"outcome"})
	k.sent, k.dropped = k.lines.WithLabelValues("sent"), k.lines.WithLabelValues("dropped")
	if s.c.Metrics != nil {
		s.c.Metrics.MustRegister(k.opened, k.isOpen, k.lines)
	}
}

// take reserves the key log, or returns the one that is open.
func (k *keys) take(o *openLog) (other *openLog) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open != nil {
		return k.open
	}
	k.open = o
	return nil
}

func (k *keys) give() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.open = nil
}

func (k *keys) conditions() []refresh.Condition {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.open == nil {
		return nil
	}
	return []refresh.Condition{{Code: KeyLogOpen, Since: k.open.since, Text: fmt.Sprintf(
		"the TLS secrets of new connections of listener %s are handed out to %s until %s; whoever has them and a capture can read these connections",
		strconv.Quote(k.open.listener), k.open.who, k.open.until.UTC().Format(time.RFC3339))}}
}

// keylog answers POST /keylog with the key log lines of a listener's new connections, until the time is over or the caller
// leaves. They go into this answer and nowhere else. The answer begins with a comment, and ends with one that says why.
func (s *Server) keylog(w http.ResponseWriter, r *http.Request) {
	var ask KeyLogRequest
	if err := decode(w, r, &ask); err != nil {
		fail(w, http.StatusBadRequest, `expected {"listener": NAME, "seconds": 60}: `+err.Error())
		return
	}
	if ask.Seconds < 1 || ask.Seconds > int(MaxKeyLog/time.Second) {
		fail(w, http.StatusBadRequest, fmt.Sprintf("seconds: expected 1 to %d, found %d", int(MaxKeyLog/time.Second), ask.Seconds))
		return
	}
	if status, text := s.logs(ask.Listener); text != "" {
		fail(w, status, text)
		return
	}
	who, _ := r.Context().Value(peerKey{}).(Peer)
	now := time.Now()
	o := &openLog{ask.Listener, who, now, now.Add(time.Duration(ask.Seconds) * time.Second)}
	if other := s.keys.take(o); other != nil {
		fail(w, http.StatusConflict, fmt.Sprintf("one key log at a time: that of listener %q is open for %s until %s; wait, or end that one",
			other.listener, other.who, other.until.UTC().Format(time.RFC3339)))
		return
	}
	defer s.keys.give()
	s.hand(w, r.Context(), o)
}

// logs reports why a listener has no keys to log; empty if it has.
func (s *Server) logs(listener string) (status int, text string) {
	var names []string
	for _, l := range s.c.Status().Listeners {
		switch {
		case l.Name == listener && l.Terminates:
			return 0, ""
		case l.Name == listener:
			return http.StatusBadRequest, fmt.Sprintf("listener %q speaks %s, where no TLS ends; expected one of https or tls", listener, l.Protocol)
		case l.Terminates:
			names = append(names, l.Name)
		}
	}
	slices.Sort(names)
	found := "there is none with TLS"
	if len(names) > 0 {
		found = "expected one of: " + strings.Join(names, ", ")
	}
	return http.StatusNotFound, fmt.Sprintf("no listener is named %q; %s", shorten(listener), found)
}

// shorten bounds what is repeated of a question.
func shorten(s string) string {
	if len(s) > 100 {
		return s[:100] + "..."
	}
	return s
}

// Why a key log ends, besides that its caller leaves.
var (
	errOver = errors.New("the time is over")
	errEnds = errors.New("the program ends")
)

// hand hands out the lines, and tells everybody.
func (s *Server) hand(w http.ResponseWriter, ctx context.Context, o *openLog) {
	until := o.until.UTC().Format(time.RFC3339)
	s.c.Log.Warn("TLS secrets are handed out", "listener", o.listener, "to", o.who.String(), "until", until)
	s.note("opened", o, [2]string{"until", until})
	s.keys.opened.Inc()
	s.keys.isOpen.Set(1)
	q := &queue{wake: make(chan struct{}, 1)}
	why, sent := "bug", 0
	end := s.c.LogKeys(o.listener, q)
	shut := func() {
		end()
		q.close()
	}
	defer func() {
		shut()
		dropped := q.lines - sent
		s.keys.isOpen.Set(0)
		s.keys.sent.Add(float64(sent))
		s.keys.dropped.Add(float64(dropped))
		s.c.Log.Warn("TLS secrets are handed out no more", "listener", o.listener, "to", o.who.String(), "because", why, "lines", sent, "dropped", dropped)
		s.note("closed", o, [2]string{"because", why}, [2]string{"lines", strconv.Itoa(sent)}, [2]string{"dropped", strconv.Itoa(dropped)})
	}()
	// ctx ends with the caller, the program or the time, and the key log with it: also while this goroutine waits for a
	// caller who does not read.
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	defer context.AfterFunc(s.stop, func() {
		defer s.caught()
		leave(errEnds)
	})()
	ctx, cancel := context.WithDeadlineCause(ctx, o.until, errOver)
	defer cancel()
	defer context.AfterFunc(ctx, func() {
		defer s.caught()
		shut()
	})()
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/plain; charset=us-ascii")
	w.Header().Set("Cache-Control", "no-store")
	last := o.until.Add(lastTime)
	send := func(text []byte) error {
		deadline := time.Now().Add(writeTime)
		if deadline.After(last) {
			deadline = last
		}
		if err := out.SetWriteDeadline(deadline); err != nil {
			return err
		}
		if _, err := w.Write(text); err != nil {
			return err
		}
		return out.Flush()
	}
	because := func(err error) string {
		switch cause := context.Cause(ctx); {
		case cause == errOver || cause == errEnds:
			return cause.Error()
		case errors.Is(err, os.ErrDeadlineExceeded):
			return "the caller does not read"
		}
		return "the caller left"
	}
	if err := send(fmt.Appendf(nil, "# TLS secrets of new connections of listener %q until %s\n", o.listener, until)); err != nil {
		why = because(err)
		return
	}
	for over := false; !over; {
		select {
		case <-q.wake:
		case <-ctx.Done():
			shut() // what waits now is the last
			over = true
		}
		lines, n := q.take()
		if n == 0 {
			continue
		}
		if err := send(lines); err != nil {
			why = because(err)
			return
		}
		sent += n
	}
	why = because(nil)
	_ = send(fmt.Appendf(nil, "# closed: %s; %d lines, %d dropped\n", why, sent, q.lines-sent))
}

func (s *Server) note(event string, o *openLog, more ...[2]string) {
	if s.c.Note != nil {
		s.c.Note("key_log", append([][2]string{{"event", event}, {"listener", o.listener}, {"to", o.who.String()}}, more...)...)
	}
}

// queue is what handshakes write to. It never waits and never fails: an error would end the handshake.
type queue struct {
	wake chan struct{}

	mu      sync.Mutex
	waiting []byte
	fit     int // lines in waiting
	lines   int // that came while it was open, also those that found no room
	closed  bool
}

// Write takes a line, or drops it when there is no room or the key log is closed.
func (q *queue) Write(line []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return len(line), nil
	}
	q.lines++
	if len(q.waiting)+len(line) > maxWaiting {
		return len(line), nil
	}
	q.waiting = append(q.waiting, line...)
	q.fit++
	select {
	case q.wake <- struct{}{}:
	default:
	}
	return len(line), nil
}

// take returns what waits, and how many lines it is.
func (q *queue) take() (lines []byte, n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	lines, n = q.waiting, q.fit
	q.waiting, q.fit = nil, 0
	return lines, n
}

// close has it take nothing more. After it lines does not change.
func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

var _ io.Writer = (*queue)(nil)
