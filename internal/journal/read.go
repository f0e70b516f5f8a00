package journal

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"countersign/internal/store"
)

// Reader reads a journal, of a program that runs or of one that does not.
type Reader struct {
	db *store.DB

	unread int
	first  error
}

// OpenReader opens the file. Close it after use.
func OpenReader(ctx context.Context, file string) (*Reader, error) {
	db, err := store.OpenReadOnly(ctx, file, len(schema))
	if err != nil {
		return nil, err
	}
	return &Reader{db: db}, nil
}

// Close closes the file.
func (r *Reader) Close() { _ = r.db.Close() }

// Unread returns how many rows could not be read so far, and what was wrong with the first of them. They were left out.
func (r *Reader) Unread() (n int, first error) { return r.unread, r.first }

// skip leaves out a row.
func (r *Reader) skip(what string, err error) {
	if r.unread++; r.first == nil {
		r.first = fmt.Errorf("%s of the journal cannot be read: %w", plain(what, maxText), err)
	}
}

// Query says which entries are wanted; the zero value all of them. Several conditions have to hold together.
type Query struct {
	// Ref is a reference: of a request, which finds its connection too, or of a connection, which finds its requests too.
	Ref string
	// Since and Until bound the time.
	Since, Until time.Time
	// Reason is a code, and may end in * for all that begin like it.
	Reason string
	// Subject and Issuer are parts of the names of the client's certificate, in any case of letters.
	Subject, Issuer string
	// Serial and Fingerprint are hexadecimal, with colons or without; a fingerprint may be cut short, and finds the certificate
	// at fault too.
	Serial, Fingerprint string
	SNI                 string
	// Address is that of the client, or a network (10.0.0.0/8).
	Address string
	// Before is an ID: only older entries are wanted. Limit is how many, 0 for 50 and at most 1000.
	Before int64
	Limit  int
}

// QueryError is a query that nobody can answer, as it is written.
type QueryError struct{ text string }

func (e *QueryError) Error() string { return e.text }

// Bounds of a page.
const (
	defaultLimit = 50
	maxLimit     = 1000
	minPrint     = 4 // digits of a fingerprint
)

// Search returns the newest entries that q asks for, and the ID to give as Before for the next page; 0 when there is none.
func (r *Reader) Search(ctx context.Context, q Query) (list []Entry, next int64, err error) {
	where, args, in, err := q.where()
	if err != nil {
		return nil, 0, err
	}
	limit := q.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	limit = min(limit, maxLimit)
	// Only ids are found in the first place: stories are long.
	rows, err := r.db.Query(ctx, "SELECT id, address FROM verdicts"+where+" ORDER BY id DESC", args...)
	if err != nil {
		return nil, 0, err
	}
	var ids []int64
	for rows.Next() {
		var id int64
		var from string
		if err := rows.Scan(&id, &from); err != nil {
			rows.Close()
			return nil, 0, err
		}
		if in.IsValid() {
			if a, err := netip.ParseAddr(from); err != nil || !in.Contains(a.Unmap()) {
				continue
			}
		}
		if len(ids) == limit {
			next = ids[limit-1]
			break
		}
		ids = append(ids, id)
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return nil, 0, err
	}
	for _, id := range ids {
		var story []byte
		err := r.row(ctx, []any{&story}, "SELECT story FROM stories WHERE id = ?", id)
		if errors.Is(err, sql.ErrNoRows) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, 0, err
		}
		var e Entry
		if err := json.Unmarshal(story, &e); err != nil {
			r.skip(fmt.Sprint("entry ", id), err)
			continue
		}
		if err := printable(&e); err != nil {
			r.skip(fmt.Sprint("entry ", id), err)
			continue
		}
		e.ID = id
		e.tell()
		list = append(list, e)
	}
	return list, next, nil
}

// row reads one row; sql.ErrNoRows if there is none.
func (r *Reader) row(ctx context.Context, into []any, statement string, args ...any) error {
	rows, err := r.db.Query(ctx, statement, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	if !rows.Next() {
		if err := rows.Err(); err != nil {
			return err
		}
		return sql.ErrNoRows
	}
	return rows.Scan(into...)
}

// where makes the conditions of q. in is the network that addresses have to be in, if one was given.
func (q *Query) where() (text string, args []any, in netip.Prefix, err error) {
	var all []string
	add := func(condition string, values ...any) {
		all, args = append(all, condition), append(args, values...)
	}
	if q.Ref != "" {
		connection := q.Ref
		if i := strings.LastIndexByte(q.Ref, '-'); i > 0 {
			connection = q.Ref[:i]
		}
		add("(ref = ? OR ref = ? OR ref >= ? AND ref < ?)", q.Ref, connection, q.Ref+"-", q.Ref+".") // '.' comes after '-'
	}
	if !q.Since.IsZero() {
		add("time >= ?", q.Since.UnixMicro())
	}
	if !q.Until.IsZero() {
		add("time < ?", q.Until.UnixMicro())
	}
	if q.Reason != "" {
		if begin, several := strings.CutSuffix(q.Reason, "*"); several {
			add("substr(reason, 1, ?) = ?", len(begin), begin)
		} else {
			add("reason = ?", q.Reason)
		}
	}
	if q.Subject != "" {
		add("instr(lower(subject), lower(?)) > 0", q.Subject)
	}
	if q.Issuer != "" {
		add("instr(lower(issuer), lower(?)) > 0", q.Issuer)
	}
	if q.Serial != "" {
		hex, err := digits("serial number", q.Serial, 1)
		if err != nil {
			return "", nil, in, err
		}
		add("ltrim(lower(serial), '0') = ltrim(?, '0')", hex)
	}
	if q.Fingerprint != "" {
		hex, err := digits("fingerprint", q.Fingerprint, minPrint)
		if err != nil {
			return "", nil, in, err
		}
		add("(substr(sha256, 1, ?) = ? OR substr(at_sha256, 1, ?) = ?)", len(hex), hex, len(hex), hex)
	}
	if q.SNI != "" {
		add("sni = ?", strings.ToLower(q.SNI))
	}
	if q.Address != "" {
		if strings.Contains(q.Address, "/") {
			if in, err = netip.ParsePrefix(q.Address); err != nil {
				return "", nil, in, &QueryError{fmt.Sprintf("address: expected an address or a network like 10.0.0.0/8, found %q", plain(q.Address, maxText))}
			}
			in = in.Masked()
		} else {
			a, err := netip.ParseAddr(q.Address)
			if err != nil {
				return "", nil, in, &QueryError{fmt.Sprintf("address: expected an address or a network like 10.0.0.0/8, found %q", plain(q.Address, maxText))}
			}
			add("address = ?", a.Unmap().WithZone("").String())
		}
	}
	if q.Before > 0 {
		add("id < ?", q.Before)
	}
	if len(all) > 0 {
		text = " WHERE " + strings.Join(all, " AND ")
	}
	return text, args, in, nil
}

// digits reads hexadecimal digits as people write them.
func digits(what, text string, least int) (string, error) {
	s := strings.TrimPrefix(strings.TrimPrefix(strings.ToLower(text), "sha256:"), "0x")
	s = strings.NewReplacer(":", "", " ", "").Replace(s)
	if len(s) < least || len(s) > 64 || strings.Trim(s, hexDigits) != "" {
		return "", &QueryError{fmt.Sprintf("%s: expected %d to 64 hexadecimal digits, found %q", what, least, plain(text, maxText))}
	}
	return s, nil
}

// Client is a row of the inventory: a certificate whose key a client has proven to hold. All text in it is printable ASCII.
type Client struct {
	SHA256    string    `json:"sha256"`
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	First     time.Time `json:"first_seen"`
	Last      time.Time `json:"last_seen"`
	// Count is how many handshakes there were with it.
	Count int64 `json:"count"`
	// Verified says that it was accepted by a trust store, once at least.
	Verified bool `json:"verified"`
	// Verdict is accepted, or the reason for which it was refused or not believed the last time, at VerdictAt.
	Verdict   string    `json:"verdict"`
	VerdictAt time.Time `json:"verdict_at"`
	details

	leaf, others []byte
}

const clientColumns = "sha256, subject, issuer, serial, not_before, not_after, first, last, count, verdict, verdict_at, more, leaf, others"

// Clients calls f for every client of the inventory, those seen last first, until f returns false. f must not ask r.
func (r *Reader) Clients(ctx context.Context, f func(*Client) bool) error {
	rows, err := r.db.Query(ctx, "SELECT "+clientColumns+", 1 FROM clients UNION ALL SELECT "+clientColumns+", 0 FROM guests ORDER BY last DESC")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var c Client
		var before, after, first, last, at int64
		var more []byte
		if err := rows.Scan(&c.SHA256, &c.Subject, &c.Issuer, &c.Serial, &before, &after, &first, &last, &c.Count, &c.Verdict, &at, &more, &c.leaf, &c.others, &c.Verified); err != nil {
			r.skip("client "+c.SHA256, err)
			continue
		}
		c.NotBefore, c.NotAfter = time.Unix(before, 0).UTC(), time.Unix(after, 0).UTC()
		c.First, c.Last, c.VerdictAt = time.UnixMicro(first).UTC(), time.UnixMicro(last).UTC(), time.UnixMicro(at).UTC()
		if err := json.Unmarshal(more, &c.details); err != nil {
			r.skip("client "+c.SHA256, err)
			continue
		}
		if err := printable(&c); err != nil {
			r.skip("client "+c.SHA256, err)
			continue
		}
		if !f(&c) {
			break
		}
	}
	return rows.Err()
}

// Certificates returns a function that gives what a client sent of its verified chains, its own certificate first, or an error
// where that is not kept; of one that was not verified its own certificate alone.
func (r *Reader) Certificates(ctx context.Context) (func(*Client) ([]*x509.Certificate, error), error) {
	rows, err := r.db.Query(ctx, "SELECT sha256, der FROM chains")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	known := make(map[string][]*x509.Certificate)
	for rows.Next() {
		var id, der []byte
		if rows.Scan(&id, &der) != nil {
			continue // those who need it are told so
		}
		if chain, err := x509.ParseCertificates(slices.Clone(der)); err == nil {
			known[string(id)] = chain
		}
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	return func(c *Client) ([]*x509.Certificate, error) {
		leaf, err := x509.ParseCertificate(c.leaf)
		if err != nil {
			return nil, fmt.Errorf("the certificate %s is not kept", c.SHA256)
		}
		if sum := sha256.Sum256(c.leaf); hex.EncodeToString(sum[:]) != c.SHA256 {
			return nil, fmt.Errorf("the certificate %s was changed in the file", c.SHA256)
		}
		others, ok := known[string(c.others)]
		if len(c.others) > 0 && !ok {
			return nil, fmt.Errorf("the issuers that certificate %s came with are not kept: there are too many, or they were lost", c.SHA256)
		}
		return append([]*x509.Certificate{leaf}, others...), nil
	}, nil
}
