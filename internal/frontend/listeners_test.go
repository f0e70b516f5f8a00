package frontend

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"testing"

	"countersign/internal/record"
	"countersign/internal/snapshot"
)

// TestSeriesOfListeners: metrics have the listeners of the configuration in force, and no others.
func TestSeriesOfListeners(t *testing.T) {
	book := record.NewBook(io.Discard)
	defer book.Close()
	f := New(Config{Book: book, Log: slog.New(slog.DiscardHandler), Listen: func(address string) (net.Listener, error) {
		if address == "taken:1" {
			return nil, errors.New("it is taken")
		}
		return net.Listen("tcp", "127.0.0.1:0")
	}})
	defer f.Drain(context.Background())
	apply := func(names ...string) error {
		s := &snapshot.Snapshot{Listeners: make(map[string]*snapshot.Listener)}
		for _, name := range names {
			s.Listeners[name] = &snapshot.Listener{Name: name, Address: name + ":1"}
		}
		return f.Apply(s)
	}
	expect := func(want ...string) {
		t.Helper()
		families, err := book.Registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range families {
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "listener" && !slices.Contains(got, l.GetValue()) {
						got = append(got, l.GetValue())
					}
				}
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("metrics of %q, expected %q", got, want)
		}
	}
	if err := apply("one", "two"); err != nil {
		t.Fatal(err)
	}
	expect("one", "two")
	if err := apply("one", "three", "taken"); err == nil {
		t.Fatal("it was put in force")
	}
	expect("one", "two")
	if err := apply("one", "three"); err != nil {
		t.Fatal(err)
	}
	expect("one", "three")
}
