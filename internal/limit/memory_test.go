package limit

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestPressure(t *testing.T) {
	for _, c := range []struct {
		percents []int
		want     Pressure
	}{
		{[]int{69}, Calm}, {[]int{70}, Tight}, {[]int{70, 60}, Tight}, {[]int{70, 59}, Calm},
		{[]int{85}, Critical}, {[]int{85, 75}, Critical}, {[]int{85, 74}, Tight}, {[]int{85, 59}, Calm}, {[]int{85, 74, 60}, Tight}, {[]int{60}, Calm},
	} {
		p := Calm
		for _, percent := range c.percents {
			p = p.next(percent)
		}
		if p != c.want {
			t.Errorf("%v: %v, expected %v", c.percents, p, c.want)
		}
	}
	for _, c := range []struct {
		u    Usage
		want int
	}{
		{Usage{Live: 1 << 40}, 0}, // no limit
		{Usage{Live: 50, Limit: 100}, 50}, {Usage{Live: 50, Limit: 100, Outside: 90, OutsideLimit: 100}, 90}, {Usage{Live: 1 << 50, Limit: 1}, 1000},
	} {
		if got := c.u.Percent(); got != c.want {
			t.Errorf("%+v: %d, expected %d", c.u, got, c.want)
		}
	}
}

// fake is memory that a test sets.
type fake struct {
	mu    sync.Mutex
	usage Usage
}

func (f *fake) set(change func(*Usage)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.usage)
}

func (f *fake) read() Usage {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.usage
}

// Garbage is given back when there is a rest, and not before, nor again for nothing.
func TestGiveBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{usage: Usage{Live: 160 << 20, Allocated: 1 << 20}}
		times, takes := 0, time.Duration(0)
		m := WatchMemory(MemoryConfig{Read: f.read, GiveBack: func() { times++; time.Sleep(takes) }})
		defer m.Close()
		expect := func(what string, want int, looks int, each uint64) {
			t.Helper()
			for range looks {
				f.set(func(u *Usage) { u.Allocated += each })
				time.Sleep(250 * time.Millisecond)
				synctest.Wait()
			}
			if times != want {
				t.Fatalf("%s: given back %d times, expected %d", what, times, want)
			}
		}
		time.Sleep(time.Millisecond) // looks are between changes
		expect("nothing allocated", 0, 20, 0)
		expect("work", 0, 100, 11<<20)
		expect("the first moments of rest", 0, 15, 10<<20)
		expect("a rest", 1, 1, 10<<20)
		expect("a long rest", 1, 1000, 0)
		expect("some work", 1, 3, 13<<20)
		expect("too little of it", 1, 20, 0)
		expect("enough of it", 2, 8, 1<<20)
		takes = 200 * time.Millisecond
		expect("more work, too soon", 2, 8, 10<<20)
		expect("more work, late enough", 3, 20, 10<<20)
		expect("it had taken 200 ms, so not for 20 s", 3, 55, 10<<20)
		expect("after that", 4, 30, 10<<20)
	})
}

func TestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{usage: Usage{Limit: 1000, Live: 100}}
		var changes []string
		sheds, collections := 0, 0
		m := WatchMemory(MemoryConfig{Read: f.read, Collect: func() { collections++ },
			Changed: func(from, to Pressure, u Usage) {
				changes = append(changes, fmt.Sprintf("%v to %v at %d", from, to, u.Percent()))
				if u.Percent() == 99 {
					panic("as if")
				}
			},
			Shed: func() { sheds++ }, Panicked: func(v any) { changes = append(changes, fmt.Sprint("panic ", v)) }})
		after := func(d time.Duration, change func(*Usage)) {
			f.set(change)
			time.Sleep(d)
			synctest.Wait()
		}
		const look = 251 * time.Millisecond

		after(look, func(u *Usage) { u.InUse = 840 })
		if m.Pressure() != Calm || m.Refuse(1000, 1000) || collections != 0 {
			t.Error("H23/much in use is not little left")
		}
		after(look, func(u *Usage) { u.InUse = 850 })
		if collections != 1 {
			t.Errorf("H23/%d collections, expected one to see what lives", collections)
		}
		after(look, func(u *Usage) { u.Live = 700 })
		if !m.Refuse(8, 20) || m.Refuse(7, 20) {
			t.Error("F20/tight: an address with 8 of 20 has many, and one with 7 has few")
		}
		if !m.Refuse(100, 1600) || m.Refuse(99, 1600) {
			t.Error("F20/tight: a sixteenth of 1,600 is many, and less is not")
		}
		if sheds != 0 {
			t.Error("F20/tight: something was closed")
		}
		after(look, func(u *Usage) { u.Live = 900 })
		if !m.Refuse(0, 0) {
			t.Error("F20/critical: somebody is let in")
		}
		if sheds != 1 {
			t.Errorf("F20/critical: shed %d times, expected once", sheds)
		}
		after(2*look, func(*Usage) {})
		if sheds != 1 {
			t.Errorf("shed %d times, although no collection has shown what that gave", sheds)
		}
		for range 3 {
			after(look, func(u *Usage) { u.Collections++ })
		}
		if sheds != 4 {
			t.Errorf("shed %d times, expected once for each collection", sheds)
		}
		if collections < 2 || collections > 4 {
			t.Errorf("%d collections in two seconds, expected one in each", collections)
		}
		after(look, func(u *Usage) { u.Live = 740 })
		if m.Pressure() != Tight {
			t.Error("not tight again")
		}
		after(look, func(u *Usage) { u.Live = 990 })
		if m.Pressure() != Critical {
			t.Error("F16/the panic took the decision with it")
		}
		after(look, func(u *Usage) { u.Live = 100 })
		if m.Pressure() != Calm || m.Refuse(1000, 1000) {
			t.Error("F16/not calm again after a panic")
		}
		want := []string{"calm to tight at 70", "tight to critical at 90", "critical to tight at 74", "tight to critical at 99", "panic as if", "critical to calm at 10"}
		if !slices.Equal(changes, want) {
			t.Errorf("told of %q, expected %q", changes, want)
		}
		m.Close()
		if (*Memory)(nil).Refuse(1000, 1000) {
			t.Error("nobody watches, and somebody is refused")
		}
	})
}

func TestControlGroup(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	self := write("self", "0::/pod/inner\n")
	root := filepath.Join(dir, "fs")
	write("fs/pod/inner/memory.max", "max\n")
	write("fs/pod/inner/memory.current", "1\n")
	if g := findGroup(self, root); g != (group{}) {
		t.Errorf("found %v where nothing is limited", g)
	}
	write("fs/pod/memory.max", "268435456\n")
	write("fs/pod/memory.current", "200000000\n")
	write("fs/pod/memory.stat", "anon 5\ninactive_file 50000000\nactive_file 7\n")
	charged, limit, ok := findGroup(self, root).read()
	if !ok || charged != 149999993 || limit != 268435456 {
		t.Errorf("%d of %d, %v; expected 149999993 of 268435456", charged, limit, ok)
	}
	write("fs/pod/memory.max", "nonsense\n")
	if _, _, ok := findGroup(self, root).read(); ok {
		t.Error("nonsense is a limit")
	}
	self = write("self", "9:cpu:/x\n4:memory:/docker/1\n")
	write("fs/memory/docker/1/memory.limit_in_bytes", "1000\n")
	write("fs/memory/docker/1/memory.usage_in_bytes", "900\n")
	write("fs/memory/docker/1/memory.stat", "inactive_file 0\ntotal_inactive_file 100\n")
	if charged, limit, ok := findGroup(self, root).read(); !ok || charged != 800 || limit != 1000 {
		t.Errorf("version 1: %d of %d, %v; expected 800 of 1000", charged, limit, ok)
	}
	write("fs/memory/docker/1/memory.stat", "active_file 5\ntotal_inactive_anon 50\ntotal_active_anon 50\ntotal_inactive_file 100\ntotal_active_file 700\n")
	charged, limit, ok = findGroup(self, root).read()
	if u := (Usage{Outside: charged, OutsideLimit: limit}); !ok || charged != 100 || Calm.next(u.Percent()) != Calm {
		t.Errorf("files that are read often count as taken: %d of %d, %v; expected 100 of 1000", charged, limit, ok)
	}
	if g := findGroup(filepath.Join(dir, "none"), root); g != (group{}) {
		t.Error("found a group without a list of them")
	}
}

// TestMemoryOfThisProcess reads the real thing in a process with a small GOMEMLIMIT: garbage alone is no pressure, what
// lives is, and it ends when it is let go.
func TestMemoryOfThisProcess(t *testing.T) {
	if os.Getenv("COUNTERSIGN_MEMORY_TEST") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestMemoryOfThisProcess$", "-test.v")
		cmd.Env = append(os.Environ(), "COUNTERSIGN_MEMORY_TEST=1", "GOMEMLIMIT=64MiB", "GOGC=400")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Fatalf("H23: %v\n%s", err, out)
		}
		return
	}
	var mu sync.Mutex
	var held [][]byte
	m := WatchMemory(MemoryConfig{Every: 20 * time.Millisecond, Shed: func() {
		mu.Lock()
		defer mu.Unlock()
		held = slices.Delete(held, 0, min(len(held), 8))
	}})
	defer m.Close()
	await := func(t *testing.T, least, most Pressure, grow func()) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); m.Pressure() < least || m.Pressure() > most; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%v, expected %v to %v; %+v", m.Pressure(), least, most, reader()())
			}
			grow()
		}
	}
	t.Run("garbage is no pressure", func(t *testing.T) {
		for range 500 {
			sink = make([]byte, 1<<20)
			if m.Pressure() != Calm {
				t.Fatalf("%v; %+v", m.Pressure(), reader()())
			}
		}
	})
	t.Run("H23/what lives is", func(t *testing.T) {
		grow := func() {
			b := make([]byte, 1<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			mu.Lock()
			held = append(held, b)
			mu.Unlock()
		}
		await(t, Tight, Critical, grow) // one look may miss what lies between
		await(t, Critical, Critical, grow)
		if u := reader()(); u.Live > 80<<20 { // of what is in use much may be garbage that the collector has not come to
			t.Errorf("%d MiB live before anything was refused; the limit is 64", u.Live>>20)
		}
		await(t, Calm, Tight, func() {}) // shedding alone
		mu.Lock()
		held = nil
		mu.Unlock()
		await(t, Calm, Calm, func() {})
	})
	debug.FreeOSMemory()
}

var sink []byte

func TestOldest(t *testing.T) {
	start := time.Now()
	for _, n := range []int{0, 1, 5, 100, 2000} {
		o := NewOldest[int](n)
		for _, i := range rand.Perm(1000) {
			o.Add(start.Add(time.Duration(i)), i)
		}
		got := o.All()
		if len(got) != min(n, 1000) {
			t.Fatalf("%d of %d", len(got), n)
		}
		for i, v := range got {
			if v != i {
				t.Fatalf("place %d of %d has %d", i, n, v)
			}
		}
		if len(o.All()) != 0 {
			t.Error("not forgotten")
		}
	}
}
