package reason

// The reasons. The order is that of the table and of docs/reasons.md; values are not stable, codes are.
const (
	Unset Reason = iota

	// Accept.
	SourceRefused
	ConnectionLimit
	Overloaded

	// Hello.
	HelloTimeout
	HelloMalformed
	HelloTooLarge
	NotTLS
	SNIMissing
	SNIInvalid
	SNIUnknown
	PlainHTTPOnTLS

	// Handshake.
	HandshakeTimeout
	HandshakeAborted
	TLSVersionUnsupported
	NoCommonCipher
	NoCommonSignature
	NoCommonGroup
	NoCommonProtocol
	ClientAlert
	HandshakeFailed
	PossessionNotProven
	ClientCertMissing
	ClientCertUnparsable
	ClientCertTooMany
	ClientCertTooLarge
	ClientCertVersion
	ClientCertIsCA
	ClientCertIsAnchor
	ClientCertKeyUsage
	ClientCertEKUMissing
	ClientCertEKU
	ClientCertWeakKey
	ClientCertWeakSignature
	ClientCertSerial
	ClientCertSANInvalid
	ClientCertNotYetValid
	ClientCertExpired
	ClientCertIssuerExpired
	ClientCertUntrusted
	ClientCertConstraint
	ClientCertDepth
	ClientCertInvalid
	ClientCertRevoked
	ClientIssuerRevoked
	NotVerified
	CRLMissing
	CRLStale

	// Request.
	HeaderTimeout
	BodyTimeout
	BadRequestLine
	BadHeader
	HeaderTooLarge
	HeaderTooMany
	VersionUnsupported
	HostMissing
	HostInvalid
	HostAmbiguous
	FramingAmbiguous
	TransferEncodingUnsupported
	ContentLengthInvalid
	ChunkInvalid
	BodyTruncated
	BodyTooLarge
	MethodRefused
	UpgradeRefused
	ExpectationUnsupported
	ProtectedConnectionToken

	// Route and policy.
	HostUnknown
	PolicyMismatch
	PathUnsafe
	RouteNotFound
	ClientNoLongerTrusted
	PermitRefused
	LoopDetected

	// Upstream.
	UpstreamUnknown
	UpstreamBusy
	UpstreamConnectFailed
	UpstreamConnectTimeout
	UpstreamTLSFailed
	UpstreamCertRefused
	UpstreamClientCertNone
	UpstreamTimeout
	UpstreamClosed
	UpstreamBadResponse
	UpstreamInterimFlood
	UpstreamTruncated
	IdentityTooLarge

	// Forward.
	Completed
	ClientClosed
	IdleClosed
	TunnelClosed
	LifetimeReached
	ClientAborted
	WriteTimeout

	// Operator.
	Drained
	ShutdownForced
	Internal

	count
)

var table = [count]Row{
	Unset: {Code: "unset", Stage: StageOperator, Fault: FaultSelf, Status: 500,
		Sentence: "no stage decided how this ended", Next: "report this as a bug with the log line"},

	Completed:       {Code: "completed", Stage: StageForward, Fault: FaultNone, Sentence: "the request was answered in full"},
	ClientClosed:    {Code: "client_closed", Stage: StageForward, Fault: FaultNone, Sentence: "the client closed the connection between requests"},
	IdleClosed:      {Code: "idle_closed", Stage: StageForward, Fault: FaultNone, Sentence: "the connection was idle longer than its limit (limits.idle, limits.tunnel_idle) and was closed"},
	Drained:         {Code: "drained", Stage: StageOperator, Fault: FaultNone, Sentence: "the connection ended because the listener is draining"},
	TunnelClosed:    {Code: "tunnel_closed", Stage: StageForward, Fault: FaultNone, Sentence: "the tunnel ended"},
	LifetimeReached: {Code: "lifetime_reached", Stage: StageForward, Fault: FaultNone, Sentence: "the tunnel was as old as limits.lifetime allows and was closed"},

	SourceRefused: {Code: "source_refused", Stage: StageAccept, Fault: FaultClient,
		Sentence: "the listener does not serve the client's address", Next: "add the address to the listener's sources if it should be served"},
	ConnectionLimit: {Code: "connection_limit", Stage: StageAccept, Fault: FaultOperator,
		Sentence: "the listener already has limits.connections connections", Next: "raise limits.connections of the listener, or find out who holds them"},
	Overloaded: {Code: "overloaded", Stage: StageAccept, Fault: FaultOperator, Status: 503,
		Sentence: "the process has no descriptor or memory left for this connection", Next: "raise the open-files limit (ulimit -n, LimitNOFILE) or lower limits.connections"},

	HelloTimeout: {Code: "hello_timeout", Stage: StageHello, Fault: FaultClient, ALB: "HandshakeTimeout",
		Sentence: "no complete ClientHello arrived in time", Next: "check that the client really speaks TLS on this port and that nothing between drops packets"},
	HelloMalformed: {Code: "hello_malformed", Stage: StageHello, Fault: FaultClient,
		Sentence: "the first bytes are a TLS record but not a ClientHello that can be read", Next: "check the client's TLS library and anything that rewrites its traffic"},
	HelloTooLarge: {Code: "hello_too_large", Stage: StageHello, Fault: FaultClient,
		Sentence: "the ClientHello is larger than 64 KiB", Next: "reduce the client's TLS extensions or tickets"},
	NotTLS: {Code: "not_tls", Stage: StageHello, Fault: FaultClient,
		Sentence: "the first bytes are not TLS", Next: "use https:// or a TLS client on this port"},
	SNIMissing: {Code: "sni_missing", Stage: StageHello, Fault: FaultClient,
		Sentence: "the client named no server (SNI) and the listener has no default_host", Next: "connect by name, not by address; or set default_host on the listener"},
	SNIInvalid: {Code: "sni_invalid", Stage: StageHello, Fault: FaultClient,
		Sentence: "the server name (SNI) is not a host name", Next: "use a name of letters, digits, hyphens and dots"},
	SNIUnknown: {Code: "sni_unknown", Stage: StageHello, Fault: FaultClient,
		Sentence: "no host of this listener has the server name (SNI) and the listener has no default_host", Next: "add the name to a host's names, or set default_host on the listener"},
	PlainHTTPOnTLS: {Code: "plain_http_on_tls", Stage: StageHello, Fault: FaultClient,
		Sentence: "the client sent plain HTTP to a TLS port", Next: "use https://"},

	HandshakeTimeout: {Code: "handshake_timeout", Stage: StageHandshake, Fault: FaultClient, ALB: "HandshakeTimeout",
		Sentence: "the TLS handshake did not finish in time", Next: "check the client for a prompt (PIN, key access) or a slow network; limits.handshake sets the time"},
	HandshakeAborted: {Code: "handshake_aborted", Stage: StageHandshake, Fault: FaultClient,
		Sentence: "the client closed the connection during the handshake", Next: "look at the client's own error; often it did not trust the server certificate"},
	TLSVersionUnsupported: {Code: "tls_version_unsupported", Stage: StageHandshake, Fault: FaultClient, ALB: "ProtocolVersionMismatch",
		Sentence: "client and listener share no TLS version", Next: "upgrade the client, or lower tls.min_version if the policy allows it"},
	NoCommonCipher: {Code: "no_common_cipher", Stage: StageHandshake, Fault: FaultClient,
		Sentence: "client and listener share no cipher suite", Next: "use tls.policy compatible for old clients, and check that a certificate of the right key type is configured"},
	NoCommonSignature: {Code: "no_common_signature", Stage: StageHandshake, Fault: FaultClient,
		Sentence: "client and listener share no signature algorithm for the server certificate", Next: "add an ECDSA or RSA certificate for this host"},
	NoCommonGroup: {Code: "no_common_group", Stage: StageHandshake, Fault: FaultClient,
		Sentence: "client and listener share no key exchange group", Next: "widen tls.groups"},
	NoCommonProtocol: {Code: "no_common_protocol", Stage: StageHandshake, Fault: FaultClient,
		Sentence: "the client offers only application protocols (ALPN) that the listener does not speak", Next: "offer http/1.1"},
	ClientAlert: {Code: "client_alert", Stage: StageHandshake, Fault: FaultClient,
		Sentence: "the client ended the handshake with a TLS alert", Next: "read the alert in the log line: unknown_ca or bad_certificate mean that the client does not trust our server certificate"},
	HandshakeFailed: {Code: "handshake_failed", Stage: StageHandshake, Fault: FaultClient,
		Sentence: "the TLS handshake failed", Next: "read the detail in the log line"},
	PossessionNotProven: {Code: "possession_not_proven", Stage: StageHandshake, Fault: FaultClient,
		Sentence: "a certificate was shown, but the client did not prove that it has the private key", Next: "check that the client's key belongs to its certificate"},
	ClientCertMissing: {Code: "client_cert_missing", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertMissing",
		Sentence: "this host requires a client certificate and none was sent", Next: "give the client a certificate and key; if it has one, check that its issuer is among the CA names the listener hints at"},
	ClientCertUnparsable: {Code: "client_cert_unparsable", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "the client certificate is not a certificate that can be read", Next: "re-issue the certificate; the detail in the log line names the defect"},
	ClientCertTooMany: {Code: "client_cert_too_many", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertMaxChainDepthExceeded",
		Sentence: "the client sent more certificates than accept.max_presented", Next: "let the client send its certificate and the intermediates only, without the root and without strangers"},
	ClientCertTooLarge: {Code: "client_cert_too_large", Stage: StageHandshake, Fault: FaultClient, Status: 400,
		Sentence: "the certificates the client sent are larger than 32 KiB together", Next: "send fewer or smaller certificates"},
	ClientCertVersion: {Code: "client_cert_version", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "a certificate is not X.509 version 3", Next: "re-issue it as version 3"},
	ClientCertIsCA: {Code: "client_cert_is_ca", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "the client identified itself with a CA certificate", Next: "issue the client a certificate of its own (CA:FALSE)"},
	ClientCertIsAnchor: {Code: "client_cert_is_anchor", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "the client identified itself with a certificate that is itself in the trust store", Next: "issue the client a certificate under that CA"},
	ClientCertKeyUsage: {Code: "client_cert_key_usage", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertPurposeInvalid",
		Sentence: "the certificate's keyUsage does not allow digital signatures", Next: "re-issue it with keyUsage digitalSignature"},
	ClientCertEKUMissing: {Code: "client_cert_eku_missing", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertPurposeInvalid",
		Sentence: "the certificate names no extended key usage and the trust store wants clientAuth", Next: "re-issue it with extendedKeyUsage clientAuth, or set accept.eku: allow_absent"},
	ClientCertEKU: {Code: "client_cert_eku", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertPurposeInvalid",
		Sentence: "the certificate is not meant for client authentication", Next: "the CA must issue one with extendedKeyUsage clientAuth"},
	ClientCertWeakKey: {Code: "client_cert_weak_key", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "a key in the chain is weaker than accepted", Next: "use ECDSA P-256 or better, Ed25519, or RSA of 2048 to 8192 bits"},
	ClientCertWeakSignature: {Code: "client_cert_weak_signature", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "a certificate in the chain is signed with an algorithm that is no longer accepted", Next: "re-issue it with SHA-256 or better"},
	ClientCertSerial: {Code: "client_cert_serial", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "a serial number is not a positive integer of at most 20 octets", Next: "re-issue the certificate with a serial per RFC 5280 4.1.2.2"},
	ClientCertSANInvalid: {Code: "client_cert_san_invalid", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "a subject alternative name holds characters that such a name cannot have", Next: "re-issue the certificate with proper names"},
	ClientCertNotYetValid: {Code: "client_cert_not_yet_valid", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertNotYetValid",
		Sentence: "a certificate in the chain is not valid yet", Next: "compare the clocks of the CA and of this machine, or wait"},
	ClientCertExpired: {Code: "client_cert_expired", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertExpired",
		Sentence: "the client certificate has expired", Next: "renew the client's certificate"},
	ClientCertIssuerExpired: {Code: "client_cert_issuer_expired", Stage: StageHandshake, Fault: FaultOperator, Status: 400, ALB: "ClientCertExpired",
		Sentence: "a CA certificate of the chain has expired", Next: "put the CA's renewed certificate into the trust store, or let the client send the renewed intermediate"},
	ClientCertUntrusted: {Code: "client_cert_untrusted", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertUntrusted",
		Sentence: "no chain leads from the client certificate to the trust store", Next: "let the client send its intermediates, or add the issuing CA to the trust store if it is to be trusted"},
	ClientCertConstraint: {Code: "client_cert_constraint", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "a CA of the chain was not allowed to issue this certificate (name, path length or CA constraint)", Next: "ask the CA for a certificate within its constraints"},
	ClientCertDepth: {Code: "client_cert_depth", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertMaxChainDepthExceeded",
		Sentence: "the chain is longer than accept.max_depth", Next: "use a shorter chain or raise accept.max_depth"},
	ClientCertInvalid: {Code: "client_cert_invalid", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "the client certificate cannot be verified", Next: "read the detail in the log line"},
	ClientCertRevoked: {Code: "client_cert_revoked", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertCrlHit",
		Sentence: "the client certificate is revoked", Next: "issue the client a new certificate, if it should still have one"},
	ClientIssuerRevoked: {Code: "client_issuer_revoked", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertCrlHit",
		Sentence: "a CA certificate of the chain is revoked", Next: "issue the client a certificate under another CA"},
	NotVerified: {Code: "not_verified", Stage: StageHandshake, Fault: FaultOperator,
		Sentence: "the client's certificate was not verified, as mode passthrough_chain asks", Next: "let the backend verify it, or use mode require"},
	CRLMissing: {Code: "crl_missing", Stage: StageHandshake, Fault: FaultOperator, Status: 400, ALB: "ClientCertCrlProcessingError",
		Sentence: "the trust store checks revocation, but has no list of this certificate's issuer", Next: "add the issuer's CRL to revocation.crls, or set revocation.missing"},
	CRLStale: {Code: "crl_stale", Stage: StageHandshake, Fault: FaultOperator, Status: 400, ALB: "ClientCertCrlProcessingError",
		Sentence: "the issuer's revocation list is past its nextUpdate", Next: "fetch the CA's current list, or set revocation.stale"},

	HeaderTimeout: {Code: "header_timeout", Stage: StageRequest, Fault: FaultClient, Status: 408,
		Sentence: "the request head did not arrive in time", Next: "check the client or the network; limits.header sets the time"},
	BodyTimeout: {Code: "body_timeout", Stage: StageRequest, Fault: FaultClient, Status: 408,
		Sentence: "the request body made no progress in time", Next: "check the client or the network; limits.body_idle sets the time"},
	BadRequestLine: {Code: "bad_request_line", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "the request line is not of the form METHOD target HTTP/1.x", Next: "fix the client (RFC 9112 section 3)"},
	BadHeader: {Code: "bad_header", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "a header line is malformed: bare LF, folding, control character, space before the colon or no name", Next: "fix the client (RFC 9112 section 5)"},
	HeaderTooLarge: {Code: "header_too_large", Stage: StageRequest, Fault: FaultClient, Status: 431,
		Sentence: "the request head is larger than limits.header_bytes", Next: "send fewer or smaller header fields, cookies above all"},
	HeaderTooMany: {Code: "header_too_many", Stage: StageRequest, Fault: FaultClient, Status: 431,
		Sentence: "the request has more header fields than limits.header_fields", Next: "send fewer header fields"},
	VersionUnsupported: {Code: "version_unsupported", Stage: StageRequest, Fault: FaultClient, Status: 505,
		Sentence: "the request is neither HTTP/1.0 nor HTTP/1.1", Next: "use HTTP/1.1"},
	HostMissing: {Code: "host_missing", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "the request has no Host", Next: "send exactly one Host header"},
	HostInvalid: {Code: "host_invalid", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "the Host is not a host name with an optional port", Next: "send a plain host name: no user, comma, path or non-ASCII"},
	HostAmbiguous: {Code: "host_ambiguous", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "the request names more than one host: two Host headers, or a target that differs from Host", Next: "send exactly one Host"},
	FramingAmbiguous: {Code: "framing_ambiguous", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "the length of the body can be read in more than one way", Next: "send either one Content-Length or Transfer-Encoding: chunked"},
	TransferEncodingUnsupported: {Code: "transfer_encoding_unsupported", Stage: StageRequest, Fault: FaultClient, Status: 501,
		Sentence: "Transfer-Encoding is something else than exactly chunked", Next: "use chunked"},
	ContentLengthInvalid: {Code: "content_length_invalid", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "Content-Length is not one decimal number", Next: "send one Content-Length of digits only"},
	ChunkInvalid: {Code: "chunk_invalid", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "the chunked body is malformed", Next: "fix the client (RFC 9112 section 7.1)"},
	BodyTruncated: {Code: "body_truncated", Stage: StageRequest, Fault: FaultClient,
		Sentence: "the client ended before its request body was complete", Next: "look at the client's own error"},
	BodyTooLarge: {Code: "body_too_large", Stage: StageRequest, Fault: FaultClient, Status: 413,
		Sentence: "the request body is larger than limits.body_bytes", Next: "send less, or raise limits.body_bytes"},
	MethodRefused: {Code: "method_refused", Stage: StageRequest, Fault: FaultClient, Status: 405,
		Sentence: "CONNECT and TRACE are not forwarded", Next: "use a forward proxy for CONNECT; TRACE would show the client our identity headers"},
	UpgradeRefused: {Code: "upgrade_refused", Stage: StageRequest, Fault: FaultClient, Status: 501,
		Sentence: "the request asks to upgrade the connection, and this is no WebSocket request of a route that allows one", Next: "send the request without Upgrade, or set upgrade: [websocket] on the route"},
	ExpectationUnsupported: {Code: "expectation_unsupported", Stage: StageRequest, Fault: FaultClient, Status: 417,
		Sentence: "Expect asks for something else than 100-continue", Next: "drop the Expect header"},
	ProtectedConnectionToken: {Code: "protected_connection_token", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "the Connection header names a header that carries identity or routing", Next: "name only hop-by-hop headers in Connection"},

	HostUnknown: {Code: "host_unknown", Stage: StageRoute, Fault: FaultClient, Status: 421,
		Sentence: "no host of this listener has the requested name", Next: "add the name to a host's names, or set default_host on the listener"},
	PolicyMismatch: {Code: "policy_mismatch", Stage: StageRoute, Fault: FaultClient, Status: 421,
		Sentence: "the requested host has another client-auth policy than the one this connection was made under", Next: "connect with the server name (SNI) of the host you ask for"},
	PathUnsafe: {Code: "path_unsafe", Stage: StageRoute, Fault: FaultClient, Status: 400,
		Sentence: "the path can be read in more than one way: dot segments, //, backslash, NUL, encoded slash or bad percent-encoding", Next: "send the plain path, or list the spelling in the route's allow_path if the backend needs it"},
	RouteNotFound: {Code: "route_not_found", Stage: StageRoute, Fault: FaultClient, Status: 404,
		Sentence: "no route of the host matches the path", Next: "add a route, or one without match as the last"},
	ClientNoLongerTrusted: {Code: "client_no_longer_trusted", Stage: StageRoute, Fault: FaultClient, Status: 403,
		Sentence: "the client was accepted when it connected, but is refused by the policy in force now", Next: "see found for the new verdict; reconnect with a certificate that is accepted"},
	PermitRefused: {Code: "permit_refused", Stage: StageRoute, Fault: FaultSelf, Status: 500,
		Sentence: "a request reached forwarding without a permit of its own", Next: "report this as a bug with the log line"},
	LoopDetected: {Code: "loop_detected", Stage: StageRoute, Fault: FaultOperator, Status: 508,
		Sentence: "the request has passed through this program too often", Next: "an upstream's targets lead back to this listener; correct them"},

	UpstreamUnknown: {Code: "upstream_unknown", Stage: StageUpstream, Fault: FaultSelf, Status: 503,
		Sentence: "the route's upstream is not there", Next: "report this as a bug with the log line"},
	UpstreamBusy: {Code: "upstream_busy", Stage: StageUpstream, Fault: FaultUpstream, Status: 503,
		Sentence: "every target has its limit of connections in use", Next: "raise the upstream's max_connections, add targets, or find out why they are slow"},
	UpstreamConnectFailed: {Code: "upstream_connect_failed", Stage: StageUpstream, Fault: FaultUpstream, Status: 502,
		Sentence: "no connection to the target could be made", Next: "check that the target listens and that its address is right"},
	UpstreamConnectTimeout: {Code: "upstream_connect_timeout", Stage: StageUpstream, Fault: FaultUpstream, Status: 504,
		Sentence: "the target did not accept a connection in time", Next: "check the target and the network between; timeouts.connect sets the time"},
	UpstreamTLSFailed: {Code: "upstream_tls_failed", Stage: StageUpstream, Fault: FaultUpstream, Status: 502,
		Sentence: "the TLS handshake with the target failed", Next: "check that the target speaks TLS and accepts our client certificate (tls.client_certificates)"},
	UpstreamCertRefused: {Code: "upstream_cert_refused", Stage: StageUpstream, Fault: FaultUpstream, Status: 502,
		Sentence: "the target's certificate cannot be verified", Next: "check the upstream's tls.trust_store and tls.server_name against the target's certificate"},
	UpstreamClientCertNone: {Code: "upstream_client_cert_none", Stage: StageUpstream, Fault: FaultOperator, Status: 502,
		Sentence: "the target asked for a client certificate and none of ours fits", Next: "add one issued by a CA the target accepts to tls.client_certificates"},
	UpstreamTimeout: {Code: "upstream_timeout", Stage: StageUpstream, Fault: FaultUpstream, Status: 504,
		Sentence: "the target did not answer in time", Next: "check the target; timeouts.response sets the time"},
	UpstreamClosed: {Code: "upstream_closed", Stage: StageUpstream, Fault: FaultUpstream, Status: 502,
		Sentence: "the target closed the connection before it answered", Next: "check the target's log; its keep-alive time should be longer than timeouts.keepalive"},
	UpstreamBadResponse: {Code: "upstream_bad_response", Stage: StageUpstream, Fault: FaultUpstream, Status: 502,
		Sentence: "the target's response is malformed or can be read in more than one way", Next: "check that the target speaks HTTP/1.1 on this port and fix its framing"},
	UpstreamInterimFlood: {Code: "upstream_interim_flood", Stage: StageUpstream, Fault: FaultUpstream, Status: 502,
		Sentence: "the target sent too many interim (1xx) responses", Next: "fix the target"},
	UpstreamTruncated: {Code: "upstream_truncated", Stage: StageUpstream, Fault: FaultUpstream,
		Sentence: "the target ended before its response was complete; the client's connection was cut so that it looks incomplete there too", Next: "check the target's log"},
	IdentityTooLarge: {Code: "identity_too_large", Stage: StageUpstream, Fault: FaultClient, Status: 431,
		Sentence: "the identity headers of this client are larger than 16 KiB", Next: "use a smaller certificate or the headers without the chain"},

	ClientAborted: {Code: "client_aborted", Stage: StageForward, Fault: FaultClient,
		Sentence: "the client went away before its answer was complete", Next: "look at the client's own error or time-out"},
	WriteTimeout: {Code: "write_timeout", Stage: StageForward, Fault: FaultClient,
		Sentence: "the client did not read its answer in time", Next: "check the client or the network; limits.write_idle sets the time"},

	ShutdownForced: {Code: "shutdown_forced", Stage: StageOperator, Fault: FaultOperator,
		Sentence: "the connection was cut at the end of the drain time", Next: "raise drain if such connections should finish"},
	Internal: {Code: "internal", Stage: StageOperator, Fault: FaultSelf, Status: 500,
		Sentence: "an error inside Countersign", Next: "report this as a bug with the log line"},
}
