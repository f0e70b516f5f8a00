package probe

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"strings"

	"golang.org/x/crypto/cryptobyte"
	cbasn1 "golang.org/x/crypto/cryptobyte/asn1"
)

// StartTLS are the protocols within which TLS can be begun, by the names they have on the command line.
var StartTLS = []string{"smtp", "imap", "ldap", "postgres"}

const (
	maxLine     = 2048
	maxLines    = 64
	maxLDAPSize = 8 << 10
)

// startTLS leads the protocol to the point where TLS begins. It never reads a byte beyond: what stands behind the answer
// came in clear and would be taken for the beginning of TLS.
func startTLS(conn net.Conn, protocol string) error {
	switch protocol {
	case "smtp":
		return startSMTP(conn)
	case "imap":
		return startIMAP(conn)
	case "ldap":
		return startLDAP(conn)
	case "postgres":
		return startPostgres(conn)
	}
	return nil
}

// readLine reads a line without its end, byte by byte.
func readLine(conn net.Conn) (string, error) {
	line := make([]byte, 0, 80)
	var b [1]byte
	for len(line) < maxLine {
		if _, err := io.ReadFull(conn, b[:]); err != nil {
			return string(line), err
		}
		if b[0] == '\n' {
			return strings.TrimSuffix(string(line), "\r"), nil
		}
		line = append(line, b[0])
	}
	return string(line), failed("starttls_failed", "check the port", "a line of more than %d bytes came: %s", maxLine, quote(string(line)))
}

func noSTARTTLS(protocol, found, next string) error {
	return failed("starttls_refused", next, "%s: TLS was not begun: %s", protocol, found)
}

// reply reads a reply of SMTP (RFC 5321 section 4.2.1) and returns its code and lines.
func reply(conn net.Conn) (code string, lines []string, err error) {
	for range maxLines {
		line, err := readLine(conn)
		if err != nil {
			return "", lines, err
		}
		if len(line) < 3 || strings.Trim(line[:3], "0123456789") != "" {
			return "", lines, failed("starttls_failed", "check the port and the protocol given with --starttls", "expected a reply of SMTP, found %s", quote(line))
		}
		lines = append(lines, line[min(len(line), 4):])
		if len(line) == 3 || line[3] != '-' {
			return line[:3], lines, nil
		}
	}
	return "", lines, failed("starttls_failed", "check the port", "a reply of SMTP with more than %d lines came", maxLines)
}

// startSMTP is RFC 3207.
func startSMTP(conn net.Conn) error {
	const protocol = "SMTP"
	code, lines, err := reply(conn)
	if err != nil {
		return err
	}
	if code != "220" {
		return noSTARTTLS(protocol, "it greeted with "+quote(code+" "+lines[0]), "look in the server's log for why it does not serve this address")
	}
	if _, err := io.WriteString(conn, "EHLO probe.invalid\r\n"); err != nil {
		return err
	}
	if code, lines, err = reply(conn); err != nil {
		return err
	}
	if code != "250" {
		return noSTARTTLS(protocol, "EHLO was answered "+quote(code+" "+lines[0]), "look in the server's log for why")
	}
	offered := false
	for _, line := range lines[1:] {
		offered = offered || strings.EqualFold(line, "STARTTLS")
	}
	if !offered {
		return noSTARTTLS(protocol, "the server does not offer STARTTLS", "switch TLS on in the mail server, or use its port with TLS from the first byte, often 465")
	}
	if _, err := io.WriteString(conn, "STARTTLS\r\n"); err != nil {
		return err
	}
	if code, lines, err = reply(conn); err != nil {
		return err
	}
	if code != "220" {
		return noSTARTTLS(protocol, "STARTTLS was answered "+quote(code+" "+lines[0]), "look in the server's log; often its certificate or key cannot be read")
	}
	return nil
}

// startIMAP is RFC 9051 section 6.2.1.
func startIMAP(conn net.Conn) error {
	const protocol = "IMAP"
	line, err := readLine(conn)
	if err != nil {
		return err
	}
	switch {
	case strings.HasPrefix(line, "* PREAUTH"):
		return noSTARTTLS(protocol, "the server takes everybody as logged in, and then allows no STARTTLS", "use its port with TLS from the first byte, often 993")
	case !strings.HasPrefix(line, "* OK"):
		return noSTARTTLS(protocol, "it greeted with "+quote(line), "check the port; look in the server's log")
	}
	if _, err := io.WriteString(conn, "p1 STARTTLS\r\n"); err != nil {
		return err
	}
	for range maxLines {
		if line, err = readLine(conn); err != nil {
			return err
		}
		switch {
		case strings.HasPrefix(line, "p1 OK"):
			return nil
		case strings.HasPrefix(line, "p1 "):
			return noSTARTTLS(protocol, "STARTTLS was answered "+quote(line), "switch TLS on in the mail server, or use its port with TLS from the first byte, often 993")
		}
	}
	return failed("starttls_failed", "check the port", "an IMAP server sent more than %d lines and no answer", maxLines)
}

// startLDAP is RFC 4511 section 4.14: an extended request, whose answer is read as far as its result.
func startLDAP(conn net.Conn) error {
	const protocol, id = "LDAP", "1.3.6.1.4.1.1466.20037"
	var b cryptobyte.Builder
	b.AddASN1(cbasn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1Int64(1)
		b.AddASN1(cbasn1.Tag(0x60|23), func(b *cryptobyte.Builder) {
			b.AddASN1(cbasn1.Tag(0).ContextSpecific(), func(b *cryptobyte.Builder) { b.AddBytes([]byte(id)) })
		})
	})
	if _, err := conn.Write(b.BytesOrPanic()); err != nil {
		return err
	}
	message, err := readBER(conn)
	if err != nil {
		return err
	}
	// LDAP allows lengths that are not minimal, so this is BER and walked by hand.
	body, ok := inBER(&message, 0x30)
	_, ok1 := inBER(&body, 0x02)
	response, ok2 := inBER(&body, 0x60|24) // [APPLICATION 24]
	code, ok3 := inBER(&response, 0x0a)
	_, _ = inBER(&response, 0x04)
	diagnostic, _ := inBER(&response, 0x04)
	switch {
	case !ok || !ok1 || !ok2 || !ok3 || len(code) != 1:
		return failed("starttls_failed", "check the port and the protocol given with --starttls", "expected an answer of LDAP, found %s", quote(string(message)))
	case code[0] != 0:
		found := "the server answered with result " + ldapResult(code[0])
		if len(diagnostic) > 0 {
			found += ", " + quote(string(diagnostic))
		}
		return noSTARTTLS(protocol, found, "give the directory server a certificate and key, or use its port with TLS from the first byte, often 636")
	}
	return nil
}

func ldapResult(code byte) string {
	switch code {
	case 1:
		return "operationsError (1)"
	case 2:
		return "protocolError (2)"
	case 52:
		return "unavailable (52)"
	case 53:
		return "unwillingToPerform (53)"
	}
	return strconv.Itoa(int(code))
}

// readBER reads one element whole.
func readBER(conn net.Conn) ([]byte, error) {
	head := make([]byte, 2, 6)
	if _, err := io.ReadFull(conn, head); err != nil {
		return nil, err
	}
	n := int(head[1])
	if n >= 0x80 {
		more := make([]byte, n&0x7f)
		if len(more) == 0 || len(more) > 4 {
			return nil, failed("starttls_failed", "check the port and the protocol given with --starttls", "expected an answer of LDAP, found %s", quote(string(head)))
		}
		if _, err := io.ReadFull(conn, more); err != nil {
			return nil, err
		}
		n = 0
		for _, b := range more {
			n = n<<8 | int(b)
		}
		head = append(head, more...)
	}
	if head[0] != 0x30 || n < 0 || n > maxLDAPSize {
		return nil, failed("starttls_failed", "check the port and the protocol given with --starttls", "expected an answer of LDAP, found %s", quote(string(head)))
	}
	body := make([]byte, n)
	_, err := io.ReadFull(conn, body)
	return append(head, body...), err
}

// inBER takes an element of the tag off the front of in and returns its content.
func inBER(in *[]byte, tag byte) (content []byte, ok bool) {
	b := *in
	if len(b) < 2 || b[0] != tag {
		return nil, false
	}
	n, at := int(b[1]), 2
	if n >= 0x80 {
		size := n & 0x7f
		if size == 0 || size > 4 || len(b) < 2+size {
			return nil, false
		}
		n = 0
		for _, x := range b[2 : 2+size] {
			n = n<<8 | int(x)
		}
		at += size
	}
	if n < 0 || len(b)-at < n {
		return nil, false
	}
	*in = b[at+n:]
	return b[at : at+n], true
}

// startPostgres is SSLRequest of PostgreSQL's protocol.
func startPostgres(conn net.Conn) error {
	if _, err := conn.Write([]byte{0, 0, 0, 8, 4, 0xd2, 0x16, 0x2f}); err != nil {
		return err
	}
	var b [1]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return err
	}
	switch b[0] {
	case 'S':
		return nil
	case 'N':
		return noSTARTTLS("PostgreSQL", "the server has no TLS", "set ssl = on with ssl_cert_file and ssl_key_file in postgresql.conf")
	case 'E':
		rest := make([]byte, 256)
		n, _ := io.ReadAtLeast(conn, rest, 5)
		return noSTARTTLS("PostgreSQL", "the server answered with an error: "+quote(string(bytes.ReplaceAll(rest[:n], []byte{0}, []byte{' '}))), "look in the server's log")
	}
	return failed("starttls_failed", "check the port and the protocol given with --starttls", "expected an answer of PostgreSQL, found %s", quote(string(b[:])))
}
