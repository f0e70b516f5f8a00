package record

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// gathered are the values of all series, histograms by their count.
func gathered(t *testing.T, r prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]float64)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += " " + l.GetValue()
			}
			switch f.GetType().String() {
			case "COUNTER":
				out[name] = m.GetCounter().GetValue()
			case "GAUGE":
				out[name] = m.GetGauge().GetValue()
			case "HISTOGRAM":
				out[name] = float64(m.GetHistogram().GetSampleCount())
				out[name+" sum"] = m.GetHistogram().GetSampleSum()
			}
		}
	}
	return out
}

func TestTraffic(t *testing.T) {
	b := NewBook(io.Discard)
	defer b.Close()
	b.Upstreams([]string{"api"})
	l := b.Listener("main")
	l.Handshake(&Handshake{Reason: reason.ClientCertExpired, Duration: time.Second})
	l.Handshake(&Handshake{Reason: reason.Completed, Duration: time.Second})
	l.Handshake(&Handshake{Reason: reason.Completed, Duration: time.Second, Resumed: true})
	l.Handshake(&Handshake{Kind: Ended, Reason: reason.Completed, Duration: time.Second})
	for _, r := range []*Request{
		{Reason: reason.Completed, Status: 204, Upstream: "api", Target: "a:1", SentTime: time.Second, TargetTime: 3 * time.Second},
		{Reason: reason.Completed, Status: 200, Upstream: "api", Target: "a:1", SentTime: time.Second, TargetTime: 3 * time.Second, TargetStatus: 503},
		{Reason: reason.UpstreamConnectFailed, Status: 502, Upstream: "api"},
		{Reason: reason.ClientAborted, Upstream: "unheard"},
		{Reason: reason.RouteNotFound, Status: 404},
		{Reason: reason.Completed, Status: 99999},
	} {
		r.Start = time.Now()
		l.Request(r, "ref", nil)
	}
	got := gathered(t, b.Registry)
	for series, want := range map[string]float64{
		"countersign_handshake_duration_seconds main": 2, "countersign_handshake_duration_seconds main sum": 2,
		"countersign_handshakes_resumed_total main": 1,
		"countersign_responses_total 2xx main":      2, "countersign_responses_total 5xx main": 1, "countersign_responses_total 4xx main": 1,
		"countersign_responses_total none main": 2, "countersign_responses_total 1xx main": 0, "countersign_responses_total 3xx main": 0,
		"countersign_upstream_responses_total 2xx api": 1, "countersign_upstream_responses_total 5xx api": 1,
		"countersign_upstream_responses_total none api":            1,
		"countersign_upstream_response_duration_seconds api":       2,
		"countersign_upstream_response_duration_seconds api sum":   4,
		"countersign_log_queue_bytes stdout":                       -1,
		"countersign_handshakes_total main client_cert_expired":    1,
		"countersign_requests_total main upstream_connect_failed":  1,
		"countersign_upstream_responses_total 2xx unheard":         -2,
		"countersign_connection_ends_total main client_closed":     -2,
		"countersign_shadow_refusals_total main client_cert_wrong": -2,
	} {
		v, there := got[series]
		if there != (want != -2) || want >= 0 && v != want {
			t.Errorf("%s is %v (%v), expected %v", series, v, there, want)
		}
	}
}

// TestUpstreamsComeAndGo: a request ends as one of the upstream it began with, and a name that two configurations have
// not had leaves no series behind.
func TestUpstreamsComeAndGo(t *testing.T) {
	b := NewBook(io.Discard)
	defer b.Close()
	l := b.Listener("main")
	l.Request(&Request{Reason: reason.Completed, Status: 200, Upstream: "early"}, "ref", nil) // before any configuration
	for i := range 100 {
		b.Upstreams([]string{"stays", fmt.Sprint("pool", i)})
		if i > 0 {
			l.Request(&Request{Reason: reason.Completed, Status: 200, TargetStatus: 200, Upstream: fmt.Sprint("pool", i-1)}, "ref", nil)
		}
		l.Request(&Request{Reason: reason.Completed, Status: 200, TargetStatus: 200, Upstream: "stays"}, "ref", nil)
	}
	got := gathered(t, b.Registry)
	if n := got["countersign_upstream_responses_total 2xx pool98"]; n != 1 {
		t.Errorf("%v requests for the upstream of the configuration before", n)
	}
	if n := got["countersign_upstream_responses_total 2xx stays"]; n != 100 {
		t.Errorf("%v requests for the upstream that stayed", n)
	}
	for series := range got {
		if strings.Contains(series, "pool9") && !strings.HasSuffix(series, "pool98") && !strings.HasSuffix(series, "pool99") && !strings.HasSuffix(series, "sum") ||
			strings.Contains(series, "pool8 ") || strings.HasSuffix(series, "pool8") {
			t.Errorf("%s is still there", series)
		}
	}
}

// TestSeriesDoNotGrow: nothing that a client chooses makes a series (B21).
func TestSeriesDoNotGrow(t *testing.T) {
	b := NewBook(io.Discard)
	defer b.Close()
	b.Upstreams([]string{"api"})
	l := b.Listener("main")
	round := func(i int) {
		name := fmt.Sprintf("%d.test", i)
		for _, why := range reason.All() {
			l.Handshake(&Handshake{Ref: name, Client: name, SNI: name, Host: name, Reason: why, Shadow: reason.ClientCertExpired, ShadowFound: name, ALPN: name, Version: name})
			r := Request{Serial: uint64(i), Reason: why, Status: i, Upstream: "api", Target: name, TargetStatus: i * 7, User: name, Client: name, Shadow: reason.ClientCertExpired}
			r.Keep([]byte(name), []byte(name), []byte("/"+name))
			r.Classify(message.ClassReason(1 + i%2))
			l.Request(&r, name, nil)
			l.Ended(why)
		}
	}
	round(0)
	round(1)
	before := len(gathered(t, b.Registry))
	for i := 2; i < 1002; i++ {
		round(i)
	}
	if after := len(gathered(t, b.Registry)); after != before {
		t.Errorf("%d series, and after 1,000 other clients %d", before, after)
	}
}

// TestTrafficAllocates: a request's metrics cost no allocation.
func TestTrafficAllocates(t *testing.T) {
	var out bytes.Buffer
	b := NewBook(&out)
	defer b.Close()
	b.Log(None)
	b.Upstreams([]string{"api"})
	l := b.Listener("main")
	r := Request{Reason: reason.Completed, Status: 200, Upstream: "api", Target: "a:1", TargetTime: 1, Start: time.Now(), Shadow: reason.ClientCertExpired}
	l.Request(&r, "ref", nil)
	l.Ended(reason.ClientClosed)
	if n := testing.AllocsPerRun(100, func() {
		l.Request(&r, "ref", nil)
		l.Ended(reason.ClientClosed)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
