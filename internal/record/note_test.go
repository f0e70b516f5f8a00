package record

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestNote(t *testing.T) {
	var out bytes.Buffer
	b := NewBook(&out)
	b.Log(None) // which is about requests
	b.Note("key_log", [2]string{"event", "opened"}, [2]string{"listener", "a\"b\n\x1b" + strings.Repeat("x", 1000)}, [2]string{"empty", ""})
	b.Close()
	var line map[string]string
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || bytes.Count(out.Bytes(), []byte("\n")) != 1 {
		t.Fatalf("%v in %q", err, out.String())
	}
	if line["kind"] != "key_log" || line["event"] != "opened" || line["time"] == "" || len(line) != 4 ||
		!strings.HasPrefix(line["listener"], "a\"b\n\x1bxx") || out.Len() > 500 {
		t.Errorf("%v", line)
	}
}
