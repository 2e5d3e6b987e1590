-- The MotionGear manifest, schema 1. FORMAT.md says what every column means; a reader compares this text with the file's.
CREATE TABLE shipment (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  uuid TEXT NOT NULL,
  format INTEGER NOT NULL,
  block_bytes INTEGER NOT NULL,
  cipher TEXT NOT NULL,
  label TEXT NOT NULL,
  asset_tag TEXT NOT NULL,
  created_at TEXT NOT NULL
) STRICT;
CREATE TABLE site (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  uuid TEXT NOT NULL,
  name TEXT NOT NULL
) STRICT;
CREATE TABLE medium (
  number INTEGER PRIMARY KEY,
  uuid TEXT NOT NULL UNIQUE,
  serial TEXT NOT NULL
) STRICT;
CREATE TABLE machine (
  number INTEGER PRIMARY KEY,
  uuid TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL UNIQUE,
  inventory TEXT NOT NULL
) STRICT;
CREATE TABLE disk (
  number INTEGER PRIMARY KEY,
  uuid TEXT NOT NULL UNIQUE,
  machine INTEGER NOT NULL REFERENCES machine (number),
  name TEXT NOT NULL,
  excluded TEXT,
  identity TEXT NOT NULL,
  facts TEXT NOT NULL,
  UNIQUE (machine, name)
) STRICT;
CREATE TABLE process (
  number INTEGER PRIMARY KEY,
  envelope TEXT,
  host TEXT NOT NULL,
  tool TEXT NOT NULL,
  started_at TEXT NOT NULL,
  ended_at TEXT,
  ending TEXT
) STRICT;
CREATE TABLE generation (
  id INTEGER PRIMARY KEY,
  disk INTEGER NOT NULL REFERENCES disk (number),
  number INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  consistency TEXT NOT NULL,
  basis TEXT NOT NULL,
  point_in_time TEXT,
  source TEXT NOT NULL,
  started_at TEXT NOT NULL,
  finished_at TEXT,
  digest BLOB,
  UNIQUE (disk, number)
) STRICT;
CREATE TABLE pack (
  number INTEGER PRIMARY KEY,
  medium INTEGER NOT NULL REFERENCES medium (number),
  file TEXT NOT NULL UNIQUE,
  bytes INTEGER NOT NULL,
  records INTEGER NOT NULL,
  blake3 BLOB,
  tree BLOB
) STRICT;
CREATE TABLE block (
  generation INTEGER NOT NULL REFERENCES generation (id),
  block INTEGER NOT NULL,
  leaf BLOB NOT NULL,
  state INTEGER NOT NULL,
  pack INTEGER,
  offset INTEGER,
  stored INTEGER,
  codec INTEGER,
  PRIMARY KEY (generation, block)
) STRICT, WITHOUT ROWID;
CREATE TABLE unreadable (
  generation INTEGER NOT NULL REFERENCES generation (id),
  offset INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  PRIMARY KEY (generation, offset)
) STRICT, WITHOUT ROWID;
CREATE TABLE event (
  id INTEGER PRIMARY KEY,
  at TEXT NOT NULL,
  kind TEXT NOT NULL,
  machine INTEGER,
  disk INTEGER,
  detail TEXT NOT NULL
) STRICT;
