package quickstart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// entry is what is read of a record line.
type entry struct {
	Time     time.Time
	Kind     string
	Ref      string
	Client   string
	SNI      string
	Host     string
	Method   string
	Path     string
	Status   int
	Reason   string
	Sentence string
	Expected string
	Found    string
	Next     string
	TLS      string
	Upstream string
	Subject  string       `json:"client_subject"`
	AtFault  *certificate `json:"certificate_at_fault"`
	Shown    *certificate `json:"client_certificate"`
	Micros   int64        `json:"duration_us"`
}

type certificate struct {
	Subject string
	Depth   int
}

// last reports whether nothing of interest follows: an accepted handshake goes on with a request.
func (e *entry) last() bool { return e.Kind != "handshake" || e.Reason != "completed" }

// recorder is the sink of Countersign's records. It keeps the raw lines in a bounded file, the newest entries for
// --check, and shows each as one line for people.
type recorder struct {
	mu      sync.Mutex
	folder  *folder
	file    *os.File
	size    int64
	limit   int64 // of the file
	partial []byte
	entries []entry
	total   int
	show    io.Writer // nil: nothing is shown
	arrived chan struct{}
}

const (
	recordsFile = "records.jsonl"
	maxRecords  = 8 << 20 // of each of two files
	maxPartial  = 64 << 10
	keepEntries = 256
)

// newRecorder begins a new file of records.
func newRecorder(f *folder, show io.Writer) (*recorder, error) {
	r := &recorder{folder: f, show: show, limit: maxRecords, arrived: make(chan struct{})}
	return r, r.open()
}

func (r *recorder) open() (err error) {
	r.size = 0
	r.file, err = r.folder.root.OpenFile(recordsFile, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, private)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w; check the permissions of %s", r.folder.path(recordsFile), err, r.folder.dir)
	}
	return nil
}

// Write takes record lines, which may come in parts. It never fails: traffic does not depend on the log.
func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(p)
	r.partial = append(r.partial, p...)
	rest := r.partial
	for {
		line, after, found := bytes.Cut(rest, []byte("\n"))
		if !found {
			break
		}
		r.take(line)
		rest = after
	}
	r.partial = append(r.partial[:0], rest...)
	if len(r.partial) > maxPartial {
		r.partial = r.partial[:0]
	}
	return len(p), nil
}

// keep writes to the file and begins another when it is full; the one before stays.
func (r *recorder) keep(p []byte) {
	if r.file == nil {
		return
	}
	if r.size += int64(len(p)); r.size > r.limit {
		r.file.Close()
		r.file = nil
		if r.folder.root.Rename(recordsFile, recordsFile+".old") != nil || r.open() != nil {
			return
		}
		r.size = int64(len(p))
	}
	_, _ = r.file.Write(p)
}

func (r *recorder) take(line []byte) {
	var e entry
	if json.Unmarshal(line, &e) != nil {
		return
	}
	r.total++
	r.entries = append(r.entries, e)
	if len(r.entries) >= 2*keepEntries {
		r.entries = append(r.entries[:0], r.entries[keepEntries:]...)
	}
	close(r.arrived)
	r.arrived = make(chan struct{})
	if r.show != nil && e.last() {
		fmt.Fprintln(r.show, e.line())
	}
}

// say shows a line that is not of a record, between those that are.
func (r *recorder) say(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.show != nil {
		fmt.Fprintln(r.show, line)
	}
}

// close ends the file; lines that come later are not kept.
func (r *recorder) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

// mark is the number of records so far.
func (r *recorder) mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.total
}

// await returns the last record of the connection from address client, of those that came after mark.
func (r *recorder) await(mark int, client string, limit time.Duration) (entry, bool) {
	timeout := time.After(limit)
	for {
		r.mu.Lock()
		n := min(r.total-mark, len(r.entries))
		for _, e := range r.entries[len(r.entries)-n:] {
			if e.Client == client && e.last() {
				r.mu.Unlock()
				return e, true
			}
		}
		arrived := r.arrived
		r.mu.Unlock()
		select {
		case <-arrived:
		case <-timeout:
			return entry{}, false
		}
	}
}

// line is the record for people: time, who, what, how it ended.
func (e *entry) line() string {
	who := nobody
	switch {
	case e.Subject != "":
		who = commonName(e.Subject)
	case e.AtFault != nil: // a refused handshake ends before the key was proven
		who = commonName(e.AtFault.Subject) + "?"
		if e.AtFault.Depth > 0 { // the record names the certificate at fault, here a CA and not the client
			who = "one of " + who
		}
	}
	what := "TLS handshake with " + or(e.SNI, "no server name")
	switch e.Kind {
	case "request":
		what = fmt.Sprintf("%s %s%s -> %d", e.Method, e.Host, e.Path, e.Status)
	case "ended":
		if what = "open connection to " + or(e.SNI, "no server name") + " ended"; e.Shown != nil {
			who = commonName(e.Shown.Subject)
		}
	case "tunnel":
		who, what = "(unseen)", "TLS for "+e.SNI+" passed through to upstream "+e.Upstream
	}
	line := fmt.Sprintf("%s  %-12s %s  %s", e.Time.Local().Format(time.TimeOnly), who, what, e.Reason)
	switch {
	case e.Reason == "completed" && e.Upstream != "":
		line += fmt.Sprintf(" by upstream %s in %.1f ms", e.Upstream, float64(e.Micros)/1000)
	case e.Expected != "":
		line += fmt.Sprintf(": expected %s, found %s", e.Expected, or(e.Found, "none"))
	case e.Sentence != "":
		line += ": " + e.Sentence
	}
	return printable(line)
}

// commonName takes the CN out of a name in RFC 2253 form; without one it is the name itself.
func commonName(subject string) string {
	for part := range strings.SplitSeq(subject, ",") {
		if cn, ok := strings.CutPrefix(part, "CN="); ok {
			return cn
		}
	}
	return subject
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// printable escapes what could move a terminal's cursor: names come from strangers.
func printable(s string) string {
	q := strconv.QuoteToASCII(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}
