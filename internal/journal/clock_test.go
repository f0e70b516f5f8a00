package journal

import (
	"context"
	"testing"
	"time"

	"countersign/internal/reason"
	"countersign/internal/testpki"
)

func TestClock(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	later := start.AddDate(2, 0, 0)
	var c clock
	for _, s := range []struct {
		name string
		run  time.Duration
		wall time.Time
		want time.Time
	}{
		{"the first is believed", 0, start, start},
		{"it goes on", time.Minute, start.Add(time.Minute), start.Add(time.Minute)},
		{"a little ahead", 2 * time.Minute, start.Add(11 * time.Minute), start.Add(11 * time.Minute)},
		{"behind", 3 * time.Minute, start, start},
		{"far ahead", 4 * time.Minute, later, start.Add(time.Minute)},
		{"for less than an hour", 63 * time.Minute, later.Add(59 * time.Minute), start.Add(time.Hour)},
		{"and back", 64 * time.Minute, start.Add(61 * time.Minute), start.Add(61 * time.Minute)},
		{"ahead anew", 65 * time.Minute, later, start.Add(62 * time.Minute)},
		{"further ahead", 124 * time.Minute, later.AddDate(1, 0, 0), start.Add(121 * time.Minute)},
		{"an hour after the first jump", 126 * time.Minute, later.AddDate(1, 0, 0).Add(2 * time.Minute), start.Add(123 * time.Minute)},
		{"an hour after the last", 184 * time.Minute, later.AddDate(1, 0, 0).Add(time.Hour), later.AddDate(1, 0, 0).Add(time.Hour)},
		{"and on", 185 * time.Minute, later.AddDate(1, 0, 0).Add(61 * time.Minute), later.AddDate(1, 0, 0).Add(61 * time.Minute)},
	} {
		if got := c.now(s.wall, s.run); !got.Equal(s.want) {
			t.Errorf("H14/%s: it is %s, want %s", s.name, got.UTC(), s.want.UTC())
		}
	}
}

// TestClockAhead shows that a clock that runs ahead for a while costs nothing of what is kept.
func TestClockAhead(t *testing.T) {
	pki := testpki.New(t)
	name := file(t)
	j := begin(t, Settings{File: name})
	j.Seen(trusted(t, pki, sighting(pki.Client("alice"), "10.0.0.1:1", "h", reason.Completed, time.Now())))
	j.Seen(sighting(pki.Client("bob"), "10.0.0.1:1", "h", reason.NotVerified, time.Now()))
	j.Refused(refusal(pki.Client("mallory"), "aaaa"), time.Now())
	j.Close()
	strangers := func(r *Reader) (n int) {
		if err := r.Strangers(context.Background(), func(*Stranger) bool { n++; return true }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	w := &writer{j: j, settings: Settings{File: name}.filled()}
	if !w.open(context.Background(), &w.settings, true) { // a program that starts with such a clock
		t.Fatal("it does not open")
	}
	defer w.shut()
	wall := time.Now().AddDate(2, 0, 0)
	for _, run := range []time.Duration{0, 30 * time.Minute, 59 * time.Minute} {
		w.opened = time.Now().Add(-run)
		if err := w.tidy(context.Background(), &w.settings, wall.Add(run)); err != nil {
			t.Fatal(err)
		}
		r := reader(t, name)
		if c, v, s := len(clients(t, r)), len(search(t, r, Query{})), strangers(r); c != 2 || v != 1 || s != 1 {
			t.Errorf("H14/after %s: %d clients, %d verdicts and %d strangers are left", run, c, v, s)
		}
	}
	w.opened = time.Now().Add(-61 * time.Minute) // then it is that late
	if err := w.tidy(context.Background(), &w.settings, wall.Add(61*time.Minute)); err != nil {
		t.Fatal(err)
	}
	r := reader(t, name)
	if c, v, s := len(clients(t, r)), len(search(t, r, Query{})), strangers(r); c+v+s != 0 {
		t.Errorf("%d clients, %d verdicts and %d strangers are kept after their time", c, v, s)
	}
}
