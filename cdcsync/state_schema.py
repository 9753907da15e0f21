"""The tables of the state file, and how an older file is brought to them. ``docs/state.md`` says what they mean."""

from __future__ import annotations

SCHEMA_VERSION = 4

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE mapping (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE relation (id INTEGER PRIMARY KEY, body TEXT NOT NULL UNIQUE);
CREATE TABLE shape (id INTEGER PRIMARY KEY, fields TEXT NOT NULL UNIQUE);
CREATE TABLE journal (
  mapping INTEGER NOT NULL, key TEXT NOT NULL, job INTEGER NOT NULL,
  relation INTEGER NOT NULL, image BLOB NOT NULL, flags INTEGER NOT NULL, origins TEXT,
  first_lsn INTEGER NOT NULL, first_ordinal INTEGER NOT NULL,
  last_lsn INTEGER NOT NULL, last_ordinal INTEGER NOT NULL, since REAL NOT NULL, latest REAL NOT NULL,
  refusals INTEGER NOT NULL DEFAULT 0, refused REAL, PRIMARY KEY (mapping, key, job)) WITHOUT ROWID;
CREATE INDEX cold ON journal (mapping, first_lsn, first_ordinal) WHERE job = -2;
CREATE TABLE ledger (
  mapping INTEGER NOT NULL, key TEXT NOT NULL, crm_id TEXT, shape INTEGER NOT NULL, hashes BLOB NOT NULL,
  links TEXT, lsn INTEGER NOT NULL, ordinal INTEGER NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (mapping, key)) WITHOUT ROWID;
CREATE TABLE reject (
  mapping INTEGER NOT NULL, key TEXT NOT NULL,
  relation INTEGER NOT NULL, image BLOB NOT NULL, flags INTEGER NOT NULL, origins TEXT,
  first_lsn INTEGER NOT NULL, first_ordinal INTEGER NOT NULL,
  last_lsn INTEGER NOT NULL, last_ordinal INTEGER NOT NULL, since REAL NOT NULL, latest REAL NOT NULL,
  code TEXT NOT NULL, field TEXT, message TEXT NOT NULL, at REAL NOT NULL,
  refusals INTEGER NOT NULL DEFAULT 1, refused REAL, due REAL NOT NULL DEFAULT 0, discarded INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (mapping, key)) WITHOUT ROWID;
CREATE TABLE job (
  id INTEGER PRIMARY KEY, mapping INTEGER NOT NULL, op TEXT NOT NULL, state TEXT NOT NULL, crm_job TEXT,
  planned REAL NOT NULL, records INTEGER NOT NULL, digest TEXT NOT NULL);
CREATE TABLE counter (lane TEXT NOT NULL, name TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (lane, name))
  WITHOUT ROWID;
CREATE TABLE horizon (lane TEXT PRIMARY KEY, lsn INTEGER NOT NULL, ordinal INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE sent_link (mapping INTEGER NOT NULL, key TEXT NOT NULL, slot TEXT NOT NULL, crm_id TEXT NOT NULL,
  PRIMARY KEY (mapping, key, slot, crm_id)) WITHOUT ROWID;
CREATE TABLE pause (mapping TEXT PRIMARY KEY, reason TEXT NOT NULL, since REAL NOT NULL) WITHOUT ROWID;
"""

LADDER = """
CREATE INDEX ladder ON reject (mapping, code, field, due) WHERE NOT discarded;
CREATE TABLE reject_request (
  id INTEGER PRIMARY KEY AUTOINCREMENT, verb TEXT NOT NULL, mapping TEXT NOT NULL, code TEXT, field TEXT, keys TEXT,
  at REAL NOT NULL);
"""

COPIES = """
CREATE TABLE copy (
  id INTEGER PRIMARY KEY AUTOINCREMENT, mapping TEXT NOT NULL, reason TEXT NOT NULL, requested REAL NOT NULL,
  condition TEXT, keys TEXT, sweep INTEGER NOT NULL, asker TEXT NOT NULL, started INTEGER NOT NULL DEFAULT 0,
  cursor TEXT, rows INTEGER NOT NULL DEFAULT 0, estimate INTEGER NOT NULL DEFAULT 0, read INTEGER NOT NULL DEFAULT 0,
  finished REAL, error TEXT);
CREATE TABLE met (copy INTEGER NOT NULL, key TEXT NOT NULL, PRIMARY KEY (copy, key)) WITHOUT ROWID;
"""

MIGRATIONS = {
    # A copy that had to sweep at its end kept what it met in memory: it begins anew.
    1: COPIES  # noqa: S608 — two constants
    + """
INSERT INTO copy (mapping, reason, requested, sweep, asker, started, cursor, rows, estimate, read, finished)
  SELECT m.name, CASE WHEN s.key IS NULL THEN 'first copy' ELSE 'changes went unseen' END,
    strftime('%s', 'now'), s.key IS NOT NULL, 'config', s.key IS NULL,
    CASE WHEN s.key IS NULL THEN b.cursor END, CASE WHEN s.key IS NULL THEN b.rows ELSE 0 END, b.estimate,
    s.key IS NULL AND b.done, CASE WHEN s.key IS NULL AND b.done THEN strftime('%s', 'now') END
  FROM backfill b JOIN mapping m ON m.id = b.mapping LEFT JOIN meta s ON s.key = 'sweep:' || m.name;
DELETE FROM meta WHERE key IN (SELECT 'sweep:' || mapping FROM copy);
UPDATE meta SET value = 'changes went unseen' WHERE key LIKE 'sweep:%';
DROP TABLE backfill
""",
    # Of a row that changed its key the file did not say which keys were tried: the CRM is asked.
    2: """
UPDATE journal SET flags = flags | 4 WHERE origins IS NOT NULL;
UPDATE reject SET flags = flags | 4 WHERE origins IS NOT NULL
""",
    # Rows that were parked before there was a ladder are taken up at once.
    3: """
ALTER TABLE journal ADD COLUMN refusals INTEGER NOT NULL DEFAULT 0;
ALTER TABLE journal ADD COLUMN refused REAL;
ALTER TABLE reject ADD COLUMN refusals INTEGER NOT NULL DEFAULT 1;
ALTER TABLE reject ADD COLUMN refused REAL;
ALTER TABLE reject ADD COLUMN due REAL NOT NULL DEFAULT 0;
ALTER TABLE reject ADD COLUMN discarded INTEGER NOT NULL DEFAULT 0;
UPDATE reject SET refused = at;
"""
    + LADDER,
}
"""Schema version → the statements that lead to the next one."""
