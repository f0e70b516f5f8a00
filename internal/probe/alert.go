package probe

import (
	"errors"
	"fmt"
	"net"
	"reflect"
)

// Alert is a TLS alert as it is on the wire (RFC 8446 section 6).
type Alert uint8

// The alerts that decide something here.
const (
	alertCertificateRequired Alert = 116
	alertNoProtocol          Alert = 120
)

// alertText is what an alert from a server means to whoever uses mutual TLS.
type alertText struct {
	name  string
	means string // what the server says, and its likely cause
	next  string
}

const lookThere = "the server's own log says why; look there for this moment and address"

// alerts are those of RFC 8446 section 6 and RFC 5246 section 7.2, with what older and other documents have added to
// the registry.
var alerts = map[Alert]alertText{
	0: {"close_notify", "the server ended the connection in an orderly way, without an error",
		"ask for what this server speaks; if it ends every connection so, look in its log for a limit or an address filter"},
	10: {"unexpected_message", "the server got a message that it did not expect at this point; often it speaks TLS with another step before it",
		"check the port, and whether it wants STARTTLS (--starttls) or the PROXY protocol (--proxy-protocol)"},
	20: {"bad_record_mac", "a record could not be decrypted: something between here and there changes bytes, or one side has a fault",
		"try from the server's own network; look for a device in between that inspects TLS"},
	21: {"decryption_failed", "a record could not be decrypted; only very old servers say so",
		"update the server's TLS library"},
	22: {"record_overflow", "the server got a record longer than TLS allows: something between changes bytes, or this port speaks another protocol",
		"check the port; look for a device in between that inspects TLS"},
	30: {"decompression_failure", "the server could not decompress a record; only very old servers say so",
		"switch TLS compression off on the server and update its TLS library"},
	40: {"handshake_failure", "the server found nothing that both sides accept: cipher suite, group or signature algorithm. Many servers also say this when a client certificate is required and none was sent",
		"compare what is accepted here with what the client offers; if a client certificate is requested, try with --cert and --key"},
	41: {"no_certificate", "SSL 3.0's word for a client that has no certificate",
		"the server requires a client certificate: send one that it accepts; and it should leave SSL 3.0 behind"},
	42: {"bad_certificate", "the client certificate could not be read, its signature is wrong, or the handshake was not signed with its key. Some servers, older ones of Go among them, also say this when none was sent or when no CA of theirs issued it",
		"check that certificate and key belong together and that the chain is sent whole; the server's log names the fault"},
	43: {"unsupported_certificate", "the client certificate is of a kind that the server does not take: key type, signature algorithm, or purpose (extendedKeyUsage without clientAuth)",
		"compare it with the signature algorithms that the server asks for, and look for clientAuth: openssl x509 -in FILE -noout -ext extendedKeyUsage"},
	44: {"certificate_revoked", "the CA of the client certificate, or the operator of the server, has revoked it",
		"get a new certificate; if it should not be revoked, ask the CA why it is on the list"},
	45: {"certificate_expired", "the client certificate, or one of its issuers, has expired or is not valid yet by the server's clock",
		"check the dates (openssl x509 -in FILE -noout -dates) and the clocks of both sides; renew the certificate"},
	46: {"certificate_unknown", "the server does not accept the client certificate, for a reason that it does not say: a failed check of revocation, of the name or of a policy, or a Java server that does not trust the CA",
		lookThere},
	47: {"illegal_parameter", "a field of the handshake was out of range or did not fit the others; a fault of one side, or of a device in between",
		"try another TLS version; update the older of the two sides"},
	48: {"unknown_ca", "the server found no way from the client certificate to a CA that it trusts: an intermediate was not sent, or the CA is not in its trust store",
		"send the intermediates behind the certificate in the same file; else add its root, or the issuing CA, to the server's trust store"},
	49: {"access_denied", "the client certificate is valid, and its holder may not enter here",
		"ask whoever runs the server to let this name in; its log has the name that it saw"},
	50: {"decode_error", "a message of the handshake could not be read: a wrong length, or a certificate that is no DER",
		"check the certificate file with openssl x509 -in FILE -noout; try another TLS version"},
	51: {"decrypt_error", "a signature of the handshake could not be verified: the client's key does not belong to its certificate, or the two sides saw different bytes",
		"compare openssl x509 -in CERT -noout -pubkey with openssl pkey -in KEY -pubout"},
	52: {"too_many_cids_requested", "a peer asked for too many connection identifiers (RFC 9147); it belongs to DTLS",
		"check the port: this may be a server of DTLS"},
	60: {"export_restriction", "the server kept to export rules of the 1990s; only very old servers say so",
		"update the server's TLS library"},
	70: {"protocol_version", "the server speaks TLS, and not the version that was offered",
		"allow TLS 1.2 or 1.3 on both sides"},
	71: {"insufficient_security", "the server wants stronger cipher suites or groups than were offered",
		"allow the suites and groups that are accepted here on the client"},
	80: {"internal_error", "the server failed for a reason of its own: a broken configuration (key, certificate, CA file), more CA names than TLS can carry, a revocation list that cannot be used, or no memory",
		lookThere},
	86: {"inappropriate_fallback", "the client came back with an older version although the server speaks a newer one (RFC 7507)",
		"find out why the first attempt with the newer version failed"},
	90: {"user_canceled", "somebody at the other side ended the handshake for a reason outside of TLS",
		"try again; " + lookThere},
	100: {"no_renegotiation", "the server refuses to renegotiate. Asking for a certificate after the handshake then cannot work in TLS 1.2",
		"ask for the certificate in the handshake, on a name or port of its own"},
	109: {"missing_extension", "the server wants an extension that was not offered, often the server name (SNI)",
		"give the name with --sni"},
	110: {"unsupported_extension", "an extension was answered that nobody had offered; a fault of one side",
		"try another TLS version; update the older of the two sides"},
	111: {"certificate_unobtainable", "the server could not fetch the client certificate from the URL it was given (RFC 6066)",
		"send the certificate itself"},
	112: {"unrecognized_name", "the server has nothing under the server name (SNI) that was sent, or wants one and got none",
		"give a name that it knows with --sni; the names in its certificate, if it shows one to others, are those"},
	113: {"bad_certificate_status_response", "an OCSP response that was sent along could not be used (RFC 6066)",
		"check the clock and the responder of the certificate's CA; or do not staple"},
	114: {"bad_certificate_hash_value", "a certificate fetched from a URL was not the one that was announced (RFC 6066)",
		"send the certificate itself"},
	115: {"unknown_psk_identity", "the server knows no shared key of the name that was sent",
		"check the identity of the shared key (PSK) on both sides"},
	116: {"certificate_required", "the server requires a client certificate, and none was sent. In TLS 1.3 this comes after the client believes that all went well",
		"send a client certificate from a CA that the server names; --cert and --key try one, --certs looks for one that fits"},
	117: {"general_error", "the server ended the handshake for a reason that has no alert of its own",
		lookThere},
	120: {"no_application_protocol", "none of the offered application protocols (ALPN) is spoken here",
		"offer one that is: h2 and http/1.1 for HTTP; a server of another kind may want its own name"},
	121: {"ech_required", "the server wants the encrypted ClientHello, and got one that it could not decrypt or none",
		"fetch the current ECH configuration from DNS"},
}

// Name is the alert's name in the registry of TLS.
func (a Alert) Name() string {
	if t, ok := alerts[a]; ok {
		return t.name
	}
	return "unknown"
}

// String is the name with the number.
func (a Alert) String() string { return fmt.Sprintf("%s (%d)", a.Name(), uint8(a)) }

// Means says in plain words what the server says with the alert, and its likely cause.
func (a Alert) Means() string {
	if t, ok := alerts[a]; ok {
		return t.means
	}
	return "the server sent an alert that no document of TLS has"
}

// Next is the next step for whoever got the alert.
func (a Alert) Next() string {
	if t, ok := alerts[a]; ok {
		return t.next
	}
	return lookThere
}

// AlertIn finds the alert from the other side in an error of crypto/tls. Its type has no exported name, only a number.
func AlertIn(err error) (a Alert, ok bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" || op.Err == nil {
		return 0, false
	}
	v := reflect.ValueOf(op.Err)
	if v.Kind() != reflect.Uint8 {
		return 0, false
	}
	return Alert(v.Uint()), true
}
