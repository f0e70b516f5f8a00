package identity

import "strings"

// psd2Headers are names of ours: no other product has any for this. They are under X-Countersign-, which no client can
// send past us.
var psd2Headers = [...]string{
	"X-Countersign-PSD2-Roles",
	"X-Countersign-PSD2-Authority-Id",
	"X-Countersign-PSD2-Authority-Name",
	"X-Countersign-PSD2-Organization",
}

// appendPSD2 renders what a qualified certificate says about a payment service provider (ETSI TS 119 495): its roles,
// comma-separated (PSP_AS, PSP_PI, PSP_AI, PSP_IC), the competent authority, and the provider's authorization number. A
// client without a statement that can be read has none of these headers. Everything but printable ASCII, and the percent
// sign, is percent-encoded UTF-8.
func (r *rendering) appendPSD2(dst []byte) []byte {
	p, ok := r.id.PSD2()
	if !ok {
		return dst
	}
	dst = appendHeader(dst, psd2Headers[0], strings.Join(p.Roles, ","))
	dst = appendHeader(dst, psd2Headers[1], appendPrintable(nil, p.AuthorityID))
	dst = appendHeader(dst, psd2Headers[2], appendPrintable(nil, p.AuthorityName))
	if p.Organization != "" {
		dst = appendHeader(dst, psd2Headers[3], appendPrintable(nil, p.Organization))
	}
	return dst
}

// appendPrintable percent-encodes what a header value cannot have, and the percent sign. Spaces at the ends are encoded
// too: they would not survive.
func appendPrintable(dst []byte, s string) []byte {
	const digits = "0123456789ABCDEF"
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c < ' ' || c > '~' || c == '%' || c == ' ' && (i == 0 || i == len(s)-1) {
			dst = append(dst, '%', digits[c>>4], digits[c&15])
			continue
		}
		dst = append(dst, c)
	}
	return dst
}
