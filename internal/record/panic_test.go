package record

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"countersign/internal/reason"
)

// TestPanicInTheBackground: a panic beside the writers is counted and costs what it was about.
func TestPanicInTheBackground(t *testing.T) {
	t.Run("F16/the summary of a flood", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			out := &buffer{}
			b := NewBook(out)
			real := (*b.outputs.Load())[0]
			b.outputs.Store(&[]*output{nil, real}) // the first one panics
			b.perReason.Store(1)
			for range 2 { // a second flood is told of like the first
				for range 10 {
					b.admit(reason.RouteNotFound, time.Now())
				}
				time.Sleep(2 * time.Second)
			}
			for range 2 {
				b.admit(reason.RouteNotFound, time.Now())
			}
			b.outputs.Store(nil) // there is nobody to tell
			time.Sleep(2 * time.Second)
			b.outputs.Store(&[]*output{real})
			b.Close()
			if n := testutil.ToFloat64(b.panics); n != 3 {
				t.Errorf("%v panics are counted, expected 3", n)
			}
			if n := strings.Count(out.String(), `"lines":9`); n != 2 {
				t.Errorf("the other output has not 2 summaries: %s", out)
			}
		})
	})
	t.Run("F16/who is told of trouble", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			out := &failing{}
			b := NewBook(out)
			var told []Trouble
			sick := true
			b.Tell(func(tr Trouble) {
				if sick {
					panic("boom")
				}
				told = append(told, tr)
			})
			o := (*b.outputs.Load())[0]
			l := b.Listener("public")
			o.lose(7)
			numbered(l, 1)
			time.Sleep(time.Second)
			synctest.Wait()
			if n := testutil.ToFloat64(b.panics); n != 1 || o.telling.Load() {
				t.Errorf("%v panics are counted, still telling: %v", n, o.telling.Load())
			}
			sick = false
			time.Sleep(retell)
			numbered(l, 2)
			time.Sleep(time.Second)
			synctest.Wait()
			if len(told) != 1 || told[0].Dropped != 7 {
				t.Errorf("told of %+v, expected the 7 lines", told)
			}
			b.Close()
			if got, _ := paths(t, []byte(out.String())); len(got) != 2 {
				t.Errorf("lines %v, expected both", got)
			}
		})
	})
	t.Run("F16/who is told, for good", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			b := NewBook(dead{})
			b.Tell(func(Trouble) { panic("boom") })
			l := b.Listener("public")
			for i := range 5 {
				numbered(l, i)
				time.Sleep(retell)
			}
			b.Close()
			time.Sleep(time.Second) // the writer ends behind its back
			if n := testutil.ToFloat64(b.panics); n == 0 {
				t.Error("no panic is counted")
			}
		})
	})
}

// dead is a writer that takes nothing.
type dead struct{ io.Writer }

func (dead) Write([]byte) (int, error) { return 0, errors.New("not ever") }
