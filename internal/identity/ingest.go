package identity

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/url"
	"strings"

	"countersign/internal/message"
	"countersign/internal/reason"
)

// Ingest reads the identity that a proxy in front of us asserts for its client. The caller has checked that the sender
// authenticated itself with a certificate of its own and is listed as such a proxy; from anybody else these headers are
// removed unread (D01). The zero value reads nothing and refuses.
type Ingest struct {
	dialect  Dialect
	appended bool
}

// NewIngest takes [RFC9440] or [XFCC], the dialects that carry a certificate and say nothing beside it that we would have
// to believe.
//
// appended is for XFCC of proxies that put their own element behind those they were sent (Envoy's APPEND_FORWARD): the last
// element is the proxy's word on its client, and those before it are of earlier hops. Without it an element is all there
// may be.
func NewIngest(d Dialect, appended bool) (Ingest, error) {
	switch {
	case d != RFC9440 && d != XFCC:
		return Ingest{}, fmt.Errorf("an identity cannot be taken from dialect %s, only from %s and %s", d, RFC9440, XFCC)
	case appended && d != XFCC:
		return Ingest{}, fmt.Errorf("dialect %s has no elements of earlier hops, only %s has", d, XFCC)
	}
	return Ingest{d, appended}, nil
}

// Header returns the name of the header that holds the client's certificate.
func (in Ingest) Header() string {
	if in.dialect == XFCC {
		return forwardedClientCert
	}
	return clientCert
}

// assertions are the names that each dialect asserts a client under, folded.
var assertions = func() (all [dialects][]member) {
	for _, d := range []Dialect{RFC9440, XFCC} {
		for _, name := range dialectHeaders[d] {
			all[d] = append(all[d], member{name: foldName(name)})
		}
	}
	return all
}()

// AppendAsserted appends all that Presented would look at: names and values of the fields under the dialect's names, in
// whatever spelling. Requests for which it appends the same assert the same, and one for which it appends nothing asserts
// nothing. It allocates nothing but room in dst.
func (in Ingest) AppendAsserted(dst []byte, fields []message.Field) []byte {
	if in.dialect >= dialects {
		return dst
	}
	for i := range fields {
		f := &fields[i]
		for j := range assertions[in.dialect] {
			if assertions[in.dialect][j].matches(f.Name) {
				dst = binary.AppendUvarint(dst, uint64(len(f.Name)))
				dst = binary.AppendUvarint(append(dst, f.Name...), uint64(len(f.Value)))
				dst = append(dst, f.Value...)
			}
		}
	}
	return dst
}

// Presented returns the certificates asserted in a request, leaf first, or none if the proxy asserted none. They are what
// the proxy says that its client presented, no more: the caller verifies them as if they came out of a handshake, and only
// then has an identity (B07, A39).
//
// One certificate is taken from one header of at most [MaxHeaders] bytes, in exactly the form that the dialect's document
// gives it. Whatever else is there under its name, in whatever spelling, is refused (D03, D04): a [reason.Refusal] of
// [reason.BadHeader].
func (in Ingest) Presented(fields []message.Field) ([]*x509.Certificate, error) {
	switch in.dialect {
	case RFC9440:
		return presentedRFC9440(fields)
	case XFCC:
		return presentedXFCC(fields, in.appended)
	}
	return nil, &reason.Refusal{Reason: reason.Internal, Expected: "a dialect to take identity from", Found: in.dialect.String()}
}

// single returns the value of the one field of that name, or nil if there is none.
func single(fields []message.Field, name string) (value []byte, err error) {
	folded, seen := foldName(name), false
	twin := member{name: folded}
	for i := range fields {
		f := &fields[i]
		if !twin.matches(f.Name) {
			continue
		}
		switch {
		case !strings.EqualFold(string(f.Name), name):
			return nil, badAssertion("the spelling "+name, f.Name)
		case seen:
			return nil, badForm("one "+name, "two")
		case len(f.Value) == 0:
			return nil, badAssertion("a value of "+name, nil)
		case len(f.Value) > MaxHeaders:
			return nil, badForm(fmt.Sprintf("at most %d bytes of %s", MaxHeaders, name), fmt.Sprintf("%d bytes", len(f.Value)))
		}
		for _, b := range f.Value {
			if b < ' ' || b > '~' {
				return nil, badAssertion("printable ASCII in "+name, f.Value)
			}
		}
		value, seen = f.Value, true
	}
	return value, nil
}

// badAssertion quotes what was found; badForm says in words of ours what is there.
func badAssertion(expected string, found []byte) error {
	return badForm(expected, fmt.Sprintf("%.40q", found))
}

func badForm(expected, found string) error {
	return &reason.Refusal{Reason: reason.BadHeader, Expected: expected, Found: found}
}

// presentedRFC9440 reads Client-Cert and Client-Cert-Chain.
func presentedRFC9440(fields []message.Field) ([]*x509.Certificate, error) {
	leaf, err := single(fields, clientCert)
	if err != nil {
		return nil, err
	}
	chain, err := single(fields, clientCertChain)
	switch {
	case err != nil:
		return nil, err
	case leaf == nil && chain != nil:
		return nil, badForm(clientCert+" beside "+clientCertChain, "none")
	case leaf == nil:
		return nil, nil
	case len(leaf)+len(chain) > MaxHeaders:
		return nil, badForm(fmt.Sprintf("at most %d bytes of certificates", MaxHeaders), fmt.Sprintf("%d bytes", len(leaf)+len(chain)))
	}
	items := [][]byte{leaf}
	if chain != nil { // a list: RFC 8941 section 4.2.1
		for item := range bytes.SplitSeq(chain, []byte(",")) {
			items = append(items, bytes.Trim(item, " "))
		}
	}
	certs := make([]*x509.Certificate, len(items))
	for i, item := range items {
		// A byte sequence (RFC 8941 section 4.2.7). We ask for the padding and for zero pad bits, which every encoder
		// sends, and take no parameters, which RFC 9440 has none of.
		n := len(item)
		if n < 2 || item[0] != ':' || item[n-1] != ':' {
			return nil, badAssertion("a byte sequence between colons", item)
		}
		der, err := base64.StdEncoding.Strict().AppendDecode(nil, item[1:n-1])
		if err != nil {
			return nil, &reason.Refusal{Reason: reason.BadHeader, Expected: "base64 between colons", Cause: err}
		}
		if certs[i], err = parseAsserted(der); err != nil {
			return nil, err
		}
	}
	return certs, nil
}

func parseAsserted(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, &reason.Refusal{Reason: reason.BadHeader, Expected: "a certificate", Found: "something else", Cause: err}
	}
	return cert, nil
}

// presentedXFCC reads the certificate out of X-Forwarded-Client-Cert: of its one element, Chain, or Cert if there is no
// Chain. Several elements tell of several hops, and which of them is the client is not ours to guess, unless the proxy is
// known to have appended the last one. What the element says twice has to agree; Subject, URI and DNS are not read.
func presentedXFCC(fields []message.Field, appended bool) ([]*x509.Certificate, error) {
	value, err := single(fields, forwardedClientCert)
	if value == nil || err != nil {
		return nil, err
	}
	elements, err := parseXFCC(value)
	if err != nil {
		return nil, err
	}
	if len(elements) != 1 && !appended {
		return nil, badXFCCForm("one element", fmt.Sprintf("%d elements", len(elements)))
	}
	element := elements[len(elements)-1]
	var leaf, certs []*x509.Certificate
	if text := element["cert"]; text != nil {
		if leaf, err = parseEscapedPEM(text[0]); err != nil {
			return nil, err
		}
		if len(leaf) != 1 {
			return nil, badXFCCForm("one certificate in Cert", fmt.Sprint(len(leaf)))
		}
		certs = leaf
	}
	if text := element["chain"]; text != nil {
		if certs, err = parseEscapedPEM(text[0]); err != nil {
			return nil, err
		}
		if leaf != nil && !leaf[0].Equal(certs[0]) {
			return nil, badXFCCForm("Chain to begin with Cert", "another certificate")
		}
	}
	if certs == nil {
		return nil, badXFCCForm("Cert or Chain", "neither")
	}
	if text := element["hash"]; text != nil {
		sum := sha256.Sum256(certs[0].Raw)
		if hash, err := hex.DecodeString(text[0]); err != nil || !bytes.Equal(hash, sum[:]) {
			return nil, badXFCC("Hash to be that of the certificate", text[0])
		}
	}
	return certs, nil
}

// parseEscapedPEM reads percent-encoded PEM, one or more certificates and nothing else: no text around them, no headers,
// lines of 64 columns as RFC 7468 wants generators to write them. A missing last line end is forgiven.
func parseEscapedPEM(text string) (certs []*x509.Certificate, err error) {
	plain, err := url.PathUnescape(text) // not a query: + is a character of base64
	if err != nil {
		return nil, &reason.Refusal{Reason: reason.BadHeader, Expected: "percent-encoded PEM", Cause: err}
	}
	if plain != "" && !strings.HasSuffix(plain, "\n") {
		plain += "\n"
	}
	rest := []byte(plain)
	for len(rest) > 0 {
		var canonical []byte
		block, _ := pem.Decode(rest)
		if block != nil {
			canonical = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})
		}
		if block == nil || !bytes.HasPrefix(rest, canonical) {
			return nil, badAssertion("percent-encoded PEM of certificates and nothing else", rest)
		}
		cert, err := parseAsserted(block.Bytes)
		if err != nil {
			return nil, err
		}
		certs, rest = append(certs, cert), rest[len(canonical):]
	}
	if certs == nil {
		return nil, badAssertion("percent-encoded PEM", nil)
	}
	return certs, nil
}
