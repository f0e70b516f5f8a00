package identity

import (
	"encoding/base64"
	"encoding/hex"
	"math/big"
	"strings"
)

// gcpHeaders are the names of Google's own examples (docs.cloud.google.com, "Set up frontend mTLS with user-provided
// certificates", Add mTLS custom headers), which its operators copy; Issuer-DN and those after it, which have no example
// there, follow the variables.
var gcpHeaders = [...]string{
	"X-Client-Cert-Present",
	"X-Client-Cert-Chain-Verified",
	"X-Client-Cert-Error",
	"X-Client-Cert-Hash",
	"X-Client-Cert-Serial-Number",
	"X-Client-Cert-SPIFFE",
	"X-Client-Cert-URI-SANs",
	"X-Client-Cert-DNSName-SANs",
	"X-Client-Cert-Valid-Not-Before",
	"X-Client-Cert-Valid-Not-After",
	"X-Client-Cert-Issuer-DN",
	"X-Client-Cert-Subject-DN",
	"X-Client-Cert-Leaf",
	"X-Client-Cert-Chain",
}

// gcpTime is RFC 3339 with the offset in digits, as in Google's example 2022-07-01T18:05:09+00:00.
const gcpTime = "2006-01-02T15:04:05-07:00"

// appendGCP renders the variables client_cert_* of Google Cloud's Application Load Balancers (cloud.google.com, "Create
// custom headers in backend services", mutual TLS custom headers). Encodings that the page leaves open are those of a live
// balancer, recorded in a public walk-through (Apigee's sample-mtls): the fingerprint is base64 without padding, names are base64
// with, the serial is the INTEGER's octets in hexadecimal with colons. A value over its documented limit is left out and
// its name put into Error, as there; a header with nothing to say is left out. DER and base64 keep every hostile name
// harmless and whole (D07).
//
// Google's balancer sends Present: false and Error for clients without a verified certificate; here a missing header is
// the statement, as for every dialect.
func (r *rendering) appendGCP(dst []byte) []byte {
	id, leaf := r.id, r.id.Leaf()
	var errs []string
	limited := func(value []byte, limit int, variable string) []byte {
		if len(value) > limit {
			errs = append(errs, "client_cert_"+variable+"_exceeded_size_limit")
			return nil
		}
		return value
	}
	names := altNamesOf(leaf)
	var spiffe []byte
	uris := names.uris
	if at := spiffeID(uris); at >= 0 {
		spiffe = uris[at]
		uris = append(append([][]byte(nil), uris[:at]...), uris[at+1:]...)
	}
	values := [len(gcpHeaders)][]byte{
		0:  []byte("true"),
		1:  []byte("true"),
		3:  base64.RawStdEncoding.AppendEncode(nil, id.fingerprint[:]),
		4:  colonHex(limited(integerOctets(leaf.SerialNumber), 50, "serial_number")),
		5:  limited(spiffe, 2048, "spiffe_id"),
		6:  limited(base64List(uris), 512, "uri_sans"),
		7:  limited(base64List(names.dns), 512, "dnsname_sans"),
		8:  leaf.NotBefore.UTC().AppendFormat(nil, gcpTime),
		9:  leaf.NotAfter.UTC().AppendFormat(nil, gcpTime),
		10: limited(base64.StdEncoding.AppendEncode(nil, leaf.RawIssuer), 512, "issuer_dn"),
		11: limited(base64.StdEncoding.AppendEncode(nil, leaf.RawSubject), 512, "subject_dn"),
		12: appendByteSequence(nil, leaf),
		13: appendByteSequences(nil, r.chain),
	}
	if r.dropped {
		errs = append(errs, "client_cert_validated_chain_exceeded_size_limit")
	}
	values[2] = []byte(strings.Join(errs, ","))
	for i, value := range values {
		if len(value) > 0 {
			dst = appendHeader(dst, gcpHeaders[i], value)
		}
	}
	return dst
}

// integerOctets are the contents octets of a DER INTEGER that is not negative; those that are, trust refuses.
func integerOctets(n *big.Int) []byte {
	octets := n.Bytes()
	if len(octets) == 0 || octets[0] >= 0x80 {
		return append([]byte{0}, octets...)
	}
	return octets
}

func colonHex(octets []byte) (out []byte) {
	for i, b := range octets {
		if i > 0 {
			out = append(out, ':')
		}
		out = hex.AppendEncode(out, []byte{b})
	}
	return out
}

func base64List(items [][]byte) (out []byte) {
	for i, item := range items {
		if i > 0 {
			out = append(out, ',')
		}
		out = base64.StdEncoding.AppendEncode(out, item)
	}
	return out
}
