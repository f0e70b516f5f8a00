package identity

import (
	"encoding/base64"
	"fmt"
	"math/big"
	"time"

	"countersign/internal/reason"
)

// MaxHeaders is the cap on all identity header lines of one client together. Backends commonly refuse heads over 8 or
// 16 KiB, some by cutting them off, and half a certificate is worse than none (D11).
const MaxHeaders = 16 << 10

// Dialect is one way of telling a backend who the client is. The zero value is none.
type Dialect uint8

// The dialects.
const (
	_ Dialect = iota
	// RFC9440 is Client-Cert with the leaf as a structured-field byte sequence (RFC 9440 section 2.2).
	RFC9440
	// ALB is the X-Amzn-Mtls-Clientcert-* set that AWS ALB sends in verify mode.
	ALB

	dialects
)

var dialectNames = [dialects]string{RFC9440: "rfc9440", ALB: "alb"}

// ParseDialect finds a dialect by its name in the configuration.
func ParseDialect(name string) (Dialect, bool) {
	for d := RFC9440; d < dialects; d++ {
		if dialectNames[d] == name {
			return d, true
		}
	}
	return 0, false
}

// String returns the name in the configuration.
func (d Dialect) String() string {
	if d == 0 || d >= dialects {
		return fmt.Sprintf("dialect(%d)", uint8(d))
	}
	return dialectNames[d]
}

// AppendHeaders appends the client's identity as complete header lines, "Name: value\r\n", in the order of want. It is
// called once per connection. An absent client has none: a dialect's missing header is the statement, and whatever the
// client sent under its name was removed (D01). A dialect named twice is rendered once: a second line is an attack (D04).
//
// All or nothing: over [MaxHeaders] dst is returned as it was, with a [reason.Refusal] of [reason.IdentityTooLarge].
func (c Client) AppendHeaders(dst []byte, want []Dialect) ([]byte, error) {
	if c.id == nil {
		return dst, nil
	}
	out := dst
	var done [dialects]bool
	for _, d := range want {
		if d < dialects && done[d] {
			continue
		}
		switch d {
		case RFC9440:
			out = c.id.appendRFC9440(out)
		case ALB:
			out = c.id.appendALB(out)
		default:
			return dst, &reason.Refusal{Reason: reason.Internal, Expected: "an identity dialect", Found: d.String()}
		}
		done[d] = true
		if n := len(out) - len(dst); n > MaxHeaders {
			return dst, tooLarge(fmt.Sprintf("%d bytes with dialect %s", n, d))
		}
	}
	return out, nil
}

func tooLarge(found string) error {
	return &reason.Refusal{Reason: reason.IdentityTooLarge, Expected: fmt.Sprintf("at most %d bytes", MaxHeaders), Found: found}
}

// appendRFC9440 renders Client-Cert. Its value is one RFC 8941 byte sequence: base64 with padding, between colons.
// Client-Cert-Chain, a list of the same without the leaf, belongs here too once it can be asked for.
func (id *Identity) appendRFC9440(dst []byte) []byte {
	dst = append(dst, "Client-Cert: :"...)
	dst = base64.StdEncoding.AppendEncode(dst, id.Leaf().Raw)
	return append(dst, ":\r\n"...)
}

// appendALB renders the five headers of AWS ALB's verify mode, in its order and spelling (docs.aws.amazon.com, "Mutual
// authentication with TLS in Application Load Balancer"; values checked against what live balancers sent).
func (id *Identity) appendALB(dst []byte) []byte {
	leaf := id.Leaf()
	dst = append(dst, "X-Amzn-Mtls-Clientcert-Serial-Number: "...)
	dst = append(dst, id.serial...)
	dst = append(dst, "\r\nX-Amzn-Mtls-Clientcert-Issuer: "...)
	dst = append(dst, id.issuer...)
	dst = append(dst, "\r\nX-Amzn-Mtls-Clientcert-Subject: "...)
	dst = append(dst, id.subject...)
	dst = append(dst, "\r\nX-Amzn-Mtls-Clientcert-Validity: NotBefore="...)
	dst = leaf.NotBefore.UTC().AppendFormat(dst, iso8601)
	dst = append(dst, ";NotAfter="...)
	dst = leaf.NotAfter.UTC().AppendFormat(dst, iso8601)
	dst = append(dst, "\r\nX-Amzn-Mtls-Clientcert-Leaf: "...)
	dst = appendEscapedPEM(dst, leaf.Raw)
	return append(dst, "\r\n"...)
}

// iso8601 is RFC 3339 in UTC, with Z as a letter: ALB sends whole seconds.
const iso8601 = time.DateOnly + "T" + time.TimeOnly + "Z"

// appendEscapedPEM renders a certificate as PEM (RFC 7468: 64 columns, LF, one LF at the end), percent-encoded but for
// the unreserved characters and "+/=". What needs encoding in PEM is known beforehand, the space and the line end, so it
// is written encoded.
func appendEscapedPEM(dst, der []byte) []byte {
	const line = 48 // octets in 64 columns of base64
	dst = append(dst, "-----BEGIN%20CERTIFICATE-----%0A"...)
	for len(der) > 0 {
		n := min(line, len(der))
		dst = append(base64.StdEncoding.AppendEncode(dst, der[:n]), "%0A"...)
		der = der[n:]
	}
	return append(dst, "-----END%20CERTIFICATE-----%0A"...)
}

// SerialHex prints a serial number as OpenSSL's BN_bn2hex does, which is what ALB sends: whole octets, upper case, a
// leading zero nibble kept, no sign octet. Zero, which RFC 5280 forbids, is a single 0 there.
func SerialHex(n *big.Int) string {
	switch n.Sign() {
	case 0:
		return "0"
	case -1:
		return "-" + string(appendHex(nil, n.Bytes()))
	}
	return string(appendHex(nil, n.Bytes()))
}
