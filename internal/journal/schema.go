package journal

// schema makes the file. Statements that were released are never changed.
//
// A client's others is the key of a row of chains: the certificates between it and its CAs, which it has in common with others.
// Where there is no such row, they are not kept. Guests are clients that were not verified. The clock is how late it was when
// something was last removed for its age.
var schema = []string{`
CREATE TABLE verdicts (
	id INTEGER PRIMARY KEY,
	time INTEGER NOT NULL,
	ref TEXT NOT NULL,
	kind TEXT NOT NULL,
	reason TEXT NOT NULL,
	address TEXT NOT NULL,
	sni TEXT NOT NULL,
	subject TEXT NOT NULL,
	issuer TEXT NOT NULL,
	serial TEXT NOT NULL,
	sha256 TEXT NOT NULL,
	at_sha256 TEXT NOT NULL
) STRICT;
CREATE INDEX verdicts_ref ON verdicts (ref);
CREATE INDEX verdicts_reason ON verdicts (reason, id);
CREATE TABLE stories (id INTEGER PRIMARY KEY, story BLOB NOT NULL) STRICT;
CREATE TRIGGER verdict_removed AFTER DELETE ON verdicts BEGIN DELETE FROM stories WHERE id = old.id; END;
CREATE TABLE certificates (sha256 BLOB PRIMARY KEY, der BLOB NOT NULL, seen INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE clients (
	sha256 TEXT PRIMARY KEY,
	subject TEXT NOT NULL,
	issuer TEXT NOT NULL,
	serial TEXT NOT NULL,
	not_before INTEGER NOT NULL,
	not_after INTEGER NOT NULL,
	first INTEGER NOT NULL,
	last INTEGER NOT NULL,
	count INTEGER NOT NULL,
	verdict TEXT NOT NULL,
	verdict_at INTEGER NOT NULL,
	more BLOB NOT NULL,
	leaf BLOB NOT NULL,
	others BLOB NOT NULL
) STRICT;
CREATE INDEX clients_last ON clients (last);
CREATE TABLE strangers (
	sha256 TEXT NOT NULL,
	listener TEXT NOT NULL,
	host TEXT NOT NULL,
	version TEXT NOT NULL,
	last INTEGER NOT NULL,
	count INTEGER NOT NULL,
	chain BLOB NOT NULL,
	PRIMARY KEY (sha256, listener, host)
) STRICT;
CREATE INDEX strangers_last ON strangers (last);
`, `
CREATE INDEX verdicts_time ON verdicts (time);
CREATE TABLE guests (
	sha256 TEXT PRIMARY KEY,
	subject TEXT NOT NULL,
	issuer TEXT NOT NULL,
	serial TEXT NOT NULL,
	not_before INTEGER NOT NULL,
	not_after INTEGER NOT NULL,
	first INTEGER NOT NULL,
	last INTEGER NOT NULL,
	count INTEGER NOT NULL,
	verdict TEXT NOT NULL,
	verdict_at INTEGER NOT NULL,
	more BLOB NOT NULL,
	leaf BLOB NOT NULL,
	others BLOB NOT NULL
) STRICT;
CREATE INDEX guests_last ON guests (last);
INSERT INTO guests SELECT sha256, subject, issuer, serial, not_before, not_after, first, last, count, verdict, verdict_at, more, leaf, x''
	FROM clients WHERE verdict NOT IN ('accepted', 'client_no_longer_trusted');
DELETE FROM clients WHERE verdict NOT IN ('accepted', 'client_no_longer_trusted');
CREATE TABLE chains (sha256 BLOB PRIMARY KEY, der BLOB NOT NULL, clients INTEGER NOT NULL) STRICT;
WITH RECURSIVE places (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM places WHERE i < 31)
INSERT INTO chains SELECT k.others, unhex(group_concat(hex(c.der), '' ORDER BY p.i)), k.clients
	FROM (SELECT others, count(*) AS clients FROM clients WHERE others <> x'' GROUP BY others) k
	JOIN places p ON p.i < length(k.others) / 32
	JOIN certificates c ON c.sha256 = substr(k.others, 32 * p.i + 1, 32)
	GROUP BY k.others HAVING count(*) = length(k.others) / 32 AND sum(length(c.der)) <= 32768;
DROP TABLE certificates;
CREATE TRIGGER client_added AFTER INSERT ON clients WHEN new.others <> x'' BEGIN
	UPDATE chains SET clients = clients + 1 WHERE sha256 = new.others;
END;
CREATE TRIGGER client_changed AFTER UPDATE OF others ON clients WHEN old.others <> new.others BEGIN
	UPDATE chains SET clients = clients + 1 WHERE sha256 = new.others;
	UPDATE chains SET clients = clients - 1 WHERE sha256 = old.others;
	DELETE FROM chains WHERE sha256 = old.others AND clients = 0;
END;
CREATE TRIGGER client_removed AFTER DELETE ON clients WHEN old.others <> x'' BEGIN
	UPDATE chains SET clients = clients - 1 WHERE sha256 = old.others;
	DELETE FROM chains WHERE sha256 = old.others AND clients = 0;
END;
ALTER TABLE strangers RENAME TO strangers_before;
CREATE TABLE strangers (
	sha256 TEXT NOT NULL,
	listener TEXT NOT NULL,
	host TEXT NOT NULL,
	unnamed INTEGER NOT NULL,
	version TEXT NOT NULL,
	last INTEGER NOT NULL,
	count INTEGER NOT NULL,
	chain BLOB NOT NULL,
	PRIMARY KEY (sha256, listener, host, unnamed)
) STRICT;
INSERT INTO strangers SELECT sha256, listener, host, 0, version, last, count, chain FROM strangers_before;
DROP TABLE strangers_before;
CREATE INDEX strangers_last ON strangers (last);
CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), believed INTEGER NOT NULL) STRICT;
`}
