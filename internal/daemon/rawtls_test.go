package daemon_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"hash"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"countersign/internal/testpki"
)

// rawTLS is a TLS 1.3 client that made an honest handshake with crypto/tls and goes on by itself, record by record, so
// that it can send what no library would (RFC 8446 sections 5 and 7).
type rawTLS struct {
	net.Conn
	t      testing.TB
	hash   func() hash.Hash
	size   int // of the key
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// The types of records inside TLS 1.3 (RFC 8446 section 5.1), and of messages (section 4).
const (
	alertRecord     = 21
	handshakeRecord = 22
	dataRecord      = 23
	keyUpdate       = 24
)

// rawTLS connects, and shows cert if it is not nil.
func (w *world) rawTLS(listener, sni string, cert *testpki.Cert) *rawTLS {
	w.t.Helper()
	raw, err := dialFrom(w.addr(listener))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { raw.Close() })
	_ = raw.SetDeadline(time.Now().Add(60 * time.Second))
	var keys bytes.Buffer
	conf := w.client(sni, cert, func(c *tls.Config) { c.KeyLogWriter, c.MinVersion = &keys, tls.VersionTLS13 })
	tc := tls.Client(raw, conf)
	if err := tc.Handshake(); err != nil {
		w.t.Fatal(err)
	}
	r := &rawTLS{Conn: raw, t: w.t, hash: sha256.New, size: 16}
	switch suite := tc.ConnectionState().CipherSuite; suite {
	case tls.TLS_AES_128_GCM_SHA256:
	case tls.TLS_AES_256_GCM_SHA384:
		r.hash, r.size = sha512.New384, 32
	default:
		w.t.Skipf("no AES-GCM on this machine: %s", tls.CipherSuiteName(suite))
	}
	for line := range strings.Lines(keys.String()) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			if r.secret, err = hex.DecodeString(f[2]); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	r.rekey()
	return r
}

// expand is HKDF-Expand-Label without a context (RFC 8446 section 7.1).
func (r *rawTLS) expand(label string, n int) []byte {
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len("tls13 "+label)))
	info = append(info, "tls13 "+label...)
	out, err := hkdf.Expand(r.hash, r.secret, string(append(info, 0)), n)
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rawTLS) rekey() {
	block, err := aes.NewCipher(r.expand("key", r.size))
	if err != nil {
		r.t.Fatal(err)
	}
	if r.aead, err = cipher.NewGCM(block); err != nil {
		r.t.Fatal(err)
	}
	r.iv, r.seq = r.expand("iv", 12), 0
}

// seal appends one record (RFC 8446 section 5.2).
func (r *rawTLS) seal(b []byte, kind byte, content []byte) []byte {
	nonce := bytes.Clone(r.iv)
	var seq [8]byte
	binary.BigEndian.PutUint64(seq[:], r.seq)
	for i, s := range seq {
		nonce[4+i] ^= s
	}
	r.seq++
	header := []byte{dataRecord, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(header[3:], uint16(len(content)+1+r.aead.Overhead()))
	b = append(b, header...)
	return r.aead.Seal(b, nonce, append(bytes.Clone(content), kind), header)
}

// data appends application data, keyUpdate a KeyUpdate and its consequence (RFC 8446 section 4.6.3).
func (r *rawTLS) data(b []byte, content string) []byte { return r.seal(b, dataRecord, []byte(content)) }

func (r *rawTLS) keyUpdate(b []byte, request bool) []byte {
	message := []byte{keyUpdate, 0, 0, 1, 0}
	if request {
		message[4] = 1
	}
	b = r.seal(b, handshakeRecord, message)
	r.secret = r.expand("traffic upd", r.hash().Size())
	r.rekey()
	return b
}

// ended reads until the server has closed the connection, and says how long that took.
func (r *rawTLS) ended() time.Duration {
	start := time.Now()
	_ = r.SetReadDeadline(start.Add(20 * time.Second))
	if _, err := io.Copy(io.Discard, r); err != nil && strings.Contains(err.Error(), "timeout") {
		r.t.Errorf("still open after %v", time.Since(start))
	}
	return time.Since(start)
}
