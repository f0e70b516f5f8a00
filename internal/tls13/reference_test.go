package tls13

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"testing"

	"countersign/internal/socket"
)

// FuzzReference sends the same records to a connection that was taken over and to one that crypto/tls goes on with: both give
// the same bytes, end alike and say the same to the client.
//
// Left out is where they differ on purpose: a ChangeCipherSpec behind the handshake, in clear or not, which crypto/tls ignores
// and RFC 8446 section 5 has refused; how many messages that came in parts count as useless; and whether of a message that nobody may send
// it is said that it is unexpected or that it cannot be read.
func FuzzReference(f *testing.F) {
	for seed := range uint64(120) {
		f.Add(seed)
	}
	r := newRig(f)
	f.Fuzz(func(t *testing.T, seed uint64) {
		ours, client := r.taken(t)
		got := outcome(ours, ours.Conn, client, seed)
		tc, wire, h, client := r.shake(t)
		wire.InSteps(false)
		h.Wipe()
		if want := outcome(tc, wire, client, seed); got != want {
			t.Errorf("seed %d:\n%s\ncrypto/tls:\n%s", seed, got, want)
		}
	})
}

// end is the server's side of a connection.
type end interface {
	io.ReadWriter
	CloseWrite() error
}

// outcome plays what the seed says, and tells what came of it.
func outcome(server end, wire *socket.Conn, p *peer, seed uint64) string {
	random := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, [...]int{64, 1000, 40_000}[random.IntN(3)])
	go func() {
		play(p, random)
		_ = p.wire.CloseWrite()
	}()
	heard := make(chan string, 1)
	go func() { heard <- listen(p) }()
	got, bytes := sha256.New(), 0
	for {
		n, err := server.Read(b)
		got.Write(b[:n])
		if bytes += n; err == nil {
			continue
		}
		_, _ = server.Write([]byte("answer"))
		if class(err) != "an error of ours" { // crypto/tls says goodbye even behind a fatal alert
			_ = server.CloseWrite()
		}
		_ = wire.CloseWrite()
		_, _ = io.Copy(io.Discard, wire) // a reset would keep the answer from the client
		return fmt.Sprintf("%d bytes (%x) and %s; the client gets %s", bytes, got.Sum(nil)[:4], class(err), <-heard)
	}
}

// play sends records, most of which are as they should be.
func play(p *peer, random *rand.Rand) {
	write := func(b []byte) {
		for len(b) > 0 {
			n := min(len(b), 1+random.IntN(30_000))
			if _, err := p.wire.Write(b[:n]); err != nil {
				return
			}
			b = b[n:]
		}
	}
	content := make([]byte, maxPlaintext+1)
	for i := range content {
		content[i] = byte(random.Uint32())
	}
	var b []byte
	for range 1 + random.IntN(30) {
		padding := random.IntN(2) * random.IntN(100)
		switch random.IntN(60) {
		default:
			b = append(b, p.record(applicationData, content[:1+random.IntN(100)], padding)...)
		case 1, 2, 3:
			b = append(b, p.record(applicationData, content[:1+random.IntN(maxPlaintext)], padding)...)
		case 4:
			b = append(b, p.record(applicationData, content[:maxPlaintext], padding)...)
		case 5, 6:
			b = append(b, p.record(applicationData, nil, padding)...)
		case 7, 8, 9, 10:
			b = append(b, p.record(handshake, []byte{keyUpdate, 0, 0, 1, byte(random.IntN(2))}, padding)...)
			_ = p.out.next()
		case 11:
			b = append(b, p.record(handshake, []byte{keyUpdate, 0, 0}, padding)...)
			b = append(b, p.record(handshake, []byte{1, 1}, padding)...)
			_ = p.out.next()
		case 12:
			b = append(b, p.record(alertRecord, []byte{byte(random.IntN(3)), userCanceled}, padding)...)
		case 13:
			b = append(b, p.record(alertRecord, []byte{byte(random.IntN(3)), byte(random.IntN(128))}, padding)...)
		case 14:
			b = append(b, p.record(alertRecord, []byte{warning, closeNotify}, padding)...)
		case 15:
			b = append(b, p.record(alertRecord, content[:random.IntN(4)], padding)...)
		case 16:
			b = append(b, p.record(changeCipherSpec+1+byte(random.IntN(200)), content[:random.IntN(20)], padding)...)
		case 17:
			b = append(b, p.record(applicationData, content, 0)...)
		case 18:
			r := p.record(applicationData, content[:random.IntN(100)], padding)
			r[headerSize+random.IntN(len(r)-headerSize)] ^= 1 << random.IntN(8)
			b = append(b, r...)
		case 19:
			b = append(b, p.record(0, nil, padding)...)
		case 20:
			r := p.record(applicationData, content[:random.IntN(100)], padding)
			b = append(b, r[:random.IntN(len(r))]...)
		case 21:
			p.record(applicationData, nil, 0) // one that is lost
		case 22:
			b = append(b, p.record(handshake, []byte{byte(random.IntN(26)), 0, 0, byte(random.IntN(2)), 2}, padding)...)
		}
	}
	write(b)
}

// listen tells what the server says.
func listen(p *peer) string {
	updates, bytes, alerts := 0, 0, ""
	for {
		kind, content, err := p.next()
		switch {
		case err != nil:
			return fmt.Sprintf("%d updates, %d bytes, alerts%s, then %s", updates, bytes, alerts, class(err))
		case kind == handshake:
			updates++
			_ = p.in.next()
		case kind == alertRecord:
			if string(content) == "\x02\x32" || string(content) == "\x02\x2f" {
				content[1] = unexpectedMessage // see above
			}
			alerts += fmt.Sprint(" ", content)
		default:
			bytes += len(content)
		}
	}
}

// class is what an error is, whoever made it.
func class(err error) string {
	op, _ := errors.AsType[*net.OpError](err)
	switch {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return err.Error()
	case op != nil && op.Op == "remote error":
		return op.Error() // with the alert
	}
	return "an error of ours" // crypto/tls has no types for all of them, but the client is told which
}
