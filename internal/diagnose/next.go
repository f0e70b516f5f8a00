package diagnose

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/internal/reason"
	"countersign/internal/trust"
)

// clockDoubt is how far a date may be missed for the clock to be the first thing to look at.
const clockDoubt = 24 * time.Hour

// next is the one thing to do about a refusal by store.
func (x *inquiry) next(store *trust.Store, e *trust.Examination) string {
	v := e.Verdict
	if v.At == nil {
		v.At = x.q.Presented[0]
	}
	at := quoted(subject(v.At))
	again := "let CA " + quoted(dn(v.At.RawIssuer)) + " issue the certificate again, "
	switch v.Rule {
	case reason.ClientCertUntrusted:
		return x.untrusted(store, e)
	case reason.ClientCertTooMany, reason.ClientCertTooLarge:
		return "send only the client's certificate and its intermediates: leave out the root and whatever else " + x.file() + " holds"
	case reason.ClientCertVersion:
		return again + "as X.509 version 3"
	case reason.ClientCertSerial:
		return again + "with a positive serial number of at most 20 octets"
	case reason.ClientCertIsCA:
		if len(x.q.Presented) > 1 && slices.ContainsFunc(x.q.Presented[1:], func(c *x509.Certificate) bool { return !c.IsCA }) {
			return "put the client's own certificate first in " + x.file() + ", then each the issuer of the one before: now a CA is first"
		}
		return "use the client's own certificate: " + x.file() + " begins with that of a CA"
	case reason.ClientCertIsAnchor:
		return "use a certificate that this CA has issued for the client: the CA's own identifies nobody"
	case reason.ClientCertKeyUsage:
		return again + "with keyUsage digitalSignature: clients sign in the handshake"
	case reason.ClientCertEKUMissing, reason.ClientCertEKU:
		return purpose(store, &v)
	case reason.ClientCertWeakKey:
		if v.Depth > 0 {
			return "use a certificate of another issuing CA: the key of " + at + " is too weak, whatever the client's own is"
		}
		return "make a new key, ECDSA P-256 for example, and let the CA issue a certificate for it"
	case reason.ClientCertWeakSignature:
		return again + "signed with SHA-256 or better"
	case reason.ClientCertSANInvalid:
		return again + "with well-formed alternative names"
	case reason.ClientCertNotYetValid:
		early := v.At.NotBefore.Sub(x.s.Now)
		if early <= clockDoubt {
			return fmt.Sprintf("compare the clocks: %s is valid in %s, at %s, and it is %s here; if this clock is right, wait, or let the CA date certificates back a little",
				at, span(early), stamp(v.At.NotBefore), stamp(x.s.Now))
		}
		return fmt.Sprintf("wait until %s, or use the certificate before it", stamp(v.At.NotBefore))
	case reason.ClientCertExpired:
		late := x.s.Now.Sub(v.At.NotAfter)
		next := fmt.Sprintf("renew the certificate: it expired %s ago, at %s", span(late), stamp(v.At.NotAfter))
		if late <= clockDoubt {
			next += "; it is " + stamp(x.s.Now) + " here, if the client's clock says otherwise compare them"
		}
		return next
	case reason.ClientCertIssuerExpired:
		if slices.ContainsFunc(store.Anchors(), v.At.Equal) {
			return fmt.Sprintf("CA %s of trust store %s%s expired %s ago: replace it by the CA's renewed certificate",
				at, store.Name(), x.of(v.At), span(x.s.Now.Sub(v.At.NotAfter)))
		}
		return fmt.Sprintf("replace the intermediate %s in %s by its renewed certificate: this one expired %s ago", at,
			x.file(), span(x.s.Now.Sub(v.At.NotAfter)))
	case reason.ClientCertConstraint:
		return x.constraint(e)
	case reason.ClientCertDepth:
		return fmt.Sprintf("use a certificate of a CA nearer to the anchor, or raise accept.max_depth of trust store %s to %d",
			store.Name(), len(v.Chain)-1)
	case reason.ClientCertRevoked:
		return "get a new certificate: this one was revoked by its CA, for good or on hold (see found for when and why)"
	case reason.ClientIssuerRevoked:
		return "get a certificate of another CA: " + at + " was revoked, and with it all that it issued"
	case reason.CRLMissing:
		return x.listMissing(store, &v)
	case reason.CRLStale:
		return x.listStale(e)
	case reason.OCSPUnavailable:
		return x.responder(store, e)
	case reason.OCSPUnknown:
		return "ask the CA why its responder does not know the certificate; a new one is often known a few minutes late"
	case reason.ClientCertDenied:
		return "remove the entry from revocation.deny of trust store " + store.Name() + " if it is not meant; otherwise get a certificate for another key"
	case reason.ClientCertSPIFFE:
		return "let the workload fetch an X.509-SVID of that trust domain: one URI name and nothing else that says who it is"
	}
	return ""
}

// file is where the client's certificates are.
func (x *inquiry) file() string {
	if x.q.File == "" {
		return "what the client sends"
	}
	return show(x.q.File)
}

// of says where a CA comes from.
func (x *inquiry) of(c *x509.Certificate) string {
	if place := x.s.place(c); place != "" {
		return " (" + place + ")"
	}
	return ""
}

// untrusted finds what is missing between the client's certificate and an anchor.
func (x *inquiry) untrusted(store *trust.Store, e *trust.Examination) string {
	// Somebody has the issuer's name and is not the issuer.
	for i := range e.Paths {
		p := &e.Paths[i]
		n := len(p.Checks)
		if n == 0 || p.Checks[n-1].Kind != trust.CheckSignature || p.Checks[n-1].Rule == reason.Unset || len(p.Chain) < 2 {
			continue
		}
		child, ca := p.Chain[len(p.Chain)-2], p.Chain[len(p.Chain)-1]
		which := ""
		if len(child.AuthorityKeyId) > 0 && !bytes.Equal(child.AuthorityKeyId, ca.SubjectKeyId) {
			which = fmt.Sprintf(" with key identifier %x", child.AuthorityKeyId[:min(len(child.AuthorityKeyId), 20)])
		}
		if p.Anchored {
			return fmt.Sprintf("CA %s of trust store %s%s has another key than the one that signed: add the certificate of that CA%s to the trust store",
				quoted(subject(ca)), store.Name(), x.of(ca), which)
		}
		return fmt.Sprintf("replace the intermediate %s in %s by the one%s that issued %s: this one has the same name and another key",
			quoted(subject(ca)), x.file(), which, quoted(subject(child)))
	}
	top := x.q.Presented[0]
	for i := range e.Paths {
		if p := &e.Paths[i]; !p.Anchored {
			top = p.Chain[len(p.Chain)-1]
			break
		}
	}
	if bytes.Equal(top.RawSubject, top.RawIssuer) {
		if top == x.q.Presented[0] {
			return fmt.Sprintf("get a certificate from a CA of trust store %s (%s): this one is self-signed",
				store.Name(), x.anchorNames(store))
		}
		return fmt.Sprintf("use a certificate of a CA of trust store %s (%s), or add %s to it if all its clients are to be let in",
			store.Name(), x.anchorNames(store), quoted(subject(top)))
	}
	if other := x.elsewhere(store, top); other != "" {
		return fmt.Sprintf("CA %s is in trust store %s, not in %s, which this host asks: ask for another host, or add the CA to %s",
			quoted(dn(top.RawIssuer)), other, store.Name(), store.Name())
	}
	which := "this certificate"
	if top != x.q.Presented[0] {
		which = quoted(subject(top))
	}
	next := fmt.Sprintf("append the intermediate %s that issued %s to %s", quoted(dn(top.RawIssuer)), which, x.file())
	if len(top.IssuingCertificateURL) > 0 {
		next += "; its CA publishes it at " + show(top.IssuingCertificateURL[0])
	}
	return next + fmt.Sprintf(" (if it is a root, add it to trust store %s instead)", store.Name())
}

// elsewhere is another trust store of the configuration that has the issuer of c.
func (x *inquiry) elsewhere(store *trust.Store, c *x509.Certificate) string {
	for _, l := range x.s.Snapshot.Listeners {
		for _, h := range l.Hosts {
			stores := []*trust.Store{h.Auth.Store}
			for _, r := range h.Routes.Rules() {
				stores = append(stores, r.Value.Store)
			}
			for _, s := range stores {
				if s != nil && s.Name() != store.Name() && slices.ContainsFunc(s.Anchors(), func(a *x509.Certificate) bool {
					return bytes.Equal(a.RawSubject, c.RawIssuer) && a.CheckSignature(c.SignatureAlgorithm,
						c.RawTBSCertificate, c.Signature) == nil
				}) {
					return s.Name()
				}
			}
		}
	}
	return ""
}

// purpose is about extendedKeyUsage, of the leaf or of a CA.
func purpose(store *trust.Store, v *trust.Verdict) string {
	wanted := strings.TrimPrefix(v.Expected, "extendedKeyUsage ")
	wanted, _, _ = strings.Cut(wanted, ",")
	if v.Rule == reason.ClientCertEKUMissing {
		next := "this certificate has no extendedKeyUsage; the CA must issue one with " + wanted
		if wanted == "clientAuth" {
			next += " (or set accept.eku: allow_absent of trust store " + store.Name() + ")"
		}
		return next
	}
	if v.Depth > 0 {
		wanted = strings.TrimPrefix(wanted, "a CA that may issue for ")
		return fmt.Sprintf("use a certificate of another issuing CA: the extendedKeyUsage of %s leaves out %s, so no certificate below it can be one of a client here",
			quoted(subject(v.At)), wanted)
	}
	var has []string
	for _, u := range v.At.ExtKeyUsage {
		has = append(has, usage(u))
	}
	for range v.At.UnknownExtKeyUsage {
		has = append(has, "a purpose unknown here")
	}
	next := fmt.Sprintf("this certificate has only %s; the CA must issue one with %s",
		show(strings.Join(has[:min(len(has), 6)], ", ")), wanted)
	if slices.Contains(v.At.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && wanted == "clientAuth" && !strings.Contains(v.Expected, "until") {
		next += " (public CAs do not any more; a private CA does)"
	}
	return next
}

func usage(u x509.ExtKeyUsage) string {
	switch u {
	case x509.ExtKeyUsageAny:
		return "anyExtendedKeyUsage"
	case x509.ExtKeyUsageServerAuth:
		return "serverAuth"
	case x509.ExtKeyUsageClientAuth:
		return "clientAuth"
	case x509.ExtKeyUsageCodeSigning:
		return "codeSigning"
	case x509.ExtKeyUsageEmailProtection:
		return "emailProtection"
	case x509.ExtKeyUsageTimeStamping:
		return "timeStamping"
	case x509.ExtKeyUsageOCSPSigning:
		return "OCSPSigning"
	}
	return u.OID().String()
}

// constraint is about what a CA may issue.
func (x *inquiry) constraint(e *trust.Examination) string {
	for i := range e.Paths {
		for _, c := range e.Paths[i].Checks {
			if c.Rule != reason.ClientCertConstraint {
				continue
			}
			at := "a CA of the chain"
			if c.Cert != nil {
				at = quoted(subject(c.Cert))
			}
			switch c.Kind {
			case trust.CheckCA:
				return fmt.Sprintf("use the certificate of a CA in place of %s in %s: this one may not issue certificates",
					at, x.file())
			case trust.CheckPathLength:
				return fmt.Sprintf("use a certificate of a CA nearer to %s: it allows fewer CAs below itself (pathLenConstraint) than this chain has", at)
			case trust.CheckConstraints:
				return fmt.Sprintf("let the CA issue a certificate whose names are within the constraints of %s, or get one of a CA without them", at)
			}
		}
	}
	return ""
}

// listMissing is about a CA without a revocation list.
func (x *inquiry) listMissing(store *trust.Store, v *trust.Verdict) string {
	ca := "the CA"
	if v.Depth+1 < len(v.Chain) {
		issuer := v.Chain[v.Depth+1]
		ca = "CA " + quoted(subject(issuer))
		for _, l := range x.s.Snapshot.CRLs {
			if err := l.SignedBy(issuer); err != nil && l.Issuer() == string(issuer.RawSubject) {
				from := "a list of its name"
				if place := x.s.Places[l.Sum()]; place != "" {
					from = show(place)
				}
				return fmt.Sprintf("get the list of %s from that CA again: %s has its name and is not of its key (%s)",
					ca, from, show(err.Error()))
			}
		}
	}
	for _, u := range x.s.URLs {
		if u.List == nil && u.Problem != "" {
			return fmt.Sprintf("there is no list of %s: the URL %s gives none: %s", ca, show(u.URL), show(u.Problem))
		}
	}
	if x.s.waits(v, x.Points) {
		return "run this again with --fetch: lists of URLs are fetched by the running program, and none is kept in its state folder"
	}
	if v.At != nil && len(v.At.CRLDistributionPoints) > 0 {
		return fmt.Sprintf("add the list of %s to revocation.crls of trust store %s; the certificate says that it is at %s",
			ca, store.Name(), show(v.At.CRLDistributionPoints[0]))
	}
	return fmt.Sprintf("add the list of %s to revocation.crls of trust store %s, or set missing: if_present to do without",
		ca, store.Name())
}

// listStale is about a list that is past its nextUpdate, or from the future.
func (x *inquiry) listStale(e *trust.Examination) string {
	v := &e.Verdict
	ca := "the CA"
	if v.Depth+1 < len(v.Chain) {
		ca = "CA " + quoted(subject(v.Chain[v.Depth+1]))
	}
	for i := range e.Paths {
		for _, c := range e.Paths[i].Checks {
			if c.Rule != reason.CRLStale || c.Depth != v.Depth {
				continue
			}
			for _, l := range c.Lists {
				if late := x.s.Now.Sub(l.NextUpdate()); late > 0 {
					return fmt.Sprintf("the list of %s expired %s ago: %s", ca, span(late), x.refreshed(l))
				}
			}
			if len(c.Lists) == 0 {
				return "compare the clocks: the list of " + ca + " is from the future (see found)"
			}
		}
	}
	return ""
}

// refreshed says how a newer list is to be had.
func (x *inquiry) refreshed(l *trust.CRL) string {
	sum := l.Sum()
	for _, u := range x.s.URLs {
		if u.List == nil || *u.List != sum {
			continue
		}
		switch {
		case u.Problem != "":
			return fmt.Sprintf("its URL %s: %s", show(u.URL), show(u.Problem))
		case x.s.Fetched:
			return fmt.Sprintf("its URL %s still gives this one; ask the CA to publish a new one", show(u.URL))
		}
		return fmt.Sprintf("run this again with --fetch to see what its URL %s gives now", show(u.URL))
	}
	if place := x.s.Places[sum]; place != "" {
		return "put the CA's current list in place of " + show(place)
	}
	return "put the CA's current list in its place"
}

// responder is about an OCSP responder that has not answered.
func (x *inquiry) responder(store *trust.Store, e *trust.Examination) string {
	v := &e.Verdict
	switch {
	case len(v.Ask) == 0:
		return fmt.Sprintf("set revocation.ocsp.responder of trust store %s, or add the host of the certificate's responder to its hosts",
			store.Name())
	case !x.s.Fetched:
		return "run this again with --fetch: responders are asked by the running program"
	case len(x.s.OCSPProblems) > 0:
		return "see that the responder answers: " + show(x.s.OCSPProblems[0])
	}
	return "see that the responder " + show(v.Ask[0].Responder) + " answers"
}
