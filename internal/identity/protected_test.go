package identity

import (
	"strings"
	"testing"
)

// spoofed are headers as attackers and products write them, gathered apart from the table.
var spoofed = []string{
	"Client-Cert", "Client-Cert-Chain", "Client-Certificate",
	"X-Amzn-Mtls-Clientcert", "X-Amzn-Mtls-Clientcert-Serial-Number", "X-Amzn-Mtls-Clientcert-Issuer",
	"X-Amzn-Mtls-Clientcert-Subject", "X-Amzn-Mtls-Clientcert-Validity", "X-Amzn-Mtls-Clientcert-Leaf",
	"X-Amzn-Tls-Version", "X-Amzn-Tls-Cipher-Suite",
	"X-Forwarded-Client-Cert", "X-Forwarded-Tls-Client-Cert", "X-Forwarded-Tls-Client-Cert-Info",
	"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix",
	"X-Forwarded-Uri", "X-Forwarded-User", "X-Forwarded-Server", "X-Forwarded", "Forwarded",
	"X-Original-Forwarded-For", "X-Real-IP", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP",
	"CF-Connecting-IP", "CF-Connecting-IPv6", "X-Envoy-External-Address",
	"X-Client-Cert", "X-Client-Cert-Present", "X-Client-Cert-Chain-Verified", "X-Client-Cert-SPIFFE",
	"X-Client-Certificate", "X-Client-Verify", "X-Client-DN", "X-Client-Dn-Issuer",
	"X-SSL", "X-SSL-Client-Verify", "X-SSL-Client-DN", "X-SSL-Client-CN", "X-SSL-Subject", "X-SSL-Issuer",
	"X-SSL-notBefore", "X-SSL-certificate", "SSL-Client-Cert", "SSL-Client-Verify", "SSL-Client-Subject-DN",
	"SSL_CLIENT_S_DN", "SSL-Cert", "X-TLS-Client-Cert", "TLS-Client-Cert",
	"X-ARR-ClientCert", "X-ARR-SSL", "Cf-Client-Cert-Sha256", "l5d-client-id",
	"X-Pomerium-Jwt-Assertion", "X-Pomerium-Claim-Email", "X-Countersign-Verify", "Proxy",
}

// spellings are the ways to write one header so that some backend takes it for that header.
func spellings(name string) map[string]string {
	odd := []byte(strings.ToLower(name))
	for i := range odd {
		if i%2 == 1 {
			odd[i] = strings.ToUpper(name)[i]
		}
	}
	return map[string]string{
		"D01/as is":      name,
		"D01/lower":      strings.ToLower(name),
		"D01/upper":      strings.ToUpper(name),
		"D06/odd":        string(odd),
		"D03/underscore": strings.ReplaceAll(name, "-", "_"),
		"D03/dot":        strings.ReplaceAll(name, "-", "."),
		"D03/mixed":      strings.Replace(strings.ToUpper(name), "-", "_", 1),
		"D03/token":      strings.ReplaceAll(name, "-", "~"),
		"D03/octet":      strings.ReplaceAll(name, "-", "\xff"),
		"D03/NUL":        strings.ReplaceAll(name, "-", "\x00"),
	}
}

func TestProtected(t *testing.T) {
	for _, name := range spoofed {
		for how, spelling := range spellings(name) {
			t.Run(how+"/"+name, func(t *testing.T) {
				if !Protected([]byte(spelling)) {
					t.Errorf("%q passes", spelling)
				}
			})
		}
	}
	for _, name := range ProtectedNames() {
		stem, prefix := strings.CutSuffix(name, "*")
		t.Run("D01/table/"+name, func(t *testing.T) {
			for how, spelling := range spellings(stem + "x"[:b2i(prefix)]) {
				if !Protected([]byte(spelling)) {
					t.Errorf("%s: %q passes", how, spelling)
				}
			}
			if got := Protected([]byte(stem + "zz")); got != prefix {
				t.Errorf("Protected(%q) = %v", stem+"zz", got)
			}
			if string(foldAll(stem)) != stem {
				t.Error("the table's own spelling is not folded, so it never matches")
			}
		})
	}
	t.Run("D16/httpoxy", func(t *testing.T) {
		if !Protected([]byte("Proxy")) || Protected([]byte("Proxy-Authorization")) {
			t.Error("want Proxy removed and Proxy-Authorization not")
		}
	})
	t.Run("D01/what we render is protected", func(t *testing.T) {
		var names []string
		for d := RFC9440; d < dialects; d++ {
			names = append(names, d.Headers()...)
		}
		for _, name := range names {
			if !Protected([]byte(name)) {
				t.Errorf("%s is rendered, but a client's copy passes", name)
			}
		}
	})
	for _, name := range ordinary {
		t.Run("passes/"+name, func(t *testing.T) {
			if Protected([]byte(name)) {
				t.Errorf("%q is removed", name)
			}
		})
	}
}

var ordinary = []string{
	"", "x", "x-", "TE", "Host", "Accept", "Accept-Encoding", "Authorization", "Cookie", "Content-Type", "Content-Length",
	"Client", "Client-Id", "User-Agent", "Referer", "Origin", "Priority", "Pragma", "Forward", "From", "Via", "Traceparent",
	"Sec-Fetch-Mode", "X-Request-Id", "X-Api-Key", "X-Csrf-Token", "X-Requested-With", "X-Real", "X-Amzn-Trace-Id",
	"X-Correlation-Id", "X-Forward", "Ssl", "Proxy-Connection", "Cf-Ray", "XClientCert", "Upgrade", "Connection",
}

func foldAll(s string) []byte {
	out := []byte(s)
	for i, b := range out {
		out[i] = fold[b]
	}
	return out
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestProtectedAllocatesNothing(t *testing.T) {
	all := fields()
	if n := testing.AllocsPerRun(100, func() {
		for _, name := range all {
			Protected(name)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func fields() (all [][]byte) {
	for _, name := range append(ordinary, spoofed...) {
		all = append(all, []byte(name))
	}
	return all
}

// BenchmarkProtected runs over the ordinary fields of a request: what nearly every call is.
func BenchmarkProtected(b *testing.B) {
	var all [][]byte
	for _, name := range ordinary {
		all = append(all, []byte(name))
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		Protected(all[i])
		if i++; i == len(all) {
			i = 0
		}
	}
}

// FuzzProtected compares the quick form with the plain reading of the set.
func FuzzProtected(f *testing.F) {
	for _, name := range fields() {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name []byte) {
		folded, want := string(foldAll(string(name))), false
		for _, m := range ProtectedNames() {
			stem, prefix := strings.CutSuffix(m, "*")
			want = want || folded == stem && !prefix || prefix && strings.HasPrefix(folded, stem) && len(folded) > 4
		}
		if got := Protected(name); got != want {
			t.Errorf("Protected(%q) = %v, want %v", name, got, want)
		}
	})
}
