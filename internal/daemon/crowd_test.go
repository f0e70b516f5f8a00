package daemon_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"countersign/internal/daemon"
	"countersign/internal/frontend"
	"countersign/internal/memnet"
	"countersign/internal/record"
	"countersign/internal/snapshot"
	"countersign/internal/testpki"
	"countersign/internal/trust"
)

const crowdConfig = `
trust_stores:
  clients: {ca_bundle: {file: clients.pem}, revocation: {crls: [{file: root.crl}, {file: clients.crl}, {file: branch.crl}, {file: second.crl}]}}
listeners:
  public:
    listen: 10.0.0.1:443
    protocol: https
    limits: {idle: 1h, connections: 1000000, connections_per_address: 1000000, handshakes_per_address: {rate: 1000000}}
    hosts: [{names: [a.test], certificate: {cert: server.pem, key: server.key}, client_auth: {mode: require, trust_store: clients}, routes: [{upstream: web}]}]
upstreams:
  web: {targets: ["http://10.0.0.2:80"]}
`

// TestCrowd: what ends trust ends the connections concerned within five seconds, and no others, also among very many, each
// of another client. COUNTERSIGN_CROWD says how many there are; 100,000 take some minutes and 5 GB.
func TestCrowd(t *testing.T) {
	size := 300
	if s := os.Getenv("COUNTERSIGN_CROWD"); s != "" {
		size = must(strconv.Atoi(s))(t)
	} else {
		t.Parallel()
	}
	stood(time.Now())
	w := newWorld(t)
	root := testpki.New(t)
	first, branch, second := w.ca, w.root.Intermediate("Branch"), root.Intermediate("Second")
	w.file("server.pem", w.server.PEM())
	w.file("server.key", w.server.KeyPEM())
	w.file("clients.pem", append(w.root.PEM(), root.PEM()...))
	w.file("root.crl", w.root.CRL(testpki.Number(1)))
	w.file("clients.crl", first.CRL(testpki.Number(1)))
	w.file("branch.crl", branch.CRL())
	w.file("second.crl", second.CRL())
	w.file("countersign.yaml", []byte(crowdConfig))
	env := snapshot.Env{Answers: trust.NewAnswers(64), Chains: trust.NewChains(8192)} // as the program has it
	var network memnet.Network
	book := record.NewBook(io.Discard)
	f := frontend.New(frontend.Config{Book: book, Log: slog.New(slog.DiscardHandler), Dial: network.Dial,
		Listen: func(address string) (net.Listener, error) { return network.Listen("tcp", address) }})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		f.Drain(ctx)
		book.Close()
	})
	apply := func() {
		t.Helper()
		env.Now = time.Now()
		if err := f.Apply(must(daemon.Load(filepath.Join(w.dir, "countersign.yaml"), env))(t).Snapshot); err != nil {
			t.Fatal(err)
		}
	}
	apply()

	// Half of the connections are of clients of the branch, and one in a hundred of the second CA. The last ten are of those
	// who will be revoked.
	crowd := make([]net.Conn, size)
	var next atomic.Int64
	var wg sync.WaitGroup
	revoked := make([]testpki.CRLItem, 10)
	for range 4 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < size; i = int(next.Add(1)) - 1 {
				ca := first
				switch {
				case i%100 == 0:
					ca = second
				case i%2 == 0:
					ca = branch
				}
				cert := ca.Client(fmt.Sprint("client ", i))
				if n := size - 1 - i; n < len(revoked) {
					revoked[n] = cert
				}
				raw, err := network.Dial(t.Context(), "tcp", "10.0.0.1:443")
				if err != nil {
					t.Error(err)
					return
				}
				if err := tls.Client(raw, w.client("a.test", cert)).Handshake(); err != nil {
					t.Error(err)
					return
				}
				crowd[i] = raw
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	open := func() int {
		for _, f := range must(book.Registry.Gather())(t) {
			if f.GetName() == "countersign_connections" {
				return int(f.GetMetric()[0].GetGauge().GetValue())
			}
		}
		return 0
	}
	await(t, 10*time.Second, "connections", func() bool { return open() == size })

	// ends applies a change that ends the connections of whom it concerns, and waits for these.
	gone := make([]bool, size)
	ends := func(what string, concerns func(i int) bool, change func()) {
		t.Run(what, func(t *testing.T) {
			n := 0
			for i := range crowd {
				if !gone[i] && concerns(i) {
					gone[i] = true
					n++
				}
			}
			change()
			before, used, start := open(), processor(), time.Now()
			apply()
			await(t, time.Minute, what, func() bool { return open() <= before-n })
			took := time.Since(start)
			t.Logf("%d of %d connections ended after %v, which took %v of processor time", n, before, took, processor()-used)
			if took > allowed(start) {
				t.Errorf("the last of them ended after %v", took)
			}
			time.Sleep(time.Second) // to see that no others follow
			if got := open(); got != before-n {
				t.Errorf("%d connections were ended, want %d", before-got, n)
			}
			for i := range crowd {
				if gone[i] && concerns(i) || i%(1+size/1000) == 0 {
					patience := time.Millisecond // tickets are there to be read
					if gone[i] {
						patience = 10 * time.Second
					}
					_ = crowd[i].SetReadDeadline(time.Now().Add(patience))
					if _, err := io.Copy(io.Discard, crowd[i]); errors.Is(err, os.ErrDeadlineExceeded) == gone[i] {
						t.Fatalf("client %d: %v; it should have been ended: %t", i, err, gone[i])
					}
				}
			}
		})
	}
	ends("C01/revoked", func(i int) bool { return i >= size-len(revoked) }, func() {
		w.file("clients.crl", first.CRL(append(revoked, testpki.Number(2))...))
		w.file("branch.crl", branch.CRL(append(revoked, testpki.Number(2))...))
	})
	ends("a CA added", func(int) bool { return false }, func() { w.file("clients.pem", append(append(w.root.PEM(), root.PEM()...), testpki.New(t).PEM()...)) })
	ends("C01/the branch revoked", func(i int) bool { return i%2 == 0 && i%100 != 0 }, func() { w.file("root.crl", w.root.CRL(branch, testpki.Number(2))) })
	ends("A32/a CA removed", func(i int) bool { return i%100 == 0 }, func() { w.file("clients.pem", w.root.PEM()) })
	ends("A32/the other CA removed", func(int) bool { return true }, func() { w.file("clients.pem", testpki.New(t).PEM()) })
}

func processor() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
