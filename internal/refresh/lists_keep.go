package refresh

import (
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"countersign/internal/trust"
)

// All of this file needs keep, but for restore, which comes before anybody else.

// restore takes what was kept.
func (l *Lists) restore() error {
	ix, problem, err := l.dir.readIndex()
	if err != nil {
		return err
	}
	now := time.Now()
	l.mu.Lock()
	if problem != "" {
		l.raise(ListsDamaged, problem)
	}
	for _, f := range ix.Floors {
		l.floors[f.id()] = f
		l.ofScope[f.Scope] = append(l.ofScope[f.Scope], f)
	}
	for _, row := range ix.URLs {
		if age := now.Sub(row.Learnt); !row.Learnt.IsZero() && age < learntFor {
			l.urls[row.URL] = &listURL{url: row.URL, row: row, learnt: &Source{URL: row.URL}, seen: row.Learnt}
			continue
		}
		l.restored[row.URL] = row
	}
	l.mu.Unlock()
	l.dir.clean(l.named())
	return nil
}

// floorOf returns what is known of the newest list of a list's scope and signer; nil if there is none, or the signer is
// not known.
func (l *Lists) floorOf(crl *trust.CRL) *floor {
	scope := crl.Scope()
	if s := crl.Signer(); s != nil {
		if f := l.floors[(&floor{Scope: scope, signer: s}).id()]; f != nil {
			return f
		}
	}
	for _, f := range l.ofScope[scope] {
		if crl.SignedBy(f.signer) == nil {
			return f
		}
	}
	return nil
}

// signerOf returns a certificate of the CA that signed a list, nil if none was seen yet.
func (l *Lists) signerOf(crl *trust.CRL) *x509.Certificate {
	if s := crl.Signer(); s != nil {
		return s
	}
	if f := l.floorOf(crl); f != nil {
		return f.signer
	}
	return nil
}

// current returns the list of a URL, from disk if need be.
func (l *Lists) current(u *listURL) *held {
	l.mu.Lock()
	h, row := u.list, u.row
	l.mu.Unlock()
	if h != nil || row.Sum == "" {
		return h
	}
	crl := l.read(row.Sum)
	l.mu.Lock()
	defer l.mu.Unlock()
	if crl == nil {
		u.row = urlRow{}
		return nil
	}
	h = &held{crl: crl.crl, number: crl.number, sum: row.Sum, size: row.Size}
	u.list = h
	if l.floorOf(h.crl) == nil {
		l.wait(h)
	}
	return h
}

// load returns a floor's list, nil if it is gone.
func (l *Lists) load(f *floor) *trust.CRL {
	if crl := f.list(); crl != nil || f.Size == 0 {
		return crl
	}
	h := l.read(f.Sum)
	if h == nil {
		f.Size = 0
		return nil
	}
	f.hold(h.crl, f.Size)
	return h.crl
}

// read returns a list from memory or disk. What is damaged is dropped with a condition.
func (l *Lists) read(sum string) *held {
	for _, f := range l.floors {
		if f.Sum == sum {
			if crl := f.list(); crl != nil {
				return &held{crl: crl, number: f.Number, sum: sum, size: f.Size}
			}
		}
	}
	if l.dir == nil {
		return nil
	}
	h, err := l.dir.list(sum)
	if err == nil {
		return h
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raise(ListsDamaged, fmt.Sprintf("%s/%s%s: expected a kept revocation list, found it damaged (%s); it is dropped and, if a URL gives it, fetched again",
		l.dir.path, sum, listSuffix, people(cause(err), 200)))
	return nil
}

// remember makes h the newest list of its scope and signer, and writes it. It says whether there is something to save.
func (l *Lists) remember(h *held, signer *x509.Certificate, der []byte) bool {
	now := time.Now()
	if signer == nil {
		if i := slices.IndexFunc(l.unsigned, func(o *held) bool { return o.sum == h.sum }); i >= 0 {
			h.size = l.unsigned[i].size
			return false
		}
		l.write(h, der)
		l.wait(h)
		return true
	}
	f := l.floors[(&floor{Scope: h.crl.Scope(), signer: signer}).id()]
	if f != nil && f.Sum == h.sum {
		h.size = f.Size
		if h.size == 0 && der != nil {
			l.write(h, der)
		}
		changed := h.size != f.Size || now.Sub(f.Seen) > learntFor
		f.hold(h.crl, h.size)
		if changed {
			f.Seen = now
		}
		return changed
	}
	if h.size == 0 {
		l.write(h, der)
	}
	if f == nil {
		if len(l.floors) >= maxFloors {
			l.forgetFloor()
		}
		f = &floor{Scope: h.crl.Scope(), Signer: signer.Raw, signer: signer}
		l.floors[f.id()] = f
		l.ofScope[f.Scope] = append(l.ofScope[f.Scope], f)
	}
	f.Number, f.ThisUpdate, f.Sum, f.Seen = h.number, h.crl.ThisUpdate(), h.sum, now
	f.hold(h.crl, h.size)
	return true
}

// wait keeps a list until a chain has shown its signer.
func (l *Lists) wait(h *held) {
	if len(l.unsigned) == maxUnsigned {
		l.unsigned = slices.Delete(l.unsigned, 0, 1)
	}
	l.unsigned = append(l.unsigned, h)
	l.hurry()
}

// forgetFloor drops the floor that was longest not seen.
func (l *Lists) forgetFloor() {
	var last *floor
	for _, f := range l.floors {
		if last == nil || f.Seen.Before(last.Seen) {
			last = f
		}
	}
	delete(l.floors, last.id())
	l.ofScope[last.Scope] = slices.DeleteFunc(l.ofScope[last.Scope], func(f *floor) bool { return f == last })
	if len(l.ofScope[last.Scope]) == 0 {
		delete(l.ofScope, last.Scope)
	}
}

// write puts a list on disk, where there is room, and notes its size.
func (l *Lists) write(h *held, der []byte) {
	if l.dir == nil || der == nil {
		return
	}
	if !l.room(int64(len(der))) {
		l.notKept(fmt.Sprintf("expected room for a list of %d bytes among at most %d lists of %d bytes in all, found none", len(der), maxKept, maxKeptBytes))
		return
	}
	if err := l.dir.write(h.sum+listSuffix, der); err != nil {
		l.notKept(cause(err))
		return
	}
	h.size = int64(len(der))
}

func (l *Lists) notKept(why string) {
	l.unkept, l.retry = true, time.Now().Add(unkeptRetry)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.raise(ListsNotKept, fmt.Sprintf("revocation lists cannot all be kept in %s (%s); those in force hold, but after a restart an older one "+
		"would not be noticed and there is none until it is fetched; check the disk and the folder's permissions", l.dir.path, people(why, 200)))
}

// room says whether one more list of some bytes may be written, for which lists are given up that nothing names now.
func (l *Lists) room(size int64) bool {
	for {
		count, bytes := 0, int64(0)
		sizes := l.sizes()
		for _, n := range sizes {
			count++
			bytes += n
		}
		if count < maxKept && bytes+size <= maxKeptBytes {
			return true
		}
		used := make(map[string]bool)
		l.mu.Lock()
		for _, u := range l.urls {
			used[u.row.Sum] = true
		}
		l.mu.Unlock()
		var last *floor
		for _, f := range l.floors {
			if f.Size > 0 && !used[f.Sum] && time.Since(f.Seen) > learntFor && (last == nil || f.Seen.Before(last.Seen)) {
				last = f
			}
		}
		if last == nil {
			return false
		}
		last.Size = 0
	}
}

// sizes are the lists on disk that something names.
func (l *Lists) sizes() map[string]int64 {
	sizes := make(map[string]int64)
	for _, f := range l.floors {
		if f.Size > 0 {
			sizes[f.Sum] = f.Size
		}
	}
	for _, h := range l.unsigned {
		if h.size > 0 {
			sizes[h.sum] = h.size
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, u := range l.urls {
		if u.row.Size > 0 {
			sizes[u.row.Sum] = u.row.Size
		}
	}
	for _, row := range l.restored {
		if row.Size > 0 {
			sizes[row.Sum] = row.Size
		}
	}
	return sizes
}

func (l *Lists) named() map[string]bool {
	named := make(map[string]bool)
	for sum := range l.sizes() {
		named[sum] = true
	}
	return named
}

// save writes the index, and then removes lists that it does not name.
func (l *Lists) save() {
	if l.dir == nil {
		return
	}
	ix := index{Version: 1}
	for _, f := range l.floors {
		ix.Floors = append(ix.Floors, f)
	}
	slices.SortFunc(ix.Floors, func(a, b *floor) int { return a.Seen.Compare(b.Seen) })
	whole := true
	l.mu.Lock()
	for _, u := range l.urls {
		if u.row.Sum == "" {
			continue
		}
		row := u.row
		if u.learnt != nil {
			row.Learnt = u.seen
		}
		if whole = whole && row.Size > 0; row.Size > 0 {
			ix.URLs = append(ix.URLs, row)
		}
	}
	for _, row := range l.restored {
		ix.URLs = append(ix.URLs, row)
	}
	l.mu.Unlock()
	if err := l.dir.writeIndex(ix); err != nil {
		l.notKept(cause(err))
		return
	}
	l.dir.clean(l.named())
	if whole {
		l.unkept = false
		l.mu.Lock()
		l.clear(ListsNotKept)
		l.mu.Unlock()
	}
}

// sweep remembers lists whose signer a chain has shown since, and tries the disk again. It returns when to come back.
func (l *Lists) sweep(now time.Time) (next time.Time) {
	l.keep.Lock()
	defer l.keep.Unlock()
	next = now.Add(time.Hour)
	var known []*held
	l.unsigned = slices.DeleteFunc(l.unsigned, func(h *held) bool {
		if h.crl.Signer() == nil {
			return false
		}
		known = append(known, h)
		return true
	})
	changed := false
	for _, h := range known {
		f := l.floorOf(h.crl)
		if f != nil && f.Sum != h.sum && f.before(h.number, h.crl.ThisUpdate()) {
			continue // a newer one was faster
		}
		changed = l.remember(h, h.crl.Signer(), nil) || changed
	}
	if l.unkept && !now.Before(l.retry) {
		l.retry, changed = now.Add(unkeptRetry), true
	}
	if changed {
		l.save()
	}
	if len(l.unsigned) > 0 {
		next = now.Add(sweepEvery)
	}
	if l.unkept && l.retry.Before(next) {
		next = l.retry
	}
	return next
}
