package daemon_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// TestEnforceDecided: a request that was decided under a configuration that is none any more when it begins, because an
// OCSP responder took its time, is looked at by the one in force.
func TestEnforceDecided(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"http/1.1", "h2"} {
		t.Run("A34/"+version, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			said, asked := make(chan struct{}), make(chan struct{}, 10)
			say := sync.OnceFunc(func() { close(said) })
			defer say()
			url := responder(t, w.ca, func(string) []testpki.OCSPOption {
				asked <- struct{}{}
				<-said
				return nil
			})
			conf := "outbound: {allow: [127.0.0.0/8]}\n" + strings.Replace(underwayConf, "revocation: {crls: [{file: clients.crl}], missing: if_present}", "revocation: {ocsp: {mode: require, responder: \""+url+"\"}}", 1)
			target := streams(t)
			w.start(conf, target)
			client := w.client("b.test", w.ca.Client("bob"))
			seen := w.hold(t, "WebSocket", w.client("a.test", nil)) // which the sweep ends
			seen.follow()
			var over chan struct{}
			var name string
			began := make(chan struct{})
			if version == "h2" {
				s := w.session(t, "public", client)
				x := s.open(t, "CONNECT", "b.test", "/ws", ":protocol", "websocket", "sec-websocket-version", "13")
				over, name = x.over, s.name()
				go func() {
					for {
						if status, _ := x.heard(); status == "200" || x.gone() {
							close(began)
							return
						}
						time.Sleep(5 * time.Millisecond)
					}
				}()
			} else {
				h := w.hold(t, "idle", client)
				name, over = h.conn.LocalAddr().String(), h.ended
				go func() {
					fmt.Fprint(h.conn, wsRequest("/ws", "a.test", "b.test"))
					if resp, err := http.ReadResponse(h.r, nil); err != nil || resp.StatusCode != 101 {
						t.Errorf("%v %v", resp, err)
					}
					close(began) // and what is said over it may come too late already
					h.follow()
				}()
			}
			select {
			case <-asked:
			case <-time.After(10 * time.Second):
				t.Fatal("nobody asks", w.log.String())
			}
			next := strings.Replace(conf, `!= "nobody"`, `!= "bob"`, 1)
			w.reload(strings.Replace(next, "routes: [{match: {path: /ws}", "routes: [{match: {path: /wss}", 1), target)
			if !happens(seen.ended, time.Now().Add(10*time.Second)) { // soon: who asks has 2 s for the answer
				t.Fatal("the sweep does not come by")
			}
			say()
			start := time.Now()
			if !happens(began, start.Add(10*time.Second)) {
				t.Fatal("it does not begin")
			}
			if !happens(over, start.Add(within()+10*time.Second)) {
				t.Fatal("it goes on")
			}
			r := w.find(t, "client="+name, "path=/ws", "reason=client_no_longer_trusted")
			if r["found"] != "policy_denied" {
				t.Errorf("%v", r)
			}
		})
	}
}

// TestEnforceOCSPRunsOut: a tunnel whose route's own trust store requires OCSP. The answer runs out, and the responder says
// nothing any more: after a moment of patience nobody waits for it.
func TestEnforceOCSPRunsOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var mute atomic.Bool
	never := make(chan struct{})
	defer close(never)
	url := responder(t, w.ca, func(string) []testpki.OCSPOption {
		if mute.Load() {
			<-never
		}
		return []testpki.OCSPOption{testpki.OCSPThis(time.Now().Add(-time.Hour)), testpki.OCSPNext(time.Now().Add(6500*time.Millisecond - 5*time.Minute))}
	})
	conf := "outbound: {allow: [127.0.0.0/8]}\n" + strings.Replace(underwayConf, "revocation: {crls: [{file: clients.crl}], missing: if_present}", "revocation: {ocsp: {mode: require, responder: \""+url+"\"}}", 1)
	w.start(conf, streams(t))
	h := w.hold(t, "idle", w.client("b.test", w.ca.Client("bob")))
	h.kind = "WebSocket"
	h.begin(t)
	mute.Store(true)
	go h.follow()
	if !happens(h.ended, time.Now().Add(30*time.Second)) {
		t.Error("A33/still open long after the answer ran out")
	}
}
