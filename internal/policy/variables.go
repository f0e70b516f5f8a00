package policy

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/interpreter"

	"countersign/internal/identity"
	"countersign/internal/message"
	"countersign/internal/route"
)

// Facts are what a rule may read about one request. They are read when the rule asks for them, and are borrowed for the
// call: nothing of the request is kept. What was read of a client's certificate is kept until another client is set, so
// the Facts of a connection serve all its requests. They belong to one goroutine at a time. The zero value has no client
// and no request, and a rule that reads one fails.
type Facts struct {
	// Client is who the connection's client is. It must be the one that is asked about.
	Client identity.Client
	// Request is the head of the request, Path its path as the route was chosen by it, and Host the canonical name of the
	// host it asks for.
	Request *message.Request
	Path    route.Path
	Host    string
	// Connection is what the request came over.
	Connection *Connection
	// Now is the time of the request.
	Now time.Time

	state
}

// Connection is what a rule may read about the connection of a request.
type Connection struct {
	ClientIP   netip.Addr
	Listener   string // its name
	ServerName string // canonical, from the ClientHello; empty for none
	TLSVersion uint16 // of crypto/tls; 0 for none
	Port       uint16 // of the listener
	Resumed    bool
}

// state is that of one evaluation, and what is kept of the client.
type state struct {
	id     *identity.Identity // whose values these are
	values *values

	verified *identity.Identity // whom this evaluation may read, or nil
	path     []byte             // the reading of the path that this evaluation sees
	absent   string             // a client variable that was read without a verified client
	unusable error              // a fact that no rule may see
	failure  error
}

// Variable is one row of the table of what rules may read, for documents.
type Variable struct {
	Name, Type, Text string
}

// Variables returns the table of what rules may read, in its order.
func Variables() []Variable {
	all := []Variable{{present, "bool", "a verified client is there; the only client variable that may be read without one"}}
	for i := range clientVariables {
		v := &clientVariables[i]
		all = append(all, Variable{v.name, v.kind.String(), v.text})
	}
	for i := range requestVariables {
		v := &requestVariables[i]
		all = append(all, Variable{v.name, v.kind.String(), v.text})
	}
	return all
}

const (
	clientRoot = "client."
	present    = clientRoot + "present"
	path       = "request.path"
	headerMap  = "request.headers"
)

var strs = cel.ListType(cel.StringType)

// clientVariables come from a verified certificate. Each is read once for an identity.
var clientVariables = [...]struct {
	name, text string
	kind       *cel.Type
	read       func(*identity.Identity) ref.Val
}{
	{"client.subject", "subject, printed as RFC 2253 asks and as OpenSSL does; with T61String, BMPString or UniversalString " +
		"in it, reading it fails",
		cel.StringType, subject},
	{"client.issuer", "issuer, printed likewise", cel.StringType,
		func(id *identity.Identity) ref.Val { return text(id.Issuer()) }},
	{"client.common_name", "the CN of the subject; empty if there is none, more than one, one in an RDN of several values, or one that is " +
		"neither UTF8String nor PrintableString", cel.StringType, commonName},
	{"client.organizations", "the O of the subject, without those in an RDN of several values", strs, subjectList(oidOrganization)},
	{"client.organizational_units", "the OU of the subject, without those in an RDN of several values", strs, subjectList(oidUnit)},
	{"client.serial", "serial number in upper-case hexadecimal of whole octets; it says something together with the issuer only",
		cel.StringType,
		func(id *identity.Identity) ref.Val { return text(id.SerialHex()) }},
	{"client.sha256", "SHA-256 of the certificate in lower-case hexadecimal", cel.StringType,
		func(id *identity.Identity) ref.Val {
			sum := id.Fingerprint()
			return text(hex.EncodeToString(sum[:]))
		}},
	{"client.spki_sha256", "SHA-256 of the public key (SubjectPublicKeyInfo) in lower-case hexadecimal", cel.StringType,
		func(id *identity.Identity) ref.Val { return text(hexSHA256(id.Leaf().RawSubjectPublicKeyInfo)) }},
	{"client.dns_sans", "DNS names, as they are signed; compare with dns_matches", strs, altNames(sanDNS)},
	{"client.email_sans", "mailboxes, as they are signed; compare with email_matches", strs, altNames(sanEmail)},
	{"client.uri_sans", "URIs, as they are signed; with more than one SPIFFE ID, reading them fails", strs, altNames(sanURI)},
	{"client.ip_sans", "IP addresses", strs, altNames(sanIP)},
	{"client.spiffe_id", "SPIFFE ID of a valid X.509-SVID, empty for any other certificate; compare with spiffe_matches", cel.StringType,
		func(id *identity.Identity) ref.Val { return text(id.SPIFFE()) }},
	{"client.not_before", "start of validity", cel.TimestampType,
		func(id *identity.Identity) ref.Val { return types.Timestamp{Time: id.Leaf().NotBefore.UTC()} }},
	{"client.not_after", "end of validity", cel.TimestampType,
		func(id *identity.Identity) ref.Val { return types.Timestamp{Time: id.Leaf().NotAfter.UTC()} }},
	{"client.issuer_chain_sha256", "SHA-256 of the issuers' certificates in lower-case hexadecimal, from the leaf's issuer to the anchor",
		strs, issuers},
	{"client.anchor_subject", "subject of the anchor, printed as RFC 2253 asks", cel.StringType, anchorSubject},
	{"client.eku", "extended key usages: clientAuth, serverAuth, codeSigning, emailProtection, timeStamping, OCSPSigning, " +
		"anyExtendedKeyUsage, others as dotted numbers", strs, usages},
	{"client.policies", "certificate policies as dotted numbers", strs, policies},
	{"client.psd2_roles", "roles of a payment service provider: PSP_AS, PSP_PI, PSP_AI, PSP_IC", strs,
		func(id *identity.Identity) ref.Val {
			p, _ := id.PSD2()
			return list(p.Roles)
		}},
	{"client.psd2_authority", "code of its competent authority, such as DE-BAFIN; empty for none", cel.StringType,
		func(id *identity.Identity) ref.Val {
			p, _ := id.PSD2()
			return text(p.AuthorityID)
		}},
}

// requestVariables come from the request and its connection.
var requestVariables = [...]struct {
	name, text string
	kind       *cel.Type
	read       func(*Facts) ref.Val
}{
	{"request.method", "method, in the case it was sent", cel.StringType,
		func(f *Facts) ref.Val { return raw(f.Request.Method) }},
	{path, "path, decoded as the route was chosen by it; where backends could read several paths, the rule must allow each", cel.StringType,
		func(f *Facts) ref.Val { return raw(f.path) }},
	{"request.host", "canonical host name, without port", cel.StringType,
		func(f *Facts) ref.Val { return text(f.Host) }},
	{"request.query", "what follows the ?, not decoded", cel.StringType,
		func(f *Facts) ref.Val { return raw(f.Request.Query) }},
	{headerMap, "headers by lower-case name, with their values in order; headers that carry identity are never among them",
		cel.MapType(cel.StringType, strs),
		func(f *Facts) ref.Val { return (*headers)(f) }},
	{"connection.client_ip", "address of the client; compare with ip_in", cel.StringType,
		func(f *Facts) ref.Val {
			if !f.Connection.ClientIP.IsValid() {
				return types.String("")
			}
			return types.String(f.Connection.ClientIP.Unmap().String())
		}},
	{"connection.listener", "name of the listener", cel.StringType,
		func(f *Facts) ref.Val { return text(f.Connection.Listener) }},
	{"connection.server_name", "canonical server name (SNI), empty for none", cel.StringType,
		func(f *Facts) ref.Val { return text(f.Connection.ServerName) }},
	{"connection.tls_version", `"1.2" or "1.3", empty without TLS`, cel.StringType,
		func(f *Facts) ref.Val {
			switch f.Connection.TLSVersion {
			case 0x0303:
				return types.String("1.2")
			case 0x0304:
				return types.String("1.3")
			}
			return types.String("")
		}},
	{"connection.port", "port of the listener", cel.IntType,
		func(f *Facts) ref.Val { return types.Int(f.Connection.Port) }},
	{"connection.resumed", "the TLS session was resumed", cel.BoolType,
		func(f *Facts) ref.Val { return types.Bool(f.Connection.Resumed) }},
	{"connection.time", "time of the request", cel.TimestampType,
		func(f *Facts) ref.Val { return types.Timestamp{Time: f.Now.UTC()} }},
}

// raw is a text of the request. It is copied: no value of a rule points into a buffer of the codec.
func raw(b []byte) ref.Val {
	v := text(string(b))
	if s, ok := v.(types.String); ok && !utf8.ValidString(string(s)) {
		return unusable("expected UTF-8, found %s", quote(string(s)))
	}
	return v
}

// index is the place of each variable: those of the client first, then the others.
var index = func() map[string]int {
	m := make(map[string]int)
	for i := range clientVariables {
		m[clientVariables[i].name] = i
	}
	for i := range requestVariables {
		m[requestVariables[i].name] = len(clientVariables) + i
	}
	return m
}()

// activation is Facts as CEL reads variables from it. Variables are declared by their whole names, so that there is no
// value "client" that could be compared, stored or passed on, and every read passes through ResolveName.
type activation Facts

func (a *activation) Parent() interpreter.Activation { return nil }

// ResolveName returns the value of a variable. Whatever else may become of the expression, a read of the client without a
// verified client is remembered, and so is a fact that no rule may see.
func (a *activation) ResolveName(name string) (any, bool) {
	if strings.HasPrefix(name, clientRoot) {
		return a.ofClient(name), true
	}
	i, ok := index[name]
	if !ok {
		return nil, false
	}
	v := &requestVariables[i-len(clientVariables)]
	f := (*Facts)(a)
	if strings.HasPrefix(name, "request.") && f.Request == nil || strings.HasPrefix(name, "connection.") && f.Connection == nil {
		return a.refuse(name, errNoFacts()), true
	}
	value := v.read(f)
	if err, bad := value.(*types.Err); bad {
		return a.refuse(name, err), true
	}
	return value, true
}

func (a *activation) ofClient(name string) any {
	if name == present {
		return types.Bool(a.verified != nil)
	}
	if a.verified == nil {
		a.absent = name
		return types.NewErr("no verified client")
	}
	i, ok := index[name]
	if !ok {
		return a.refuse(name, errNoFacts())
	}
	if a.id != a.verified || a.values == nil {
		a.id, a.values = a.verified, new(values)
	}
	v := a.values[i]
	if v == nil {
		v = clientVariables[i].read(a.verified)
		a.values[i] = v
	}
	if err, bad := v.(*types.Err); bad {
		return a.refuse(name, err)
	}
	return v
}

// errNoFacts is made anew each time: CEL writes the place of an error into it.
func errNoFacts() *types.Err { return types.NewErr("this fact is not there").(*types.Err) }

// refuse remembers that a fact cannot be used, which no operator of CEL can undo.
func (a *activation) refuse(name string, err *types.Err) *types.Err {
	a.unusable = &factError{name, err}
	return err
}

// factError says which fact cannot be used and why.
type factError struct {
	name  string
	cause error
}

func (e *factError) Error() string { return e.name + ": " + bounded(e.cause.Error()) }
func (e *factError) Unwrap() error { return e.cause }
