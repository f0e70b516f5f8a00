package origin

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"strconv"

	"github.com/pires/go-proxyproto"

	"countersign/internal/reason"
)

// Inbound says whose PROXY headers a listener reads. A nil one reads none.
type Inbound struct {
	// From are the proxies that send one. Each of their connections has to begin with it: a listener that finds out by
	// itself whether there is a header lets everybody send one.
	From Networks
	// Unlisted says that who is not listed is served as a client of its own, without a header; otherwise it is refused.
	Unlisted bool
}

// Accept finds out where c comes from, reading the PROXY header if one has to be there. What follows the header is left
// unread. The caller bounds the time: a read that fails because its deadline has passed is reason.ProxyHeaderTimeout. The
// error is a *reason.Refusal.
func (in *Inbound) Accept(c net.Conn) (Origin, error) {
	o := Of(c)
	switch {
	case in == nil:
		return o, nil
	case in.From.Contains(o.Peer.Addr()):
		return o, ReadProxy(c, &o)
	case in.Unlisted:
		return o, nil
	}
	return o, &reason.Refusal{Reason: reason.ProxySourceRefused, Expected: "an address of proxy_protocol.from", Found: Text(o.Peer)}
}

// Bounds of a PROXY header.
const (
	maxLine     = 107     // version 1, with its CR LF
	maxBlock    = 4 << 10 // version 2, behind its fixed part
	fixed       = 16      // the fixed part of version 2
	maxText     = 255     // Authority and ALPN
	maxUniqueID = 128
)

// The types of TLVs that are read or written besides those of the library.
var (
	signature  = proxyproto.SIGV2
	word       = []byte("PROXY ")
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

// ReadProxy reads a PROXY header of version 1 or 2 from r and notes in o what it says. It reads not one byte beyond a
// header that it accepts; after an error r is of no use. The error is a *reason.Refusal.
//
// Version 1 has at most 107 bytes, which is what its longest form takes; version 2 has 16 and at most 4096 (F03). LOCAL,
// UNKNOWN and families other than TCP leave the addresses as they are: they are the proxy's own connections, or those of
// clients whose address cannot be said.
func ReadProxy(r io.Reader, o *Origin) error {
	var first [len("\r\n\r\n\x00\r\nQUIT\n")]byte // shorter than the shortest header of version 1, "PROXY UNKNOWN" CR LF
	for n := 0; n < len(first); {
		m, err := r.Read(first[n:])
		n += m
		// Who sends something else is told at once, and not when it has sent enough of it.
		if b := first[:n]; !bytes.HasPrefix(signature, b) && !bytes.HasPrefix(b, word[:min(n, len(word))]) {
			return invalid("a PROXY header", "a connection that begins with "+strconv.QuoteToASCII(string(b)))
		}
		if err != nil && n < len(first) {
			return broken(err, n)
		}
	}
	if first[0] == signature[0] {
		return readBinary(r, first[:], o)
	}
	return readLine(r, first[:], o)
}

// invalid is the refusal of a header.
func invalid(expected, found string) error {
	return &reason.Refusal{Reason: reason.ProxyHeaderInvalid, Expected: expected, Found: found}
}

// broken is the refusal of a header that ended after n bytes.
func broken(err error, n int) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &reason.Refusal{Reason: reason.ProxyHeaderTimeout, Expected: "a whole PROXY header", Found: strconv.Itoa(n) + " bytes of one"}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = nil // Found says it
	}
	return &reason.Refusal{Reason: reason.ProxyHeaderInvalid, Expected: "a whole PROXY header", Found: "an end after " + strconv.Itoa(n) + " bytes", Cause: err}
}

// readLine reads the rest of a version 1 header that begins with first.
func readLine(r io.Reader, first []byte, o *Origin) error {
	line := make([]byte, len(first), maxLine)
	copy(line, first)
	for line[len(line)-1] != '\n' {
		n := len(line)
		m := rest(line)
		if n+m > maxLine {
			return invalid("a line of at most 107 bytes", "a longer one")
		}
		line = line[:n+m]
		if m, err := io.ReadFull(r, line[n:]); err != nil {
			return broken(err, n+m)
		}
	}
	h, err := parse(line)
	if err != nil {
		return err
	}
	o.Header = 1
	o.take(h)
	return nil
}

// rest is the least number of bytes that can follow in a header of which line is the beginning: so many can be read
// without reading beyond it.
func rest(line []byte) int {
	last := line[len(line)-1]
	if last == '\r' {
		return 1
	}
	least := 2 // CR LF
	if line[len("PROXY ")] == 'U' {
		return least // UNKNOWN may be followed by anything
	}
	if last == ' ' {
		least++ // a field has at least one byte
	}
	for spaces := bytes.Count(line, word[5:]); spaces < 5; spaces++ {
		least += 2 // one more field and the space before it
	}
	return least
}

// readBinary reads the rest of a version 2 header, whose signature has been read.
func readBinary(r io.Reader, first []byte, o *Origin) error {
	head := make([]byte, fixed, fixed+256)
	n := copy(head, first)
	if m, err := io.ReadFull(r, head[n:]); err != nil {
		return broken(err, n+m)
	}
	length := int(binary.BigEndian.Uint16(head[14:]))
	if length > maxBlock {
		return invalid("a header of at most 4096 bytes behind its fixed part", strconv.Itoa(length))
	}
	head = append(head, make([]byte, length)...)
	if m, err := io.ReadFull(r, head[fixed:]); err != nil {
		return broken(err, fixed+m)
	}
	o.Header = 2
	block := head[fixed:]
	const (
		proxy  = byte(proxyproto.PROXY)
		unspec = byte(proxyproto.UNSPEC)
	)
	if head[12] == proxy && head[13] == unspec {
		// The library refuses it; the specification leaves that open, and HAProxy sends it for clients on Unix sockets.
		return o.extras(head, block)
	}
	h, err := parse(head)
	if err != nil || h.Command.IsLocal() {
		return err // the whole block of a LOCAL header is to be discarded, whatever stands in it
	}
	o.take(h)
	switch {
	case h.TransportProtocol.IsIPv4():
		block = block[12:]
	case h.TransportProtocol.IsIPv6():
		block = block[36:]
	case h.TransportProtocol.IsUnix():
		block = block[216:]
	}
	return o.extras(head, block)
}

// parse gives a whole header to the library, which is strict about what it looks at.
func parse(whole []byte) (*proxyproto.Header, error) {
	buf := bufio.NewReaderSize(bytes.NewReader(whole), len(whole))
	h, err := proxyproto.Read(buf)
	if err != nil {
		return nil, &reason.Refusal{Reason: reason.ProxyHeaderInvalid, Cause: bounded(err)}
	}
	if n := buf.Buffered(); n > 0 {
		return nil, invalid("a header and nothing more", fmt.Sprintf("%d bytes behind its end", n))
	}
	return h, nil
}

// bounded cuts an error's text, parts of which the header's author wrote.
func bounded(err error) error {
	const limit = 120
	text := strconv.QuoteToASCII(err.Error())
	text = text[1 : len(text)-1]
	if len(text) > limit {
		text = text[:limit] + "..."
	}
	return errors.New(text)
}

// take notes the addresses of a header that has some.
func (o *Origin) take(h *proxyproto.Header) {
	if h.Command.IsLocal() {
		return
	}
	src, dst, ok := h.TCPAddrs()
	if !ok {
		return
	}
	o.Client, o.Local = plain(src.AddrPort()), plain(dst.AddrPort())
}

// extras reads the TLVs of a version 2 header: block, at the end of whole. The library splits such lists, but does not
// check the checksum, nor say where it stands, nor refuse what is there twice.
func (o *Origin) extras(whole, block []byte) error {
	const (
		alpn      = byte(proxyproto.PP2_TYPE_ALPN)
		authority = byte(proxyproto.PP2_TYPE_AUTHORITY)
		checksum  = byte(proxyproto.PP2_TYPE_CRC32C)
		uniqueID  = byte(proxyproto.PP2_TYPE_UNIQUE_ID)
	)
	var seen uint32
	for len(block) > 0 {
		if len(block) < 3 {
			return invalid("a TLV", strconv.Itoa(len(block))+" bytes")
		}
		kind, n := block[0], int(binary.BigEndian.Uint16(block[1:]))
		block = block[3:]
		if n > len(block) {
			return invalid(fmt.Sprintf("TLV %#02x of %d bytes", kind, n), strconv.Itoa(len(block)))
		}
		value := block[:n]
		block = block[n:]
		limit := maxText
		switch kind {
		case alpn, authority:
		case uniqueID:
			limit = maxUniqueID
		case checksum:
			limit = 4
		default:
			continue // not ours to judge; those about TLS among them, which are a proxy's word about who the client is
		}
		if seen&(1<<kind) != 0 {
			return invalid(fmt.Sprintf("one TLV %#02x", kind), "two")
		}
		seen |= 1 << kind
		if n > limit || kind == checksum && n != limit {
			return invalid(fmt.Sprintf("TLV %#02x of %d bytes", kind, limit), strconv.Itoa(n))
		}
		switch kind {
		case alpn:
			o.ALPN = string(value)
		case authority:
			o.Authority = string(value)
		case uniqueID:
			o.UniqueID = string(value)
		case checksum:
			at := len(whole) - len(block) - 4
			if want, got := binary.BigEndian.Uint32(value), checksumOf(whole, at); want != got {
				return invalid(fmt.Sprintf("CRC32c %08x, which the header names", want), fmt.Sprintf("%08x", got))
			}
		}
	}
	return nil
}

// checksumOf is the CRC32c of a header whose checksum stands at an offset, with zeros in its place.
func checksumOf(whole []byte, at int) uint32 {
	sum := crc32.Update(0, castagnoli, whole[:at])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	return crc32.Update(sum, castagnoli, whole[at+4:])
}
