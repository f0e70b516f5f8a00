package message

// The character classes of RFC 9110 section 5.6.2 and 5.5, and of a request target.
var token, lowerToken, value, target [256]bool

func init() {
	for _, c := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		token[c] = true
		lowerToken[c] = c-'A' >= 26
	}
	for c := 0x20; c < 256; c++ {
		value[c] = c != 0x7f
	}
	value['\t'] = true
	for c := 0x21; c < 0x7f; c++ {
		target[c] = c != '#'
	}
}

// Text is what the checks below take, so that no codec must copy to ask.
type Text interface{ ~string | ~[]byte }

func all[T Text](s T, class *[256]bool) bool {
	for i := range len(s) {
		if !class[s[i]] {
			return false
		}
	}
	return true
}

// IsToken reports whether s is a token: a method, or a field name in HTTP/1.
func IsToken[T Text](s T) bool { return len(s) > 0 && all(s, &token) }

// IsLowerToken reports whether s is a field name as HTTP/2 wants it, without upper-case letters (RFC 9113 section 8.2).
func IsLowerToken[T Text](s T) bool { return len(s) > 0 && all(s, &lowerToken) }

// IsValue reports whether s has no control characters but tabs. White space at its ends is the codec's to judge.
func IsValue[T Text](s T) bool { return all(s, &value) }

// IsTarget reports whether s has only visible ASCII characters and no fragment; what they mean is not looked at.
func IsTarget[T Text](s T) bool { return len(s) > 0 && all(s, &target) }

// Decimal parses 1 to 18 digits and nothing else, so that it cannot overflow.
func Decimal[T Text](s T) (int64, bool) {
	if len(s) == 0 || len(s) > 18 {
		return 0, false
	}
	var n int64
	for i := range len(s) {
		if s[i]-'0' > 9 {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}
