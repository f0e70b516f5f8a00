package journal

import "time"

// When a clock that is suddenly ahead is believed.
const (
	maxAhead = 10 * time.Minute
	confirms = time.Hour
)

// clock says how late it is to those who remove what is old (threats H14). A wall clock that goes on with time is believed,
// and one that is behind, for then less is removed. One that is ahead is believed when it has gone on from there for an hour:
// a wrong clock is mostly noticed before that, and what is removed does not come back. The zero value believes the first
// wall clock that it is shown.
type clock struct {
	believed, doubted instant // doubted is zero while nothing is in doubt
}

// instant is what a wall clock said when a process had run for so long.
type instant struct {
	wall time.Time
	run  time.Duration
}

// after is what the wall clock says later, if it goes on with time.
func (i instant) after(run time.Duration) time.Time { return i.wall.Add(run - i.run) }

// now returns how late it is when the wall clock says wall and the process has run for run.
func (c *clock) now(wall time.Time, run time.Duration) time.Time {
	if c.believed.wall.IsZero() || !wall.After(c.believed.after(run).Add(maxAhead)) {
		c.believed, c.doubted = instant{wall, run}, instant{}
		return wall
	}
	switch {
	case c.doubted.wall.IsZero() || wall.After(c.doubted.after(run).Add(maxAhead)):
		c.doubted = instant{wall, run}
	case run-c.doubted.run >= confirms:
		c.believed, c.doubted = instant{wall, run}, instant{}
		return wall
	}
	return c.believed.after(run)
}
