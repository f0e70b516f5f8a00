package message

import "testing"

func TestSyntax(t *testing.T) {
	for _, test := range []struct {
		text                                string
		token, lowerToken, value, targetish bool
	}{
		{"", false, false, true, false},
		{"x-a", true, true, true, true},
		{"X-A", true, false, true, true},
		{"a b", false, false, true, false},
		{"a:b", false, false, true, true},
		{"a\tb", false, false, true, false},
		{"a\r\nb", false, false, false, false},
		{"a\x00", false, false, false, false},
		{"a\x7f", false, false, false, false},
		{"a\xff", false, false, true, false},
		{"/a?b=%20;c", false, false, true, true},
		{"/a#b", false, false, true, false},
	} {
		got := [4]bool{IsToken(test.text), IsLowerToken(test.text), IsValue([]byte(test.text)), IsTarget(test.text)}
		if want := [4]bool{test.token, test.lowerToken, test.value, test.targetish}; got != want {
			t.Errorf("%q: %v, want %v", test.text, got, want)
		}
	}
}

func TestDecimal(t *testing.T) {
	for text, want := range map[string]int64{"": -1, "0": 0, "007": 7, "999999999999999999": 999999999999999999, "1000000000000000000": -1, "+5": -1, "-5": -1, "0x5": -1, "5,5": -1, "5 ": -1, "٣": -1} {
		got, ok := Decimal(text)
		if ok != (want >= 0) || ok && got != want {
			t.Errorf("%q: %d %v", text, got, ok)
		}
	}
}
