package stepup

import "strings"

// Cookies are ours among those that a request brought.
type Cookies struct {
	Session, Step string
	// Bad says that one of them is there twice, or in a form that we never set.
	Bad bool
}

// Read takes our cookies out of the value of a Cookie field (RFC 6265 section 4.2.1) and notes them in c. rest is the value
// without them, in which every other byte is as it was; none reports that nothing else was in it. A value without ours is
// returned as it is.
func (c *Cookies) Read(value []byte) (rest []byte, none bool) {
	text := string(value)
	var kept strings.Builder
	found, first := false, true
	for pair := range strings.SplitSeq(text, ";") {
		name, content, _ := strings.Cut(strings.Trim(pair, " \t"), "=")
		// Browsers send names as they were set. A name in other case, or with a space at its end, comes from somebody else,
		// and a target may read it as ours.
		which := ours(strings.TrimRight(name, " \t"))
		if which == "" {
			if first && found {
				pair = strings.TrimLeft(pair, " \t")
			}
			if !first {
				kept.WriteByte(';')
			}
			kept.WriteString(pair)
			first = false
			continue
		}
		found = true
		at := &c.Session
		if which == StepCookie {
			at = &c.Step
		}
		if name != which || *at != "" || content == "" || strings.Trim(content, alphabet) != "" {
			c.Bad = true
		}
		*at = content
	}
	if !found {
		return value, false
	}
	rest = []byte(kept.String())
	return rest, strings.Trim(kept.String(), " \t;") == ""
}

// alphabet is what the values of our cookies consist of.
const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

// ours returns which of our cookies name is, in whatever case; empty for none.
func ours(name string) string {
	switch {
	case strings.EqualFold(name, SessionCookie):
		return SessionCookie
	case strings.EqualFold(name, StepCookie):
		return StepCookie
	}
	return ""
}

// Sets reports whether a Set-Cookie field of this value sets one of our cookies. A target that could would give its
// client the session of somebody else. A cookie without a name counts by what its value begins with, because that is what
// the browser would send.
func Sets(value []byte) bool {
	text := strings.TrimLeft(string(value), "= \t")
	if end := strings.IndexAny(text, "=;"); end >= 0 {
		text = text[:end]
	}
	return ours(strings.TrimRight(text, " \t")) != ""
}
