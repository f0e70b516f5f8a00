package interop_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestQuickstart does what a new user does: runs quickstart, and types each call it prints into a shell.
func TestQuickstart(t *testing.T) {
	need(t, "curl", "openssl")
	dir := t.TempDir()
	port := freePorts(t, 8)
	out := start(t, exec.Command(binary, "quickstart", "--dir", dir, "--port-base", strconv.Itoa(port)))
	await(t, func() bool {
		_, err := os.Stat(filepath.Join(dir, "calls.txt"))
		return err == nil && strings.Contains(out.String(), "curl ")
	})
	text, err := os.ReadFile(filepath.Join(dir, "calls.txt"))
	if err != nil {
		t.Fatal(err)
	}
	shell := func(t *testing.T, line string) result {
		t.Helper()
		return run(t, nil, "sh", "-c", `cd "$0" && `+line, dir)
	}
	// A call is a line with curl, and below it what it answers.
	answer := regexp.MustCompile(`(?m)^# +(?:TLS (1\.[23]): )?exit (\d+), (.*)$`)
	calls := strings.Split(string(text), "\ncurl ")[1:]
	if len(calls) < 20 {
		t.Fatalf("%d calls in calls.txt:\n%s", len(calls), text)
	}
	tried := 0
	for _, call := range calls {
		line, below, _ := strings.Cut("curl "+call, "\n")
		below, _, _ = strings.Cut(below, "\n# ") // where the next call's title stands
		for _, want := range answer.FindAllStringSubmatch("\n"+below, -1) {
			versions := []string{want[1]}
			if want[1] == "" {
				versions = []string{"1.2", "1.3"}
			}
			for _, version := range versions {
				tried++
				r := shell(t, line+" --max-time 10 --tls-max "+version)
				ok := strconv.Itoa(r.code) == want[2]
				for _, part := range strings.Split(want[3], ", ") {
					ok = ok && strings.Contains(r.out+r.err, part)
				}
				if !ok {
					t.Errorf("%s --tls-max %s\nis said to answer %s; %s", line, version, want[0], r)
				}
			}
		}
	}
	t.Logf("%d calls, %d answers as printed", len(calls), tried)
	if tried < len(calls) {
		t.Errorf("%d answers for %d calls in calls.txt:\n%s", tried, len(calls), text)
	}

	alice := regexp.MustCompile(`(?m)^curl .*--cert pki/alice\.pem --key pki/alice\.key .*$`).FindString(string(text))
	password := regexp.MustCompile(`password "([^"]+)"`).FindStringSubmatch(out.String())
	if alice == "" || password == nil {
		t.Fatalf("no call as alice or no password in what is printed:\n%s", out)
	}
	for name, good := range map[string]bool{"alice": true, "dave": true, "bob": false, "carol": false, "mallory": false, "server-only": false} {
		t.Run("PKCS#12/"+name, func(t *testing.T) {
			file := "pki/" + name + ".p12"
			r := shell(t, strings.Replace(alice, "--cert pki/alice.pem --key pki/alice.key", "--cert-type P12 --cert "+file+":"+password[1], 1))
			if good && (r.code != 0 || !strings.Contains(r.out, `"`+name+`"`)) || !good && !strings.Contains(r.err, "alert bad certificate") {
				t.Errorf("curl: %s", r)
			}
			r = run(t, nil, "openssl", "pkcs12", "-in", filepath.Join(dir, file), "-passin", "pass:"+password[1], "-nodes")
			if r.code != 0 || strings.Count(r.out, "BEGIN CERTIFICATE") < 1 || strings.Count(r.out, "BEGIN PRIVATE KEY") != 1 {
				t.Errorf("openssl: exit status %d, %s", r.code, r.err)
			}
		})
	}
	t.Run("openssl judges the files alike", func(t *testing.T) {
		pki := func(name string) string { return filepath.Join(dir, "pki", name) }
		for name, text := range map[string]string{"alice": ": OK", "dave": ": OK", "bob": "certificate revoked", "carol": "certificate has expired",
			"mallory": "unable to get local issuer certificate", "server-only": "unsuitable certificate purpose"} {
			r := run(t, nil, "openssl", "verify", "-CAfile", pki("root-ca.pem"), "-untrusted", pki("intermediate-ca.pem"), "-CRLfile", pki("clients.crl"),
				"-crl_check", "-purpose", "sslclient", "-x509_strict", pki(name+".pem"))
			if !strings.Contains(r.out+r.err, text) {
				t.Errorf("%s: want %q; openssl: %s", name, text, r)
			}
		}
	})
}

// freePorts returns the first of n neighbouring ports nobody listens on.
func freePorts(t *testing.T, n int) int {
	t.Helper()
next:
	for range 50 {
		first := int(nextPort.Add(int32(n))) - n + 1
		for port := first; port < first+n; port++ {
			l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
			if err != nil {
				continue next
			}
			l.Close()
		}
		return first
	}
	t.Fatal("no free ports on 127.0.0.1")
	return 0
}
