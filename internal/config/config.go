// Package config owns the file format: the structs, strict decoding with positions, and problems shown with line and
// caret. It knows no behaviour: package snapshot gives the values their meaning.
//
// What can be said about one value without knowing any other stands in the struct tags, beside the doc comment that says
// it to people, and the decoder enforces it:
//
//	required:"true"  leaving the key out is an error
//	enum:"a,b"       the value, or each item of a list, is one of these
//	later:"c,d"      values of the design that this version refuses by name; "x-*" is a prefix, "{k}" a mapping with key k
//	zero:"true"      an explicit zero is allowed: it means what it says. Elsewhere it would silently mean the default
//	lines:"true"     the text may have several lines
//	short:"true"     the field takes the value when a plain word stands in place of the mapping
//
// Keys of the design that this version does not have are in the table laterKeys.
package config

import "time"

// Config is the whole configuration file. Unknown keys, duplicate keys and empty security settings are errors, never
// ignored.
type Config struct {
	// State is the folder for everything that outlives the process. Default "./state", relative to the file.
	State string `yaml:"state"`
	// Ops is the unauthenticated listener for liveness, readiness and metrics. Optional; without it there is none.
	Ops *Ops `yaml:"ops"`
	// Log says where records go. Optional.
	Log *Log `yaml:"log"`
	// Tracing says which requests are traced and where their spans go (OpenTelemetry). Optional; without it none are, and
	// traceparent and tracestate pass as they come.
	Tracing *Tracing `yaml:"tracing"`
	// Journal is what is kept, in the state folder, of what ended badly and of the clients seen. Optional: it is kept where
	// state or journal is set, and with the defaults where only state is.
	Journal *Journal `yaml:"journal"`
	// Control is the Unix socket for the operator of the running program, unix:/path. Only the user it runs as, and root, get
	// an answer there. Optional; without it there is none.
	Control string `yaml:"control"`
	// Outbound says where the program may connect to by itself: for revocation lists, OCSP answers and CA bundles. Optional.
	Outbound *Outbound `yaml:"outbound"`
	// Drain is how long open connections may go on after SIGTERM. Default 30s.
	Drain Duration `yaml:"drain"`
	// Limits bound what the whole process does at once. Optional.
	Limits *ProcessLimits `yaml:"limits"`
	// Experimental switches on what is not the default yet, and may change or go in any version. Optional.
	Experimental *Experimental `yaml:"experimental"`
	// Include names further files with trust_stores, listeners and upstreams of this configuration, which may stand in any
	// one of its files. Paths, also those in included files, are relative to this file's folder. Optional.
	Include []string `yaml:"include"`
	// TrustStores are the sets of CAs that clients or targets are verified against, by name.
	TrustStores map[string]*TrustStore `yaml:"trust_stores"`
	// Listeners are the addresses that are served, by name. At least one.
	Listeners map[string]*Listener `yaml:"listeners"`
	// Upstreams are the pools of targets, by name.
	Upstreams map[string]*Upstream `yaml:"upstreams"`
}

// Experimental are experiments. See docs/performance.md.
type Experimental struct {
	// EventLoop is on or off (default). On: connections of HTTP/1.1 without a request wait in one event loop for each
	// processor, without a goroutine of their own, and the records of TLS 1.3 are read and written by a record layer of our
	// own once crypto/tls has done the handshake. An idle connection takes less memory. Linux only.
	EventLoop string `yaml:"event_loop" enum:"on,off"`
}

// Ops is the listener for GET /livez, /readyz and /metrics. It asks for no authentication, so keep it on loopback or
// behind a firewall.
type Ops struct {
	// Listen is the address, for example 127.0.0.1:9901. Required.
	Listen string `yaml:"listen" required:"true"`
}

// Outbound says where the program may connect to by itself.
type Outbound struct {
	// Allow are private, loopback and link-local networks that may be connected to, as prefixes (10.0.0.0/8) or addresses.
	// Default: none, only public addresses are, so that a URL in somebody's certificate cannot reach into this network.
	Allow []string `yaml:"allow"`
	// Stapling is on (default: OCSP answers for our own certificates are fetched from the responders they name, and stapled)
	// or off.
	Stapling string `yaml:"stapling" enum:"on,off"`
}

// Log says what is recorded where.
type Log struct {
	// Requests is which requests get a line: all (default), errors (refused ones, and every status from 400 on), refused or
	// none. Refused handshakes always get one.
	Requests string `yaml:"requests" enum:"all,errors,refused,none"`
	// PerReason is the most lines per second about ends for one and the same reason, where that is not a good one. What is
	// beyond it is counted, and told in one line. Default 1000.
	PerReason int `yaml:"per_reason"`
	// Outputs are the places that lines go to. Default: standard output, as JSON. See docs/logs.md.
	Outputs []*LogOutput `yaml:"outputs"`
}

// LogOutput is a place that lines of the log go to. None ever keeps traffic waiting: what it cannot take is dropped and
// counted.
type LogOutput struct {
	// To is stdout, stderr, file or syslog. Required.
	To string `yaml:"to" required:"true" enum:"stdout,stderr,file,syslog"`
	// Path is the file that lines are appended to, relative to the configuration file. Required for file.
	Path string `yaml:"path"`
	// Address is the syslog server: udp://host:514, tcp://host:601, or unix:/path of a local socket. Default unix:/dev/log.
	Address string `yaml:"address"`
	// Facility is that of syslog. Default local0.
	Facility string `yaml:"facility" enum:"kern,user,mail,daemon,auth,syslog,lpr,news,uucp,cron,authpriv,ftp,local0,local1,local2,local3,local4,local5,local6,local7"`
	// Format is json (default), alb_access or alb_connection (AWS ALB's access log and connection log), or combined (Apache's
	// and nginx's).
	Format string `yaml:"format" enum:"json,alb_access,alb_connection,combined"`
	// What is requests, connections or both. Default: all that the format has lines for.
	What []string `yaml:"what" enum:"requests,connections"`
	// Requests is as log.requests, for this output alone.
	Requests string `yaml:"requests" enum:"all,errors,refused,none"`
	// Queue is how many bytes of lines may wait for a slow output. Default 4MiB.
	Queue Size `yaml:"queue"`
	// Rotate has the program rotate a file itself. Optional; logrotate and its like are noticed without it.
	Rotate *LogRotate `yaml:"rotate"`
}

// LogRotate says when a file gets another name, with the time in it, and a new one is begun. At least one of bytes and age.
type LogRotate struct {
	// Bytes is the size that the file does not exceed, at least 64KiB.
	Bytes Size `yaml:"bytes"`
	// Age is the span of time that has a file of its own, at least 1m; 24h begins one at midnight UTC.
	Age Duration `yaml:"age"`
	// Keep is how many rotated files are kept, at most 1000. Default 7.
	Keep int `yaml:"keep"`
	// Compress has rotated files compressed by gzip. Default false.
	Compress bool `yaml:"compress"`
}

// Tracing says which requests are traced and where their spans go. See docs/tracing.md.
type Tracing struct {
	// OTLP is the URL of a collector of OpenTelemetry, for OTLP over HTTP: https://collector.test:4318. Without a path it is
	// /v1/traces. Plain http is for this machine only: spans say who the clients are. Required.
	OTLP string `yaml:"otlp" required:"true"`
	// Sample is the share of requests that are traced, from 0 to 1: 0.01 is one of a hundred. Parents decide for themselves.
	// Default 0.01.
	Sample string `yaml:"sample"`
	// ParentSampled says whose traceparent decides whether a request is traced, and under which id: trusted (default:
	// trusted_proxies of the host, and trusted of forwarded of the listener), ignore (nobody's), or honour_from_anybody, with
	// which every client can have each of its requests traced and write into the traces of others.
	ParentSampled string `yaml:"parent_sampled" enum:"trusted,ignore,honour_from_anybody"`
	// Identity is on (default: spans have subject, issuer, serial and fingerprint of the client certificate) or off.
	Identity string `yaml:"identity" enum:"on,off"`
	// TLS is how the collector is verified, and our certificate for it. Default: by the CAs of this machine and the name in
	// the URL.
	TLS *UpstreamTLS `yaml:"tls"`
	// Authorization is the value of that header for the collector, such as Bearer and a token. Optional.
	Authorization *Secret `yaml:"authorization"`
}

// Journal says how much is kept of what ended badly, for countersign journal and countersign explain --ref. See
// docs/journal.md.
type Journal struct {
	// Enabled is true (default) or false.
	Enabled *bool `yaml:"enabled"`
	// MaxRecords is how many handshakes, connections and requests that ended badly are kept, 100 to 10000000. Of too many the
	// oldest of the reason with the most of them go. Default 100000.
	MaxRecords int `yaml:"max_records"`
	// MaxBytes is the size of the file with everything in it, at least 1MiB. Default 256MiB.
	MaxBytes Size `yaml:"max_bytes"`
	// MaxAge is how long they are kept, at least 1m. Clients seen are kept for 400 days. Default 168h.
	MaxAge Duration `yaml:"max_age"`
	// ManyNetworks is from how many networks (/24, /48) within ten minutes the use of one client certificate raises the
	// condition client_many_networks, 2 to 16. Default 8.
	ManyNetworks int `yaml:"many_networks"`
}

// TrustStore is a CA bundle with its hints, acceptance rules and revocation.
type TrustStore struct {
	// CABundle holds the anchors. Required.
	CABundle *Bundle `yaml:"ca_bundle" required:"true"`
	// Compat applies another product's file rules: alb (AWS ALB's rules for trust store files). Optional.
	Compat string `yaml:"compat" enum:"alb"`
	// Hints are the CA names sent to clients in CertificateRequest: auto (the bundle's subjects, default), none, or
	// {file: names.pem}. They have no influence on trust.
	Hints *Hints `yaml:"hints"`
	// Accept are the rules a chain has to meet besides leading to an anchor. Optional.
	Accept *Accept `yaml:"accept"`
	// Revocation says which lists are checked. Optional; without it nothing is.
	Revocation *Revocation `yaml:"revocation"`
}

// Bundle is where CA certificates come from. One or several of its keys; the store trusts all that they name.
type Bundle struct {
	// File is a file of CA certificates (PEM, DER or PKCS#7), relative to the configuration file.
	File string `yaml:"file"`
	// Directory is a folder of such files. Every file in it counts, except hidden ones; one that cannot be read is an error.
	Directory string `yaml:"directory"`
	// URL is where such a file is fetched from, by https. The last good one is kept on disk and used while it cannot be
	// fetched.
	URL string `yaml:"url"`
	// Refresh is how often URL is asked. Default 1h.
	Refresh Duration `yaml:"refresh"`
	// System adds the CAs that this machine trusts: with public CAs in it, anybody who buys a certificate is a client, so it
	// belongs to upstreams, or to hosts whose routes name their clients in allow.
	System bool `yaml:"system"`
	// Stores adds the CAs of other trust stores, by name. Their rules and lists are not taken over.
	Stores []string `yaml:"stores"`
}

// Hints is auto, none or a file of certificates whose subjects are sent.
type Hints struct {
	// Mode is auto or none; empty when File is set.
	Mode string `yaml:"-" short:"true" enum:"auto,none"`
	// File is a PEM file of certificates whose subjects are the hints. Required in the long form.
	File string `yaml:"file" required:"true"`
}

// Accept are the acceptance rules of a trust store.
type Accept struct {
	// MaxDepth is the greatest number of certificates in the chain without its anchor. Default 4.
	MaxDepth int `yaml:"max_depth"`
	// MaxPresented is the greatest number of certificates a client may send. Default 4, at most 10.
	MaxPresented int `yaml:"max_presented"`
	// EKU is what extendedKeyUsage of a client has to say: strict (default: clientAuth), allow_absent (also nothing, or any),
	// {allow_server_auth_until: 2027-03-01} (also serverAuth, until then), or {oids: [1.3.6.1.4.1.99999.7]} (one of these in
	// place of clientAuth). Clients that only a lenient setting lets in are counted by issuer.
	EKU *EKU `yaml:"eku"`
	// SPIFFETrustDomain wants clients to have a SPIFFE ID of this trust domain (corp.test), as X.509-SVIDs do. Optional.
	SPIFFETrustDomain string `yaml:"spiffe_trust_domain"`
	// ExpiredLeaf is deny (default) or allow: ignores exactly the leaf's notAfter and nothing else.
	ExpiredLeaf string `yaml:"expired_leaf" enum:"deny,allow"`
}

// EKU is strict, allow_absent, or one of two rules with a value.
type EKU struct {
	// Mode is strict or allow_absent; empty in the long form.
	Mode string `yaml:"-" short:"true" enum:"strict,allow_absent"`
	// AllowServerAuthUntil is the date (2027-03-01, in UTC) until which serverAuth is enough.
	AllowServerAuthUntil string `yaml:"allow_server_auth_until"`
	// OIDs are purposes of which a client must have one, in place of clientAuth.
	OIDs []string `yaml:"oids"`
}

// Revocation says how it is found out that a certificate was revoked: by lists, by responders and by the operator. What
// any of them says to be revoked is refused. At least one of its sources is required.
type Revocation struct {
	// CRLs are the lists, one or several of each CA.
	CRLs []CRL `yaml:"crls"`
	// DistributionPoints are hosts (crl.partner.test) from which lists are fetched that verified certificates name in their
	// CRL distribution points. Other hosts are never asked.
	DistributionPoints []string `yaml:"distribution_points"`
	// Missing says whose issuer must have a current list: leaf (default), chain or if_present.
	Missing string `yaml:"missing" enum:"leaf,chain,if_present"`
	// Stale says what a list past its nextUpdate means. Optional.
	Stale *Stale `yaml:"stale"`
	// ByCA are other rules for lists of single CAs, by the CA's subject as log lines print it. Optional.
	ByCA map[string]*CARules `yaml:"by_ca"`
	// OCSP is off (default), prefer (an answer counts, none lets in) or require (without a good answer nobody gets in), or
	// settings with such a mode.
	OCSP *OCSP `yaml:"ocsp"`
	// Deny are certificates that are refused by the operator's word. Optional.
	Deny []Deny `yaml:"deny"`
}

// CRL is one source of revocation lists: a file or a URL.
type CRL struct {
	// File is a DER file with one list or a PEM file with one or more, relative to the configuration file.
	File string `yaml:"file"`
	// URL is where a list is fetched from. It may be http: lists are signed. The last good one is kept on disk.
	URL string `yaml:"url"`
	// Refresh is how often URL is asked. Default: by the list's own dates, at most 1h.
	Refresh Duration `yaml:"refresh"`
}

// CARules are rules for the lists of one CA.
type CARules struct {
	// Missing says whether the CA must have a current list: required or if_present. Default: as for the store.
	Missing string `yaml:"missing" enum:"required,if_present"`
	// Stale says what a list of this CA past its nextUpdate means. Default: as for the store.
	Stale *Stale `yaml:"stale"`
}

// OCSP says what responders are asked.
type OCSP struct {
	// Mode is off, prefer or require. Required.
	Mode string `yaml:"mode" required:"true" short:"true" enum:"off,prefer,require"`
	// Responder is asked in place of the one that a certificate names.
	Responder string `yaml:"responder"`
	// Hosts are responders that certificates may name (ocsp.partner.test). Without them, and without Responder, nobody could
	// be asked.
	Hosts []string `yaml:"hosts"`
	// Signers is a file of certificates that may sign answers besides the CA and those it delegates. Optional.
	Signers string `yaml:"signers"`
	// Nonce is off (default: sent, and compared if it comes back) or require.
	Nonce string `yaml:"nonce" enum:"off,require"`
	// Chain asks about intermediate CAs too. Default false.
	Chain bool `yaml:"chain"`
}

// Deny is one thing that is refused: exactly one of serial (with issuer), spki, certificate and san.
type Deny struct {
	// Serial is a serial number in hexadecimal, with or without colons, or decimal.
	Serial string `yaml:"serial"`
	// Issuer is the subject of the CA that gave the serial number, as log lines print it.
	Issuer string `yaml:"issuer"`
	// SPKI is SHA-256 of a public key (SubjectPublicKeyInfo); that of a CA denies all it has issued.
	SPKI string `yaml:"spki"`
	// Certificate is SHA-256 of a certificate.
	Certificate string `yaml:"certificate"`
	// SAN is an alternative name with its kind: dns:host.test, email:a@b.test, uri:spiffe://td/x, ip:10.1.2.3.
	SAN string `yaml:"san"`
}

// Stale says what a list past its nextUpdate means.
type Stale struct {
	// Policy is fail_closed (default: the certificates of that issuer are refused), grace or ignore.
	Policy string `yaml:"policy" enum:"fail_closed,grace,ignore"`
	// Grace is how long a stale list is still used under policy grace.
	Grace Duration `yaml:"grace" zero:"true"`
}

// Listener is an address and a protocol.
type Listener struct {
	// Listen is the address, for example ":8443" or "127.0.0.1:8443", or unix:/path for a socket that only this user may
	// connect to. Required.
	Listen string `yaml:"listen" required:"true"`
	// Protocol is https, http, tls (bytes inside TLS, after client auth), passthrough (bytes by server name, never
	// decrypted) or tcp. Required.
	Protocol string `yaml:"protocol" required:"true" enum:"https,http,tls,passthrough,tcp"`
	// TLS sets versions, ciphers and groups of an https or tls listener. Optional.
	TLS *TLS `yaml:"tls"`
	// Sources are the addresses that may connect, as prefixes (10.1.0.0/16) or addresses. Optional; everybody may, except
	// on a plain listener that leads to an upstream with client_certificates, which lends our identity to whoever
	// connects: there only loopback addresses may, unless sources says otherwise.
	Sources []string `yaml:"sources"`
	// DefaultHost is one of the names of a host that serves clients with no or an unknown server name. Optional; without
	// it such clients are refused.
	DefaultHost string `yaml:"default_host"`
	// Hosts are the server names of this listener. At least one, except on tcp, which has none.
	Hosts []*Host `yaml:"hosts"`
	// Upstream is where the connections of a tcp listener go. Only for tcp.
	Upstream string `yaml:"upstream"`
	// Limits bound what one connection and the whole listener may use. Optional.
	Limits *Limits `yaml:"limits"`
	// DesyncMitigation is what happens to HTTP/1 requests that deviate from RFC 9112, in the modes of AWS ALB: strictest
	// (default) refuses them; defensive passes those that still have one meaning, written anew, and closes both connections
	// after an ambiguous one; monitor passes the same and closes none. What has no single meaning is refused in every mode.
	// For https and http.
	DesyncMitigation string `yaml:"desync_mitigation" enum:"strictest,defensive,monitor"`
	// ProxyProtocol says which proxies begin their connections with a PROXY header, and so whose word on addresses counts.
	// Optional; without it no header is read. See docs/client-address.md.
	ProxyProtocol *ProxyProtocol `yaml:"proxy_protocol"`
	// Forwarded says what becomes of X-Forwarded-* and Forwarded. Only for https and http. Optional; without it the headers
	// of clients are removed and ours are written. See docs/client-address.md.
	Forwarded *Forwarded `yaml:"forwarded"`
	// RateLimits bound how fast requests may come, for https and http; what is more is answered 429. Optional.
	RateLimits []RateLimit `yaml:"rate_limits"`
	// Concurrency bounds how many requests may be under way, for https and http; what is more is answered 429. Optional.
	Concurrency []ConcurrencyLimit `yaml:"concurrency"`
}

// ProxyProtocol says whose PROXY headers are read, version 1 and 2 alike.
type ProxyProtocol struct {
	// From are the proxies, as prefixes (10.1.0.0/16) or addresses; on a Unix socket unix. Every connection of theirs has to
	// begin with a header. Required.
	From []string `yaml:"from" required:"true"`
	// Unlisted says what becomes of connections from elsewhere: refuse (default) or plain (they are clients of their own,
	// without a header).
	Unlisted string `yaml:"unlisted" enum:"refuse,plain"`
}

// Forwarded says what becomes of the headers that say where a request comes from.
type Forwarded struct {
	// Mode is replace (default: what comes in is removed and ours are written), append (ours are put behind lists that a
	// trusted address sends) or preserve_from_trusted (what a trusted address sends is kept as it is).
	Mode string `yaml:"mode" enum:"replace,append,preserve_from_trusted"`
	// Trusted are the proxies in front of us whose headers are read, as prefixes or addresses; on a Unix socket unix. With
	// proxy_protocol it is the address in the PROXY header that counts. Required where mode or client_address read them.
	Trusted []string `yaml:"trusted"`
	// ClientAddress is who the client of a request is in records, expressions and limits of requests: peer (default: who is
	// connected, or whom a PROXY header names), or the rightmost address that is not trusted in x_forwarded_for or in
	// forwarded (RFC 7239). Name the header that your proxies write; the other one is the client's own.
	ClientAddress string `yaml:"client_address" enum:"peer,x_forwarded_for,forwarded"`
	// Port adds the client's port to its address. Default false.
	Port bool `yaml:"port"`
	// RFC7239 writes Forwarded (RFC 7239) too. Default false.
	RFC7239 bool `yaml:"rfc7239"`
}

// Announce is the PROXY header that each connection to a target begins with.
type Announce struct {
	// Version is v1 or v2. Required.
	Version string `yaml:"version" required:"true" enum:"v1,v2"`
	// TLVs are what v2 says besides addresses: alpn, authority (the server name that the client asked for), crc32c, unique_id
	// (the reference of our records), tls (verified or not, version, cipher suite) and, which bring tls along, cn (of the
	// verified client), client_cert (the verified client's, in DER) and server_cert (its algorithms). Default: none.
	TLVs []string `yaml:"tlvs" enum:"alpn,authority,crc32c,unique_id,tls,cn,client_cert,server_cert"`
}

// TLS sets what a listener negotiates.
type TLS struct {
	// Policy is modern (default: TLS 1.3, and 1.2 with ECDHE and AEAD), tls13 or compatible (adds 1.2 CBC-SHA).
	Policy string `yaml:"policy" enum:"modern,tls13,compatible" later:"fips,ELBSecurityPolicy-*"`
	// MinVersion is 1.2 or 1.3. Default: the policy's.
	MinVersion string `yaml:"min_version" enum:"1.2,1.3"`
	// Ciphers are the TLS 1.2 suites by IANA name. Default: the policy's. TLS 1.3 suites are fixed.
	Ciphers []string `yaml:"ciphers"`
	// Groups are the key exchange groups: X25519MLKEM768, SecP256r1MLKEM768, SecP384r1MLKEM1024, X25519, P-256, P-384,
	// P-521. Default: all that the library offers, hybrid ones first.
	Groups []string `yaml:"groups"`
	// ALPN are the versions of HTTP that clients may choose from: h2 and http/1.1. Only for https. Default: both.
	ALPN []string `yaml:"alpn" enum:"h2,http/1.1"`
}

// Host is a set of server names with one certificate choice, one client-auth policy and its routes.
type Host struct {
	// Names are exact names (api.test) or wildcards for one label (*.partners.test). Required.
	Names []string `yaml:"names" required:"true"`
	// Certificate is the server certificate; use certificates for more than one.
	Certificate *KeyPair `yaml:"certificate"`
	// Certificates are several, of different key types; the client's offer decides, ECDSA before RSA.
	Certificates []KeyPair `yaml:"certificates"`
	// ClientAuth is the client-auth policy. Required on https listeners: say mode: off where nobody is asked.
	ClientAuth *ClientAuth `yaml:"client_auth"`
	// TrustedProxies are proxies in front of us that may say who their client is: those whose own client certificate,
	// verified as client_auth says, is listed here. From everybody else such a header is removed unread. The first entry
	// that fits counts. Only for https, with mode request or require. Optional.
	TrustedProxies []*TrustedProxy `yaml:"trusted_proxies"`
	// IdentityHeaders are the dialects in which the backend is told who the client is: rfc9440 (default), alb, xfcc
	// (Envoy), x_ssl_client (as nginx and HAProxy are configured by most), traefik, gcp, and psd2 (what a qualified
	// certificate says about a payment service provider). See docs/headers.md.
	IdentityHeaders []string `yaml:"identity_headers" enum:"rfc9440,alb,xfcc,x_ssl_client,traefik,gcp,psd2"`
	// IdentityOptions change how they are written. Optional.
	IdentityOptions *IdentityOptions `yaml:"identity_options"`
	// Exempt are requests without a certificate that this program answers itself. Optional.
	Exempt *Exempt `yaml:"exempt"`
	// StepUpFor are the origins (https://app.test) whose routes may send browsers here with step_up to show a certificate,
	// and the only ones that they are sent back to. Only for https with mode require. See docs/step-up.md. Optional.
	StepUpFor []string `yaml:"step_up_for"`
	// RateLimits bound how fast requests for this host may come, besides those of the listener. For https and http. Optional.
	RateLimits []RateLimit `yaml:"rate_limits"`
	// Concurrency bounds how many requests for this host may be under way, besides that of the listener. For https and http.
	// Optional.
	Concurrency []ConcurrencyLimit `yaml:"concurrency"`
	// Routes are tried in order; the first match wins. For https and http.
	Routes []*Route `yaml:"routes"`
	// Upstream is where the host's connections go. For passthrough and tls.
	Upstream string `yaml:"upstream"`
}

// IdentityOptions change how identity headers are written.
type IdentityOptions struct {
	// Chain adds the verified intermediates where the dialect has a place for them: rfc9440, xfcc, traefik, gcp. Default
	// false.
	Chain bool `yaml:"chain"`
	// XFCCCert adds the certificate itself to xfcc. Default false.
	XFCCCert bool `yaml:"xfcc_cert"`
	// ALBNames gives headers of dialect alb other names. Keys are serial_number, issuer, subject, validity, leaf and
	// clientcert.
	ALBNames map[string]string `yaml:"alb_names"`
}

// KeyPair names a certificate and its key: two files, or one PKCS#12 file. PEM, DER and PKCS#7 are understood.
type KeyPair struct {
	// Cert is the certificate file: leaf first, then intermediates.
	Cert string `yaml:"cert"`
	// Key is the key file.
	Key string `yaml:"key"`
	// PKCS12 is a file with both, in place of cert and key.
	PKCS12 string `yaml:"pkcs12"`
	// Password opens an encrypted key or a PKCS#12 file. Optional.
	Password *Secret `yaml:"password"`
}

// String names the files.
func (p KeyPair) String() string {
	if p.PKCS12 != "" {
		return p.PKCS12
	}
	return p.Cert + " and " + p.Key
}

// Secret is where a secret comes from; it never stands in the configuration itself.
type Secret struct {
	// File holds the secret and nothing else; one line end behind it is left out.
	File string `yaml:"file"`
	// Env is the name of an environment variable that holds it.
	Env string `yaml:"env"`
}

// ClientAuth is the client-auth policy of a host.
type ClientAuth struct {
	// Mode is off, request (ask; a certificate that is sent must verify), require, request_unverified (ask, and let in
	// whoever comes; the verdict is recorded and told) or passthrough_chain (ask, and hand what is sent to the backend
	// unverified, as AWS ALB's passthrough does). Required.
	Mode string `yaml:"mode" required:"true" enum:"off,request,require,request_unverified,passthrough_chain"`
	// TrustStore is the name of the trust store clients are verified against. Required for request, require and
	// request_unverified.
	TrustStore string `yaml:"trust_store"`
	// OnFailure is alert (default: a TLS alert), reset (the connection is reset, as AWS ALB does) or page (https only: the
	// handshake ends well and every request is answered 403: certificate missing or refused, and a reference).
	OnFailure string `yaml:"on_failure" enum:"alert,reset,page"`
	// Shadow is a stricter setting that is evaluated beside this one and not enforced: handshakes that it would refuse are
	// recorded and counted. Optional.
	Shadow *ShadowAuth `yaml:"shadow"`
}

// ShadowAuth is a client-auth setting that is only looked at.
type ShadowAuth struct {
	// Mode is request or require. Required.
	Mode string `yaml:"mode" required:"true" enum:"request,require"`
	// TrustStore is the name of the trust store clients would be verified against. Default: the one in force.
	TrustStore string `yaml:"trust_store"`
}

// RouteAuth is what a route asks of clients beyond its host.
type RouteAuth struct {
	// Mode is require: a verified client. Required.
	Mode string `yaml:"mode" required:"true" enum:"require"`
	// TrustStore is the name of a trust store that the client's chain has to verify against as well. Default: the host's.
	TrustStore string `yaml:"trust_store"`
}

// ShadowRoute is a stricter setting of a route that is only looked at.
type ShadowRoute struct {
	// Allow is an expression, as that of the route.
	Allow string `yaml:"allow" lines:"true"`
	// TrustStore is the name of a trust store that the client's chain would have to verify against.
	TrustStore string `yaml:"trust_store"`
}

// Exempt are requests of clients without a certificate that are answered by this program from what stands here, and
// never forwarded. Only for hosts with mode request.
type Exempt struct {
	// Health are paths for monitors that have no certificate.
	Health []ExemptPath `yaml:"health"`
	// Preflight answers CORS preflight requests, which browsers send without a certificate (WHATWG Fetch).
	Preflight *Preflight `yaml:"preflight"`
}

// ExemptPath is one path that is answered by this program.
type ExemptPath struct {
	// Path is exact, as /healthz. GET and HEAD are answered. Required.
	Path string `yaml:"path" required:"true"`
	// Status is 200 (default) or another one.
	Status int `yaml:"status"`
	// Body is plain text. Default: ok.
	Body string `yaml:"body"`
}

// Preflight is the answer to CORS preflight requests.
type Preflight struct {
	// Origins are the origins that may ask, as https://app.test; exact. Required.
	Origins []string `yaml:"origins" required:"true"`
	// Methods they may use. Required.
	Methods []string `yaml:"methods" required:"true"`
	// Headers they may send.
	Headers []string `yaml:"headers"`
	// Credentials allows cookies and client certificates on the request that follows. Default false.
	Credentials bool `yaml:"credentials"`
	// MaxAge is how long browsers may remember the answer. Default 10m.
	MaxAge Duration `yaml:"max_age"`
}

// TrustedProxy is a proxy in front of us that says who its client is.
type TrustedProxy struct {
	// Match says which certificates are the proxy's. Required.
	Match *ProxyMatch `yaml:"match" required:"true"`
	// Identity is the dialect in which it asserts its client's certificate: rfc9440 or xfcc. Required.
	Identity string `yaml:"identity" required:"true" enum:"rfc9440,xfcc"`
	// TrustStore is the name of the trust store that the asserted certificate is verified against, on every request.
	// Required.
	TrustStore string `yaml:"trust_store" required:"true"`
	// Missing says what a request without an assertion is: deny (default: refused) or proxy (the proxy's own).
	Missing string `yaml:"missing" enum:"deny,proxy"`
	// Append is for xfcc of proxies that append to what they were sent, as Envoy's APPEND_FORWARD does: the last element is
	// the client, the elements go on to the backend, and ours is put behind them. Default false: there may be one element,
	// and ours replaces it.
	Append bool `yaml:"append"`
}

// ProxyMatch lists certificates; one that is named by any item is listed. There must be at least one item.
type ProxyMatch struct {
	// SHA256 are hashes of whole certificates (their DER), 64 hexadecimal digits each, with or without colons.
	SHA256 []string `yaml:"sha256"`
	// SANs are alternative names of certificates, with their type: dns:edge1.cdn.test or uri:spiffe://corp.test/edge. They
	// are compared whole; there are no wildcards.
	SANs []string `yaml:"sans"`
}

// Route does one thing with matching requests: upstream, forward, redirect, respond or maintenance. See docs/routing.md.
type Route struct {
	// Match limits the route. Optional; a route without it matches everything.
	Match *Match `yaml:"match"`
	// Upstream is the name of the pool that requests go to.
	Upstream string `yaml:"upstream"`
	// Forward are several pools, each with its weight.
	Forward []Weighted `yaml:"forward"`
	// ForwardSticky keeps a client at one pool of forward while the weights stay: client, which is the verified certificate,
	// or the address of a client without one. Default: each request is drawn anew.
	ForwardSticky string `yaml:"forward_sticky" enum:"client"`
	// Redirect sends clients to another URL.
	Redirect *Redirect `yaml:"redirect"`
	// Respond answers with what stands here.
	Respond *Respond `yaml:"respond"`
	// Maintenance answers 503 with a page that says that the service will be back.
	Maintenance *Maintenance `yaml:"maintenance"`
	// Rewrite changes host, path or query on the way to the target. Only beside upstream or forward. Optional.
	Rewrite *Rewrite `yaml:"rewrite"`
	// RequestHeaders are header edits on the way to the target. Only beside upstream or forward. Optional.
	RequestHeaders *HeaderEdits `yaml:"request_headers"`
	// ResponseHeaders are header edits on the way to the client, of the route's own answers too. Optional.
	ResponseHeaders *HeaderEdits `yaml:"response_headers"`
	// Mirror sends copies of requests to another pool, whose answers are thrown away. Only beside upstream or forward.
	// Optional.
	Mirror *Mirror `yaml:"mirror"`
	// RequestID gives every request an id, in a header for the target. Only beside upstream or forward. Optional.
	RequestID *RequestID `yaml:"request_id"`
	// Trace is amzn: X-Amzn-Trace-Id as AWS ALB writes it. Only beside upstream or forward. Optional.
	Trace string `yaml:"trace" enum:"amzn"`
	// ClientAuth asks more of clients than the host does: a certificate where the host's mode is request, or one that
	// verifies against another trust store. Optional.
	ClientAuth *RouteAuth `yaml:"client_auth"`
	// StepUp sends browsers that have no certificate to a host that asks for one, and lets them in when they come back with
	// proof of it. Needs client_auth on the route, and mode off or request on the host. See docs/step-up.md. Optional.
	StepUp *StepUp `yaml:"step_up"`
	// Allow is an expression in CEL over client, request and connection that has to be true, as
	// client.uri_sans.exists(u, u == "spiffe://corp.test/ops"). See docs/policy.md. Optional.
	Allow string `yaml:"allow" lines:"true"`
	// Shadow is a stricter setting that is evaluated beside this one and not enforced: requests that it would refuse are
	// recorded and counted. Optional.
	Shadow *ShadowRoute `yaml:"shadow"`
	// AllowPath lists spellings that are refused by default and that this route's backend needs: encoded_slash,
	// double_slash, dot_segments, backslash.
	AllowPath []string `yaml:"allow_path" enum:"encoded_slash,double_slash,dot_segments,backslash"`
	// Upgrade lists the protocols a request of this route may switch to: websocket. Optional; none by default.
	Upgrade []string `yaml:"upgrade" enum:"websocket"`
	// RateLimits bound how fast requests of this route may come, besides those of its host and listener. Optional.
	RateLimits []RateLimit `yaml:"rate_limits"`
	// Concurrency bounds how many requests of this route may be under way, besides those of its host and listener. Optional.
	Concurrency []ConcurrencyLimit `yaml:"concurrency"`
}

// StepUp says where browsers show their certificate.
type StepUp struct {
	// To is the origin of that host, as browsers reach it: https://cert.app.test:8443. It is a host of this configuration
	// whose step_up_for has the origin of this route. Required.
	To string `yaml:"to" required:"true"`
	// Lifetime is how long a browser may use the route before it has to show the certificate again. Default and most: 15m.
	Lifetime Duration `yaml:"lifetime"`
}

// Match is the condition of a route: everything that is set has to be met, and of a list, one. It chooses where requests go
// and keeps nobody out; client_auth and allow do.
type Match struct {
	// Path is exact (/status) or a prefix by segments (/admin/* matches /admin and all below it). Compared with the
	// decoded path.
	Path string `yaml:"path"`
	// Paths are more such paths.
	Paths []string `yaml:"paths"`
	// PathGlob are more paths, with wildcards: * for any characters, slashes included, ? for one. A path that can be read in
	// more than one way meets none, and is refused where it begins like one.
	PathGlob []string `yaml:"path_glob"`
	// PathRegex are more paths, as regular expressions (RE2) for the whole path; else as path_glob.
	PathRegex []string `yaml:"path_regex"`
	// Method are methods, as GET. HEAD is another one.
	Method []string `yaml:"method"`
	// Header are conditions on headers, all of which have to be met.
	Header []MatchHeader `yaml:"header"`
	// Query are conditions on the query, all of which have to be met.
	Query []MatchQuery `yaml:"query"`
	// Source are networks (10.1.0.0/16) or addresses of clients, as the listener establishes them: see docs/client-address.md.
	Source []string `yaml:"source"`
	// Identity is a condition on the verified client.
	Identity *MatchIdentity `yaml:"identity"`
}

// MatchHeader is a condition on one header. Each of its lines is looked at by itself; one is enough.
type MatchHeader struct {
	// Name is the header's, in any case. Required.
	Name string `yaml:"name" required:"true"`
	// Values are texts with the wildcards * and ?, compared without regard to case; a backslash takes their meaning away.
	Values []string `yaml:"values"`
	// Regex are regular expressions (RE2) for the whole value.
	Regex []string `yaml:"regex"`
	// Present is true (the header has to be there) or false (it must not be). Default: values or regex decide.
	Present *bool `yaml:"present"`
}

// MatchQuery is a condition on one parameter of the query. Compared without regard to case, decoded, with the wildcards *
// and ?; a backslash takes their meaning away.
type MatchQuery struct {
	// Key is the parameter's name. Default: any.
	Key string `yaml:"key"`
	// Values are what it may be. Default: anything.
	Values []string `yaml:"values"`
}

// MatchIdentity is a condition on the verified client: everything that is set has to be met, and of a list, one.
type MatchIdentity struct {
	// Present is true (there is a verified client) or false (there is none). Default: true, if anything else is set.
	Present *bool `yaml:"present"`
	// Subject are whole subjects of certificates, as log lines print them.
	Subject []string `yaml:"subject"`
	// Issuer are whole issuers, as log lines print them.
	Issuer []string `yaml:"issuer"`
	// SAN are alternative names with their kind: dns:edge.test, uri:spiffe://corp.test/ns/prod/sa/api. A * stands for a whole
	// label of a DNS name or a whole segment of a URI's path.
	SAN []string `yaml:"san"`
	// FingerprintSHA256 are hashes of whole certificates (their DER), 64 hexadecimal digits each, with or without colons.
	FingerprintSHA256 []string `yaml:"fingerprint_sha256"`
	// SPIFFETrustDomain are trust domains of SPIFFE IDs: corp.test.
	SPIFFETrustDomain []string `yaml:"spiffe_trust_domain"`
}

// Weighted is one of several pools.
type Weighted struct {
	// Upstream is the name of the pool. Required.
	Upstream string `yaml:"upstream" required:"true"`
	// Weight is its part of the requests, from 0 (none) to 999. Required.
	Weight int `yaml:"weight" required:"true" zero:"true"`
}

// Redirect is where clients are sent. What is left out is as in the request; #{protocol}, #{host}, #{port}, #{path} (without
// its leading slash) and #{query} stand for the request's.
type Redirect struct {
	// Scheme is https, http or #{protocol}.
	Scheme string `yaml:"scheme"`
	// Host is a host name.
	Host string `yaml:"host"`
	// Port is a number. Default: the request's, or that of the scheme if another one is set.
	Port string `yaml:"port"`
	// Path begins with a slash: /new/#{path}.
	Path string `yaml:"path"`
	// Query is without its question mark.
	Query string `yaml:"query"`
	// DropQuery leaves the query out. Default false.
	DropQuery bool `yaml:"drop_query"`
	// Status is 301, 302 (default), 303, 307 or 308.
	Status int `yaml:"status"`
	// AllowDowngradeToHTTPInsecure lets clients that came by TLS be sent to a place without it. Default false.
	AllowDowngradeToHTTPInsecure bool `yaml:"allow_downgrade_to_http_insecure"`
}

// Respond is a fixed response.
type Respond struct {
	// Status is from 200 to 599, redirects left out. Default 200.
	Status int `yaml:"status"`
	// ContentType is the type of the body. Default text/plain; charset=utf-8.
	ContentType string `yaml:"content_type"`
	// Body is the text of the answer. Default: none.
	Body string `yaml:"body" lines:"true"`
	// BodyFile is a file with the body, relative to the configuration file, of at most 256 KiB.
	BodyFile string `yaml:"body_file"`
	// Headers are more headers, with their values. Without Cache-Control among them it is no-store.
	Headers map[string]string `yaml:"headers"`
}

// Maintenance is a page that says that the service will be back: HTML, or JSON for clients that would rather have it.
type Maintenance struct {
	// RetryAfter is what clients are told in Retry-After. Default 5m.
	RetryAfter Duration `yaml:"retry_after"`
	// Title is the page's heading. Default: Under maintenance.
	Title string `yaml:"title"`
	// Message is the page's text.
	Message string `yaml:"message"`
	// HTMLFile is a whole page in place of ours, relative to the configuration file, of at most 256 KiB.
	HTMLFile string `yaml:"html_file"`
	// JSONFile is a whole JSON text in place of ours.
	JSONFile string `yaml:"json_file"`
}

// Rewrite changes what the target is asked for. Routes, policies and records see what the client sent.
type Rewrite struct {
	// Host is the Host header for the target. Default: the client's.
	Host string `yaml:"host"`
	// Path changes the path. What does not match goes on as it is.
	Path *RewritePath `yaml:"path"`
	// Query changes parameters of the query; the others stay as they are, octet for octet.
	Query *RewriteQuery `yaml:"query"`
}

// RewritePath is prefix, or regex with replace.
type RewritePath struct {
	// Prefix replaces the beginning of the path by segments.
	Prefix *RewritePrefix `yaml:"prefix"`
	// Regex is a regular expression (RE2) for the whole decoded path.
	Regex string `yaml:"regex"`
	// Replace is the path that takes its place: $1 to $9 are groups of regex, $$ a dollar.
	Replace string `yaml:"replace"`
}

// RewritePrefix replaces whole segments at the beginning of a path.
type RewritePrefix struct {
	// From is a decoded path, as /api. Required.
	From string `yaml:"from" required:"true"`
	// To is a path, as /v2, or / for nothing. Required.
	To string `yaml:"to" required:"true"`
}

// RewriteQuery changes parameters of the query.
type RewriteQuery struct {
	// Set are parameters with their values, put behind the others, in place of those of the same name.
	Set map[string]string `yaml:"set"`
	// Remove are names of parameters.
	Remove []string `yaml:"remove"`
}

// HeaderEdits are edits of headers: remove, then set, then add. Values may have %{client_ip}, %{host}, %{port}, %{scheme} and
// %{request_id}. Headers that carry identity, origin or framing cannot be edited.
type HeaderEdits struct {
	// Set are headers with their values, in place of those of the same name.
	Set map[string]string `yaml:"set"`
	// Add are headers with their values, beside those of the same name.
	Add map[string]string `yaml:"add"`
	// Remove are names of headers.
	Remove []string `yaml:"remove"`
}

// Mirror is where copies of requests go.
type Mirror struct {
	// Upstream is the name of the pool. Required.
	Upstream string `yaml:"upstream" required:"true"`
	// Percent is how many of a hundred requests are copied. Default 100.
	Percent int `yaml:"percent"`
}

// RequestID says where a request's id is written and whose is taken over.
type RequestID struct {
	// Header is its name. Default X-Request-Id.
	Header string `yaml:"header"`
	// Trust is never (default: every request gets a new id) or from_listed_sources.
	Trust string `yaml:"trust" enum:"never,from_listed_sources"`
	// Sources are the networks or addresses whose id is taken over. Only with from_listed_sources.
	Sources []string `yaml:"sources"`
}

// Upstream is a pool of targets.
type Upstream struct {
	// Targets are the backends, each as a URL or as a mapping with a url: all of one scheme, with host and port and nothing
	// else: http or https for requests, tcp or tls for bytes (listeners of protocol tls, passthrough and tcp). At least one.
	Targets []*Target `yaml:"targets" required:"true"`
	// ProtocolVersion is what is spoken with http and https targets: http1 (default) or http2, chosen in TLS (ALPN) or, to
	// http targets, taken for granted (h2c). gRPC needs http2.
	ProtocolVersion string `yaml:"protocol_version" enum:"http1,http2"`
	// Balance is how the next target is chosen: round_robin (default), least_requests, p2c (of two at random the one with
	// less latency and fewer requests), random, or by hash: maglev and ring_hash. Weights count in all of them;
	// weighted_round_robin, least_outstanding_requests and weighted_random are AWS ALB's names for the first ones. See
	// docs/upstreams.md.
	Balance string `yaml:"balance" enum:"round_robin,weighted_round_robin,least_requests,least_outstanding_requests,p2c,random,weighted_random,maglev,ring_hash"`
	// Hash is what of a request decides its target. Required for maglev and ring_hash, and only for those.
	Hash *HashKey `yaml:"hash"`
	// Sticky keeps clients at the target they had first. Optional.
	Sticky *Sticky `yaml:"sticky"`
	// SlowStart is the time in which a target that came back or was added gets its share little by little. Not for maglev
	// and ring_hash. Default: it gets it at once.
	SlowStart Duration `yaml:"slow_start"`
	// FailoverThreshold is the share of healthy targets, in percent, that the targets of one priority must have to be used;
	// with less, those of the next priority are. Default: they are used while one of them is healthy.
	FailoverThreshold int `yaml:"failover_threshold"`
	// PanicThreshold is the share of healthy targets, in percent, under which health is ignored, because the rest would not
	// bear all requests. Default: it is ignored only when no target is healthy.
	PanicThreshold int `yaml:"panic_threshold"`
	// TLS is how https and tls targets are verified and how we prove ourselves to them. Required with such targets.
	TLS *UpstreamTLS `yaml:"tls"`
	// Health is how targets are checked. Optional; without it they are not.
	Health *Health `yaml:"health"`
	// Outlier takes targets out for a while that answer with errors or not at all: on, or a mapping. Default: it does not.
	Outlier *Outlier `yaml:"outlier"`
	// DNS is how host names of targets become addresses. Optional.
	DNS *DNS `yaml:"dns"`
	// Timeouts of connections to targets. Optional.
	Timeouts *UpstreamTimeouts `yaml:"timeouts"`
	// MaxConnections is the most connections to one target at a time. Default 1024.
	MaxConnections int `yaml:"max_connections"`
	// MaxRequests is the most requests under way to all targets together. Default: no limit but that of connections.
	MaxRequests int `yaml:"max_requests"`
	// MaxPending is how many requests may wait, first come first served, while max_connections or max_requests is reached.
	// Default: none, the answer is 503 at once.
	MaxPending int `yaml:"max_pending"`
	// QueueTimeout is how long a request may wait; then the answer is 503. Default 1s.
	QueueTimeout Duration `yaml:"queue_timeout"`
	// Retries say how often a request that may be repeated is tried again at another target. Optional.
	Retries *Retries `yaml:"retries"`
	// ProxyProtocol begins each connection to a target with a PROXY header that says who the client is. Optional.
	ProxyProtocol *Announce `yaml:"proxy_protocol"`
}

// Target is one backend: its URL, or a mapping with it.
type Target struct {
	// URL is scheme://host:port. A host name is resolved again and again. Required.
	URL string `yaml:"url" required:"true" short:"true"`
	// Weight is the target's share among the others, at most 999; 0 means that nothing new goes to it. Default 1.
	Weight *int `yaml:"weight" zero:"true"`
	// Priority is the group of the target, at most 9. Those of priority 0, the default, are used first, the others when too
	// few of those are healthy.
	Priority int `yaml:"priority" zero:"true"`
	// State is active (default), draining (nothing but the requests of clients that a sticky cookie keeps there; idle
	// connections are closed) or disabled.
	State string `yaml:"state" enum:"active,draining,disabled"`
}

// HashKey is what of a request decides its target. Requests without it go to a target by chance.
type HashKey struct {
	// On is source (the client's address), client_certificate (the verified one), header, cookie or path. Required.
	On string `yaml:"on" required:"true" short:"true" enum:"source,client_certificate,header,cookie,path"`
	// Name is that of the header or cookie. Required with those.
	Name string `yaml:"name"`
}

// Sticky keeps clients at the target they had first: one of cookie and client_certificate.
type Sticky struct {
	// Cookie is set on the client and names its target.
	Cookie *StickyCookie `yaml:"cookie"`
	// ClientCertificate keeps every client with a verified certificate at the target that the certificate's hash leads to.
	// Others are balanced. Only true makes sense.
	ClientCertificate bool `yaml:"client_certificate"`
}

// StickyCookie is the cookie of sticky clients. It is signed, and does not tell the target's address; one that does not
// verify is ignored and replaced.
type StickyCookie struct {
	// Name is the cookie's name. Default countersign_ and the upstream's name.
	Name string `yaml:"name"`
	// Lifetime is how long a client is kept since the cookie was set; it is set anew when half of it is over. Default 24h,
	// at most 168h.
	Lifetime Duration `yaml:"lifetime"`
	// Session leaves Max-Age out, so that browsers forget the cookie when they are closed. Default false.
	Session bool `yaml:"session"`
	// Domain is the Domain attribute, for a cookie that other hosts of the domain are sent as well. Default: only the host
	// that set it.
	Domain string `yaml:"domain"`
	// SameSite is lax (default), strict, or none (https only).
	SameSite string `yaml:"same_site" enum:"lax,strict,none"`
	// Key is at least 32 bytes that sign the cookie, the same on every node. Default: made by each process for itself, so
	// that clients begin at a new target after a restart or on another node.
	Key *Secret `yaml:"key"`
}

// Outlier says when a target is taken out for a while, in Envoy's terms. One that is well always stays.
type Outlier struct {
	// Mode is on, for all defaults. Empty in the long form.
	Mode string `yaml:"-" short:"true" enum:"on"`
	// Consecutive5xx is how many answers of 500 and above in a row take a target out; 0 means they do not. Default 5.
	Consecutive5xx *int `yaml:"consecutive_5xx" zero:"true"`
	// ConsecutiveGatewayFailure is the same for answers 502, 503 and 504. Default 0.
	ConsecutiveGatewayFailure *int `yaml:"consecutive_gateway_failure" zero:"true"`
	// ConsecutiveLocalOriginFailure is the same for connections that fail, answers that do not come in time, and answers
	// whose head is not whole or not valid. Default 5.
	ConsecutiveLocalOriginFailure *int `yaml:"consecutive_local_origin_failure" zero:"true"`
	// Interval is the time between looks at success rates, and after which a target that stayed in is forgiven one time that
	// it was out. Default 10s.
	Interval Duration `yaml:"interval"`
	// BaseEjectionTime is how long a target is out the first time; twice that the second, and so on. Default 30s.
	BaseEjectionTime Duration `yaml:"base_ejection_time"`
	// MaxEjectionTime is the longest time. Default 300s.
	MaxEjectionTime Duration `yaml:"max_ejection_time"`
	// MaxEjectionPercent is the most targets that may be out at a time, at most 50, the default.
	MaxEjectionPercent int `yaml:"max_ejection_percent"`
	// SuccessRate takes targets out that succeed less often than the others. Default: it does not.
	SuccessRate *SuccessRate `yaml:"success_rate"`
}

// SuccessRate says when a target succeeds too rarely: on, or a mapping.
type SuccessRate struct {
	// Mode is on, for all defaults. Empty in the long form.
	Mode string `yaml:"-" short:"true" enum:"on"`
	// MinimumHosts is how many targets must have had request_volume requests in an interval to be compared. Default 5.
	MinimumHosts int `yaml:"minimum_hosts"`
	// RequestVolume is how many requests a target must have had in an interval. Default 100.
	RequestVolume int `yaml:"request_volume"`
	// StdevFactor is by how many standard deviations, in thousandths, a target's rate may be below the mean. Default 1900.
	StdevFactor int `yaml:"stdev_factor"`
}

// DNS says how host names of targets become addresses.
type DNS struct {
	// Mode is one (default: a name is one target, whose addresses are tried one after the other) or all (every address is a
	// target).
	Mode string `yaml:"mode" enum:"one,all"`
	// Refresh is the longest time between lookups, 5s or more; an answer with a shorter time to live is renewed when that
	// is over, but not within 5s. Default 30s. The last good answer stays in use while there is none.
	Refresh Duration `yaml:"refresh"`
}

// Retries say how often a request that may be repeated is tried again. Those that may are idempotent, whole, and not
// answered with one byte.
type Retries struct {
	// Attempts is how many tries may follow the first, at most 5. Default 1.
	Attempts int `yaml:"attempts"`
	// PerTryTimeout is the time until the response head of one try. Default: timeouts.response.
	PerTryTimeout Duration `yaml:"per_try_timeout"`
	// BudgetPercent is the most retries under way, in percent of the requests under way to the upstream; three are allowed
	// in any case. Default 20.
	BudgetPercent int `yaml:"budget_percent"`
}

// Health is an active check of every target, made like traffic: same address, same TLS settings, same certificates, over
// a new connection each time.
type Health struct {
	// Path is requested with GET. Optional; without it a connection is enough (with its TLS handshake).
	Path string `yaml:"path"`
	// GRPC calls grpc.health.v1.Health/Check in place of GET: on, or a mapping. Needs protocol_version: http2. Optional.
	GRPC *GRPCHealth `yaml:"grpc"`
	// Host is the Host of the request. Default: tls.server_name, or the address of the first target.
	Host string `yaml:"host"`
	// Status is the good answers, as 200, 200-399 or 200-299,301. Default 200-399.
	Status string `yaml:"status"`
	// Interval is the time between checks of a target, give or take a twentieth. Default 5s.
	Interval Duration `yaml:"interval"`
	// Timeout is the time one check may take. Default 2s.
	Timeout Duration `yaml:"timeout"`
	// Healthy is how many good checks in a row bring a target back. Default 2.
	Healthy int `yaml:"healthy"`
	// Unhealthy is how many failed checks in a row take a target out. Default 3.
	Unhealthy int `yaml:"unhealthy"`
}

// GRPCHealth is a check in the way of gRPC: SERVING is good, everything else is not.
type GRPCHealth struct {
	// Mode is on, which asks for the server as a whole. Empty in the long form.
	Mode string `yaml:"-" short:"true" enum:"on"`
	// Service is the name of the service that is asked for. Required in the long form.
	Service string `yaml:"service" required:"true"`
}

// UpstreamTLS is verification of a target and our own certificate for it.
type UpstreamTLS struct {
	// ServerName is the name the target's certificate must have, also sent as SNI. Required.
	ServerName string `yaml:"server_name" required:"true"`
	// TrustStore is the trust store the target's certificate is verified against. Required; verification cannot be off.
	TrustStore string `yaml:"trust_store" required:"true"`
	// ClientCertificates are ours for targets that ask; the target's list of acceptable CAs decides, then the latest
	// notBefore. Optional.
	ClientCertificates []KeyPair `yaml:"client_certificates"`
}

// UpstreamTimeouts bound the waits on a target.
type UpstreamTimeouts struct {
	// Connect is the time for TCP and TLS together. Default 5s.
	Connect Duration `yaml:"connect"`
	// Response is the time until the response head. Default 60s.
	Response Duration `yaml:"response"`
	// Idle is the longest pause inside a response or request body. Default 60s.
	Idle Duration `yaml:"idle"`
	// Keepalive is how long an unused connection is kept. Default 30s.
	Keepalive Duration `yaml:"keepalive"`
	// Total is the time from a request's head to the end of its response, waits and retries included. Not for bytes, and not
	// for requests that upgrade. Default: no limit.
	Total Duration `yaml:"total"`
}

// Limits bound what clients of a listener may use. Every one has a default; see docs/defaults.md.
type Limits struct {
	// Connections is the most open connections. Default 20000.
	Connections int `yaml:"connections"`
	// ConnectionsPerAddress is the most open connections of one client address (IPv6: one /64). Default: three quarters of
	// connections, so that no single address can take them all; loopback addresses are exempt from the default only.
	ConnectionsPerAddress int `yaml:"connections_per_address"`
	// HandshakesPerAddress is how fast one client address (IPv6: one /64) may open connections. Default {rate: 200, burst:
	// 400}; loopback addresses are exempt from the default only.
	HandshakesPerAddress *HandshakeRate `yaml:"handshakes_per_address"`
	// Handshake is the time from accept to the end of the TLS handshake. Default 10s.
	Handshake Duration `yaml:"handshake"`
	// Header is the time from the first byte of a request to the end of its head. Default 10s.
	Header Duration `yaml:"header"`
	// Idle is how long a connection may wait between requests. Default 60s.
	Idle Duration `yaml:"idle"`
	// BodyIdle is the longest pause inside a request body. Default 30s.
	BodyIdle Duration `yaml:"body_idle"`
	// WriteIdle is the longest pause in which a client reads nothing of its response. Default 30s.
	WriteIdle Duration `yaml:"write_idle"`
	// TunnelIdle is how long a tunnel (WebSocket, passed-through or TCP) may go without a byte in either direction.
	// Default 1h.
	TunnelIdle Duration `yaml:"tunnel_idle"`
	// Lifetime is how long a tunnel may last at most; 0, the default, means no limit.
	Lifetime Duration `yaml:"lifetime" zero:"true"`
	// HeaderBytes is the largest request head. Default 32KiB.
	HeaderBytes Size `yaml:"header_bytes"`
	// Streams is the most requests that are under way on one connection of HTTP/2. Default 100.
	Streams int `yaml:"streams"`
	// HeaderFields is the greatest number of header fields. Default 100.
	HeaderFields int `yaml:"header_fields"`
	// BodyBytes is the largest request body; 0, the default, means no limit.
	BodyBytes Size `yaml:"body_bytes" zero:"true"`
}

// HandshakeRate is how fast one client address may open connections.
type HandshakeRate struct {
	// Rate is the number in each second. Required.
	Rate int `yaml:"rate" required:"true"`
	// Burst is the number at once. Default: twice the rate.
	Burst int `yaml:"burst"`
}

// RateLimit lets in a number of requests in each span of time.
type RateLimit struct {
	// Per is what is counted apart: client_address (IPv6: the /64), client_certificate (clients without a verified one by
	// address), or all clients together under the name of the place where the limit stands: listener, host or route.
	// Required.
	Per string `yaml:"per" required:"true" enum:"client_address,client_certificate,listener,host,route"`
	// Requests is the number in each span. Required.
	Requests int `yaml:"requests" required:"true"`
	// Every is the span. Default 1s, at most 24h.
	Every Duration `yaml:"every"`
	// Burst is the number at once. Default: as requests.
	Burst int `yaml:"burst"`
}

// ConcurrencyLimit lets a number of requests be under way at once. A WebSocket counts as one request while it lasts.
type ConcurrencyLimit struct {
	// Per is what is counted apart, as for rate_limits. Required.
	Per string `yaml:"per" required:"true" enum:"client_address,client_certificate,listener,host,route"`
	// Requests is the number. Required.
	Requests int `yaml:"requests" required:"true"`
}

// ProcessLimits bound what the whole process does at once.
type ProcessLimits struct {
	// HandshakesAtOnce is how many TLS handshakes compute at the same time; the others wait, in turns by address. One that
	// waits for its client does not count. Default: one for each processor, at least 2.
	HandshakesAtOnce int `yaml:"handshakes_at_once"`
	// HandshakeWait is how long a handshake waits for its turn before it is refused. Default 2s.
	HandshakeWait Duration `yaml:"handshake_wait"`
}

// Duration is a time span as Go writes it: 500ms, 10s, 1h30m. The zero value means "use the default".
type Duration time.Duration

// Or returns d, or def when d is not set.
func (d Duration) Or(def time.Duration) time.Duration {
	if d == 0 {
		return def
	}
	return time.Duration(d)
}

// Size is a number of bytes: a plain number or one with KiB, MiB or GiB. The zero value means "use the default".
type Size int64

// Or returns s, or def when s is not set.
func (s Size) Or(def int64) int64 {
	if s == 0 {
		return def
	}
	return int64(s)
}
