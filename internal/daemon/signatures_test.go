package daemon_test

import (
	"encoding/pem"
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestSignaturesBehindStart: with very many certificates a damaged one does not keep the program from starting, and is told.
func TestSignaturesBehindStart(t *testing.T) {
	w := newWorld(t)
	issuer := w.servers.Intermediate("servers")
	name := func(i int) string { return fmt.Sprintf("h%03d.test", i) }
	var hosts strings.Builder
	const n = 103
	files := make([][]byte, n)
	for i := range n {
		c := issuer.Server(name(i))
		files[i] = c.PEM()
		w.file(name(i)+".pem", files[i])
		w.file(name(i)+".key", c.KeyPEM())
		fmt.Fprintf(&hosts, "      - names: [%[1]s]\n        certificate: {cert: %[1]s.pem, key: %[1]s.key}\n        client_auth: {mode: require, trust_store: clients}\n        routes: [{upstream: api}]\n", name(i))
	}
	w.file("clients.pem", w.ca.PEM())
	conf := "ops: {listen: 127.0.0.1:0}\ntrust_stores: {clients: {ca_bundle: {file: clients.pem}}}\nupstreams: {api: {targets: [\"http://127.0.0.1:9\"]}}\n" +
		"listeners:\n  public:\n    listen: 127.0.0.1:0\n    protocol: https\n    hosts:\n" + hosts.String()
	block, rest := pem.Decode(files[n-1])
	block.Bytes[len(block.Bytes)-1] ^= 1
	w.file(name(n-1)+".pem", append(pem.EncodeToMemory(block), rest...))
	w.start(conf, "")
	await(t, 2*time.Minute, "condition", func() bool {
		texts := w.condition("certificate_damaged")
		return len(texts) == 1 && strings.Contains(texts[0], name(n-1)+".pem") && strings.Contains(texts[0], "did not sign certificate 1")
	})
	if got := w.metric(`countersign_condition{code="certificate_damaged"}`); got != "1" {
		t.Errorf("in metrics: %q", got)
	}
	w.file(name(n-1)+".pem", files[n-1])
	w.reload(conf, "")
	if texts := w.condition("certificate_damaged"); len(texts) > 0 {
		t.Errorf("after it was replaced: %q", texts)
	}
	w.file(name(n-1)+".pem", append(pem.EncodeToMemory(block), rest...))
	if err := w.main.Reload(); err == nil || !strings.Contains(err.Error(), "did not sign certificate 1") {
		t.Errorf("H03/damaged again: %v", err)
	}
}
