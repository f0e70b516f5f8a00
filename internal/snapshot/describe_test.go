package snapshot

import (
	"strings"
	"testing"
)

// check shows below each host what its routes ask beyond it, and what else decides on its clients.
func TestDescribeRoutes(t *testing.T) {
	b := newBench(t)
	conf := strings.Replace(good, "client_auth: {mode: require, trust_store: clients}\n        routes: [{upstream: api}]", `client_auth: {mode: request, trust_store: clients, shadow: {mode: require}}
        exempt: {health: [{path: /healthz}]}
        trusted_proxies: [{match: {sans: ["dns:edge.test"]}, identity: rfc9440, trust_store: internal}]
        routes:
          - match: {path: /admin/*}
            client_auth: {mode: require}
            allow: |
              client.common_name
                == "alice"
            upstream: api
          - upstream: api`, 1)
	s, problems := b.compile(conf)
	if s == nil {
		t.Fatal(problems)
	}
	var text strings.Builder
	if err := s.Describe(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"; 1 trusted_proxies speak for their clients; health checks or preflights without a certificate are answered here; a stricter shadow is recorded\n",
		"\nTRUST STORE        RULES\n", "1 CA; lists required of the client's CA, refused when stale\n", "  /admin/*", `only clients with a verified certificate, else 403; only if client.common_name == "alice"` + "\n",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if n := strings.Count(text.String(), "\n"); n != 13 {
		t.Errorf("%d lines:\n%s", n, &text)
	}
}
