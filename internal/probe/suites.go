package probe

import (
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
)

// suite is a cipher suite of the registry of TLS.
type suite struct {
	id   uint16
	name string // without the prefix TLS_
}

// suites13 are those of TLS 1.3 (RFC 8446 appendix B.4).
var suites13 = []suite{
	{0x1301, "AES_128_GCM_SHA256"}, {0x1302, "AES_256_GCM_SHA384"}, {0x1303, "CHACHA20_POLY1305_SHA256"},
	{0x1304, "AES_128_CCM_SHA256"}, {0x1305, "AES_128_CCM_8_SHA256"},
}

// suites12 are those of TLS 1.2 that need its PRF or AEADs. Everything that a server could still have switched on is
// here, also what nobody should speak: that is what one wants to hear of.
var suites12 = []suite{
	{0xc02b, "ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"}, {0xc02f, "ECDHE_RSA_WITH_AES_128_GCM_SHA256"},
	{0xc02c, "ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"}, {0xc030, "ECDHE_RSA_WITH_AES_256_GCM_SHA384"},
	{0xcca9, "ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"}, {0xcca8, "ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"},
	{0xc0ac, "ECDHE_ECDSA_WITH_AES_128_CCM"}, {0xc0ad, "ECDHE_ECDSA_WITH_AES_256_CCM"},
	{0xc0ae, "ECDHE_ECDSA_WITH_AES_128_CCM_8"}, {0xc0af, "ECDHE_ECDSA_WITH_AES_256_CCM_8"},
	{0xc05c, "ECDHE_ECDSA_WITH_ARIA_128_GCM_SHA256"}, {0xc05d, "ECDHE_ECDSA_WITH_ARIA_256_GCM_SHA384"},
	{0xc060, "ECDHE_RSA_WITH_ARIA_128_GCM_SHA256"}, {0xc061, "ECDHE_RSA_WITH_ARIA_256_GCM_SHA384"},
	{0x009e, "DHE_RSA_WITH_AES_128_GCM_SHA256"}, {0x009f, "DHE_RSA_WITH_AES_256_GCM_SHA384"},
	{0xccaa, "DHE_RSA_WITH_CHACHA20_POLY1305_SHA256"},
	{0xc09e, "DHE_RSA_WITH_AES_128_CCM"}, {0xc09f, "DHE_RSA_WITH_AES_256_CCM"},
	{0xc052, "DHE_RSA_WITH_ARIA_128_GCM_SHA256"}, {0xc053, "DHE_RSA_WITH_ARIA_256_GCM_SHA384"},
	{0xc023, "ECDHE_ECDSA_WITH_AES_128_CBC_SHA256"}, {0xc024, "ECDHE_ECDSA_WITH_AES_256_CBC_SHA384"},
	{0xc027, "ECDHE_RSA_WITH_AES_128_CBC_SHA256"}, {0xc028, "ECDHE_RSA_WITH_AES_256_CBC_SHA384"},
	{0xc072, "ECDHE_ECDSA_WITH_CAMELLIA_128_CBC_SHA256"}, {0xc073, "ECDHE_ECDSA_WITH_CAMELLIA_256_CBC_SHA384"},
	{0xc076, "ECDHE_RSA_WITH_CAMELLIA_128_CBC_SHA256"}, {0xc077, "ECDHE_RSA_WITH_CAMELLIA_256_CBC_SHA384"},
	{0x0067, "DHE_RSA_WITH_AES_128_CBC_SHA256"}, {0x006b, "DHE_RSA_WITH_AES_256_CBC_SHA256"},
	{0x009c, "RSA_WITH_AES_128_GCM_SHA256"}, {0x009d, "RSA_WITH_AES_256_GCM_SHA384"},
	{0xc09c, "RSA_WITH_AES_128_CCM"}, {0xc09d, "RSA_WITH_AES_256_CCM"},
	{0xc050, "RSA_WITH_ARIA_128_GCM_SHA256"}, {0xc051, "RSA_WITH_ARIA_256_GCM_SHA384"},
	{0x003c, "RSA_WITH_AES_128_CBC_SHA256"}, {0x003d, "RSA_WITH_AES_256_CBC_SHA256"},
	{0x00a6, "DH_anon_WITH_AES_128_GCM_SHA256"}, {0x00a7, "DH_anon_WITH_AES_256_GCM_SHA384"},
	{0x003b, "RSA_WITH_NULL_SHA256"},
}

// suites10 are those that every version before TLS 1.3 can use.
var suites10 = []suite{
	{0xc009, "ECDHE_ECDSA_WITH_AES_128_CBC_SHA"}, {0xc00a, "ECDHE_ECDSA_WITH_AES_256_CBC_SHA"},
	{0xc013, "ECDHE_RSA_WITH_AES_128_CBC_SHA"}, {0xc014, "ECDHE_RSA_WITH_AES_256_CBC_SHA"},
	{0x0033, "DHE_RSA_WITH_AES_128_CBC_SHA"}, {0x0039, "DHE_RSA_WITH_AES_256_CBC_SHA"},
	{0x0045, "DHE_RSA_WITH_CAMELLIA_128_CBC_SHA"}, {0x0088, "DHE_RSA_WITH_CAMELLIA_256_CBC_SHA"},
	{0x002f, "RSA_WITH_AES_128_CBC_SHA"}, {0x0035, "RSA_WITH_AES_256_CBC_SHA"},
	{0x0041, "RSA_WITH_CAMELLIA_128_CBC_SHA"}, {0x0084, "RSA_WITH_CAMELLIA_256_CBC_SHA"},
	{0x0096, "RSA_WITH_SEED_CBC_SHA"}, {0x009a, "DHE_RSA_WITH_SEED_CBC_SHA"},
	{0xc008, "ECDHE_ECDSA_WITH_3DES_EDE_CBC_SHA"}, {0xc012, "ECDHE_RSA_WITH_3DES_EDE_CBC_SHA"},
	{0x0016, "DHE_RSA_WITH_3DES_EDE_CBC_SHA"}, {0x000a, "RSA_WITH_3DES_EDE_CBC_SHA"},
	{0xc007, "ECDHE_ECDSA_WITH_RC4_128_SHA"}, {0xc011, "ECDHE_RSA_WITH_RC4_128_SHA"},
	{0x0005, "RSA_WITH_RC4_128_SHA"}, {0x0004, "RSA_WITH_RC4_128_MD5"},
	{0x0009, "RSA_WITH_DES_CBC_SHA"}, {0x0015, "DHE_RSA_WITH_DES_CBC_SHA"},
	{0x0003, "RSA_EXPORT_WITH_RC4_40_MD5"}, {0x0008, "RSA_EXPORT_WITH_DES40_CBC_SHA"}, {0x0014, "DHE_RSA_EXPORT_WITH_DES40_CBC_SHA"},
	{0xc018, "ECDH_anon_WITH_AES_128_CBC_SHA"}, {0xc019, "ECDH_anon_WITH_AES_256_CBC_SHA"},
	{0x0034, "DH_anon_WITH_AES_128_CBC_SHA"}, {0x003a, "DH_anon_WITH_AES_256_CBC_SHA"}, {0x0018, "DH_anon_WITH_RC4_128_MD5"},
	{0xc006, "ECDHE_ECDSA_WITH_NULL_SHA"}, {0xc010, "ECDHE_RSA_WITH_NULL_SHA"}, {0x0002, "RSA_WITH_NULL_SHA"}, {0x0001, "RSA_WITH_NULL_MD5"},
}

// suitesOf are the suites that make sense in a version.
func suitesOf(version uint16) []uint16 {
	var out []uint16
	add := func(list []suite) {
		for _, s := range list {
			out = append(out, s.id)
		}
	}
	switch version {
	case tls.VersionTLS13:
		add(suites13)
	case tls.VersionTLS12:
		add(suites12)
		add(suites10)
	default:
		add(suites10)
	}
	return out
}

func suiteName(id uint16) string {
	for _, list := range [][]suite{suites13, suites12, suites10} {
		if i := slices.IndexFunc(list, func(s suite) bool { return s.id == id }); i >= 0 {
			return "TLS_" + list[i].name
		}
	}
	return fmt.Sprintf("0x%04X", id)
}

// weakness says what is wrong with a suite; empty for one that is good.
func weakness(name string) string {
	has := func(part string) bool { return strings.Contains(name, part) }
	switch {
	case has("NULL"):
		return "nothing is encrypted"
	case has("_anon_"):
		return "nobody is authenticated"
	case has("EXPORT"), has("_DES_"), has("DES40"), has("RC4"):
		return "broken"
	case has("3DES"):
		return "blocks of 64 bits (SWEET32)"
	case strings.HasPrefix(name, "TLS_RSA_"):
		return "no forward secrecy"
	case has("_CBC_"):
		return "CBC"
	case has("CCM_8"):
		return "tags of 64 bits"
	}
	return ""
}

// group is a key exchange by a name of the registry (RFC 8446 section 4.2.7).
type group struct {
	id   tls.CurveID
	name string
}

// groups are those that are asked about, each by its own key share.
var groups = []group{
	{tls.X25519MLKEM768, "X25519MLKEM768"}, {tls.X25519, "X25519"}, {tls.CurveP256, "P-256"}, {tls.CurveP384, "P-384"}, {tls.CurveP521, "P-521"},
}

// otherGroups may be met in answers.
var otherGroups = []group{{0x001e, "X448"}, {0x0100, "ffdhe2048"}, {0x0101, "ffdhe3072"}, {0x0102, "ffdhe4096"}, {0x11eb, "SecP256r1MLKEM768"}, {0x11ed, "SecP384r1MLKEM1024"}}

func groupName(id tls.CurveID) string {
	for _, list := range [][]group{groups, otherGroups} {
		if i := slices.IndexFunc(list, func(g group) bool { return g.id == id }); i >= 0 {
			return list[i].name
		}
	}
	return fmt.Sprintf("0x%04X", uint16(id))
}

// schemes are the signature algorithms that are offered to servers, and the names of those that servers may ask for
// (RFC 8446 section 4.2.3, RFC 5246 section 7.4.1.4.1).
var schemes = []struct {
	id   tls.SignatureScheme
	name string
}{
	{tls.ECDSAWithP256AndSHA256, "ecdsa_secp256r1_sha256"}, {tls.PSSWithSHA256, "rsa_pss_rsae_sha256"}, {tls.PKCS1WithSHA256, "rsa_pkcs1_sha256"},
	{tls.ECDSAWithP384AndSHA384, "ecdsa_secp384r1_sha384"}, {tls.PSSWithSHA384, "rsa_pss_rsae_sha384"}, {tls.PKCS1WithSHA384, "rsa_pkcs1_sha384"},
	{tls.ECDSAWithP521AndSHA512, "ecdsa_secp521r1_sha512"}, {tls.PSSWithSHA512, "rsa_pss_rsae_sha512"}, {tls.PKCS1WithSHA512, "rsa_pkcs1_sha512"},
	{tls.Ed25519, "ed25519"}, {0x0808, "ed448"}, {0x0809, "rsa_pss_pss_sha256"}, {0x080a, "rsa_pss_pss_sha384"}, {0x080b, "rsa_pss_pss_sha512"},
	{0x0904, "mldsa44"}, {0x0905, "mldsa65"}, {0x0906, "mldsa87"},
	{0x081a, "ecdsa_brainpoolP256r1tls13_sha256"}, {0x081b, "ecdsa_brainpoolP384r1tls13_sha384"}, {0x081c, "ecdsa_brainpoolP512r1tls13_sha512"},
	{0x0303, "ecdsa_sha224"}, {0x0301, "rsa_pkcs1_sha224"}, {0x0402, "dsa_sha256"}, {0x0502, "dsa_sha384"}, {0x0602, "dsa_sha512"}, {0x0302, "dsa_sha224"},
	{tls.ECDSAWithSHA1, "ecdsa_sha1"}, {tls.PKCS1WithSHA1, "rsa_pkcs1_sha1"}, {0x0202, "dsa_sha1"}, {0x0101, "rsa_md5"},
}

func schemeName(id tls.SignatureScheme) string {
	for _, s := range schemes {
		if s.id == id {
			return s.name
		}
	}
	return fmt.Sprintf("0x%04X", uint16(id))
}

// certificateTypes are those of TLS 1.2 (RFC 5246 section 7.4.4, RFC 8422 section 5.5).
var certificateTypes = map[uint8]string{1: "rsa_sign", 2: "dss_sign", 3: "rsa_fixed_dh", 4: "dss_fixed_dh", 64: "ecdsa_sign", 65: "rsa_fixed_ecdh", 66: "ecdsa_fixed_ecdh"}

func certificateTypeName(t uint8) string {
	if name := certificateTypes[t]; name != "" {
		return name
	}
	return fmt.Sprintf("0x%02X", t)
}

// versions are those that are asked about, best first.
var versions = []uint16{tls.VersionTLS13, tls.VersionTLS12, tls.VersionTLS11, tls.VersionTLS10}
