package tls13

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/hex"
	"hash"
	"io"
	"slices"

	"golang.org/x/crypto/chacha20poly1305"
)

// suite is a cipher suite of TLS 1.3 (RFC 8446 appendix B.4).
type suite struct {
	hash  func() hash.Hash
	size  int // of its secrets
	key   int
	aead  func(key []byte) (cipher.AEAD, error)
	limit uint64 // records that one key may protect (RFC 8446 section 5.5)
}

// aesLimit is below the 2^24.5 records of full size that keep the margin of RFC 8446 section 5.5; ChaCha20-Poly1305 has no
// such limit before that of the sequence number.
const aesLimit = 1 << 24

var suites = map[uint16]*suite{
	tls.TLS_AES_128_GCM_SHA256:       {sha256.New, crypto.SHA256.Size(), 16, gcm, aesLimit},
	tls.TLS_AES_256_GCM_SHA384:       {sha512.New384, crypto.SHA384.Size(), 32, gcm, aesLimit},
	tls.TLS_CHACHA20_POLY1305_SHA256: {sha256.New, crypto.SHA256.Size(), chacha20poly1305.KeySize, chacha20poly1305.New, 1 << 62},
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// expand is HKDF-Expand-Label with an empty context (RFC 8446 section 7.1).
func (s *suite) expand(secret []byte, label string, n int) ([]byte, error) {
	const prefix = "tls13 "
	info := make([]byte, 0, 32)
	info = append(info, byte(n>>8), byte(n), byte(len(prefix)+len(label)))
	info = append(append(append(info, prefix...), label...), 0)
	return hkdf.Expand(s.hash, secret, string(info), n)
}

// half is one direction of a connection: its keys, and how many records it has had under them.
type half struct {
	suite  *suite
	secret [maxSecret]byte // the traffic secret, from which the next one comes
	iv     [ivSize]byte
	seq    uint64
	number [ivSize]byte // what nonce returns
	aead   cipher.AEAD  // nil while it rests
}

const (
	maxSecret = 48
	ivSize    = 12
)

// start makes h protect records from the first one on with the keys of secret (RFC 8446 section 7.3).
func (h *half) start(s *suite, secret []byte) error {
	h.suite, h.seq, h.aead = s, 0, nil
	clear(h.secret[copy(h.secret[:], secret):])
	iv, err := s.expand(secret, "iv", ivSize)
	if err != nil {
		return err
	}
	copy(h.iv[:], iv)
	return h.wake()
}

// wake makes what rest let go of.
func (h *half) wake() error {
	if h.aead != nil {
		return nil
	}
	key, err := h.suite.expand(h.secret[:h.suite.size], "key", h.suite.key)
	if err != nil {
		return err
	}
	h.aead, err = h.suite.aead(key)
	clear(key)
	return err
}

// next goes on to the next keys (RFC 8446 section 7.2).
func (h *half) next() error {
	secret, err := h.suite.expand(h.secret[:h.suite.size], "traffic upd", h.suite.size)
	if err != nil {
		return err
	}
	defer clear(secret)
	return h.start(h.suite, secret)
}

// nonce is that of the next record (RFC 8446 section 5.3), until it is called again.
func (h *half) nonce() []byte {
	h.number = h.iv
	for i := range 8 {
		h.number[ivSize-1-i] ^= byte(h.seq >> (8 * i))
	}
	return h.number[:]
}

// Handover is where crypto/tls leaves what Take needs. It is the Config.KeyLogWriter of one handshake, and is told what
// crypto/tls writes. The zero value is ready. It holds secrets until Take has wiped it.
type Handover struct {
	// Tee, if not nil, gets the lines too: the operator's own key log.
	Tee io.Writer
	// Tickets counts the session tickets that crypto/tls has written: one record each.
	Tickets int

	client, server []byte // the traffic secrets of application data
	last           []byte // the last record that was written since they are known
	writes         int    // since then
}

// Write takes a line of the key log, and wipes it: crypto/tls has made it for this call alone.
func (h *Handover) Write(line []byte) (int, error) {
	defer clear(line)
	if h.Tee != nil {
		_, _ = h.Tee.Write(line)
	}
	label, rest, _ := bytes.Cut(line, []byte(" "))
	_, secret, _ := bytes.Cut(rest, []byte(" "))
	secret = bytes.TrimSuffix(secret, []byte("\n"))
	switch string(label) {
	case "CLIENT_TRAFFIC_SECRET_0":
		h.client = unhex(secret)
	case "SERVER_TRAFFIC_SECRET_0":
		h.server = unhex(secret)
	}
	return len(line), nil
}

func unhex(text []byte) []byte {
	b := make([]byte, hex.DecodedLen(len(text)))
	if _, err := hex.Decode(b, text); err != nil {
		return nil
	}
	return b
}

// Sent notes what crypto/tls writes: whole records.
func (h *Handover) Sent(p []byte) {
	if h.server == nil {
		return
	}
	h.writes++
	h.last = h.last[:0]
	for len(p) >= headerSize {
		n := headerSize + int(p[3])<<8 + int(p[4])
		if n > len(p) {
			return
		}
		if n == len(p) {
			h.last = append(h.last, p...)
		}
		p = p[n:]
	}
}

// Wipe forgets the secrets. Take does it too.
func (h *Handover) Wipe() {
	clear(h.client)
	clear(h.server)
	*h = Handover{}
}

// began reports whether out, whose first record is the next one, is where crypto/tls is with what it sends: before its first
// record under these keys, or behind its only one, a session ticket, which is opened to see. seq is then set. Without a ticket
// there is one write since the keys are known, the server's flight, and all of it is under those before.
func (h *Handover) began(out *half) bool {
	opened := false
	if len(h.last) > headerSize && h.last[0] == applicationData {
		_, err := out.aead.Open(nil, out.nonce(), slices.Clone(h.last[headerSize:]), h.last[:headerSize])
		opened = err == nil
	}
	switch {
	case h.Tickets == 0 && h.writes == 1 && !opened:
		return true
	case h.Tickets == 1 && opened:
		out.seq = 1
		return true
	}
	return false
}
