package tls13

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"countersign/internal/socket"
)

// TestRefusals: what a client may not send ends the connection, with the alert that says why.
func TestRefusals(t *testing.T) {
	r := newRig(t)
	update := []byte{keyUpdate, 0, 0, 1, 0}
	flip := func(b []byte, i int) []byte { b[i] ^= 1; return b }
	many := func(n int, f func() []byte) (b []byte) {
		for range n {
			b = append(b, f()...)
		}
		return b
	}
	for name, tc := range map[string]struct {
		send  func(p *peer) []byte
		alert byte
		text  string
	}{
		"header: another version":                    {func(p *peer) []byte { return flip(p.record(applicationData, []byte("x"), 0), 2) }, protocolVersion, "version 302"},
		"header: another version, and no more of it": {func(p *peer) []byte { return []byte{applicationData, 3, 1, 0x40, 0} }, protocolVersion, "version 301"},
		"header: ChangeCipherSpec":                   {func(p *peer) []byte { return []byte{changeCipherSpec, 3, 3, 0, 1, 1} }, unexpectedMessage, "type 20 in clear"},
		"header: alert in clear":                     {func(p *peer) []byte { return []byte{alertRecord, 3, 3, 0, 2, warning, closeNotify} }, unexpectedMessage, "type 21 in clear"},
		"header: handshake in clear":                 {func(p *peer) []byte { return append([]byte{handshake, 3, 3, 0, 5}, update...) }, unexpectedMessage, "type 22 in clear"},
		"header: no such type":                       {func(p *peer) []byte { return []byte{0, 3, 3, 0, 1, 1} }, unexpectedMessage, "type 0 in clear"},
		"header: too long":                           {func(p *peer) []byte { return []byte{applicationData, 3, 3, 0x41, 1} }, recordOverflow, "16641 bytes"},
		"header: as long as it gets":                 {func(p *peer) []byte { return []byte{applicationData, 3, 3, 0xff, 0xff} }, recordOverflow, "65535 bytes"},
		"sealed: nothing":                            {func(p *peer) []byte { return []byte{applicationData, 3, 3, 0, 0} }, badRecordMAC, ""},
		"sealed: shorter than a tag":                 {func(p *peer) []byte { return append([]byte{applicationData, 3, 3, 0, 15}, make([]byte, 15)...) }, badRecordMAC, ""},
		"sealed: a tag and no type":                  {func(p *peer) []byte { b := p.record(0, nil, 0); return b }, unexpectedMessage, "without a type"},
		"sealed: the first byte":                     {func(p *peer) []byte { return flip(p.record(applicationData, []byte("hello"), 0), headerSize) }, badRecordMAC, ""},
		"sealed: the tag":                            {func(p *peer) []byte { b := p.record(applicationData, []byte("hello"), 0); return flip(b, len(b)-1) }, badRecordMAC, ""},
		"sealed: the length":                         {func(p *peer) []byte { b := p.record(applicationData, []byte("hello"), 0); b[4]--; return b[:len(b)-1] }, badRecordMAC, ""},
		"sealed: by another key":                     {func(p *peer) []byte { _ = p.out.next(); return p.record(applicationData, []byte("hello"), 0) }, badRecordMAC, ""},
		"sealed: by the server's key":                {func(p *peer) []byte { p.out = p.in; return p.record(applicationData, []byte("hello"), 0) }, badRecordMAC, ""},
		"order: one left out": {func(p *peer) []byte {
			p.record(applicationData, []byte("a"), 0)
			return p.record(applicationData, []byte("b"), 0)
		}, badRecordMAC, ""},
		"order: one twice": {func(p *peer) []byte {
			b := p.record(applicationData, nil, 0)
			return append(b, b...)
		}, badRecordMAC, ""},
		"order: two exchanged": {func(p *peer) []byte {
			a, b := p.record(applicationData, []byte("a"), 0), p.record(applicationData, []byte("b"), 0)
			return append(b, a...)
		}, badRecordMAC, ""},
		"inside: nothing but padding": {func(p *peer) []byte { return p.record(0, nil, 100) }, unexpectedMessage, "without a type"},
		"inside: too much":            {func(p *peer) []byte { return p.record(applicationData, make([]byte, maxPlaintext+1), 0) }, recordOverflow, "16385 bytes"},
		"inside: too much padding":    {func(p *peer) []byte { return p.record(applicationData, make([]byte, maxPlaintext-10), 11) }, recordOverflow, "16385 bytes"},
		"inside: ChangeCipherSpec":    {func(p *peer) []byte { return p.record(changeCipherSpec, []byte{1}, 0) }, unexpectedMessage, "type 20"},
		"inside: no such type":        {func(p *peer) []byte { return p.record(99, []byte("x"), 0) }, unexpectedMessage, "type 99"},
		"alert: of one byte":          {func(p *peer) []byte { return p.record(alertRecord, []byte{fatal}, 0) }, unexpectedMessage, "1 bytes"},
		"alert: of three":             {func(p *peer) []byte { return p.record(alertRecord, []byte{fatal, 0, 0}, 0) }, unexpectedMessage, "3 bytes"},
		"alert: empty":                {func(p *peer) []byte { return p.record(alertRecord, nil, 9) }, unexpectedMessage, "0 bytes"},
		"handshake: empty":            {func(p *peer) []byte { return p.record(handshake, nil, 0) }, unexpectedMessage, "no KeyUpdate"},
		"handshake: a ticket":         {func(p *peer) []byte { return p.record(handshake, []byte{4, 0, 0, 1}, 0) }, unexpectedMessage, "type 4"},
		"handshake: Finished":         {func(p *peer) []byte { return p.record(handshake, append([]byte{20, 0, 0, 32}, make([]byte, 32)...), 0) }, unexpectedMessage, "KeyUpdate"},
		"handshake: ClientHello":      {func(p *peer) []byte { return p.record(handshake, []byte{1}, 0) }, unexpectedMessage, "type 1"},
		"KeyUpdate: of two bytes":     {func(p *peer) []byte { return p.record(handshake, []byte{keyUpdate, 0, 0, 2, 0}, 0) }, unexpectedMessage, ""},
		"KeyUpdate: asks for 2":       {func(p *peer) []byte { return p.record(handshake, []byte{keyUpdate, 0, 0, 1, 2}, 0) }, illegalParameter, "asks for 2"},
		"KeyUpdate: another behind it": {func(p *peer) []byte {
			return p.record(handshake, append(append([]byte{}, update...), update...), 0)
		}, unexpectedMessage, "more than one"},
		"KeyUpdate: not followed by it": {func(p *peer) []byte { // what comes next is under the old keys
			return append(p.record(handshake, update, 0), p.record(applicationData, []byte("x"), 0)...)
		}, badRecordMAC, ""},
		"KeyUpdate: data within": {func(p *peer) []byte {
			return append(p.record(handshake, update[:3], 0), p.record(applicationData, []byte("x"), 0)...)
		}, unexpectedMessage, "within a handshake message"},
		"KeyUpdate: an alert within": {func(p *peer) []byte {
			return append(p.record(handshake, update[:1], 0), p.record(alertRecord, []byte{warning, closeNotify}, 0)...)
		}, unexpectedMessage, "within a handshake message"},
		"F05/17 empty records": {func(p *peer) []byte {
			return many(maxUseless+1, func() []byte { return p.record(applicationData, nil, 0) })
		}, unexpectedMessage, "too many"},
		"F06/17 KeyUpdates": {func(p *peer) []byte {
			return many(maxUseless+1, func() []byte {
				b := p.record(handshake, update, 0)
				_ = p.out.next()
				return b
			})
		}, unexpectedMessage, "too many"},
	} {
		t.Run(name, func(t *testing.T) {
			c, p := r.taken(t)
			p.send(p.record(applicationData, []byte("before"), 0))
			buf := make([]byte, 100)
			if n, err := c.Read(buf); string(buf[:n]) != "before" || err != nil {
				t.Fatalf("%q, %v", buf[:n], err)
			}
			p.send(tc.send(p))
			n, err := c.Read(buf)
			alert, _ := errors.AsType[tls.AlertError](err)
			op, _ := errors.AsType[*net.OpError](err)
			if n > 0 || op == nil || op.Op != "local error" || byte(alert) != tc.alert || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%d bytes, %v; expected alert %d with %q", n, err, tc.alert, tc.text)
			}
			if kind, content, err := p.next(); kind != alertRecord || !bytes.Equal(content, []byte{fatal, tc.alert}) {
				t.Errorf("the client gets %d %v, %v; expected alert %d", kind, content, err, tc.alert)
			}
			if n, again := c.Read(buf); n > 0 || again == nil || again.Error() != err.Error() {
				t.Errorf("the next read gives %d bytes, %v", n, again)
			}
			if n, err := c.Write([]byte("x")); n > 0 || err == nil {
				t.Errorf("a write behind it: %d, %v", n, err)
			}
			if err := c.CloseWrite(); err == nil {
				t.Error("close_notify behind a fatal alert")
			}
		})
	}
}

// TestBudget: records without anything in them are counted over the whole connection.
func TestBudget(t *testing.T) {
	c, p := newRig(t).taken(t)
	go func() {
		for range freeUseless / maxUseless * 2 {
			var b []byte
			for range maxUseless {
				b = append(b, p.record(applicationData, nil, 0)...)
			}
			if _, err := p.wire.Write(append(b, p.record(applicationData, []byte("x"), 0)...)); err != nil {
				return
			}
		}
	}()
	n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	// Each byte pays for one of the 16 before it.
	if want := int64(freeUseless / (maxUseless - 1)); n < want || n > want+1 || !errors.Is(err, socket.ErrRecords) || !c.Over() {
		t.Errorf("F06: %d bytes, %v, over %v; expected %d bytes and the end", n, err, c.Over(), want)
	}
}

// TestEnds: how what a client sends can end.
func TestEnds(t *testing.T) {
	r := newRig(t)
	buf := make([]byte, 100)
	t.Run("close_notify", func(t *testing.T) {
		c, p := r.taken(t)
		p.send(append(p.record(applicationData, []byte("x"), 0), p.record(alertRecord, []byte{warning, closeNotify}, 0)...))
		if b, err := io.ReadAll(c); string(b) != "x" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
		if !c.MayBeAlert() {
			t.Error("it does not look like an alert")
		}
		if _, err := c.Write([]byte("answer")); err != nil || string(p.data(6)) != "answer" {
			t.Errorf("an answer cannot be written: %v", err)
		}
	})
	t.Run("an alert", func(t *testing.T) {
		c, p := r.taken(t)
		p.send(p.record(alertRecord, []byte{fatal, 42}, 0))
		_, err := c.Read(buf)
		if op, _ := errors.AsType[*net.OpError](err); op == nil || op.Op != "remote error" || op.Err != tls.AlertError(42) {
			t.Errorf("%v, expected bad_certificate from the client", err)
		}
	})
	t.Run("user_canceled is none", func(t *testing.T) {
		c, p := r.taken(t)
		p.send(append(p.record(alertRecord, []byte{warning, userCanceled}, 0), p.record(applicationData, []byte("x"), 0)...))
		if n, err := c.Read(buf); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
	})
	t.Run("between two records", func(t *testing.T) {
		c, p := r.taken(t)
		p.send(p.record(applicationData, []byte("hello"), 0))
		_ = p.wire.CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "hello" || err != nil || c.MayBeAlert() {
			t.Errorf("%q, %v, may be an alert: %v", b, err, c.MayBeAlert())
		}
	})
	t.Run("within one", func(t *testing.T) {
		for cut := 1; cut < headerSize+1+1+tagSize; cut++ {
			c, p := r.taken(t)
			p.send(p.record(applicationData, []byte("x"), 0)[:cut])
			_ = p.wire.CloseWrite()
			if n, err := c.Read(buf); n > 0 || err != io.ErrUnexpectedEOF {
				t.Errorf("%d bytes of it: %d, %v", cut, n, err)
			}
		}
	})
	t.Run("ours", func(t *testing.T) {
		c, p := r.taken(t)
		if err := errors.Join(c.CloseWrite(), c.CloseWrite()); err != nil {
			t.Fatal(err)
		}
		if kind, content, err := p.next(); kind != alertRecord || !bytes.Equal(content, []byte{warning, closeNotify}) {
			t.Errorf("%d %v, %v", kind, content, err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, errClosed) {
			t.Errorf("a write behind it: %v", err)
		}
		p.send(p.record(handshake, []byte{keyUpdate, 0, 0, 1, 1}, 0)) // its answer would be behind our end
		_ = p.out.next()
		p.send(p.record(applicationData, []byte("x"), 0))
		if n, err := c.Read(buf); n != 1 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		_ = c.Conn.CloseWrite()
		if kind, _, err := p.next(); err != io.EOF {
			t.Errorf("a record of type %d behind close_notify, %v", kind, err)
		}
	})
	t.Run("a deadline ends no connection", func(t *testing.T) {
		c, p := r.taken(t)
		record := p.record(applicationData, []byte("hello"), 0)
		for i, part := range [][]byte{nil, record[:3], record[3:20], record[20:]} {
			if p.send(part); i < 3 {
				_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
				if n, err := c.Read(buf); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("part %d: %d, %v", i, n, err)
				}
			}
		}
		_ = c.SetReadDeadline(time.Time{})
		if n, err := c.Read(buf); string(buf[:n]) != "hello" || err != nil {
			t.Errorf("%q, %v", buf[:n], err)
		}
	})
	t.Run("a write that fails", func(t *testing.T) {
		c, _ := r.taken(t)
		_ = c.SetWriteDeadline(time.Unix(1, 0))
		_, err := c.Write([]byte("x"))
		_ = c.SetWriteDeadline(time.Time{})
		if _, again := c.Write([]byte("x")); err == nil || again != err {
			t.Errorf("%v, then %v; expected that the first one is final: a part may be on its way", err, again)
		}
	})
}

// TestData: bytes of every size pass, both ways, however they are cut.
func TestData(t *testing.T) {
	r := newRig(t)
	sizes := []int{1, 2, 100, maxPlaintext - 1, maxPlaintext, maxPlaintext + 1, recordsAtOnce * maxPlaintext, recordsAtOnce*maxPlaintext + 1, 300_000}
	t.Run("written", func(t *testing.T) {
		c, p := r.taken(t)
		for _, n := range append([]int{0}, sizes...) {
			want := bytes.Repeat([]byte{byte(n), 'x', byte(n >> 8)}, n/3+1)[:n]
			done := make(chan error, 1)
			go func() {
				m, err := c.Write(want)
				if m != n {
					err = errors.Join(err, fmt.Errorf("wrote %d of %d", m, n))
				}
				done <- err
			}()
			if got := p.data(n); !bytes.Equal(got, want) {
				t.Errorf("%d bytes: not as they were sent", n)
			}
			if err := <-done; err != nil {
				t.Errorf("%d bytes: %v", n, err)
			}
		}
	})
	t.Run("read", func(t *testing.T) {
		random := rand.New(rand.NewPCG(1, 2))
		for _, piece := range []int{1, 3, 17, 4096, maxPlaintext, maxPlaintext + 1, 64 << 10} {
			c, p := r.taken(t)
			var want, sent []byte
			for len(want) < 200_000 {
				content := bytes.Repeat([]byte{byte(len(want)), byte(len(want) >> 8)}, 1+random.IntN(maxPlaintext/2))
				sent = append(sent, p.record(applicationData, content, random.IntN(2)*random.IntN(100))...)
				want = append(want, content...)
				if random.IntN(4) == 0 {
					sent = append(sent, p.record(applicationData, nil, random.IntN(50))...)
				}
			}
			go func() {
				for len(sent) > 0 {
					n := min(len(sent), 1+random.IntN(40_000))
					_, _ = p.wire.Write(sent[:n])
					sent = sent[n:]
				}
				_ = p.wire.CloseWrite()
			}()
			var got []byte
			b := make([]byte, piece)
			for {
				n, err := c.Read(b)
				if got = append(got, b[:n]...); err != nil {
					break
				}
				if n == 0 {
					t.Fatal("nothing and no error")
				}
			}
			if !bytes.Equal(got, want) {
				t.Errorf("read by %d: %d bytes, expected %d, or not the same", piece, len(got), len(want))
			}
			if c.raw != nil {
				t.Errorf("read by %d: a buffer is held in the end", piece)
			}
		}
	})
	t.Run("as much as a record holds", func(t *testing.T) {
		c, p := r.taken(t)
		want := bytes.Repeat([]byte("x"), maxPlaintext)
		p.send(append(p.record(applicationData, want[:1000], maxPlaintext-1000), p.record(applicationData, want[1000:], 1000)...))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Error(err)
		}
	})
}

// TestKeyUpdate: keys change when the client says so, and ours when it asks or when they have protected enough.
func TestKeyUpdate(t *testing.T) {
	r := newRig(t)
	buf := make([]byte, 100)
	say := func(t *testing.T, c *Conn, p *peer) {
		t.Helper()
		p.send(p.record(applicationData, []byte("hello"), 0))
		if n, err := c.Read(buf); string(buf[:n]) != "hello" || err != nil {
			t.Fatalf("%q, %v", buf[:n], err)
		}
	}
	answer := func(t *testing.T, c *Conn, p *peer, updated bool) {
		t.Helper()
		if _, err := c.Write([]byte("answer")); err != nil {
			t.Fatal(err)
		}
		if updated {
			if kind, content, err := p.next(); kind != handshake || !bytes.Equal(content, []byte{keyUpdate, 0, 0, 1, 0}) {
				t.Fatalf("%d %v, %v; expected a KeyUpdate that asks for none", kind, content, err)
			}
			_ = p.in.next()
		}
		if kind, content, err := p.next(); kind != applicationData || string(content) != "answer" {
			t.Fatalf("%d %q, %v", kind, content, err)
		}
	}
	for _, asks := range []byte{0, 1} {
		t.Run(fmt.Sprint("asks for ", asks), func(t *testing.T) {
			c, p := r.taken(t)
			for range 3 {
				p.send(p.record(handshake, []byte{keyUpdate, 0, 0, 1, asks}, 3))
				_ = p.out.next()
				say(t, c, p)
				answer(t, c, p, asks == 1)
			}
		})
	}
	t.Run("in parts", func(t *testing.T) {
		c, p := r.taken(t)
		for _, b := range []byte{keyUpdate, 0, 0, 1, 1} {
			p.send(p.record(handshake, []byte{b}, 0))
		}
		_ = p.out.next()
		say(t, c, p)
		answer(t, c, p, true)
	})
	t.Run("by ourselves", func(t *testing.T) {
		c, p := r.taken(t)
		few := *c.out.suite
		few.limit = 3
		c.out.suite = &few
		done := make(chan error, 1)
		want := bytes.Repeat([]byte("0123456789"), 30_000)
		go func() { _, err := c.Write(want); done <- err }()
		var got []byte
		updates := 0
		for len(got) < len(want) {
			switch kind, content, err := p.next(); {
			case err != nil:
				t.Fatal(err)
			case kind == handshake:
				updates++
				_ = p.in.next()
			default:
				got = append(got, content...)
			}
		}
		if err := <-done; err != nil || !bytes.Equal(got, want) || updates < 5 {
			t.Errorf("%v, %d updates", err, updates)
		}
	})
	t.Run("while we write", func(t *testing.T) {
		c, p := r.taken(t)
		const times = 200
		go func() {
			for range times {
				_, _ = p.wire.Write(p.record(handshake, []byte{keyUpdate, 0, 0, 1, 1}, 0))
				_ = p.out.next()
				_, _ = p.wire.Write(p.record(applicationData, []byte("x"), 0))
			}
		}()
		go func() {
			for range times {
				_, _ = c.Write(bytes.Repeat([]byte("y"), 1000))
			}
		}()
		read := make(chan error, 1)
		go func() {
			_, err := io.ReadFull(c, make([]byte, times))
			read <- err
		}()
		got, updates := 0, 0
		for got < times*1000 || updates < times {
			kind, content, err := p.next()
			if err != nil {
				t.Fatalf("%d bytes, %d updates: %v", got, updates, err)
			}
			if kind == handshake {
				updates++
				_ = p.in.next()
			} else {
				got += len(content)
			}
		}
		if err := <-read; err != nil {
			t.Error(err)
		}
	})
}

// TestRest: a connection that rests goes on where it was.
func TestRest(t *testing.T) {
	c, p := newRig(t).taken(t)
	buf := make([]byte, 100)
	for range 3 {
		if c.Rest(); c.in.aead != nil || c.out.aead != nil || c.raw != nil {
			t.Fatal("it holds something")
		}
		p.send(p.record(applicationData, []byte("hello"), 0))
		if n, err := c.Read(buf); string(buf[:n]) != "hello" || err != nil {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		if _, err := c.Write([]byte("answer")); err != nil || string(p.data(6)) != "answer" {
			t.Fatal(err)
		}
	}
	record := p.record(applicationData, []byte("hello"), 0)
	p.send(record[:7])
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := c.Read(buf); err == nil {
		t.Fatal("a part of a record was read")
	}
	c.Rest()
	_ = c.SetReadDeadline(time.Time{})
	p.send(record[7:])
	if n, err := c.Read(buf); string(buf[:n]) != "hello" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

// TestTake: what crypto/tls has done is gone on with where it is, and not where anything is not as it should be.
func TestTake(t *testing.T) {
	works := func(t *testing.T, c *Conn, p *peer) {
		t.Helper()
		buf := make([]byte, 100)
		p.send(p.record(applicationData, []byte("hello"), 0))
		if n, err := c.Read(buf); string(buf[:n]) != "hello" || err != nil {
			t.Fatalf("%q, %v", buf[:n], err)
		}
		if _, err := c.Write([]byte("answer")); err != nil || string(p.data(6)) != "answer" {
			t.Fatal(err)
		}
	}
	t.Run("with a ticket", func(t *testing.T) {
		c, p := newRig(t).taken(t)
		if c.out.seq != 1 {
			t.Errorf("%d records", c.out.seq)
		}
		works(t, c, p)
	})
	t.Run("without", func(t *testing.T) {
		r := newRig(t)
		r.server.SessionTicketsDisabled = true
		c, p := r.taken(t)
		if c.out.seq != 0 {
			t.Errorf("%d records", c.out.seq)
		}
		works(t, c, p)
	})
	t.Run("with a client that wants none", func(t *testing.T) {
		r := newRig(t)
		r.client.ClientSessionCache = nil
		c, p := r.taken(t)
		if c.out.seq != 0 {
			t.Errorf("%d records", c.out.seq)
		}
		works(t, c, p)
	})
	t.Run("with a client certificate", func(t *testing.T) {
		r := newRig(t)
		r.server.ClientAuth = tls.RequestClientCert
		c, p := r.taken(t)
		works(t, c, p)
	})
	t.Run("with another group first", func(t *testing.T) { // a HelloRetryRequest
		r := newRig(t)
		r.server.CurvePreferences = []tls.CurveID{tls.CurveP384}
		c, p := r.taken(t)
		works(t, c, p)
	})
	t.Run("what came with the handshake", func(t *testing.T) {
		tc, wire, h, p := newRig(t).shake(t)
		p.send(append(p.record(applicationData, []byte("early "), 0), p.record(applicationData, []byte("bird"), 0)...))
		for wire.Peek() != socket.Pending {
			time.Sleep(time.Millisecond)
		}
		// As if crypto/tls had read it with the client's Finished.
		if n, err := wire.Read(make([]byte, 0)); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		wire.InSteps(false)
		c := Take(tc, wire, h, nil)
		if c == nil {
			t.Fatal("it was not taken over")
		}
		got := make([]byte, 10)
		if _, err := io.ReadFull(c, got); string(got) != "early bird" || err != nil {
			t.Fatalf("%q, %v", got, err)
		}
		works(t, c, p)
	})
	t.Run("the state of the handshake", func(t *testing.T) {
		tc, wire, h, _ := newRig(t).shake(t)
		want := tc.ConnectionState()
		c := Take(tc, wire, h, nil)
		if got := c.ConnectionState(); got.Version != want.Version || got.CipherSuite != want.CipherSuite || got.CurveID != want.CurveID ||
			got.ServerName != "a.test" || !got.HandshakeComplete || got.DidResume {
			t.Errorf("%+v", got)
		}
	})
	t.Run("secrets are wiped", func(t *testing.T) {
		tc, wire, h, _ := newRig(t).shake(t)
		client, server := h.client, h.server
		if len(client) != 32 || bytes.Equal(client, make([]byte, 32)) {
			t.Fatal("there were none")
		}
		Take(tc, wire, h, nil)
		if !bytes.Equal(client, make([]byte, 32)) || !bytes.Equal(server, make([]byte, 32)) || h.client != nil || h.server != nil || h.last != nil {
			t.Error("they are still there")
		}
	})
	t.Run("lines are wiped, and told before", func(t *testing.T) {
		var told bytes.Buffer
		h := &Handover{Tee: &told}
		line := []byte("CLIENT_TRAFFIC_SECRET_0 00ff 0a0b\n")
		want := string(line)
		if n, err := h.Write(line); n != len(line) || err != nil || told.String() != want || !bytes.Equal(line, make([]byte, len(line))) || !bytes.Equal(h.client, []byte{10, 11}) {
			t.Errorf("%d, %v, %q, left %q, secret %x", n, err, told.String(), line, h.client)
		}
	})
	for name, spoil := range map[string]func(h *Handover){
		"no secret of the client":     func(h *Handover) { h.client = nil },
		"no secret of the server":     func(h *Handover) { h.server = nil },
		"a secret of another length":  func(h *Handover) { h.client = h.client[:31] },
		"another secret":              func(h *Handover) { h.server[0] ^= 1 },
		"a ticket that was not noted": func(h *Handover) { h.Tickets = 0 },
		"two tickets":                 func(h *Handover) { h.Tickets = 2 },
		"a ticket that was not sent":  func(h *Handover) { h.last = nil },
		"another record at the end":   func(h *Handover) { h.last[headerSize] ^= 1 },
		"another write and no ticket": func(h *Handover) { h.Tickets = 0; h.Sent([]byte{handshake, 3, 3, 0, 0}) },
	} {
		t.Run("not with "+name, func(t *testing.T) {
			tc, wire, h, p := newRig(t).shake(t)
			spoil(h)
			if Take(tc, wire, h, nil) != nil {
				t.Fatal("it was taken over")
			}
			wire.InSteps(false) // and crypto/tls goes on
			p.send(p.record(applicationData, []byte("hello"), 0))
			buf := make([]byte, 100)
			if n, err := tc.Read(buf); string(buf[:n]) != "hello" || err != nil {
				t.Fatalf("%q, %v", buf[:n], err)
			}
			if _, err := tc.Write([]byte("answer")); err != nil || string(p.data(6)) != "answer" {
				t.Fatal(err)
			}
		})
	}
	t.Run("not with a part of a record read", func(t *testing.T) {
		tc, wire, h, p := newRig(t).shake(t)
		p.send(p.record(applicationData, []byte("hello"), 0))
		_, _ = wire.Read(make([]byte, 3))
		if Take(tc, wire, h, nil) != nil {
			t.Error("it was taken over")
		}
	})
	t.Run("not with TLS 1.2", func(t *testing.T) {
		near, far := pair(t)
		r, h := newRig(t), new(Handover)
		r.server.MaxVersion, r.client.MinVersion, r.server.KeyLogWriter = tls.VersionTLS12, tls.VersionTLS12, h
		wire := socket.New(far, true)
		wire.InSteps(true)
		tc, cc := tls.Server(noting{wire, h}, r.server), tls.Client(near, r.client)
		go func() { _ = cc.Handshake() }()
		if err := tc.Handshake(); err != nil {
			t.Fatal(err)
		}
		if Take(tc, wire, h, nil) != nil {
			t.Error("it was taken over")
		}
	})
}

// TestHolds: a client that stops costs no large buffer.
func TestHolds(t *testing.T) {
	r := newRig(t)
	for _, sent := range []int{1, headerSize, 1000, restRoom, restRoom + 1, 10_000} {
		t.Run(fmt.Sprint("with ", sent, " bytes of a record"), func(t *testing.T) {
			c, p := r.taken(t)
			want := bytes.Repeat([]byte("abcdefg"), maxPlaintext/7)
			record := append(p.record(applicationData, []byte("x"), 0), p.record(applicationData, want, 0)...)
			cut := headerSize + 1 + overhead - headerSize + sent
			p.send(record[:cut])
			got := make([]byte, len(want)+1)
			if n, err := c.Read(got); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			if _, err := c.Read(got[1:]); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
			most := restRoom
			if sent > restRoom {
				most = headerSize + maxCiphertext
			}
			if c.raw != nil || c.rest == nil || cap(*c.rest) != most {
				t.Errorf("a large buffer: %v, a small one: %v, expected one of %d bytes", c.raw != nil, c.rest != nil, most)
			}
			_ = c.SetReadDeadline(time.Time{})
			p.send(record[cut:])
			if _, err := io.ReadFull(c, got[1:]); err != nil || !bytes.Equal(got[1:], want) {
				t.Errorf("not what was sent, %v", err)
			}
			if c.raw != nil || c.rest != nil {
				t.Error("something is held in the end")
			}
		})
	}
	t.Run("nothing when all that was asked for is read", func(t *testing.T) {
		c, p := r.taken(t)
		p.send(p.record(applicationData, []byte("hello"), 0))
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil || c.raw != nil {
			t.Error(err, c.raw != nil)
		}
	})
	t.Run("nothing behind the end", func(t *testing.T) {
		c, p := r.taken(t)
		p.send(append(p.record(applicationData, []byte("hello"), 0), p.record(alertRecord, []byte{warning, closeNotify}, 0)...))
		buf := make([]byte, 100)
		if n, err := c.Read(buf); n != 5 || err != nil || c.raw != nil {
			t.Error(n, err, c.raw != nil)
		}
		if n, err := c.Read(buf); n != 0 || err != io.EOF || c.raw != nil {
			t.Error(n, err, c.raw != nil)
		}
		c, p = r.taken(t)
		p.send(append(p.record(alertRecord, []byte{fatal, internalError}, 0), p.record(applicationData, []byte("hello"), 0)...))
		for range 2 {
			if n, err := c.Read(buf); n != 0 || err == nil || c.raw != nil {
				t.Error(n, err, c.raw != nil)
			}
		}
	})
	t.Run("who does not read", func(t *testing.T) {
		for n, most := range map[int]int{1: shortRoom, shortRoom - overhead: shortRoom, shortRoom - overhead + 1: recordRoom, maxPlaintext: recordRoom, maxPlaintext + 1: recordsAtOnce * recordRoom} {
			if got := cap(*seals(n).Get().(*[]byte)); got != most || got < min(n, maxPlaintext)+overhead {
				t.Errorf("a buffer of %d bytes for %d, expected %d", got, n, most)
			}
		}
	})
}
