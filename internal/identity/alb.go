package identity

import (
	"crypto/x509"
	"slices"
)

// albHeaders are AWS ALB's headers, in its order and spelling; albAttributes are the names of their listener attributes
// routing.http.request.x_amzn_mtls_clientcert_NAME.header_name (docs.aws.amazon.com, "Header modification for your
// Application Load Balancer"), the last being x_amzn_mtls_clientcert itself.
var (
	albHeaders = [...]string{
		"X-Amzn-Mtls-Clientcert-Serial-Number",
		"X-Amzn-Mtls-Clientcert-Issuer",
		"X-Amzn-Mtls-Clientcert-Subject",
		"X-Amzn-Mtls-Clientcert-Validity",
		"X-Amzn-Mtls-Clientcert-Leaf",
		"X-Amzn-Mtls-Clientcert",
	}
	albAttributes = [len(albHeaders)]string{"serial_number", "issuer", "subject", "validity", "leaf", "clientcert"}
)

const (
	albSerial = iota
	albIssuer
	albSubject
	albValidity
	albLeaf
	albChain
)

// ALBAttributes returns the keys of [Options].Rename.
func ALBAttributes() []string { return slices.Clone(albAttributes[:]) }

func (s *Style) appendALBName(dst []byte, i int) []byte {
	name := s.alb[i]
	if name == "" {
		name = albHeaders[i]
	}
	return append(append(dst, name...), ": "...)
}

// appendALB renders the five headers of AWS ALB's verify mode (docs.aws.amazon.com, "Mutual authentication with TLS in
// Application Load Balancer"; values checked against what live balancers sent).
func (r *rendering) appendALB(dst []byte) []byte {
	s, leaf := r.style, r.id.Leaf()
	dst = append(s.appendALBName(dst, albSerial), r.id.serial...)
	dst = append(s.appendALBName(append(dst, "\r\n"...), albIssuer), r.id.issuer...)
	dst = append(s.appendALBName(append(dst, "\r\n"...), albSubject), r.id.subject...)
	dst = append(s.appendALBName(append(dst, "\r\n"...), albValidity), "NotBefore="...)
	dst = leaf.NotBefore.UTC().AppendFormat(dst, iso8601)
	dst = append(dst, ";NotAfter="...)
	dst = leaf.NotAfter.UTC().AppendFormat(dst, iso8601)
	dst = pemLoose.append(s.appendALBName(append(dst, "\r\n"...), albLeaf), leaf.Raw)
	return append(dst, "\r\n"...)
}

// appendALBPassthrough renders the one header of AWS ALB's passthrough mode: the whole list as presented, leaf first,
// one PEM text behind the other. It is not sent in verify mode, and the five are not sent in passthrough (D09).
func (s *Style) appendALBPassthrough(dst []byte, presented []*x509.Certificate) []byte {
	dst = s.appendALBName(dst, albChain)
	for _, cert := range presented {
		dst = pemLoose.append(dst, cert.Raw)
	}
	return append(dst, "\r\n"...)
}
