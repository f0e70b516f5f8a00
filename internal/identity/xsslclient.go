package identity

import (
	"encoding/hex"
)

// xsslHeaders are the names that set-ups of nginx and HAProxy commonly use, one set of them: the part behind X- is nginx's
// variable where there is one ($ssl_client_verify, _s_dn, _i_dn, _serial, _escaped_cert), and HAProxy's blog and
// OpenStack Octavia for the dates. Every other spelling around, like X-SSL-Client-DN, is removed from clients all the same.
var xsslHeaders = [...]string{
	"X-SSL-Client-Verify",
	"X-SSL-Client-S-DN",
	"X-SSL-Client-I-DN",
	"X-SSL-Client-Serial",
	"X-SSL-Client-SHA256",
	"X-SSL-Client-Not-Before",
	"X-SSL-Client-Not-After",
	"X-SSL-Client-Cert",
}

// asn1Time is how OpenSSL prints dates and nginx has them in $ssl_client_v_start: Nov  2 21:04:36 2026 GMT.
const asn1Time = "Jan _2 15:04:05 2006 GMT"

// appendXSSLClient renders the X-SSL-Client-* set with the forms of nginx's variables (nginx.org, module
// ngx_http_ssl_module, embedded variables): names after RFC 2253, the serial in upper-case hexadecimal, dates as OpenSSL
// prints them, the leaf as PEM with all but RFC 3986's unreserved characters percent-encoded. The fingerprint is SHA-256 in
// lower-case hexadecimal; nginx's own SHA-1 is not offered, nothing should be built on it any more.
//
// X-SSL-Client-Verify is there for every client, and the only header of all dialects that is: SUCCESS, NONE, or FAILED:
// and the code of the reason, FAILED:not_verified if there was no verdict (A39).
func (r *rendering) appendXSSLClient(dst []byte, c Client) []byte {
	dst = appendHeader(dst, xsslHeaders[0], c.verdict())
	if c.id == nil {
		return dst
	}
	id, leaf := c.id, c.id.Leaf()
	dst = appendHeader(dst, xsslHeaders[1], id.subject)
	dst = appendHeader(dst, xsslHeaders[2], id.issuer)
	dst = appendHeader(dst, xsslHeaders[3], id.serial)
	dst = appendHeader(dst, xsslHeaders[4], hex.EncodeToString(id.fingerprint[:]))
	dst = appendHeader(dst, xsslHeaders[5], leaf.NotBefore.UTC().Format(asn1Time))
	dst = appendHeader(dst, xsslHeaders[6], leaf.NotAfter.UTC().Format(asn1Time))
	dst = append(append(dst, xsslHeaders[7]...), ": "...)
	return append(pemStrict.append(dst, leaf.Raw), "\r\n"...)
}
