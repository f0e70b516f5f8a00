package top

import (
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf16"
)

// PrintJSON writes s as one line of JSON in ASCII: what names hold cannot act on the terminal it may be shown on.
func PrintJSON(w io.Writer, s *Status) error {
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	out := make([]byte, 0, len(text)+1)
	for _, r := range string(text) {
		switch {
		case r < 0x7f:
			out = append(out, byte(r))
		case r < 0x10000:
			out = fmt.Appendf(out, `\u%04x`, r)
		default:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		}
	}
	_, err = w.Write(append(out, '\n'))
	return err
}
