package probe

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// TestAlerts: every alert of the documents has a name, a meaning and a next step.
func TestAlerts(t *testing.T) {
	rfc8446 := []Alert{0, 10, 20, 22, 40, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 70, 71, 80, 86, 90, 109, 110, 112, 113, 115, 116, 120}
	rfc5246 := []Alert{0, 10, 20, 21, 22, 30, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 60, 70, 71, 80, 90, 100, 110}
	others := []Alert{52, 111, 114, 117, 121}
	for _, a := range slices.Concat(rfc8446, rfc5246, others) {
		if a.Name() == "unknown" || len(a.Means()) < 20 || len(a.Next()) < 10 || strings.HasSuffix(a.Means(), ".") || strings.HasSuffix(a.Next(), ".") {
			t.Errorf("%s: %q, %q", a, a.Means(), a.Next())
		}
	}
	for a := range alerts {
		if !slices.Contains(slices.Concat(rfc8446, rfc5246, others), a) {
			t.Errorf("%s is of no document", a)
		}
	}
	if a := Alert(200); a.String() != "unknown (200)" || a.Means() == "" || a.Next() == "" {
		t.Errorf("%s: %q, %q", a, a.Means(), a.Next())
	}
	// crypto/tls has no exported way to an alert's number, so it is watched here.
	server, client := net.Pipe()
	defer client.Close()
	go func() {
		defer server.Close()
		conf := serverOf(testpki.New(t).Server("a.test"))
		conf.MinVersion = tls.VersionTLS13
		_ = tls.Server(server, conf).Handshake()
	}()
	err := tls.Client(client, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).Handshake()
	if a, ok := AlertIn(err); !ok || a != 70 {
		t.Errorf("%v is alert %d, %t", err, a, ok)
	}
	for _, err := range []error{nil, io.EOF, &net.OpError{Op: "remote error"}, &net.OpError{Op: "remote error", Err: io.EOF}, &net.OpError{Op: "read", Err: io.EOF}} {
		if a, ok := AlertIn(err); ok {
			t.Errorf("%v is alert %s", err, a)
		}
	}
}

// TestHello: crypto/tls reads in a hello what was meant.
func TestHello(t *testing.T) {
	for _, version := range versions {
		h := alone(version)
		h.name, h.alpn = "a.test", []string{"h2", "x"}
		record, err := h.record()
		if err != nil {
			t.Fatal(err)
		}
		var got *tls.ClientHelloInfo
		server, client := net.Pipe()
		go func() {
			defer client.Close()
			_, _ = client.Write(record)
		}()
		_ = tls.Server(server, &tls.Config{MinVersion: tls.VersionTLS10, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			got = h
			return nil, io.EOF
		}}).Handshake()
		server.Close()
		if got == nil {
			t.Fatalf("%s: not understood", versionName(version))
		}
		if got.ServerName != "a.test" || !slices.Equal(got.SupportedProtos, h.alpn) || !slices.Equal(got.CipherSuites, h.suites) ||
			!slices.Equal(got.SupportedCurves, h.groups) || len(got.SignatureSchemes) != len(schemes) {
			t.Errorf("%s: %+v", versionName(version), got)
		}
		if version >= tls.VersionTLS12 && got.SupportedVersions[0] != version || version == tls.VersionTLS13 && len(got.SupportedVersions) != 1 {
			t.Errorf("%s: versions %x", versionName(version), got.SupportedVersions)
		}
	}
	if _, err := (&hello{version: tls.VersionTLS13, share: 0x100}).record(); err == nil {
		t.Error("a share of a group that is not known")
	}
}

// TestSuites: the tables are in order, and know every suite of crypto/tls by the name it has there.
func TestSuites(t *testing.T) {
	seen := map[uint16]bool{}
	for _, s := range slices.Concat(suites13, suites12, suites10) {
		if seen[s.id] {
			t.Errorf("0x%04X is there twice", s.id)
		}
		seen[s.id] = true
	}
	for _, s := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		if got := suiteName(s.ID); got != s.Name {
			t.Errorf("0x%04X is %s, and %s in crypto/tls", s.ID, got, s.Name)
		}
	}
	for name, want := range map[string]string{
		"TLS_AES_128_GCM_SHA256": "", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "", "TLS_RSA_WITH_NULL_SHA": "nothing is encrypted", "TLS_DH_anon_WITH_RC4_128_MD5": "nobody is authenticated",
		"TLS_RSA_EXPORT_WITH_RC4_40_MD5": "broken", "TLS_ECDHE_RSA_WITH_RC4_128_SHA": "broken", "TLS_RSA_WITH_AES_128_GCM_SHA256": "no forward secrecy", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "CBC",
	} {
		if got := weakness(name); got != want {
			t.Errorf("%s: %q, expected %q", name, got, want)
		}
	}
}

func record(kind byte, body string) string {
	return string(binary.BigEndian.AppendUint16([]byte{kind, 3, 3}, uint16(len(body)))) + body
}

func message(kind byte, body string) string {
	return string([]byte{kind, byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body))}) + body
}

const (
	hello12    = "\x03\x03" + "rrrrrrrrrrrrrrrrrrrrrrrrrrrrrrrr" + "\x00" + "\xc0\x2b" + "\x00"
	extensions = "\x00\x0e" + "\xff\x01\x00\x01\x00" + "\x00\x10\x00\x05\x00\x03\x02h2"
)

// TestFlightRefused: what breaks the rules is refused, and costs little.
func TestFlightRefused(t *testing.T) {
	serverHello := record(22, message(2, hello12))
	for _, c := range []struct{ name, in, want string }{
		{"nothing", "", "EOF"},
		{"half a head", "\x16\x03", "unexpected EOF"},
		{"half a record", "\x16\x03\x03\x00\x10abc", "unexpected EOF"},
		{"no TLS", "hello there", `no TLS: "hello there"`},
		{"two bytes of no TLS", "no", `no TLS: "no"`},
		{"a long first record", "\x16\x03\x03\xff\xff", "no TLS"},
		{"a long second record", serverHello + "\x16\x03\x03\xff\xff", "at most 18432"},
		{"garbage behind a record", serverHello + "garbage", "record of type 103"},
		{"an alert", record(21, "\x02\x28"), "handshake_failure (40)"},
		{"a warning, then closed", record(21, "\x01\x70"), "EOF"},
		{"close_notify", record(21, "\x01\x00"), "close_notify (0)"},
		{"warnings without end", strings.Repeat(record(21, "\x01\x70"), 20), "unrecognized_name (112)"},
		{"an alert of one byte", record(21, "\x02"), "alert of 1 bytes"},
		{"empty records without end", strings.Repeat(record(22, ""), 1000), "at most 512 records"},
		{"data", record(23, "x"), "before the handshake was over"},
		{"a message of 16 MiB", record(22, "\x02\xff\xff\xff"), "at most 131072"},
		{"another message first", record(22, message(11, "\x00\x00\x00")), "expected a ServerHello, found message type 11"},
		{"a short hello", record(22, message(2, hello12[:20])), "ServerHello"},
		{"a long session", record(22, message(2, hello12[:34]+"\x21"+strings.Repeat("s", 33)+"\xc0\x2b\x00")), "ServerHello"},
		{"half an extension", record(22, message(2, hello12+"\x00\x03\x00\x10\x00")), "extension of the ServerHello"},
		{"extensions that are longer", record(22, message(2, hello12+"\x00\x10\x00\x10")), "extensions of the ServerHello"},
		{"something behind extensions", record(22, message(2, hello12+"\x00\x00x")), "extensions of the ServerHello"},
		{"two protocols", record(22, message(2, hello12+"\x00\x0c\x00\x10\x00\x08\x00\x06\x02h2\x02h3")), "extension 16"},
		{"a version of one byte", record(22, message(2, hello12+"\x00\x05\x00\x2b\x00\x01\x03")), "extension 43"},
		{"a bad certificate list", serverHello + record(22, message(11, "\x00\x00\x05\x00")), "malformed TLS message: Certificate"},
		{"an empty certificate", serverHello + record(22, message(11, "\x00\x00\x03\x00\x00\x00")), "a certificate in Certificate"},
		{"a bad status", serverHello + record(22, message(22, "\x02\x00\x00\x00")), "CertificateStatus"},
		{"a request without types", serverHello + record(22, message(13, "")), "types"},
		{"half an algorithm", serverHello + record(22, message(13, "\x01\x40\x00\x03\x04\x03\x04\x00\x00")), "signature algorithms"},
		{"names that are longer", serverHello + record(22, message(13, "\x01\x40\x00\x02\x04\x03\x00\x09")), "CA names"},
		{"half a name", serverHello + record(22, message(13, "\x01\x40\x00\x02\x04\x03\x00\x03\x00\x09x")), "a CA name"},
		{"messages without end", serverHello + strings.Repeat(record(22, message(4, "")), 100), "ever more messages"},
		{"refused behind the hello", serverHello + record(21, "\x02\x50"), "internal_error (80)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, err := readFlight(strings.NewReader(c.in), true)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v, %v, expected %s", f, err, c.want)
			}
			if got := f != nil; got != strings.HasPrefix(c.in, serverHello) {
				t.Errorf("flight %+v", f)
			}
		})
	}
}

func TestFlight(t *testing.T) {
	name := "\x30\x0c\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x0c\x01A"
	in := record(21, "\x01\x70") + record(22, message(2, hello12+extensions)+message(11, "\x00\x00\x06\x00\x00\x03abc")) + record(22, message(22, "\x01\x00\x00\x02ok")) +
		record(22, message(12, "\x03\x00\x1d rest")+message(13, "\x02\x01\x40\x00\x04\x04\x03\x08\x04\x00\x10\x00\x0e"+name)[:10]) +
		record(22, message(13, "\x02\x01\x40\x00\x04\x04\x03\x08\x04\x00\x10\x00\x0e"+name)[10:]+message(14, "")) + record(23, "not read")
	f, err := readFlight(strings.NewReader(in), true)
	if err != nil {
		t.Fatal(err)
	}
	if h := f.hello; h.version != tls.VersionTLS12 || h.suite != 0xc02b || h.alpn != "h2" || !h.secure || h.extends || h.retry || h.session {
		t.Errorf("hello %+v", h)
	}
	if !f.done || f.group != tls.X25519 || string(f.staple) != "ok" || len(f.certs) != 1 || string(f.certs[0]) != "abc" || !slices.Equal(f.warnings, []Alert{112}) {
		t.Errorf("flight %+v", f)
	}
	a := f.asked
	if a == nil || string(a.types) != "\x01\x40" || !slices.Equal(a.schemes, []tls.SignatureScheme{0x0403, 0x0804}) || len(a.names) != 1 || string(a.names[0]) != name {
		t.Fatalf("asked %+v", a)
	}
	if got, ok := printedDER(a.names[0]); got != "CN=A" || !ok {
		t.Errorf("name %q", got)
	}
	old := hello12[:34] + "\x01s\x00\x33\x00"
	f, err = readFlight(strings.NewReader(record(22, message(2, "\x03\x01"+old[2:])+message(12, "\x00\x40"+strings.Repeat("p", 64))+message(13, "\x01\x01\x00\x00")+message(14, ""))), true)
	if err != nil || f.hello.version != tls.VersionTLS10 || !f.hello.session || f.dhBits != 512 || f.asked == nil || len(f.asked.schemes) != 0 {
		t.Errorf("%+v, %v", f, err)
	}
	retry := "\x03\x03" + string(retryRandom[:]) + "\x00\x13\x01\x00\x00\x0c\x00\x2b\x00\x02\x03\x04\x00\x33\x00\x02\x11\xec"
	f, err = readFlight(strings.NewReader(record(22, message(2, retry))), true)
	if err != nil || !f.hello.retry || f.group != tls.X25519MLKEM768 || f.hello.version != tls.VersionTLS13 {
		t.Errorf("%+v, %v", f, err)
	}
}

func FuzzFlight(f *testing.F) {
	f.Add([]byte(record(22, message(2, hello12+extensions)+message(11, "\x00\x00\x06\x00\x00\x03abc")+message(13, "\x01\x40\x00\x02\x04\x03\x00\x00")+message(14, ""))))
	f.Add([]byte(record(22, message(2, "\x03\x03"+string(retryRandom[:])+"\x00\x13\x01\x00\x00\x0c\x00\x2b\x00\x02\x03\x04\x00\x33\x00\x02\x11\xec"))))
	f.Add([]byte(record(21, "\x02\x28")))
	f.Add([]byte("220 hello\r\n"))
	p := &prober{o: Options{Timeout: time.Second}, port: "443"}
	f.Fuzz(func(t *testing.T, in []byte) {
		fl, err := readFlight(bytes.NewReader(in), true)
		if err == nil && fl == nil || fl != nil && len(fl.warnings) > maxWarnings {
			t.Fatalf("%+v, %v", fl, err)
		}
		if err != nil {
			if text := p.answered(err).Error(); len(text) > 2000 || strings.ContainsAny(text, "\x00\x1b\r\n\x7f") {
				t.Fatalf("told %q", text)
			}
		}
		if fl == nil {
			return
		}
		if fl.asked != nil {
			for _, der := range fl.asked.names {
				if name, _ := printedDER(der); len(name) > 2*maxQuoted || strings.ContainsAny(name, "\x00\x1b\r\n") {
					t.Fatalf("name %q", name)
				}
			}
		}
		_ = p.judge(shown{tls.VersionTLS12, fl.certs, fl.staple}, nil, time.Now())
	})
}

func FuzzStartTLS(f *testing.F) {
	for i, s := range []string{"220 a\r\n250-a\r\n250 STARTTLS\r\n220 go\r\n", "* OK\r\np1 OK\r\n", "\x30\x0c\x02\x01\x01\x78\x07\x0a\x01\x00\x04\x00\x04\x00", "S"} {
		f.Add(byte(i), []byte(s))
	}
	f.Fuzz(func(t *testing.T, which byte, in []byte) {
		err := startTLS(&script{Reader: bytes.NewReader(in)}, StartTLS[int(which)%len(StartTLS)])
		if known := (*Finding)(nil); errors.As(err, &known) && strings.ContainsAny(known.Error(), "\x00\x1b\r\n\x7f") {
			t.Fatalf("told %q", known)
		}
	})
}

// script is a connection that says what it was given and takes everything.
type script struct {
	net.Conn
	io.Reader
}

func (s *script) Read(b []byte) (int, error)  { return s.Reader.Read(b) }
func (s *script) Write(b []byte) (int, error) { return len(b), nil }

func TestHTTPAnswers(t *testing.T) {
	for _, c := range []struct {
		in     string
		status int
		text   string
	}{
		{"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nhello\nyou", 200, "hello"},
		{"HTTP/1.0 403\r\n\r\n", 403, ""},
		{"HTTP/1.1 400 Bad\r\n\r\n<html><TITLE> no\x1b[1m </TITLE>", 400, `no\x1b[1m`},
		{"HTTP/1.1 999 No\r\n\r\n", 0, ""},
		{"HTTP/2 200\r\n\r\n", 0, ""},
		{"220 hi\r\n", 0, ""},
		{"HTTP/1.1 200" + strings.Repeat("x", 100), 0, ""},
	} {
		switch a := parseHTTP([]byte(c.in)); {
		case a == nil && c.status != 0, a != nil && (a.Status != c.status || a.Text != c.text):
			t.Errorf("%q: %+v", c.in, a)
		}
	}
	got, err := readAnswer(io.MultiReader(strings.NewReader("HTTP/1.1 200 OK\r\n\r\n"), neverEnding('x')), make([]byte, maxAnswer))
	if err != nil || len(got) > maxAnswer || parseHTTP(got) == nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

type neverEnding byte

func (n neverEnding) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(n)
	}
	return len(b), nil
}
