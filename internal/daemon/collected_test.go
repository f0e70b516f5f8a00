package daemon_test

import (
	"crypto/tls"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// TestCollected: what metrics say of certificates, lists, caches and targets is what there is.
func TestCollected(t *testing.T) {
	w := newWorld(t)
	b := echo(t, "api", nil)
	w.file("clients.crl", w.ca.CRL(w.ca.Client("gone"), w.ca.Client("gone too")))
	w.file("old.pem", append(w.root.PEM(), append(w.ca.PEM(), w.root.Intermediate("Old CA", testpki.Expired()).PEM()...)...))
	conf := strings.Replace(basic, "clients.pem", "old.pem", 1)
	w.start(strings.Replace(conf, `["http://BACKEND"]`, `["http://BACKEND", {url: "http://127.0.0.1:1", state: draining}, {url: "http://127.0.0.1:2", state: disabled}]`, 1), b.addr)
	began := time.Now()
	cache := tls.NewLRUClientSessionCache(4)
	alice := w.client("a.test", w.ca.Client("alice"), func(c *tls.Config) { c.ClientSessionCache = cache })
	for range 3 {
		if a := w.call("public", alice, "a.test", "/"); a.status != 200 {
			t.Fatal(a.err)
		}
	}
	w.awaitMetric(`countersign_requests_total{listener="public",reason="completed"}`, "3")
	got := w.scrape(t)
	resumed, _ := strconv.Atoi(got[`countersign_handshakes_resumed_total{listener="public"}`])
	if resumed < 1 || resumed > 2 {
		t.Errorf("%d of three handshakes resumed", resumed)
	}
	issuer := fmt.Sprintf(`{issuer="%s"}`, w.ca.Cert.Subject.String())
	for series, want := range map[string]string{
		`countersign_handshake_duration_seconds_count{listener="public"}`:      "3",
		`countersign_responses_total{class="2xx",listener="public"}`:           "3",
		`countersign_upstream_responses_total{class="2xx",upstream="api"}`:     "3",
		`countersign_upstream_response_duration_seconds_count{upstream="api"}`: "3",
		`countersign_chain_lookups_total{result="miss"}`:                       "1",
		`countersign_chain_lookups_total{result="hit"}`:                        "2",
		`countersign_chains`:                           "1",
		`countersign_ocsp_lookups_total{result="hit"}`: "0",
		`countersign_certificate_not_after_seconds{host="a.test",key="ecdsa",listener="public"}`:              seconds1970(w.server.Cert.NotAfter),
		`countersign_certificate_not_after_seconds{host="off.test",key="ecdsa",listener="public"}`:            seconds1970(w.server.Cert.NotAfter),
		`countersign_ca_certificates{state="valid",trust_store="clients"}`:                                    "2",
		`countersign_ca_certificates{state="not_valid",trust_store="clients"}`:                                "1",
		`countersign_ca_not_after_seconds{trust_store="clients"}`:                                             seconds1970(w.ca.Cert.NotAfter, w.root.Cert.NotAfter),
		`countersign_revocation_list_entries` + strings.Replace(issuer, `"}`, `",url=""}`, 1):                 "2",
		`countersign_upstream_targets{state="ready",upstream="api"}`:                                          "1",
		`countersign_upstream_targets{state="draining",upstream="api"}`:                                       "1",
		`countersign_upstream_targets{state="disabled",upstream="api"}`:                                       "1",
		`countersign_upstream_targets{state="unhealthy",upstream="api"}`:                                      "0",
		`countersign_upstream_unresolved_names{upstream="api"}`:                                               "0",
		`countersign_handshake_turns{state="waiting"}`:                                                        "0",
		`countersign_log_queue_bytes{output="stdout"}`:                                                        "",
		`countersign_reason_info{fault="client",reason="client_cert_expired",stage="handshake",status="400"}`: "1",
	} {
		if v, there := got[series]; !there || want != "" && decimal(v) != want {
			t.Errorf("%s is %q (%v), expected %s", series, v, there, want)
		}
	}
	loaded, err := strconv.ParseFloat(got["countersign_last_reload_success_seconds"], 64)
	if at := time.Unix(int64(loaded), 0); err != nil || began.Sub(at) > time.Minute || at.After(began.Add(time.Second)) {
		t.Errorf("loaded at %v", at)
	}
	series := 0
	for name := range got {
		if strings.HasPrefix(name, "countersign_") && strings.Contains(name, `listener="public"`) {
			series++
		}
	}
	t.Logf("%d series of the listener", series)
}

// seconds1970 is the first of some times as a metric.
func seconds1970(times ...time.Time) string {
	first := times[0]
	for _, t := range times {
		if t.Before(first) {
			first = t
		}
	}
	return strconv.FormatInt(first.Unix(), 10)
}

// decimal is a number without exponent.
func decimal(v string) string {
	f, err := strconv.ParseFloat(v, 64)
	if err != nil {
		return v
	}
	return strconv.FormatFloat(f, 'f', -1, 64)
}
