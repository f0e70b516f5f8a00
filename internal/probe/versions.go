package probe

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// versions finds out which versions are spoken and, for each, suites and groups.
func (p *prober) versions(first *flight) {
	if first != nil {
		p.report.Chosen = &Chosen{Version: tls.VersionName(first.hello.version), Suite: suiteName(first.hello.suite)}
		if first.group != 0 {
			p.report.Chosen.Group = groupName(first.group)
		}
		p.warned(first)
	}
	for _, id := range versions {
		v := Version{Version: tls.VersionName(id), id: id}
		f, err := p.ask(alone(id), true)
		switch {
		case f == nil:
			v.Refused = p.short(err)
		case f.hello.version != id:
			v.Refused = "the server chose " + versionName(f.hello.version)
		default:
			v.Accepted, v.ok = true, f
			p.warned(f)
		}
		p.report.Versions = append(p.report.Versions, v)
	}
	for i := range p.report.Versions {
		v := &p.report.Versions[i]
		if !v.Accepted {
			continue
		}
		p.suites(v)
		p.keyExchange(v)
		switch v.id {
		case tls.VersionTLS10, tls.VersionTLS11:
			p.note(severityWarning, "old_version", "allow TLS 1.2 and 1.3 only (RFC 8996)", "%s is accepted", v.Version)
		case tls.VersionTLS12:
			if !v.ok.hello.secure {
				p.note(severityWarning, "no_secure_renegotiation", "update the server's TLS library", "%s without secure renegotiation (RFC 5746)", v.Version)
			}
			if !v.ok.hello.extends {
				p.note(severityNote, "no_extended_master_secret", "update the server's TLS library", "%s without extended_master_secret (RFC 7627): sessions are bound less well to their connections", v.Version)
			}
		}
		if v.DHBits > 0 && v.DHBits < 2048 {
			p.note(severityWarning, "weak_dh", "use a group of at least 2048 bits, or ECDHE alone", "Diffie-Hellman of %d bits in %s", v.DHBits, v.Version)
		}
	}
	p.weakSuites()
	if all := p.accepted(); len(all) == 0 {
		next := "compare the server's list of versions and ciphers with docs/probe.md"
		if p.report.Refusal != nil {
			next = p.report.Refusal.Next
		}
		p.note(severityError, "no_version", next, "no version from TLS 1.0 to 1.3 was accepted, whatever was offered")
	} else if all[0] != tls.VersionTLS13 {
		p.note(severityNote, "no_tls13", "allow TLS 1.3 on the server", "TLS 1.3 is not spoken")
	}
}

// weakSuites tells of suites that nobody should accept, by what is wrong with them. CBC and short tags are told with the
// suites only: they are weak beside better ones, not broken.
func (p *prober) weakSuites() {
	var order []string
	names := map[string][]string{}
	for _, v := range p.report.Versions {
		for _, s := range v.Suites {
			if s.Weak == "" || s.Weak == "CBC" || s.Weak == "tags of 64 bits" || slices.Contains(names[s.Weak], s.Name) {
				continue
			}
			if names[s.Weak] == nil {
				order = append(order, s.Weak)
			}
			names[s.Weak] = append(names[s.Weak], s.Name)
		}
	}
	for _, weak := range order {
		p.note(severityWarning, "weak_suite", "take them off the server's list of ciphers", "accepted, and %s: %s", weak, strings.Join(names[weak], ", "))
	}
}

// alone is a hello that offers one version with all that goes with it.
func alone(version uint16) hello {
	h := hello{version: version, suites: suitesOf(version), groups: groupIDs(), share: tls.X25519}
	if version != tls.VersionTLS13 {
		h.groups, h.share = groupIDs()[1:], 0
	}
	return h
}

// accepted are the versions that are spoken, newest first.
func (p *prober) accepted() (ids []uint16) {
	for _, v := range p.report.Versions {
		if v.Accepted {
			ids = append(ids, v.id)
		}
	}
	return ids
}

func (p *prober) version(id uint16) *Version {
	for i := range p.report.Versions {
		if p.report.Versions[i].id == id {
			return &p.report.Versions[i]
		}
	}
	return nil
}

func versionName(id uint16) string {
	if id == tls.VersionTLS13 || id == tls.VersionTLS12 || id == tls.VersionTLS11 || id == tls.VersionTLS10 {
		return tls.VersionName(id)
	}
	if id == 0x0300 {
		return "SSL 3.0"
	}
	return fmt.Sprintf("version 0x%04X", id)
}

// warned tells of alerts that the server sent as warnings.
func (p *prober) warned(f *flight) {
	for _, a := range f.warnings {
		p.note(severityWarning, "alert_warning", a.Next(), "the server warned with TLS alert %s and went on: %s", a, a.Means())
	}
}

// short says in a few words how something was refused.
func (p *prober) short(err error) string {
	var alert *alertError
	if errors.As(err, &alert) {
		return "alert " + alert.alert.String()
	}
	if errors.Is(err, errEnough) {
		return "not asked: " + err.Error()
	}
	return p.answered(err).Found
}

// refusal reports whether err is the server's no to what was offered, rather than a failure to ask. Some servers close
// in place of an alert.
func refusal(err error) bool {
	var alert *alertError
	return errors.As(err, &alert)
}

// suites finds the suites of a version by offering all that are left until none is taken.
func (p *prober) suites(v *Version) {
	left := suitesOf(v.id)
	f := v.ok
	for {
		i := slices.Index(left, f.hello.suite)
		if i < 0 || f.hello.version != v.id {
			v.Incomplete = "the server chose a suite that was not offered: " + suiteName(f.hello.suite)
			p.note(severityWarning, "suite_not_offered", "update the server's TLS library", "in %s %s", v.Version, v.Incomplete)
			break
		}
		name := suiteName(f.hello.suite)
		v.Suites = append(v.Suites, Suite{fmt.Sprintf("0x%04X", f.hello.suite), name, weakness(name), f.hello.suite})
		left = slices.Delete(left, i, i+1)
		if strings.HasPrefix(name, "TLS_DHE") && v.DHBits == 0 {
			h := alone(v.id)
			h.suites = []uint16{f.hello.suite}
			if g, _ := p.ask(h, true); g != nil {
				v.DHBits = g.dhBits
			}
		}
		if len(left) == 0 {
			break
		}
		h := alone(v.id)
		h.suites = left
		var err error
		if f, err = p.ask(h, false); f == nil {
			if !refusal(err) {
				v.Incomplete = p.short(err)
			}
			break
		}
	}
	if len(v.Suites) < 2 {
		return
	}
	h := alone(v.id)
	h.suites = nil
	for _, s := range slices.Backward(v.Suites) {
		h.suites = append(h.suites, s.id)
	}
	if f, _ := p.ask(h, false); f != nil {
		switch f.hello.suite {
		case v.Suites[0].id:
			v.Order = "server"
		case h.suites[0]:
			v.Order = "client"
		}
	}
}

// keyExchange finds the groups of a version, each offered alone.
func (p *prober) keyExchange(v *Version) {
	if v.id == tls.VersionTLS13 {
		h := alone(v.id)
		h.share = 0
		if f, err := p.ask(h, false); f != nil && f.hello.retry {
			v.Group = groupName(f.group)
		} else if f == nil && !refusal(err) {
			p.note(severityNote, "no_retry", "update the server's TLS library", "a hello without key share was not answered with a HelloRetryRequest: %s", p.short(err))
		}
		for _, g := range groups {
			h := alone(v.id)
			h.groups, h.share = []tls.CurveID{g.id}, g.id
			if f, _ := p.ask(h, false); f != nil && f.group == g.id {
				v.Groups = append(v.Groups, g.name)
			}
		}
		return
	}
	var ecdhe []uint16
	for _, s := range v.Suites {
		if strings.HasPrefix(s.Name, "TLS_ECDHE_") {
			ecdhe = append(ecdhe, s.id)
		}
	}
	if len(ecdhe) == 0 {
		return
	}
	own := curveOf(v.ok.certs)
	for _, g := range groups[1:] {
		h := alone(v.id)
		h.suites, h.groups = ecdhe, []tls.CurveID{g.id}
		f, err := p.ask(h, true)
		if f == nil && refusal(err) && own != 0 && own != g.id {
			// The curve of the server's own certificate may have to be among those of the client too (RFC 8422 section 5.1).
			h.groups = append(h.groups, own)
			f, _ = p.ask(h, true)
		}
		if f != nil && f.group == g.id {
			v.Groups = append(v.Groups, g.name)
		}
	}
}

// curveOf is the curve of a server's ECDSA key, 0 if it has none of them.
func curveOf(certs [][]byte) tls.CurveID {
	if len(certs) == 0 {
		return 0
	}
	c, err := x509.ParseCertificate(certs[0])
	if err != nil {
		return 0
	}
	return map[string]tls.CurveID{"P-256": tls.CurveP256, "P-384": tls.CurveP384, "P-521": tls.CurveP521}[curveName(c.PublicKey)]
}
