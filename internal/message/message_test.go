package message

import "testing"

func TestEqualFold(t *testing.T) {
	for _, c := range []struct {
		name, lower string
		want        bool
	}{
		{"Host", "host", true}, {"HOST", "host", true}, {"host", "host", true}, {"", "", true},
		{"Hos", "host", false}, {"Hosts", "host", false}, {"", "host", false},
		// Only letters fold: 0x20 apart are also @ and `, [ and {, and bytes beyond ASCII.
		{"a@b", "a`b", false}, {"a[b", "a{b", false}, {"a\rb", "a-b", false}, {"\xc1", "\xe1", false},
		{"coo\u212aie", "cookie", false}, {"ho\u017ft", "host", false},
	} {
		if got := EqualFold([]byte(c.name), c.lower); got != c.want {
			t.Errorf("EqualFold(%q, %q) = %v", c.name, c.lower, got)
		}
	}
}

func TestEqualFoldEveryByte(t *testing.T) {
	for c := range 256 {
		for l := range 256 {
			if l >= 'A' && l <= 'Z' {
				continue // the second argument is in lower case
			}
			want := c == l || c >= 'A' && c <= 'Z' && c+0x20 == l
			if got := EqualFold([]byte{byte(c)}, string([]byte{byte(l)})); got != want {
				t.Errorf("%#x and %#x: %v", c, l, got)
			}
		}
	}
}

func TestReset(t *testing.T) {
	req := Request{Head: Head{Fields: make([]Field, 3, 8), Minor: 1, Framing: Chunked, ContentLength: 7, KeepAlive: true},
		Method: []byte("HEAD"), Path: []byte("/"), Query: []byte("q"), HasQuery: true, Host: []byte("h"), Expect100: true}
	if !req.IsHead() {
		t.Error("HEAD is not HEAD")
	}
	req.Reset()
	if len(req.Fields) != 0 || cap(req.Fields) != 8 {
		t.Error("Reset loses the storage, or keeps the fields")
	}
	if req.Minor != 0 || req.Framing != NoBody || req.ContentLength != 0 || req.KeepAlive || req.Method != nil || req.Path != nil ||
		req.Query != nil || req.HasQuery || req.Host != nil || req.Expect100 || req.IsHead() {
		t.Errorf("something survived: %+v", req)
	}
	resp := Response{Head: Head{Fields: make([]Field, 3, 8), KeepAlive: true}, Status: 200, Phrase: []byte("OK")}
	resp.Reset()
	if len(resp.Fields) != 0 || cap(resp.Fields) != 8 || resp.KeepAlive || resp.Status != 0 || resp.Phrase != nil {
		t.Errorf("something survived: %+v", resp)
	}
	// A method is case-sensitive.
	for _, m := range []string{"head", "Head", "HEADS", "GET", ""} {
		if (&Request{Method: []byte(m)}).IsHead() {
			t.Errorf("%q is HEAD", m)
		}
	}
}
