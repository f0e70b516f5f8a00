package main

import (
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/internal/journal"
)

// TestForeignJournal shows that what somebody else wrote into the journal does not reach the terminal as it is, and ends no list.
func TestForeignJournal(t *testing.T) {
	dir := t.TempDir()
	conf := filepath.Join(dir, "countersign.yaml")
	if err := os.WriteFile(conf, []byte("state: ./kept\nlisteners: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := journal.FileIn(filepath.Join(dir, "kept"))
	j := journal.New(slog.New(slog.DiscardHandler))
	j.Use(&journal.Settings{File: file})
	j.Close()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{
		`INSERT INTO verdicts VALUES (1, 1, 'r', '', '', '', '', '', '', '', '', '')`,
		`INSERT INTO stories VALUES (1, CAST('{"ref":"r\u001b[2J","reason":"\u001b[2J","found":"\u001b[2J\u202e"}' AS BLOB))`,
		`INSERT INTO clients VALUES ('ab', 'late', '', '', 1, 2, 9000000000000000000, 3, 1, '', 1, CAST('{}' AS BLOB), x'', x'')`,
		`INSERT INTO clients VALUES ('cd', '` + "\x1b[2J" + `', '', '', 1, 2, 1, 1, 1, '', 1, CAST('{"hosts":[{"host":"\u001b[2J"}]}' AS BLOB), x'', x'')`,
	} {
		if _, err := db.Exec(s); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	for what, run := range map[string]func() (string, string, error){
		"clients":        func() (string, string, error) { return ask(clientsCommand(), "-c", conf) },
		"clients --json": func() (string, string, error) { return ask(clientsCommand(), "-c", conf, "--json") },
		"journal":        func() (string, string, error) { return ask(journalCommand(), "-c", conf) },
		"journal --json": func() (string, string, error) { return ask(journalCommand(), "-c", conf, "--json") },
		"explain":        func() (string, string, error) { return ask(explainCommand(), "-c", conf, "--ref", "r") },
	} {
		out, errout, err := run()
		if what != "explain" && err != nil || !strings.Contains(out, `\x1b[2J`) && !strings.Contains(out, `\\x1b[2J`) || strings.ContainsAny(out+errout, "\x1b\u202e") || strings.Contains(out, `\u001b`) {
			t.Errorf("F13/%s: %v\n%q\n%q", what, err, out, errout)
		}
		if strings.HasPrefix(what, "clients") && !strings.Contains(errout, "1 rows of the journal cannot be read") {
			t.Errorf("%s: %q", what, errout)
		}
	}
}
