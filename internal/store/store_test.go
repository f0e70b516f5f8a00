package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var schema = []string{"CREATE TABLE t (n INTEGER, text TEXT) STRICT"}

func in(t *testing.T) Options {
	return Options{Path: filepath.Join(t.TempDir(), "sub", "a ?#%.db"), Schema: schema}
}

func mustOpen(t *testing.T, o Options) *DB {
	t.Helper()
	db, err := Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func insert(db *DB, n int, text string) error {
	return db.Write(context.Background(), func(tx *sql.Tx) error {
		_, err := tx.Exec("INSERT INTO t VALUES (?, ?)", n, text)
		return err
	})
}

func count(t *testing.T, db *DB) (n int) {
	t.Helper()
	rows, err := db.Query(context.Background(), "SELECT count(*) FROM t")
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	rows.Next()
	if err := rows.Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestRefusals(t *testing.T) {
	ctx := context.Background()
	t.Run("H26/newer schema", func(t *testing.T) {
		o := in(t)
		o.Schema = append(o.Schema, "CREATE TABLE later (n INTEGER)")
		mustOpen(t, o).Close()
		o.Schema = schema
		var newer *NewerError
		if _, err := Open(ctx, o); !errors.As(err, &newer) || newer.Have != 2 || newer.Known != 1 {
			t.Errorf("a file of a later version: %v", err)
		}
		if _, err := OpenReadOnly(ctx, o.Path, 1); !errors.As(err, &newer) {
			t.Errorf("a file of a later version, read: %v", err)
		}
		if _, err := Open(ctx, Options{Path: o.Path, Schema: append(schema, "")}); err != nil {
			t.Errorf("it was changed by refusing it: %v", err)
		}
	})
	t.Run("second writer", func(t *testing.T) {
		o := in(t)
		mustOpen(t, o)
		if _, err := Open(ctx, o); !errors.Is(err, ErrInUse) {
			t.Errorf("a second writer: %v", err)
		}
	})
	damaged := func(name string, spoil func(path string) error) {
		t.Run("H11/"+name, func(t *testing.T) {
			o := in(t)
			db := mustOpen(t, o)
			for i := range 500 {
				if err := insert(db, i, strings.Repeat("x", 200)); err != nil {
					t.Fatal(err)
				}
			}
			db.Close()
			if err := spoil(o.Path); err != nil {
				t.Fatal(err)
			}
			var broken *DamagedError
			if _, err := Open(ctx, o); !errors.As(err, &broken) {
				t.Fatalf("expected a damaged file, got %v", err)
			}
			for i := range 3 {
				if err := os.WriteFile(o.Path, []byte("no database"), 0o600); err != nil {
					t.Fatal(err)
				}
				if _, err := SetAside(o.Path, time.Now().Add(time.Duration(i)*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
			if aside, _ := filepath.Glob(filepath.Join(filepath.Dir(o.Path), "*damaged*")); len(aside) != asideKept {
				t.Errorf("%d files are kept aside: %v", len(aside), aside)
			}
			if n := count(t, mustOpen(t, o)); n != 0 {
				t.Errorf("the new file has %d rows", n)
			}
		})
	}
	damaged("no database", func(path string) error { return os.WriteFile(path, []byte("\x1b[31mnot a database"), 0o600) })
	damaged("a page of something else", func(path string) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt(bytes.Repeat([]byte{0xa5}, 2*pageSize), 4*pageSize)
		return err
	})
	damaged("cut off", func(path string) error { return os.Truncate(path, 5*pageSize+100) })
	damaged("tables of something else", func(path string) error {
		if err := os.Remove(path); err != nil {
			return err
		}
		db := connect(path, "rwc", nil)
		defer db.Close()
		_, err := db.Exec("CREATE TABLE theirs (n INTEGER)")
		return err
	})
	t.Run("link", func(t *testing.T) {
		o := in(t)
		theirs := filepath.Join(t.TempDir(), "theirs")
		if err := errors.Join(os.MkdirAll(filepath.Dir(o.Path), 0o700), os.WriteFile(theirs, nil, 0o644), os.Symlink(theirs, o.Path)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(ctx, o); err == nil {
			t.Error("a symbolic link was followed")
		}
		if info, err := os.Stat(theirs); err != nil || info.Size() != 0 || info.Mode().Perm() != 0o644 {
			t.Errorf("what it leads to was changed: %v", info)
		}
	})
	t.Run("H12/no room", func(t *testing.T) {
		o := in(t)
		o.MaxBytes = 64 * pageSize
		db := mustOpen(t, o)
		var err error
		for i := 0; err == nil && i < 1000; i++ {
			err = insert(db, i, strings.Repeat("x", 2000))
		}
		if !Full(err) {
			t.Fatalf("expected no room, got %v", err)
		}
		if info, err := os.Stat(o.Path); err != nil || info.Size() > o.MaxBytes {
			t.Errorf("the file has %d bytes: %v", info.Size(), err)
		}
		if err := db.Write(ctx, func(tx *sql.Tx) error { _, err := tx.Exec("DELETE FROM t"); return err }); err != nil {
			t.Errorf("a full file cannot be emptied: %v", err)
		}
		if err := insert(db, 1, "again"); err != nil {
			t.Errorf("and not be written to after that: %v", err)
		}
	})
	t.Run("read only", func(t *testing.T) {
		o := in(t)
		mustOpen(t, o)
		r, err := OpenReadOnly(ctx, o.Path, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if err := insert(r, 1, ""); err == nil {
			t.Error("a reader could write")
		}
		if _, err := OpenReadOnly(ctx, o.Path, 2); err == nil {
			t.Error("an older schema was taken for the newest")
		}
	})
	t.Run("failed migration", func(t *testing.T) {
		o := in(t)
		mustOpen(t, o).Close()
		o.Schema = append(schema, "CREATE TABLE u (n INTEGER); CREATE TABLE t (n INTEGER)")
		if _, err := Open(ctx, o); err == nil {
			t.Fatal("a migration that fails was taken for done")
		}
		o.Schema = append(schema, "CREATE TABLE u (n INTEGER)")
		if _, err := Open(ctx, o); err != nil {
			t.Errorf("half a migration was left: %v", err)
		}
	})
}

func TestKeeps(t *testing.T) {
	o := in(t)
	db := mustOpen(t, o)
	if err := insert(db, 1, "one"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "-wal", "-shm", ".lock"} {
		info, err := os.Stat(o.Path + name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	if info, _ := os.Stat(filepath.Dir(o.Path)); info.Mode().Perm() != 0o700 {
		t.Errorf("folder %v", info.Mode())
	}
	r, err := OpenReadOnly(context.Background(), o.Path, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if n := count(t, r); n != 1 {
		t.Errorf("a reader beside the writer sees %d rows", n)
	}
	if err := insert(db, 2, "two"); err != nil {
		t.Fatal(err)
	}
	if n := count(t, r); n != 2 {
		t.Errorf("a reader beside the writer sees %d rows", n)
	}
	r.Close()
	db.Close()
	if r, err = OpenReadOnly(context.Background(), o.Path, 1); err != nil {
		t.Fatalf("after the writer: %v", err)
	}
	defer r.Close()
	if n := count(t, r); n != 2 {
		t.Errorf("after the writer there are %d rows", n)
	}
	r.Close()
	o.Schema = append(schema, "ALTER TABLE t ADD COLUMN more TEXT")
	if db = mustOpen(t, o); count(t, db) != 2 {
		t.Error("migrating lost rows")
	}
	if used, err := db.Used(context.Background()); err != nil || used < pageSize {
		t.Error(used, err)
	}
	if err := db.Write(context.Background(), func(*sql.Tx) error { return fmt.Errorf("no") }); err == nil || err.Error() != "no" {
		t.Error(err)
	}
	if err := db.Shrink(context.Background(), 10); err != nil {
		t.Error(err)
	}
}
