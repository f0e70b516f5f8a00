package daemon

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"countersign/internal/frontend"
)

// ops is the listener for liveness, readiness and metrics. It answers GET of three paths and nothing else, without
// authentication, which is why it serves no settings.
type ops struct {
	m        *Main
	handler  http.Handler
	draining atomic.Bool
	reloads  *prometheus.CounterVec
	last     prometheus.Gauge
	loaded   prometheus.Gauge
	loadedAt atomic.Pointer[time.Time]

	mu      sync.Mutex
	current *opsServer
	next    *opsServer
	changed bool
}

type opsServer struct {
	address string
	sock    net.Listener
	server  *http.Server
}

func newOps(m *Main) *ops {
	o := &ops{m: m,
		reloads: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "countersign_reloads_total", Help: "Configurations loaded, by result."}, []string{"result"}),
		last:    prometheus.NewGauge(prometheus.GaugeOpts{Name: "countersign_last_reload_success", Help: "1 if the last configuration was accepted, 0 if an older one stayed in force."}),
		loaded:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "countersign_last_reload_success_seconds", Help: "When the configuration in force was loaded, in Unix time."}),
	}
	o.reloads.WithLabelValues("accepted")
	o.reloads.WithLabelValues("refused")
	m.book.Registry.MustRegister(o.reloads, o.last, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), o.loaded, state{m}, newFacts())
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch hash := m.Hash(); {
		case hash == "":
			http.Error(w, "not ready: no configuration is in force", http.StatusServiceUnavailable)
		case o.draining.Load():
			http.Error(w, "not ready: draining", http.StatusServiceUnavailable)
		default:
			fmt.Fprintf(w, "ready\nconfiguration %s\n", hash)
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(m.book.Registry, promhttp.HandlerOpts{}))
	o.handler = mux
	return o
}

// bind opens the address of a new configuration if it differs, without giving up the old one yet.
func (o *ops) bind(address string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next, o.changed = nil, false
	if o.current != nil && o.current.address == address {
		return nil
	}
	o.changed = true
	if address == "" {
		return nil
	}
	listen := o.m.o.Listen
	if listen == nil {
		listen = frontend.Listen
	}
	sock, err := listen(address)
	if err != nil {
		return fmt.Errorf("ops cannot listen on %s: %w; choose another port or end the program that has it (ss -ltnp)", address, err)
	}
	o.next = &opsServer{address: address, sock: sock, server: &http.Server{Handler: o.handler,
		ReadTimeout: 10 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10}}
	return nil
}

// settle serves what bind opened if the configuration was put in force, and closes it otherwise.
func (o *ops) settle(inForce bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case !o.changed:
	case !inForce:
		if o.next != nil {
			o.next.sock.Close()
		}
	default:
		if o.current != nil {
			o.current.server.Close()
		}
		o.current = o.next
		if s := o.current; s != nil {
			go func() { _ = s.server.Serve(s.sock) }()
		}
	}
	o.next, o.changed = nil, false
}

func (o *ops) reloaded(accepted bool) {
	if accepted {
		o.reloads.WithLabelValues("accepted").Inc()
		o.last.Set(1)
		now := time.Now()
		o.loaded.Set(float64(now.Unix()))
		o.loadedAt.Store(&now)
		return
	}
	o.reloads.WithLabelValues("refused").Inc()
	o.last.Set(0)
}

func (o *ops) addr() net.Addr {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current == nil {
		return nil
	}
	return o.current.sock.Addr()
}

func (o *ops) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.current != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = o.current.server.Shutdown(ctx)
	}
}
