package policy

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxShown is how many bytes of a text go into a message.
const maxShown = 120

// quote shows the beginning of a text in quotation marks, with escapes for what cannot be shown.
func quote(s string) string { return `"` + escape(s, `"\`) + `"` }

// bounded shows the beginning of a message that others made, perhaps of a client's text.
func bounded(s string) string { return escape(s, "") }

func escape(s, also string) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for len(s) > 0 {
		if b.Len() > maxShown {
			return b.String() + "..."
		}
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError || !unicode.IsPrint(r):
			for _, c := range []byte(s[:n]) {
				b.WriteString(`\x`)
				b.WriteByte(digits[c>>4])
				b.WriteByte(digits[c&15])
			}
		case strings.ContainsRune(also, r):
			b.WriteByte('\\')
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
		s = s[n:]
	}
	return b.String()
}

// printable reports whether s is text in which nothing is hidden.
func printable(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
