package origin

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pires/go-proxyproto"

	"countersign/internal/identity"
)

// Part is a TLV, or a group of them, of a PROXY header of version 2.
type Part uint16

// The parts. Those from CommonName on stand inside TLS and bring it along.
const (
	ALPN       Part = 1 << iota
	Authority       // the server name that the client asked for
	Checksum        // CRC32c
	UniqueID        // the connection's reference in our records
	TLS             // whether the client speaks it and was verified, version and cipher suite
	CommonName      // of the verified client
	ClientCert      // the verified client's certificate, in DER
	ServerCert      // the algorithms of the certificate that the client was shown
)

var partNames = []string{"alpn", "authority", "crc32c", "unique_id", "tls", "cn", "client_cert", "server_cert"}

// ParsePart finds a part by its name in the configuration.
func ParsePart(name string) (Part, bool) {
	for i, n := range partNames {
		if n == name {
			return 1 << i, true
		}
	}
	return 0, false
}

// Announcement says what a target is told about each client's connection, before anything else is sent to it. A
// connection that has announced one client must never serve another.
type Announcement struct {
	// Version of the PROXY protocol: 1 or 2.
	Version uint8
	// Parts are what version 2 says besides addresses.
	Parts Part
}

// Facts are what is known about a client's connection.
type Facts struct {
	// Client and Local are those of its Origin; those of a Unix socket are not valid.
	Client, Local netip.AddrPort
	// Ref is the connection's reference in our records.
	Ref string
	// ServerName is what the client asked for, as it wrote it; empty for nothing.
	ServerName string
	// TLS is the state of the client's TLS, nil on a connection without or whose TLS is passed through.
	TLS *tls.ConnectionState
	// Identity is the verified client; nil for everybody else, whatever was presented. There is no other way to say that a
	// client was verified.
	Identity *identity.Identity
	// Server is the certificate that the client was shown; nil when not known.
	Server *x509.Certificate
}

// The flags of the TLS part.
const (
	clientTLS         = 1
	clientCertHere    = 2 // in this connection's handshake
	clientCertSession = 4 // in the handshake that the session began with
)

// unverified is the verify result of a client that presented nothing or was not verified. The specification asks for
// anything but zero; this is OpenSSL's X509_V_ERR_UNSPECIFIED.
const unverified = 1

// maxCommonName is the longest common name that is announced; a longer one is left out, not cut. X.520 allows 64.
const maxCommonName = 256

// Append appends the header that tells a target of f. It reports whether something was left out because the header would
// be longer than receivers accept: a client certificate above all. On dst nothing else changes.
func (a Announcement) Append(dst []byte, f *Facts) (out []byte, dropped bool) {
	h := proxyproto.HeaderProxyFromAddrs(a.Version, tcpAddr(f.Client), tcpAddr(f.Local))
	if a.Version != 2 {
		return appendHeader(dst, h), false
	}
	var tlvs []byte
	if p := f.TLS; a.Parts&ALPN != 0 && p != nil && p.NegotiatedProtocol != "" {
		tlvs, dropped = appendTLV(tlvs, proxyproto.PP2_TYPE_ALPN, p.NegotiatedProtocol, maxText, dropped)
	}
	if a.Parts&Authority != 0 && f.ServerName != "" {
		tlvs, dropped = appendTLV(tlvs, proxyproto.PP2_TYPE_AUTHORITY, f.ServerName, maxText, dropped)
	}
	if a.Parts&UniqueID != 0 && f.Ref != "" {
		tlvs, dropped = appendTLV(tlvs, proxyproto.PP2_TYPE_UNIQUE_ID, f.Ref, maxUniqueID, dropped)
	}
	if a.Parts >= TLS && f.TLS != nil {
		tlvs, dropped = a.appendTLS(tlvs, f, dropped)
	}
	at := 0
	if a.Parts&Checksum != 0 {
		tlvs, _ = appendTLV(tlvs, proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00", 4, false)
		at = len(tlvs)
	}
	if list, err := proxyproto.SplitTLVs(tlvs); err == nil {
		_ = h.SetTLVs(list) // fails on values that a length cannot say; ours are bounded
	}
	begin := len(dst)
	dst = appendHeader(dst, h)
	if at > 0 {
		whole := dst[begin:]
		at = len(whole) - 4
		binary.BigEndian.PutUint32(whole[at:], checksumOf(whole, at))
	}
	return dst, dropped
}

// AppendOwn appends the header of a connection of our own, such as a health check: LOCAL, or UNKNOWN in version 1.
func (a Announcement) AppendOwn(dst []byte) []byte {
	return appendHeader(dst, proxyproto.HeaderProxyFromAddrs(a.Version, nil, nil))
}

// appendTLS appends what the client's TLS says. What does not fit is left out whole, the certificate first.
func (a Announcement) appendTLS(tlvs []byte, f *Facts, dropped bool) ([]byte, bool) {
	s := f.TLS
	v := []byte{clientTLS, 0, 0, 0, unverified}
	if len(s.PeerCertificates) > 0 {
		if v[0] |= clientCertSession; !s.DidResume {
			v[0] |= clientCertHere
		}
		if f.Identity != nil {
			v[4] = 0
		}
	}
	v, dropped = appendTLV(v, proxyproto.PP2_SUBTYPE_SSL_VERSION, strings.Replace(tls.VersionName(s.Version), "TLS ", "TLSv", 1), maxText, dropped)
	v, dropped = appendTLV(v, proxyproto.PP2_SUBTYPE_SSL_CIPHER, cipherName(s.CipherSuite), maxText, dropped)
	if a.Parts&ServerCert != 0 && f.Server != nil {
		if name := signatureName(f.Server.SignatureAlgorithm); name != "" {
			v, dropped = appendTLV(v, proxyproto.PP2_SUBTYPE_SSL_SIG_ALG, name, maxText, dropped)
		}
		if name := keyName(f.Server.PublicKey); name != "" {
			v, dropped = appendTLV(v, proxyproto.PP2_SUBTYPE_SSL_KEY_ALG, name, maxText, dropped)
		}
	}
	if v[4] == 0 {
		leaf := f.Identity.Leaf()
		if a.Parts&CommonName != 0 {
			if cn := commonName(leaf); cn != "" {
				v, dropped = appendTLV(v, proxyproto.PP2_SUBTYPE_SSL_CN, cn, maxCommonName, dropped)
			}
		}
		if a.Parts&ClientCert != 0 {
			// Room for the addresses, the TLV itself and the checksum.
			room := maxBlock - 216 - 3 - 7 - len(tlvs) - len(v) - 3
			v, dropped = appendTLV(v, proxyproto.PP2_SUBTYPE_SSL_CLIENT_CERT, string(leaf.Raw), room, dropped)
		}
	}
	return appendTLV(tlvs, proxyproto.PP2_TYPE_SSL, string(v), maxBlock, dropped)
}

// appendTLV appends a TLV of at most limit bytes; a longer one is left out.
func appendTLV(dst []byte, kind proxyproto.PP2Type, value string, limit int, dropped bool) ([]byte, bool) {
	if len(value) > limit {
		return dst, true
	}
	dst = binary.BigEndian.AppendUint16(append(dst, byte(kind)), uint16(len(value)))
	return append(dst, value...), dropped
}

// appendHeader appends h, which is one that can be written.
func appendHeader(dst []byte, h *proxyproto.Header) []byte {
	b, err := h.Format()
	if err != nil { // not of a header that is made here
		panic("origin: " + err.Error())
	}
	return append(dst, b...)
}

// tcpAddr is nil for an address that is not valid.
func tcpAddr(a netip.AddrPort) net.Addr {
	if !a.IsValid() {
		return nil
	}
	return net.TCPAddrFromAddrPort(plain(a))
}

// commonName is the client's, empty unless there is exactly one that can be written as text.
func commonName(leaf *x509.Certificate) string {
	cn := ""
	for _, n := range leaf.Subject.Names {
		if !n.Type.Equal(oidCommonName) {
			continue
		}
		text, ok := n.Value.(string)
		if !ok || cn != "" || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
			return ""
		}
		cn = text
	}
	return cn
}

var oidCommonName = []int{2, 5, 4, 3}

// cipherName is OpenSSL's name of a cipher suite, which is what receivers know.
func cipherName(id uint16) string {
	name := tls.CipherSuiteName(id)
	key, bulk, old := strings.Cut(strings.TrimPrefix(name, "TLS_"), "_WITH_")
	if !old {
		return name // TLS 1.3, whose names are the same everywhere
	}
	bulk = strings.TrimSuffix(bulk, "_SHA256_OLD")
	bulk = strings.Replace(strings.Replace(bulk, "AES_", "AES", 1), "_CBC", "", 1)
	if strings.HasPrefix(bulk, "CHACHA20") {
		bulk = "CHACHA20_POLY1305"
	}
	if key != "RSA" {
		bulk = key + "_" + bulk
	}
	return strings.ReplaceAll(bulk, "_", "-")
}

// signatureName is OpenSSL's short name of the algorithm that a certificate is signed with.
func signatureName(a x509.SignatureAlgorithm) string {
	switch a {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA:
		return "RSA-" + strings.TrimSuffix(a.String(), "-RSA")
	case x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512:
		return "ecdsa-with-" + strings.TrimPrefix(a.String(), "ECDSA-")
	case x509.PureEd25519:
		return "ED25519"
	case x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS:
		return "RSASSA-PSS"
	}
	return ""
}

// keyName is the kind and size of a key, as HAProxy writes it.
func keyName(key any) string {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return "RSA" + strconv.Itoa(k.N.BitLen())
	case *ecdsa.PublicKey:
		return "EC" + strconv.Itoa(k.Curve.Params().BitSize)
	case ed25519.PublicKey:
		return "ED25519"
	}
	return ""
}
