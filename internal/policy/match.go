package policy

import (
	"fmt"
	"net/netip"
	"regexp/syntax"
	"strings"

	"countersign/internal/hostname"
)

// The functions that rules compare names with. Each takes a name that a stranger wrote and a pattern that the operator
// wrote, whose form is checked when the rule is compiled; each compares whole parts of the name, so that no pattern is met
// by a prefix of a longer name (B11). A name that is not of the right form meets no pattern.

const spiffeScheme = "spiffe://"

// maxSPIFFE is the longest SPIFFE ID (spiffe.io, "The SPIFFE Identity and Verifiable Identity Document", section 2.3).
const maxSPIFFE = 2048

// spiffeMatches compares a SPIFFE ID with a pattern, segment by segment. "*" stands for one segment, "**" at the end for
// one or more. The trust domain is compared whole.
func spiffeMatches(id, pattern string) bool {
	if !isSPIFFE(id) {
		return false
	}
	id, pattern = id[len(spiffeScheme):], pattern[len(spiffeScheme):]
	for {
		have, restOfID, more := strings.Cut(id, "/")
		want, restOfPattern, wanted := strings.Cut(pattern, "/")
		switch {
		case want == "**":
			return true // isSPIFFE has seen that there is a segment
		case want != "*" && want != have, more != wanted:
			return false
		case !more:
			return true
		}
		id, pattern = restOfID, restOfPattern
	}
}

// isSPIFFE reports whether id is a SPIFFE ID by its characters: scheme, trust domain, and a path of segments that are
// neither empty nor dots (sections 2.1 and 2.2 of the same).
func isSPIFFE(id string) bool {
	if len(id) > maxSPIFFE || !strings.HasPrefix(id, spiffeScheme) {
		return false
	}
	for n, rest := 0, id[len(spiffeScheme):]; ; n++ {
		segment, after, more := strings.Cut(rest, "/")
		if segment == "" || n > 0 && (segment == "." || segment == "..") {
			return false
		}
		for _, c := range []byte(segment) {
			upper := 'A' <= c && c <= 'Z'
			if !upper && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' || upper && n == 0 {
				return false
			}
		}
		if !more {
			return true
		}
		rest = after
	}
}

func checkSPIFFEPattern(pattern string) error {
	plain := pattern
	if rest, ok := strings.CutSuffix(plain, "/**"); ok {
		plain = rest + "/x"
	}
	domain, path, _ := strings.Cut(strings.TrimPrefix(plain, spiffeScheme), "/")
	segments := strings.Split(path, "/")
	for i, segment := range segments {
		if segment == "*" {
			segments[i] = "x"
		}
	}
	if path != "" {
		plain = spiffeScheme + domain + "/" + strings.Join(segments, "/")
	}
	if !strings.HasPrefix(pattern, spiffeScheme) || !isSPIFFE(plain) {
		return fmt.Errorf("expected a SPIFFE ID in which whole segments of the path may be * or, at the end, **, found %s; "+
			"write for example \"spiffe://corp.test/ns/*/sa/ops\"", quote(pattern))
	}
	return nil
}

// dnsMatches compares a host name with a canonical pattern, label by label and without regard to case. "*." stands for
// exactly one label. A name that is itself a wildcard meets no pattern.
func dnsMatches(name, pattern string) bool {
	if len(name) > hostname.MaxLen+1 {
		return false
	}
	var in, out [hostname.MaxLen + 1]byte
	canonical, err := hostname.AppendCanonicalSNI(out[:0], append(in[:0], name...))
	if err != nil {
		return false
	}
	if base, wild := strings.CutPrefix(pattern, "*."); wild {
		for i, c := range canonical {
			if c == '.' {
				return string(canonical[i+1:]) == base
			}
		}
		return false
	}
	return string(canonical) == pattern
}

func checkDNSPattern(pattern string) error {
	switch canonical, _, err := hostname.Pattern(pattern); {
	case err != nil:
		return err
	case canonical != pattern:
		return fmt.Errorf("expected the canonical form, found %s; write %s", quote(pattern), quote(canonical))
	}
	return nil
}

// emailMatches compares a mailbox with a pattern: "alice@ok.test", or "*@ok.test" for everybody there. The local part is
// compared as it is, the domain without regard to case. Whatever has a quoted local part, a comment or a second @ meets
// no pattern (B12).
func emailMatches(address, pattern string) bool {
	local, domain, ok := splitMailbox(address)
	wantLocal, wantDomain, _ := strings.Cut(pattern, "@")
	return ok && (wantLocal == "*" || local == wantLocal) && dnsMatches(domain, wantDomain)
}

// splitMailbox takes apart what RFC 5321 section 4.1.2 calls a dot-string and a domain.
func splitMailbox(address string) (local, domain string, ok bool) {
	const maxLocal = 64 // RFC 5321 section 4.5.3.1.1
	local, domain, ok = strings.Cut(address, "@")
	if !ok || local == "" || len(local) > maxLocal || local[0] == '.' || local[len(local)-1] == '.' || strings.Contains(local, "..") {
		return "", "", false
	}
	for _, c := range []byte(local) {
		if (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && strings.IndexByte("!#$%&'*+-/=?^_`{|}~.", c) < 0 {
			return "", "", false
		}
	}
	return local, domain, true
}

func checkEmailPattern(pattern string) error {
	_, domain, ok := splitMailbox(pattern)
	if !ok {
		return fmt.Errorf("expected a mailbox or *@ and a domain, found %s; write for example \"*@ok.test\"", quote(pattern))
	}
	if strings.HasPrefix(domain, "*") {
		return fmt.Errorf("expected the domain without wildcard, found %s; write one comparison for each domain", quote(pattern))
	}
	return checkDNSPattern(domain)
}

// ipIn reports whether an address is in a network. IPv4 in IPv6 counts as IPv4, and a zone does not count. What is no
// address is an error and not false, which a negation would turn into an allow.
func ipIn(address, network string) (bool, error) {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		return false, fmt.Errorf("ip_in: expected an IP address, found %s", quote(address))
	}
	prefix, err := netip.ParsePrefix(network)
	if err != nil {
		return false, fmt.Errorf("ip_in: expected a network, found %s", quote(network))
	}
	return prefix.Contains(addr.WithZone("").Unmap()), nil
}

func checkNetwork(network string) error {
	prefix, err := netip.ParsePrefix(network)
	switch {
	case err != nil:
		return fmt.Errorf("expected a network, found %s; write for example \"10.0.0.0/8\"", quote(network))
	case prefix.Addr().Is4In6():
		return fmt.Errorf("expected an IPv4 or IPv6 network, found %s; write the IPv4 network", quote(network))
	case prefix != prefix.Masked():
		return fmt.Errorf("expected a network without host bits, found %s; write \"%s\"", quote(network), prefix.Masked())
	}
	return nil
}

// checkRegexp wants a pattern that describes a whole text (B11). CEL's matches finds its pattern anywhere in the text, so
// one that is not tied to both ends, in each of its alternatives, is met by names that its author did not think of. The
// same goes for a dot that stands for one character where a dot was meant.
func checkRegexp(pattern string) error {
	tree, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return fmt.Errorf("expected a regular expression (RE2), found %s: %s; correct it", quote(pattern), bounded(err.Error()))
	}
	n := len(tree.Sub)
	if tree.Op != syntax.OpConcat || tree.Sub[0].Op != syntax.OpBeginText || tree.Sub[n-1].Op != syntax.OpEndText {
		return fmt.Errorf("expected a regular expression tied to both ends of the text, found %s; write %s",
			quote(pattern), quote("^(?:"+strings.TrimSuffix(strings.TrimPrefix(pattern, "^"), "$")+")$"))
	}
	if bareDot(tree, false) {
		return fmt.Errorf("expected \\. for a dot, found a dot that any character meets in %s; "+
			"write \\\\. or [.] for a dot, [^/] for any character but a slash",
			quote(pattern))
	}
	return nil
}

// bareDot reports whether tree has a dot that nothing repeats.
func bareDot(tree *syntax.Regexp, repeated bool) bool {
	switch tree.Op {
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return !repeated
	case syntax.OpStar, syntax.OpPlus, syntax.OpRepeat, syntax.OpQuest:
		return bareDot(tree.Sub[0], true)
	}
	for _, sub := range tree.Sub {
		if bareDot(sub, false) {
			return true
		}
	}
	return false
}
