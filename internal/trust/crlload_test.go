package trust

import (
	"bytes"
	"crypto/x509"
	"math/big"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/internal/testpki"
)

const million = 1_000_000

// cpuTime is what this thread has used of the processor.
func cpuTime(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// perOperation reports the processor's time for each operation until it is called.
func perOperation(b *testing.B) func() {
	runtime.LockOSThread()
	start := cpuTime(b)
	return func() {
		b.ReportMetric(float64(cpuTime(b)-start)/float64(b.N), "cpu-ns/op")
		runtime.UnlockOSThread()
	}
}

// loadMillion reads a list of a million entries, checks its signature in a store, and returns the time it took and the
// bytes of live memory that it added.
func loadMillion(tb testing.TB, ca *testpki.Cert, der []byte) (*Store, time.Duration, int64) {
	tb.Helper()
	live := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := live()
	runtime.LockOSThread() // the processor's time, because on a busy machine that of the clock says little
	defer runtime.UnlockOSThread()
	start := cpuTime(tb)
	l, err := ParseCRL(der)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := NewStore("partners", []*x509.Certificate{ca.Cert}, []*CRL{l}, nil, Options{CheckRevocation: true})
	took := cpuTime(tb) - start
	if err != nil || l.Len() != million {
		tb.Fatal(err, l.Len())
	}
	added := live() - before
	runtime.KeepAlive(der)
	return s, took, added
}

func BenchmarkCRLLoad1M(b *testing.B) {
	root := testpki.New(b)
	der := root.CRL(testpki.Many(million))
	b.SetBytes(int64(len(der)))
	var slowest time.Duration
	var added int64
	for b.Loop() {
		s, took, live := loadMillion(b, root, der)
		slowest, added = max(slowest, took), max(added, live)
		runtime.KeepAlive(s)
	}
	b.ReportMetric(float64(slowest.Milliseconds()), "cpu-ms-slowest")
	b.ReportMetric(float64(added)/(1<<20), "MB-live")
}

// C12: a million entries in half a second and 64 MB (issue 4); here with room for slow machines.
func TestCRLLoad1M(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("a list of 49 MB")
	}
	root := testpki.New(t)
	der := root.CRL(testpki.Many(million))
	s, took, added := loadMillion(t, root, der)
	t.Logf("C12/a million entries: %v, %d MB", took, added>>20)
	if took > time.Second || added > 64<<20 {
		t.Errorf("C12/a million entries: %v of the processor and %d bytes of memory, want at most 1s and 64 MB", took, added)
	}
	l := s.lists[string(root.Cert.RawSubject)][0].full[0]
	for i := range million {
		if r, found := l.entries.find(testpki.NthSerial(i)); !found || r.reason != 1 {
			t.Fatalf("entry %d: %v %v", i, found, r)
		}
		if _, found := l.entries.find(testpki.NthSerial(million + i)); found {
			t.Fatalf("serial number %d is not on the list", million+i)
		}
	}
}

// What is read of hostile lists takes time and memory in proportion to their bytes.
func TestCRLHostile(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("lists of 16 MB")
	}
	root := testpki.New(t)
	const size = 16 << 20
	entry := []byte("\x30\x12\x02\x01\x05\x17\x0d261120123456Z")
	tiny := []byte("\x30\x10\x02\x01\x05\x17\x0b2611201234Z")
	unknown := []byte("\x30\x27\x02\x01\x05\x17\x0d261120123456Z\x30\x13\x30\x11\x06\x09\x2b\x06\x01\x04\x01\x86\x8d\x1f\x01\x04\x04\x05\x00\x05\x00")
	var different []byte
	for i := range size / 20 {
		different = append(different, 0x30, 20, 2, 3, 0x40|byte(i>>16&0x3f), byte(i>>8), byte(i))
		different = append(different, entry[5:]...)
	}
	for name, c := range map[string]struct {
		entries []byte
		says    string // of the error; empty when it is a list
		n       int
	}{
		"C12/one serial number again and again": {bytes.Repeat(entry, size/len(entry)), "", 1},
		"C12/dates without seconds":             {bytes.Repeat(tiny, size/len(tiny)), "entry 1: expected a date", 0},
		"C12/short serial numbers":              {different, "", size / 20},
		"C12/an extension in each entry":        {bytes.Repeat(unknown, size/len(unknown)), "", 1},
		"C12/empty entries":                     {bytes.Repeat([]byte{0x30, 0}, size/2), "entry 1: expected a serial number", 0},
		"C12/nested":                            {nested(size), "entry 1: expected a serial number", 0},
		"C12/huge serial number":                {append([]byte{0x30, 0x84, 2, 0, 0, 22, 2, 0x84, 2, 0, 0, 1, 1}, append(bytes.Repeat([]byte{7}, 1<<25), entry[5:]...)...), "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			der := root.CRL(testpki.RawEntries(c.entries))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			start := cpuTime(t)
			l, err := ParseCRL(der)
			took := cpuTime(t) - start
			runtime.ReadMemStats(&after)
			if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) || c.says == "" && (err != nil || l.Len() != c.n) {
				t.Errorf("%v %v", l, err)
			}
			if allocated := after.TotalAlloc - before.TotalAlloc; took > 3*time.Second || allocated > 8*size {
				t.Errorf("%v and %d MB", took, allocated>>20)
			}
			if err == nil {
				l.entries.find(big.NewInt(5))
			}
		})
	}
	t.Run("C12/larger than the bound", func(t *testing.T) {
		if _, err := ParseCRLs(make([]byte, maxCRLBytes+1)); err == nil || !strings.Contains(err.Error(), "at most 128 MiB") {
			t.Error(err)
		}
	})
	t.Run("C12/length beyond the end", func(t *testing.T) {
		for _, der := range [][]byte{{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}, {0x30, 0x88, 1, 1, 1, 1, 1, 1, 1, 1}, {0x30, 0x80, 0, 0}} {
			if _, err := ParseCRLs(der); err == nil {
				t.Errorf("%x was taken", der)
			}
		}
	})
}

// nested is a SEQUENCE in a SEQUENCE and so on, of size bytes, which are at most 16 MB.
func nested(size int) []byte {
	levels := make([]byte, 0, size)
	for n := size - 5; n > 1<<17; n -= 5 {
		levels = append(levels, 0x30, 0x83, byte(n>>16), byte(n>>8), byte(n))
	}
	return append(levels, make([]byte, size-len(levels))...)
}

func TestCRLLookupAllocatesNothing(t *testing.T) {
	root := testpki.New(t)
	l, err := ParseCRL(root.CRL(testpki.Many(1000)))
	if err != nil {
		t.Fatal(err)
	}
	on, off := testpki.NthSerial(7), testpki.NthSerial(1007)
	if n := testing.AllocsPerRun(100, func() {
		if _, found := l.entries.find(on); !found {
			t.Error("not found")
		}
		if _, found := l.entries.find(off); found {
			t.Error("found")
		}
		if l.SignedBy(root.Cert) != nil {
			t.Error("not signed")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkCRLLookup(b *testing.B) {
	root := testpki.New(b)
	l, err := ParseCRL(root.CRL(testpki.Many(million)))
	if err != nil {
		b.Fatal(err)
	}
	for name, from := range map[string]int{"on": 0, "off": million} {
		var serials []byte // spread over the whole list, so that caches do not help
		for i := range 1 << 16 {
			serials = append(serials, testpki.NthSerial(from+i*(million>>16)).Bytes()...)
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			defer perOperation(b)()
			serial := new(big.Int)
			for i := 0; b.Loop(); i++ {
				at := i & (1<<16 - 1) * 16
				if _, found := l.entries.find(serial.SetBytes(serials[at : at+16])); found != (from == 0) {
					b.Fatal(i)
				}
			}
		})
	}
}

// BenchmarkVerifyWithCRL1M shows what a list of a million entries adds to the verification of a client: with the chain
// built each time, and with chains remembered.
func BenchmarkVerifyWithCRL1M(b *testing.B) {
	root := testpki.New(b)
	with, err := ParseCRL(root.CRL(testpki.Many(million)))
	if err != nil {
		b.Fatal(err)
	}
	presented := root.Client("alice").Presented()
	now := time.Now()
	for _, c := range []struct {
		name  string
		lists []*CRL
	}{{"without", nil}, {"with", []*CRL{with}}} {
		for _, chains := range []*Chains{nil, NewChains(100)} {
			name := c.name
			if chains != nil {
				name += "/remembered"
			}
			s, err := NewStore("partners", []*x509.Certificate{root.Cert}, c.lists, nil, Options{CheckRevocation: c.lists != nil, Chains: chains})
			if err != nil {
				b.Fatal(err)
			}
			b.Run(name, func(b *testing.B) {
				defer perOperation(b)()
				for b.Loop() {
					v := s.Verify(presented, now)
					if !v.Accepted {
						b.Fatal(v.Err())
					}
					if chains != nil {
						s.Remember(&v)
					}
				}
			})
		}
	}
}
