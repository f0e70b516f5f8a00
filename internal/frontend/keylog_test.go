package frontend

import (
	"bytes"
	"io"
	"os"
	"testing"
)

func TestLogKeys(t *testing.T) {
	var f Frontend
	var one, other bytes.Buffer
	end := f.LogKeys("main", &one)
	if k := f.keyLog.Load(); k == nil || k.listener != "main" {
		t.Fatal("no key log is open")
	}
	io.WriteString(f.keyLog.Load(), "line\n")
	if one.String() != "line\n" {
		t.Errorf("%q", one.String())
	}
	endOther := f.LogKeys("main", &other)
	end() // which is not in force any more
	if f.keyLog.Load() == nil {
		t.Error("the end of one key log has ended another")
	}
	endOther()
	if f.keyLog.Load() != nil {
		t.Error("handshakes go on writing to a key log that is over")
	}
	t.Run("a writer that fails ends no handshake", func(t *testing.T) {
		if n, err := (&keyLog{"main", failing{}}).Write([]byte("line\n")); n != 5 || err != nil {
			t.Error(n, err)
		}
	})
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, os.ErrClosed }
