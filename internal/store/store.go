// Package store keeps what outlives the process in files of the state folder, each an embedded SQLite database. It owns how
// such a file is opened, checked, migrated, locked and set aside; what is in it belongs to the package whose schema it is.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
)

// Options say which file, and what is in it.
type Options struct {
	// Path is the file. Its folder is made, with access for the owner alone.
	Path string
	// Schema are the statements that make each version of the schema of the one before it, the first of an empty file. They
	// are never changed once released, only added to (threats H26).
	Schema []string
	// Durable has every transaction on the disk before it counts as done. Without it a crash of the machine, and not of the
	// process, can cost those of the last moments; what is left is whole in both cases.
	Durable bool
	// MaxBytes is the size that the file does not exceed; 0 means no bound. Writing more is an error for which Full holds.
	MaxBytes int64
}

// How long one process waits for another's transaction, and what has to be settled before any statement of ours.
const (
	busyTime   = 5 * time.Second
	pageSize   = 4096
	asideKept  = 2 // damaged files that are kept for who wants to look
	walRemains = 4 << 20
)

// ErrInUse is a file that another process writes to.
var ErrInUse = errors.New("another process writes to it; give each a state folder of its own")

// NewerError is a file of a later version of this program. It is left as it is.
type NewerError struct {
	Path        string
	Have, Known int
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("%s: expected schema version %d or older, found %d, of a later version of this program; run that one, or move the file away", e.Path, e.Known, e.Have)
}

// DamagedError is a file that is no database, or not a whole one.
type DamagedError struct {
	Path, Found string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("%s: expected a whole database, found %s", e.Path, e.Found)
}

// DB is an open file. It has one writer; its methods may be called from any goroutine, and wait for each other.
type DB struct {
	path string
	sql  *sql.DB
	lock *os.File // nil for one that is only read
}

// Open opens the file for writing, makes it if it is not there, checks that it is whole, and brings its schema up to date.
// The error is a *DamagedError, a *NewerError, wraps ErrInUse, or is one of the system.
func Open(ctx context.Context, o Options) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the folder of %s: %w", o.Path, err)
	}
	lock, err := exclusive(o.Path + ".lock")
	if err != nil {
		return nil, err
	}
	db, err := open(ctx, o, lock)
	if err != nil {
		lock.Close()
	}
	return db, err
}

func open(ctx context.Context, o Options, lock *os.File) (*DB, error) {
	// Made here, for SQLite would ask the umask who may read it; what it makes beside the file has the file's mode.
	f, err := os.OpenFile(o.Path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", o.Path, err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("expected a file, found %s", info.Mode().Type())
	}
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = f.Chmod(0o600)
	}
	f.Close() // before SQLite locks it: closing any descriptor of a file gives its locks back
	if err != nil {
		return nil, fmt.Errorf("cannot use %s: %w", o.Path, err)
	}
	sync := "NORMAL"
	if o.Durable {
		sync = "FULL"
	}
	pragmas := []string{fmt.Sprintf("page_size(%d)", pageSize), "auto_vacuum(INCREMENTAL)", "journal_mode(WAL)", "synchronous(" + sync + ")",
		fmt.Sprintf("journal_size_limit(%d)", walRemains), "trusted_schema(OFF)", "cell_size_check(ON)"}
	if o.MaxBytes > 0 {
		pragmas = append(pragmas, fmt.Sprintf("max_page_count(%d)", max(o.MaxBytes/pageSize, 16)))
	}
	db := &DB{path: o.Path, lock: lock, sql: connect(o.Path, "rw", pragmas)}
	if err := db.ready(ctx, o.Schema); err != nil {
		db.sql.Close()
		return nil, err
	}
	return db, nil
}

// OpenReadOnly opens a file for reading, while another process may write to it or none does. Nothing in it is checked
// beyond its schema version, which must be that of schema or an older one that still can be read.
func OpenReadOnly(ctx context.Context, path string, versions int) (*DB, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	db := &DB{path: path, sql: connect(path, "ro", []string{"query_only(ON)", "trusted_schema(OFF)"})}
	have, err := db.version(ctx)
	switch {
	case err != nil:
		db.sql.Close()
		return nil, db.damage(err)
	case have > versions:
		db.sql.Close()
		return nil, &NewerError{path, have, versions}
	case have < versions:
		db.sql.Close()
		return nil, fmt.Errorf("%s: expected schema version %d, found %d; start the program once, which brings it up to date", path, versions, have)
	}
	return db, nil
}

// connect prepares the one connection. Nothing is opened before the first statement.
func connect(path, mode string, pragmas []string) *sql.DB {
	q := url.Values{"mode": {mode}, "_txlock": {"immediate"}}
	if mode == "ro" {
		q.Set("_txlock", "deferred")
	}
	q.Add("_pragma", fmt.Sprintf("busy_timeout(%d)", busyTime.Milliseconds()))
	for _, p := range pragmas {
		q.Add("_pragma", p)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		abs = path
	}
	u := url.URL{Scheme: "file", Path: abs, RawQuery: q.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		panic(err) // the driver's name is wrong: a bug
	}
	db.SetMaxOpenConns(1)
	db.SetMaxIdleConns(1)
	return db
}

// ready checks and migrates.
func (db *DB) ready(ctx context.Context, schema []string) error {
	have, err := db.version(ctx)
	if err != nil {
		return db.damage(err)
	}
	if have > len(schema) {
		return &NewerError{db.path, have, len(schema)}
	}
	var found string
	if err := db.sql.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&found); err != nil {
		return db.damage(err)
	}
	if found != "ok" {
		return &DamagedError{db.path, escape(found)}
	}
	if have == 0 {
		var tables int
		if err := db.sql.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
			return db.damage(err)
		}
		if tables > 0 {
			return &DamagedError{db.path, "tables of something else"}
		}
	}
	for v := have; v < len(schema); v++ {
		err := db.Write(ctx, func(tx *sql.Tx) error {
			if _, err := tx.ExecContext(ctx, schema[v]); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", v+1))
			return err
		})
		if err != nil {
			return fmt.Errorf("%s: bringing it from schema version %d to %d: %w", db.path, v, v+1, err)
		}
	}
	return nil
}

func (db *DB) version(ctx context.Context) (v int, err error) {
	err = db.sql.QueryRowContext(ctx, "PRAGMA user_version").Scan(&v)
	return v, err
}

// Write runs f in a transaction, which counts if f returns nil.
func (db *DB) Write(ctx context.Context, f func(*sql.Tx) error) error {
	tx, err := db.sql.BeginTx(ctx, nil)
	if err != nil {
		return db.damage(err)
	}
	defer func() { _ = tx.Rollback() }() // also when f panics; after Commit it does nothing
	if err := f(tx); err != nil {
		return db.damage(err)
	}
	return db.damage(tx.Commit())
}

// Query runs a statement that reads.
func (db *DB) Query(ctx context.Context, statement string, args ...any) (*sql.Rows, error) {
	rows, err := db.sql.QueryContext(ctx, statement, args...)
	return rows, db.damage(err)
}

// Used is how many bytes of the file hold something.
func (db *DB) Used(ctx context.Context) (int64, error) {
	var pages, free int64
	if err := db.sql.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages); err != nil {
		return 0, db.damage(err)
	}
	if err := db.sql.QueryRowContext(ctx, "PRAGMA freelist_count").Scan(&free); err != nil {
		return 0, db.damage(err)
	}
	return (pages - free) * pageSize, nil
}

// Pending is how many bytes have been written and wait to be moved into the file, which readers in the middle of it delay.
func (db *DB) Pending() int64 {
	info, err := os.Stat(db.path + "-wal")
	if err != nil {
		return 0
	}
	return info.Size()
}

// Shrink gives back to the system at most n pages that hold nothing.
func (db *DB) Shrink(ctx context.Context, n int) error {
	_, err := db.sql.ExecContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", n))
	return db.damage(err)
}

// Close closes the file.
func (db *DB) Close() error {
	err := db.sql.Close()
	if db.lock != nil {
		db.lock.Close()
	}
	return err
}

// damage makes a *DamagedError of an error that says the file is not whole.
func (db *DB) damage(err error) error {
	if c := code(err); c == codeCorrupt || c == codeNotADB {
		return &DamagedError{db.path, escape(err.Error())}
	}
	return err
}

// Result codes of SQLite that mean something here.
const (
	codeCorrupt = 11
	codeFull    = 13
	codeNotADB  = 26
)

// code is the primary result code of an error of SQLite, 0 for any other.
func code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// Full reports whether err says that there is no room: on the disk, or within MaxBytes.
func Full(err error) bool { return code(err) == codeFull || errors.Is(err, unix.ENOSPC) }

// SetAside renames a damaged file, so that a new one can be made in its place, and returns its new name. Of those of earlier
// times the newest is kept.
func SetAside(path string, now time.Time) (string, error) {
	lock, err := exclusive(path + ".lock")
	if err != nil {
		return "", err
	}
	defer lock.Close()
	to := path + ".damaged-" + now.UTC().Format("20060102T150405.000Z")
	if err := os.Rename(path, to); err != nil {
		return "", fmt.Errorf("cannot set the damaged file aside: %w", err)
	}
	// What was written last belongs to it; under its new name nobody takes it for the new file's.
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Rename(path+suffix, to+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("cannot set aside what belongs to the damaged file: %w", err)
		}
	}
	prune(path)
	return to, nil
}

// prune removes all but the newest files that were set aside.
func prune(path string) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return
	}
	var aside []string
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, filepath.Base(path)+".damaged-") && !strings.HasSuffix(name, "-wal") && !strings.HasSuffix(name, "-shm") {
			aside = append(aside, filepath.Join(filepath.Dir(path), name))
		}
	}
	slices.Sort(aside)
	for _, name := range aside[:max(len(aside)-asideKept, 0)] {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			_ = os.Remove(name + suffix)
		}
	}
}

// exclusive takes the lock that the one writer of a file has.
func exclusive(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open %s: %w", path, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", strings.TrimSuffix(path, ".lock"), ErrInUse)
		}
		return nil, fmt.Errorf("cannot lock %s: %w", path, err)
	}
	return f, nil
}

// escape makes a text of SQLite's, which may hold bytes of the file, printable and short.
func escape(s string) string {
	const most = 200
	var b strings.Builder
	for _, r := range s {
		if b.Len() >= most {
			return b.String() + "..."
		}
		if r < ' ' || r > '~' {
			r = '?'
		}
		b.WriteRune(r)
	}
	return b.String()
}
