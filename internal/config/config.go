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
	// Drain is how long open connections may go on after SIGTERM. Default 30s.
	Drain Duration `yaml:"drain"`
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

// Ops is the listener for GET /livez, /readyz and /metrics. It asks for no authentication, so keep it on loopback or
// behind a firewall.
type Ops struct {
	// Listen is the address, for example 127.0.0.1:9901. Required.
	Listen string `yaml:"listen" required:"true"`
}

// Log says what is recorded where.
type Log struct {
	// Requests is which requests get a line: all (default), refused or none. Refused handshakes always get one.
	Requests string `yaml:"requests" enum:"all,refused,none"`
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

// Bundle is where CA certificates come from.
type Bundle struct {
	// File is a PEM file of CA certificates, relative to the configuration file. Required.
	File string `yaml:"file" required:"true"`
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
	// EKU is strict (default: extendedKeyUsage clientAuth must be there) or allow_absent.
	EKU string `yaml:"eku" enum:"strict,allow_absent" later:"{allow_server_auth_until},{oids}"`
	// ExpiredLeaf is deny (default) or allow: ignores exactly the leaf's notAfter and nothing else.
	ExpiredLeaf string `yaml:"expired_leaf" enum:"deny,allow"`
}

// Revocation says which certificate revocation lists are checked and what a missing or stale one means.
type Revocation struct {
	// CRLs are the lists, one file per issuer and file. Required.
	CRLs []CRL `yaml:"crls" required:"true"`
	// Missing says whose issuer must have a current list: leaf (default), chain or if_present.
	Missing string `yaml:"missing" enum:"leaf,chain,if_present"`
	// Stale says what a list past its nextUpdate means. Optional.
	Stale *Stale `yaml:"stale"`
	// OCSP is off.
	OCSP string `yaml:"ocsp" enum:"off" later:"prefer,require"`
}

// CRL is one source of a revocation list.
type CRL struct {
	// File is a PEM or DER file, relative to the configuration file. Required.
	File string `yaml:"file" required:"true"`
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
	// IdentityHeaders are the dialects in which the backend is told who the client is: rfc9440 (default), alb, xfcc
	// (Envoy), x_ssl_client (as nginx and HAProxy are configured by most), traefik and gcp. See docs/headers.md.
	IdentityHeaders []string `yaml:"identity_headers" enum:"rfc9440,alb,xfcc,x_ssl_client,traefik,gcp"`
	// IdentityOptions change how they are written. Optional.
	IdentityOptions *IdentityOptions `yaml:"identity_options"`
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
}

// Route sends matching requests to an upstream.
type Route struct {
	// Match limits the route. Optional; a route without it matches everything.
	Match *Match `yaml:"match"`
	// Upstream is the name of the pool. Required.
	Upstream string `yaml:"upstream" required:"true"`
	// AllowPath lists spellings that are refused by default and that this route's backend needs: encoded_slash,
	// double_slash, dot_segments, backslash.
	AllowPath []string `yaml:"allow_path" enum:"encoded_slash,double_slash,dot_segments,backslash"`
	// Upgrade lists the protocols a request of this route may switch to: websocket. Optional; none by default.
	Upgrade []string `yaml:"upgrade" enum:"websocket"`
}

// Match is the condition of a route.
type Match struct {
	// Path is exact (/status) or a prefix by segments (/admin/* matches /admin and all below it). Compared with the
	// decoded path.
	Path string `yaml:"path"`
}

// Upstream is a pool of targets.
type Upstream struct {
	// Targets are URLs of one scheme with host and port and nothing else: http or https for requests, tcp or tls for bytes
	// (listeners of protocol tls, passthrough and tcp). At least one.
	Targets []string `yaml:"targets" required:"true"`
	// Balance is round_robin (default) or least_requests.
	Balance string `yaml:"balance" enum:"round_robin,least_requests" later:"least_outstanding_requests,p2c,weighted_round_robin,weighted_random"`
	// TLS is how https and tls targets are verified and how we prove ourselves to them. Required with such targets.
	TLS *UpstreamTLS `yaml:"tls"`
	// Health is how targets are checked. Optional; without it they are not.
	Health *Health `yaml:"health"`
	// Timeouts of connections to targets. Optional.
	Timeouts *UpstreamTimeouts `yaml:"timeouts"`
	// MaxConnections is the most connections to one target at a time. Default 1024.
	MaxConnections int `yaml:"max_connections"`
}

// Health is an active check of every target, made like traffic: same address, same TLS settings, same certificates.
type Health struct {
	// Path is requested with GET. Optional; without it a connection is enough (with its TLS handshake).
	Path string `yaml:"path"`
	// Host is the Host of the request. Default: tls.server_name, or the address of the first target.
	Host string `yaml:"host"`
	// Status is the good answers, as 200 or 200-399. Default 200-399.
	Status string `yaml:"status"`
	// Interval is the time between checks of a target. Default 5s.
	Interval Duration `yaml:"interval"`
	// Timeout is the time one check may take. Default 2s.
	Timeout Duration `yaml:"timeout"`
	// Healthy is how many good checks in a row bring a target back. Default 2.
	Healthy int `yaml:"healthy"`
	// Unhealthy is how many failed checks in a row take a target out. Default 3.
	Unhealthy int `yaml:"unhealthy"`
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
}

// Limits bound what clients of a listener may use. Every one has a default; see docs/defaults.md.
type Limits struct {
	// Connections is the most open connections. Default 20000.
	Connections int `yaml:"connections"`
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
	// HeaderFields is the greatest number of header fields. Default 100.
	HeaderFields int `yaml:"header_fields"`
	// BodyBytes is the largest request body; 0, the default, means no limit.
	BodyBytes Size `yaml:"body_bytes" zero:"true"`
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
