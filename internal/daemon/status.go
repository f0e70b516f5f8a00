package daemon

import (
	"cmp"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/internal/control"
	"countersign/internal/frontend"
	"countersign/internal/reason"
)

func (m *Main) newControl() *control.Server {
	return control.New(control.Config{Status: m.Status, LogKeys: m.front.LogKeys, Note: m.book.Note, Listen: frontend.Listen,
		Log: m.log, Metrics: m.book.Registry, Panicked: m.book.Panicked})
}

// Status is how the program is, for the control socket.
func (m *Main) Status() *control.Status {
	s := &control.Status{Version: cmp.Or(version(), "development"), Revision: revision(), Started: m.started.UTC(), Draining: m.ops.draining.Load(), Memory: m.front.Pressure().String(),
		Listeners: []control.Listener{}, Upstreams: []control.Upstream{}, Conditions: []control.Condition{}}
	for _, c := range m.Conditions() {
		s.Conditions = append(s.Conditions, control.Condition{Code: c.Code, Text: c.Text, Since: c.Since.UTC()})
	}
	snap := m.front.Current()
	if snap == nil {
		return s
	}
	s.Configuration = control.Configuration{File: m.o.Config, Hash: snap.Hash}
	if at := m.ops.loadedAt.Load(); at != nil {
		s.Configuration.Loaded = at.UTC()
	}
	counts := counted(m.book.Registry)
	for name, l := range snap.Listeners {
		out := control.Listener{Name: name, Address: l.Address, Protocol: l.Protocol.String(), Terminates: l.Protocol.Terminates()}
		if addr := m.front.Addr(name); addr != nil && addr.Network() != "unix" {
			out.Address = addr.String() // with the port that the system chose
		}
		if n := counts[name]; n != nil {
			out.Connections, out.Accepted, out.Refused, out.Requests = n.connections, n.accepted, n.refused, n.requests
		}
		s.Listeners = append(s.Listeners, out)
	}
	slices.SortFunc(s.Listeners, func(a, b control.Listener) int { return cmp.Compare(a.Name, b.Name) })
	targets := make(map[string][]control.Target)
	for _, t := range m.front.Pools().Stats() {
		targets[t.Upstream] = append(targets[t.Upstream], control.Target{Address: t.Target, State: stateOf(&t), Open: t.Open, Idle: t.Idle, Busy: t.Busy})
	}
	for _, p := range m.front.Pools().PoolStats() {
		s.Upstreams = append(s.Upstreams, control.Upstream{Name: p.Upstream, Pending: p.Pending, FailOpen: p.FailOpen, Targets: append([]control.Target{}, targets[p.Upstream]...)})
	}
	slices.SortFunc(s.Upstreams, func(a, b control.Upstream) int { return cmp.Compare(a.Name, b.Name) })
	return s
}

// counts are what the metrics say of one listener.
type counts struct{ connections, accepted, refused, requests uint64 }

// good are the codes of ends that are nobody's fault.
var good = func() map[string]bool {
	codes := make(map[string]bool)
	for _, r := range reason.All() {
		codes[r.String()] = r.Good()
	}
	return codes
}()

// counted reads the metrics of listeners, so that the two cannot disagree.
func counted(from prometheus.Gatherer) map[string]*counts {
	families, _ := from.Gather() // what it could gather
	all := make(map[string]*counts)
	for _, f := range families {
		name := f.GetName()
		if name != "countersign_connections" && name != "countersign_handshakes_total" && name != "countersign_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			var listener, why string
			for _, l := range m.GetLabel() {
				switch l.GetName() {
				case "listener":
					listener = l.GetValue()
				case "reason":
					why = l.GetValue()
				}
			}
			n := all[listener]
			if n == nil {
				n = new(counts)
				all[listener] = n
			}
			switch value := uint64(max(m.GetCounter().GetValue(), 0)); {
			case name == "countersign_connections":
				n.connections = uint64(max(m.GetGauge().GetValue(), 0))
			case name == "countersign_requests_total":
				n.requests += value
			case why == reason.Completed.String():
				n.accepted += value
			case !good[why]:
				n.refused += value
			}
		}
	}
	return all
}
