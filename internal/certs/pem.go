package certs

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Block is one PEM block.
type Block struct {
	Kind      string // what stands behind BEGIN
	DER       []byte
	Number    int  // from 1
	Line      int  // of its BEGIN, from 1
	Encrypted bool // in the old way, with Proc-Type and DEK-Info before the base64
}

// Where names the block for people.
func (b *Block) Where() string { return where(b.Number, b.Line) }

func where(number, line int) string { return fmt.Sprintf("block %d (line %d)", number, line) }

const mark = "\ufeff" // byte order mark

// onlyBlocks copies all blocks of a file and nothing else. Tools of openssl take the first certificate alone.
const onlyBlocks = "sed -n '/^-----BEGIN /,/^-----END /p' FILE > NEW"

// Split finds the PEM blocks of a file (RFC 7468). What is unambiguous is taken: any line ends, blanks around lines, byte
// order marks, base64 in lines of any length, and text between blocks, unless it looks like a part of a block that was
// damaged. alb is for the rules of AWS ALB instead: no blank lines or indentation, and no text but comments that start
// with # and hold no hyphen. Errors are of type *Problem.
//
// encoding/pem is not used: it skips what it cannot read (threats B24), and it once took quadratic time (CVE-2025-61723,
// threats F21). Here every byte is looked at a fixed number of times.
func Split(role string, data []byte, alb bool) ([]Block, error) {
	data = bytes.TrimPrefix(data, []byte(mark))
	var (
		blocks []Block
		open   Block  // the block that was begun; its line is 0 outside
		text   []byte // its base64
		n      int
		header bool // inside the headers of the block
	)
	for len(data) > 0 {
		n++
		end := lineEnd(data)
		raw, ending := data, ""
		if end < 0 {
			data = nil
		} else {
			raw, ending, data = data[:end], string(data[end]), data[end+1:]
			if ending == "\r" && len(data) > 0 && data[0] == '\n' {
				ending, data = "\r\n", data[1:]
			}
		}
		fail := func(expected, found, next string) ([]Block, error) {
			at := fmt.Sprintf("line %d", n)
			if open.Line > 0 {
				at = open.Where() + ": " + at
			}
			return nil, &Problem{ErrMalformed, role, at, expected, found, next}
		}
		if i := bytes.IndexByte(raw, 0); i >= 0 {
			return fail("text", fmt.Sprintf("a NUL byte at column %d", i+1),
				"the file is damaged, or was never written to its end: copy it again; "+look(role)+" reads it when it is whole")
		}
		line := bytes.TrimRight(raw, " \t\v\f")
		if alb && ending == "\r" {
			return fail("line ends of LF or CRLF, as AWS ALB does", "CR alone", "write it anew with tr '\\r' '\\n' < FILE > NEW, then "+look(role))
		}
		if !alb {
			line = bytes.TrimLeft(bytes.TrimPrefix(bytes.TrimLeft(line, " \t\v\f"), []byte(mark)), " \t\v\f")
		}
		begin, isBegin := boundary(line, "-----BEGIN ")
		ends, isEnd := boundary(line, "-----END ")
		inside := open.Line > 0
		switch {
		case len(line) == 0:
			header = false
			if alb {
				return fail("no blank lines", "a blank line, which AWS ALB refuses", "remove it: sed -i '/^[[:space:]]*$/d' FILE")
			}
		case isBegin && inside:
			return fail("an END line", "a BEGIN line before the block ended", "the file lost a part: copy it again; "+look(role)+" reads it when it is whole")
		case isBegin:
			open, text = Block{Kind: begin, Number: len(blocks) + 1, Line: n}, text[:0]
		case isEnd && !inside:
			return fail("a BEGIN line first", "an END line without a BEGIN line", "the start of the block is missing: copy the file again; "+look(role)+" reads it when it is whole")
		case isEnd && ends != open.Kind:
			return fail("END "+label(open.Kind), "END "+label(ends), "two files were mixed: copy them again, whole; "+look(role)+" reads what is in order")
		case isEnd:
			open.DER = make([]byte, base64.StdEncoding.DecodedLen(len(text)))
			size, err := base64.StdEncoding.Strict().Decode(open.DER, text)
			if err != nil || size == 0 {
				return fail("base64", fmt.Sprintf("a text of %d characters that is cut or damaged", len(text)), "copy the file again; "+look(role)+" reads it when it is whole")
			}
			open.DER = open.DER[:size]
			blocks, open = append(blocks, open), Block{}
		case inside && (header || bytes.IndexByte(line, ':') >= 0):
			if !strings.HasSuffix(open.Kind, "PRIVATE KEY") || len(text) > 0 {
				return fail("base64", "a text header inside the block", "remove the header's lines and the blank line below them, and leave the base64 as it is; "+look(role)+" reads it then")
			}
			header = true // until the blank line
			open.Encrypted = open.Encrypted || bytes.HasPrefix(line, []byte("Proc-Type:")) && bytes.Contains(line, []byte("ENCRYPTED"))
		case inside && onlyBase64(line):
			text = append(text, line...)
		case damage(line) != "":
			return fail("a BEGIN or END line as in -----BEGIN CERTIFICATE-----, alone on its line", "a damaged one: "+damage(line), mend(line, role))
		case inside:
			i := bytes.IndexFunc(line, notBase64)
			odd, _ := utf8.DecodeRune(line[i:]) // one character only: this may be a key
			return fail("base64", fmt.Sprintf("%q at column %d", odd, i+1), "the text was changed on its way: copy the file again; "+look(role)+" reads it when it is whole")
		case alb && (line[0] != '#' || bytes.IndexByte(line, '-') >= 0):
			return fail("a comment that starts with # and holds no hyphen, as AWS ALB does", "another text", "remove it: "+onlyBlocks)
		case bareBase64(line):
			return fail("-----BEGIN CERTIFICATE----- before base64", "base64 outside of a block", "the BEGIN and END lines were lost: copy the file again, with them; "+look(role)+" reads it when it is whole")
		}
	}
	if open.Line > 0 {
		return nil, &Problem{ErrMalformed, role, open.Where(), "an END line", "that the file ends before it",
			"the file is cut off or still being written: copy it again; " + look(role) + " reads it when it is whole"}
	}
	return blocks, nil
}

func boundary(line []byte, prefix string) (kind string, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(prefix))
	if !ok {
		return "", false
	}
	rest, ok = bytes.CutSuffix(rest, []byte("-----"))
	if !ok || len(rest) == 0 || len(rest) > 64 || bytes.IndexByte(rest, '-') >= 0 {
		return "", false
	}
	return string(rest), true
}

// label shows what stood behind BEGIN, if that cannot be anything secret.
func label(kind string) string {
	if len(kind) > 40 || strings.Trim(kind, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 #") != "" {
		return "another label"
	}
	return kind
}

// announced are the first words of the labels that are in use.
var announced = map[string]bool{"CERTIFICATE": true, "X509": true, "TRUSTED": true, "NEW": true, "PRIVATE": true, "RSA": true, "EC": true,
	"ENCRYPTED": true, "OPENSSH": true, "PUBLIC": true, "PKCS7": true, "CMS": true}

// damage says what is wrong with a line that was meant to be a boundary, and nothing for other lines. Meant are: the
// words with hyphens, or before what they announce, as when a word processor made dashes of the hyphens. It shows
// nothing of the line, which may go on with a key.
func damage(line []byte) string {
	hyphens := bytes.Contains(line, []byte("--"))
	meant, glued, after := false, false, false
	for w := range bytes.FieldsFuncSeq(line, func(r rune) bool { return !isWord(r) }) {
		word := ""
		if len(w) <= len("BEGINCERTIFICATE") {
			word = strings.ToUpper(string(w))
		}
		rest, begins := strings.CutPrefix(strings.TrimPrefix(word, "BEGIN"), "END")
		glued = glued || hyphens && announced[rest] && (begins || rest != word)
		meant = meant || glued || after && announced[word]
		after = word == "BEGIN" || word == "END"
		meant = meant || after && hyphens
	}
	left, right := len(line)-len(bytes.TrimLeft(line, "-")), len(line)-len(bytes.TrimRight(line, "-"))
	switch {
	case !meant:
		return ""
	case glued:
		return "a blank is missing behind BEGIN or END"
	case line[0] == ' ' || line[0] == '\t':
		return "it is indented"
	case bytes.ContainsAny(line, "‐‑‒–—―−﹣－“”‘’«»"):
		return "a word processor made dashes or quotes of its hyphens"
	case bytes.Contains(line, []byte(`\n`)):
		return `it goes on with the two characters \n in place of line breaks`
	case left == 5 && len(line) > 80:
		return "the text goes on in the same line; the line breaks were lost"
	case left != 5 || right != 5:
		return fmt.Sprintf("%d hyphens before and %d after in place of 5", left, right)
	}
	return "its words are not those of RFC 7468"
}

func mend(line []byte, role string) string {
	if bytes.Contains(line, []byte(`\n`)) {
		return `make line breaks of them: printf '%b' "$(cat FILE)" > NEW; then ` + look(role)
	}
	return "write the line as it should be, five hyphens on each side, or export the file again; then " + look(role)
}

// lineEnd is the index of the first CR or LF; -1 for none.
func lineEnd(data []byte) int {
	for i, c := range data {
		if c == '\n' || c == '\r' {
			return i
		}
	}
	return -1
}

// base64Bytes are the bytes of which notBase64 says no.
var base64Bytes = func() (is [256]bool) {
	for c := range rune(0x80) {
		is[c] = !notBase64(c)
	}
	return is
}()

// onlyBase64 reports whether a line is of nothing else. Nearly all that is read passes here.
func onlyBase64(line []byte) bool {
	for _, c := range line {
		if !base64Bytes[c] {
			return false
		}
	}
	return true
}

func isWord(r rune) bool { return 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z' || '0' <= r && r <= '9' }

func notBase64(r rune) bool { return !(isWord(r) || r == '+' || r == '/' || r == '=') }

// bareBase64 tells the first line of a DER SEQUENCE of more than 255 bytes from other text.
func bareBase64(line []byte) bool {
	return len(line) >= 60 && bytes.HasPrefix(line, []byte("MII")) && bytes.IndexFunc(line, notBase64) < 0
}
