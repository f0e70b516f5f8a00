package reason

// The reasons. The order is that of the table and of docs/reasons.md; values are not stable, codes are.
const (
	Unset Reason = iota

	// Accept.
	SourceRefused
	ProxySourceRefused
	ProxyHeaderInvalid
	ProxyHeaderTimeout
	ConnectionLimit
	AddressConnections
	AddressHandshakes
	MemoryShed
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
	HandshakeOverload
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
	OCSPUnavailable
	OCSPUnknown
	ClientCertDenied
	ClientCertSPIFFE

	// Request.
	H2ProtocolError
	H2EnhanceYourCalm
	HeaderTimeout
	BodyTimeout
	BadRequestLine
	BadHeader
	HeaderTooLarge
	HeaderTooMany
	TooManyForwarded
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
	RewriteFailed
	RedirectTooLong
	RedirectLoop
	ClientNoLongerTrusted
	RouteCertMissing
	RouteCertRefused
	PolicyDenied
	PolicyFailed
	AssertedIdentityMissing
	AssertedIdentityInvalid
	StepUpRefused
	PermitRefused
	LoopDetected
	RateLimited
	ConcurrencyLimited

	// Upstream.
	UpstreamUnknown
	UpstreamBusy
	UpstreamQueueTimeout
	UpstreamCircuitOpen
	UpstreamNoTarget
	UpstreamConnectFailed
	UpstreamConnectTimeout
	UpstreamTLSFailed
	UpstreamNoHTTP2
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
	AnsweredHere
	ClientClosed
	IdleClosed
	TunnelClosed
	LifetimeReached
	ClientAborted
	WriteTimeout
	RecordFlood

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
	AnsweredHere:    {Code: "answered_here", Stage: StageRoute, Fault: FaultNone, Sentence: "the request was answered by this program from configured values (an exemption, a redirect, a fixed response, a maintenance page or a step-up) and not forwarded"},
	ClientClosed:    {Code: "client_closed", Stage: StageForward, Fault: FaultNone, Sentence: "the client closed the connection between requests"},
	IdleClosed:      {Code: "idle_closed", Stage: StageForward, Fault: FaultNone, Sentence: "the connection was idle longer than its limit (limits.idle, limits.tunnel_idle) and was closed"},
	Drained:         {Code: "drained", Stage: StageOperator, Fault: FaultNone, Sentence: "the connection ended because the listener is draining"},
	TunnelClosed:    {Code: "tunnel_closed", Stage: StageForward, Fault: FaultNone, Sentence: "the tunnel ended"},
	LifetimeReached: {Code: "lifetime_reached", Stage: StageForward, Fault: FaultNone, Sentence: "the tunnel was as old as limits.lifetime allows and was closed"},

	SourceRefused: {Code: "source_refused", Stage: StageAccept, Fault: FaultClient,
		Sentence: "the listener does not serve the client's address", Next: "add the address to the listener's sources if it should be served"},
	ProxySourceRefused: {Code: "proxy_source_refused", Stage: StageAccept, Fault: FaultClient,
		Sentence: "the listener serves proxies that send a PROXY header, and this address is not one of them", Next: "add the proxy's address to proxy_protocol.from of the listener, or connect through a proxy that is listed"},
	ProxyHeaderInvalid: {Code: "proxy_header_invalid", Stage: StageAccept, Fault: FaultClient,
		Sentence: "a proxy that is listed in proxy_protocol.from did not begin its connection with a PROXY header that can be read", Next: "let the proxy send PROXY protocol version 1 or 2 (send-proxy-v2 in HAProxy, proxy_protocol on in nginx), also in its health checks"},
	ProxyHeaderTimeout: {Code: "proxy_header_timeout", Stage: StageAccept, Fault: FaultClient,
		Sentence: "the PROXY header did not arrive whole within limits.handshake", Next: "let the proxy send the PROXY header as soon as it has connected"},
	ConnectionLimit: {Code: "connection_limit", Stage: StageAccept, Fault: FaultOperator,
		Sentence: "the listener already has limits.connections connections", Next: "raise limits.connections of the listener, or find out who holds them"},
	AddressConnections: {Code: "address_connections", Stage: StageAccept, Fault: FaultClient,
		Sentence: "the client's address (IPv6: its /64) already has limits.connections_per_address connections", Next: "if many clients share the address (NAT, a proxy), raise limits.connections_per_address; otherwise find out what the client is doing"},
	AddressHandshakes: {Code: "address_handshakes", Stage: StageAccept, Fault: FaultClient,
		Sentence: "the client's address (IPv6: its /64) opens connections faster than limits.handshakes_per_address allows", Next: "let the client keep its connections; if many clients share the address (NAT, a proxy), raise limits.handshakes_per_address"},
	MemoryShed: {Code: "memory_shed", Stage: StageAccept, Fault: FaultOperator,
		Sentence: "the process is short of memory: new connections are refused and idle ones are closed until it is not", Next: "give it more memory (the container's limit, or GOMEMLIMIT), or lower limits.connections"},
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

	HandshakeOverload: {Code: "handshake_overload", Stage: StageHandshake, Fault: FaultOperator,
		Sentence: "more handshakes wait for a processor than can be done in time, and this client's address had the most of them or waited longest", Next: "see which addresses they come from (limits.handshakes_per_address bounds each), let clients keep connections and resume sessions, or add processors"},
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
	ClientCertTooLarge: {Code: "client_cert_too_large", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertMaxSizeExceeded",
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
		Sentence: "the certificate names no extended key usage and the trust store wants one", Next: "the CA must issue one with the extended key usage that expected names; where that is clientAuth, accept.eku: allow_absent would let this one in"},
	ClientCertEKU: {Code: "client_cert_eku", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertPurposeInvalid",
		Sentence: "the extended key usage of a certificate is not one that the trust store takes from clients", Next: "the CA must issue one with the extended key usage that expected names"},
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
	OCSPUnavailable: {Code: "ocsp_unavailable", Stage: StageHandshake, Fault: FaultOperator, Status: 400, ALB: "ClientCertCrlProcessingError",
		Sentence: "the trust store requires an OCSP answer for this certificate and there is no valid one", Next: "check the responder (the condition names it and its last error), or set revocation.ocsp.mode: prefer"},
	OCSPUnknown: {Code: "ocsp_unknown", Stage: StageHandshake, Fault: FaultOperator, Status: 400, ALB: "ClientCertCrlProcessingError",
		Sentence: "the OCSP responder does not know this certificate", Next: "ask the CA whether it issued the certificate; a responder that is behind its CA answers so for new ones"},
	ClientCertDenied: {Code: "client_cert_denied", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertCrlHit",
		Sentence: "a certificate of the chain is on the trust store's deny list", Next: "remove the entry that found names from revocation.deny if the client should be let in again"},
	ClientCertSPIFFE: {Code: "client_cert_spiffe", Stage: StageHandshake, Fault: FaultClient, Status: 400, ALB: "ClientCertInvalid",
		Sentence: "the certificate is not an X.509-SVID of the trust store's SPIFFE trust domain", Next: "issue one whose only URI name is a SPIFFE ID of that trust domain"},

	H2ProtocolError: {Code: "h2_protocol_error", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "the client broke the rules of HTTP/2 (RFC 9113)", Next: "the record says which rule; report it to whoever makes the client"},
	H2EnhanceYourCalm: {Code: "h2_enhance_your_calm", Stage: StageRequest, Fault: FaultClient,
		Sentence: "the client made far more work on a connection of HTTP/2 than it used: streams opened and reset, empty frames, pings or settings", Next: "if the client is one of yours, find out what it repeats; an attack looks the same"},
	HeaderTimeout: {Code: "header_timeout", Stage: StageRequest, Fault: FaultClient, Status: 408,
		Sentence: "the request head did not arrive in time", Next: "check the client or the network; limits.header sets the time"},
	BodyTimeout: {Code: "body_timeout", Stage: StageRequest, Fault: FaultClient, Status: 408,
		Sentence: "the request body made no progress in time", Next: "check the client or the network; limits.body_idle sets the time"},
	BadRequestLine: {Code: "bad_request_line", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "the request line is not of the form METHOD target HTTP/1.x", Next: "fix the client (RFC 9112 section 3)"},
	BadHeader: {Code: "bad_header", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "a header line is malformed: bare LF, folding, control character, space before the colon or no name", Next: "fix the client (RFC 9112 section 5)"},
	HeaderTooLarge: {Code: "header_too_large", Stage: StageRequest, Fault: FaultClient, Status: 431,
		Sentence: "the request head is larger than limits.header_bytes, or than its target takes over HTTP/2", Next: "send fewer or smaller header fields, cookies above all"},
	HeaderTooMany: {Code: "header_too_many", Stage: StageRequest, Fault: FaultClient, Status: 431,
		Sentence: "the request has more header fields than limits.header_fields", Next: "send fewer header fields"},
	TooManyForwarded: {Code: "too_many_forwarded", Stage: StageRequest, Fault: FaultClient, Status: 400,
		Sentence: "X-Forwarded-For or Forwarded names more than 30 addresses", Next: "find out which proxies pass the request on to each other; AWS ALB answers such a request with 463"},
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
		Sentence: "no route of the host matches the request", Next: "add a route, or one without match as the last"},
	RewriteFailed: {Code: "rewrite_failed", Stage: StageRoute, Fault: FaultOperator, Status: 500,
		Sentence: "the route's rewrite made something of the request's path that is no plain path", Next: "correct the route's rewrite; an expression whose group may be empty makes double slashes"},
	RedirectTooLong: {Code: "redirect_too_long", Stage: StageRoute, Fault: FaultClient, Status: 507,
		Sentence: "the route's redirect would lead to a URL of more than 8 KiB", Next: "send a shorter URL, or leave the path or query out of the redirect"},
	RedirectLoop: {Code: "redirect_loop", Stage: StageRoute, Fault: FaultOperator, Status: 508,
		Sentence: "the route's redirect leads to the URL that was asked for", Next: "change the redirect, or limit the route so that it does not match where it leads"},
	ClientNoLongerTrusted: {Code: "client_no_longer_trusted", Stage: StageRoute, Fault: FaultClient, Status: 403,
		Sentence: "the client was accepted when it connected, but is refused by the policy in force now", Next: "see found for the new verdict; reconnect with a certificate that is accepted"},
	RouteCertMissing: {Code: "route_cert_missing", Stage: StageRoute, Fault: FaultClient, Status: 403,
		Sentence: "the route requires a client certificate and this connection was made without one", Next: "connect again with a certificate: a connection that has begun cannot be asked for one (TLS 1.3, RFC 8740)"},
	RouteCertRefused: {Code: "route_cert_refused", Stage: StageRoute, Fault: FaultClient, Status: 403,
		Sentence: "the client's certificate is not accepted by the route's own trust store", Next: "see found for the verdict; use a certificate of a CA that this route trusts"},
	PolicyDenied: {Code: "policy_denied", Stage: StageRoute, Fault: FaultClient, Status: 403,
		Sentence: "the route's allow expression does not allow this client and request", Next: "compare what found names, the client or the request, with the expression, which stands in expected"},
	PolicyFailed: {Code: "policy_failed", Stage: StageRoute, Fault: FaultOperator, Status: 403,
		Sentence: "the route's allow expression could not be evaluated, which denies", Next: "read the detail in the log line and guard the expression, for example with has() or size()"},
	AssertedIdentityMissing: {Code: "asserted_identity_missing", Stage: StageRoute, Fault: FaultClient, Status: 403,
		Sentence: "a trusted proxy sent a request without the identity of its client, which this host requires", Next: "let the proxy send the header of the configured dialect, or use a certificate that is not listed in trusted_proxies"},
	AssertedIdentityInvalid: {Code: "asserted_identity_invalid", Stage: StageRoute, Fault: FaultClient, Status: 403,
		Sentence: "the certificate that a trusted proxy asserted for its client is not accepted", Next: "see found for the verdict; the client behind the proxy needs a certificate of the trust store that trusted_proxies names"},
	StepUpRefused: {Code: "step_up_refused", Stage: StageRoute, Fault: FaultClient, Status: 403,
		Sentence: "a step-up code or cookie is not valid: expired, used before, of another browser or of another certificate", Next: "begin again at the page that needs the certificate"},
	PermitRefused: {Code: "permit_refused", Stage: StageRoute, Fault: FaultSelf, Status: 500,
		Sentence: "a request reached forwarding without a permit of its own", Next: "report this as a bug with the log line"},
	LoopDetected: {Code: "loop_detected", Stage: StageRoute, Fault: FaultOperator, Status: 508,
		Sentence: "the request has passed through this program too often", Next: "an upstream's targets lead back to this listener; correct them"},

	RateLimited: {Code: "rate_limited", Stage: StageRoute, Fault: FaultClient, Status: 429,
		Sentence: "requests come faster than rate_limits of the route, host or listener allow", Next: "wait as long as Retry-After says, or raise the limit"},
	ConcurrencyLimited: {Code: "concurrency_limited", Stage: StageRoute, Fault: FaultClient, Status: 429,
		Sentence: "as many requests are under way already as concurrency of the route, host or listener allows", Next: "let requests end before more are made, or raise the limit"},

	UpstreamUnknown: {Code: "upstream_unknown", Stage: StageUpstream, Fault: FaultSelf, Status: 503,
		Sentence: "the route's upstream is not there", Next: "report this as a bug with the log line"},
	UpstreamBusy: {Code: "upstream_busy", Stage: StageUpstream, Fault: FaultUpstream, Status: 503,
		Sentence: "every target has its limit of connections in use", Next: "raise the upstream's max_connections, add targets, or find out why they are slow"},
	UpstreamQueueTimeout: {Code: "upstream_queue_timeout", Stage: StageUpstream, Fault: FaultUpstream, Status: 503,
		Sentence: "the request waited for a place at the upstream and got none in time", Next: "add targets, raise max_requests or max_connections, or find out why the targets are slow; queue_timeout sets the time"},
	UpstreamCircuitOpen: {Code: "upstream_circuit_open", Stage: StageUpstream, Fault: FaultUpstream, Status: 503,
		Sentence: "the upstream has its limit of requests under way", Next: "raise the upstream's max_requests, let requests wait with max_pending, or find out why the targets are slow"},
	UpstreamNoTarget: {Code: "upstream_no_target", Stage: StageUpstream, Fault: FaultOperator, Status: 503,
		Sentence: "the configuration leaves the upstream no target for new requests", Next: "set a target's state to active and its weight to 1 or more"},
	UpstreamConnectFailed: {Code: "upstream_connect_failed", Stage: StageUpstream, Fault: FaultUpstream, Status: 502,
		Sentence: "no connection to the target could be made", Next: "check that the target listens and that its address is right"},
	UpstreamConnectTimeout: {Code: "upstream_connect_timeout", Stage: StageUpstream, Fault: FaultUpstream, Status: 504,
		Sentence: "the target did not accept a connection in time", Next: "check the target and the network between; timeouts.connect sets the time"},
	UpstreamNoHTTP2: {Code: "upstream_no_http2", Stage: StageUpstream, Fault: FaultUpstream, Status: 502,
		Sentence: "the target did not choose HTTP/2", Next: "let the target speak HTTP/2 (ALPN h2), or leave protocol_version of the upstream at http1"},
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
	RecordFlood: {Code: "record_flood", Stage: StageForward, Fault: FaultClient,
		Sentence: "the client sent thousands of TLS records that carry nothing, such as KeyUpdates and empty ones", Next: "check the client's TLS library; an attack looks like this"},

	ShutdownForced: {Code: "shutdown_forced", Stage: StageOperator, Fault: FaultOperator,
		Sentence: "the connection was cut at the end of the drain time, or by a second signal", Next: "raise drain if such connections should finish, and send one signal only"},
	Internal: {Code: "internal", Stage: StageOperator, Fault: FaultSelf, Status: 500,
		Sentence: "an error inside Countersign", Next: "report this as a bug with the log line"},
}
