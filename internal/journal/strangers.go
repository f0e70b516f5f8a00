package journal

import (
	"cmp"
	"context"
	"crypto/x509"
	"database/sql"
	"errors"
	"slices"
	"time"

	"countersign/internal/record"
)

// What is kept of those who were refused before they had to prove that they hold their key. Anybody can make such rows, so
// they have little room, and are good for one question only: would this certificate be let in under another configuration?
const (
	maxStrangers = 2000
	maxStranger  = 16 << 10 // bytes of certificates
)

// Stranger is a certificate that was refused, and whose key nobody has shown to hold.
type Stranger struct {
	SHA256         string
	Listener, Host string
	// Unnamed says that it asked for no name that Host has, and Host stood in.
	Unnamed bool
	Version string // of TLS
	Last    time.Time
	Count   int64
	// Presented is what was sent, the client's own certificate first.
	Presented []*x509.Certificate
}

// stranger is one that waits to be written.
type stranger struct {
	listener, host, version string
	unnamed                 bool
	chain                   []byte // in DER, the client's own certificate first
}

// strangerOf is what is kept of a handshake besides its entry; nil for nothing.
func strangerOf(h *record.Handshake) *stranger {
	if h.Kind != record.Begun || h.Proven || len(h.Presented) == 0 || h.Host == "" {
		return nil
	}
	if _, known := h.Identity.Identity(); known {
		return nil
	}
	size := 0
	for _, c := range h.Presented {
		size += len(c.Raw)
	}
	if size > maxStranger {
		return nil
	}
	s := &stranger{plain(h.Listener, maxText), plain(cmp.Or(h.Name, h.Host), maxHost), h.Version, h.Name == "", make([]byte, 0, size)}
	for _, c := range h.Presented {
		s.chain = append(s.chain, c.Raw...)
	}
	return s
}

// remember keeps the certificates of refused handshakes.
func (w *writer) remember(ctx context.Context, tx *sql.Tx, events []event) error {
	for i := range events {
		e, s := &events[i], events[i].stranger
		if s == nil {
			continue
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO strangers (sha256, listener, host, unnamed, version, last, count, chain) VALUES (?, ?, ?, ?, ?, ?, 1, ?)
			ON CONFLICT (sha256, listener, host, unnamed) DO UPDATE SET version = max(version, excluded.version), last = max(last, excluded.last), count = count + 1, chain = excluded.chain`,
			e.sha256, s.listener, s.host, s.unnamed, s.version, e.at.UnixMicro(), s.chain)
		if err != nil {
			return err
		}
		if w.strange++; w.strange > w.most/4 {
			if err := w.fewStrangers(ctx, tx); err != nil {
				return err
			}
		}
	}
	return nil
}

// fewStrangers leaves those that came last.
func (w *writer) fewStrangers(ctx context.Context, tx *sql.Tx) error {
	w.strange = 0
	_, err := tx.ExecContext(ctx, "DELETE FROM strangers WHERE rowid IN (SELECT rowid FROM strangers ORDER BY last DESC, rowid DESC LIMIT -1 OFFSET ?)", w.most)
	return err
}

func (w *writer) tidyStrangers(ctx context.Context, tx *sql.Tx, s *Settings, now time.Time) error {
	if _, err := tx.ExecContext(ctx, "DELETE FROM strangers WHERE last < ?", now.Add(-s.Age).UnixMicro()); err != nil {
		return err
	}
	return w.fewStrangers(ctx, tx)
}

// Strangers calls f for every refused certificate that is kept, those seen last first, until f returns false. f must not ask r.
func (r *Reader) Strangers(ctx context.Context, f func(*Stranger) bool) error {
	rows, err := r.db.Query(ctx, "SELECT sha256, listener, host, unnamed, version, last, count, chain FROM strangers ORDER BY last DESC")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var s Stranger
		var last int64
		var chain []byte
		if err := rows.Scan(&s.SHA256, &s.Listener, &s.Host, &s.Unnamed, &s.Version, &last, &s.Count, &chain); err != nil {
			r.skip("refused certificate "+s.SHA256, err)
			continue
		}
		s.Last = time.UnixMicro(last).UTC()
		if err := printable(&s); err != nil {
			r.skip("refused certificate "+s.SHA256, err)
			continue
		}
		if s.Presented, err = x509.ParseCertificates(slices.Clone(chain)); err != nil || len(s.Presented) == 0 {
			r.skip("refused certificate "+s.SHA256, cmp.Or(err, errors.New("there is none in its row")))
			continue
		}
		if !f(&s) {
			break
		}
	}
	return rows.Err()
}
