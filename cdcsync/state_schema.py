"""The tables of the state file, and how an older file is brought to them. ``docs/state.md`` says what they mean."""

from __future__ import annotations

SCHEMA_VERSION = 1

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
  PRIMARY KEY (mapping, key, job)) WITHOUT ROWID;
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
CREATE TABLE backfill (mapping INTEGER PRIMARY KEY, cursor TEXT, rows INTEGER NOT NULL, estimate INTEGER NOT NULL,
  done INTEGER NOT NULL) WITHOUT ROWID;
"""

MIGRATIONS: dict[int, str] = {}
"""Schema version → the statements that lead to the next one."""
