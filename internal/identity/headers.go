package identity

import (
	"encoding/base64"
	"fmt"
	"math/big"
	"slices"
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
	// RFC9440 is Client-Cert with the leaf, and on request Client-Cert-Chain (RFC 9440 section 2).
	RFC9440
	// ALB is AWS ALB's X-Amzn-Mtls-Clientcert-* set of verify mode, and X-Amzn-Mtls-Clientcert of passthrough mode.
	ALB
	// XFCC is Envoy's X-Forwarded-Client-Cert.
	XFCC
	// XSSLClient is the X-SSL-Client-* set, as set-ups of nginx and HAProxy name it.
	XSSLClient
	// Traefik is the X-Forwarded-Tls-Client-Cert pair of Traefik's passTLSClientCert.
	Traefik
	// GCP is the X-Client-Cert-* set of Google Cloud's Application Load Balancers.
	GCP
	// PSD2Headers is X-Countersign-PSD2-*: what a qualified certificate says about a payment service provider.
	PSD2Headers

	dialects
)

var dialectNames = [dialects]string{
	RFC9440: "rfc9440", ALB: "alb", XFCC: "xfcc", XSSLClient: "x_ssl_client", Traefik: "traefik", GCP: "gcp", PSD2Headers: "psd2",
}

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

// Headers returns the names that d may render, in order, as they are on the wire.
func (d Dialect) Headers() []string {
	if d >= dialects {
		return nil
	}
	return slices.Clone(dialectHeaders[d])
}

// dialectHeaders are the header names of each dialect. All of them are [Protected].
var dialectHeaders = [dialects][]string{
	RFC9440: {clientCert, clientCertChain}, ALB: albHeaders[:], XFCC: {forwardedClientCert}, XSSLClient: xsslHeaders[:],
	Traefik: {traefikCert, traefikInfo}, GCP: gcpHeaders[:], PSD2Headers: psd2Headers[:],
}

func tooLarge(found string) error {
	return &reason.Refusal{Reason: reason.IdentityTooLarge, Expected: fmt.Sprintf("at most %d bytes", MaxHeaders), Found: found}
}

// iso8601 is RFC 3339 in UTC, with Z as a letter: ALB sends whole seconds.
const iso8601 = time.DateOnly + "T" + time.TimeOnly + "Z"

// appendHeader appends one header line.
func appendHeader[T string | []byte](dst []byte, name string, value T) []byte {
	dst = append(append(dst, name...), ": "...)
	return append(append(dst, value...), "\r\n"...)
}

// escapedPEM are the two ways of percent-encoding a PEM text.
type escapedPEM struct{ plus, slash, equals string }

var (
	pemLoose  = escapedPEM{"+", "/", "="}       // AWS ALB: "+=/" stay
	pemStrict = escapedPEM{"%2B", "%2F", "%3D"} // all but RFC 3986's unreserved: nginx, Envoy
)

// append renders a certificate as PEM (RFC 7468: 64 columns, LF, one LF at the end), percent-encoded. What needs encoding
// in PEM is known beforehand.
func (e *escapedPEM) append(dst, der []byte) []byte {
	const line = 48 // octets in 64 columns of base64
	var buf [64]byte
	dst = slices.Grow(dst, len(der)*8/5+128) // 4/3 for base64, 3 in 64 for the ends of lines, and some that are escaped
	dst = append(dst, "-----BEGIN%20CERTIFICATE-----%0A"...)
	for len(der) > 0 {
		n := min(line, len(der))
		text := base64.StdEncoding.AppendEncode(buf[:0], der[:n])
		plain := 0 // from here to i nothing needs encoding
		for i, b := range text {
			if b >= '0' && b != '=' {
				continue // a letter or a digit
			}
			dst = append(dst, text[plain:i]...)
			switch plain = i + 1; b {
			case '+':
				dst = append(dst, e.plus...)
			case '/':
				dst = append(dst, e.slash...)
			case '=':
				dst = append(dst, e.equals...)
			}
		}
		dst = append(append(dst, text[plain:]...), "%0A"...)
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
