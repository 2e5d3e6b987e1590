-- What the data centre remembers. Digests are 32 raw bytes, times RFC 3339, block and byte counts integers.
CREATE TABLE known_seal (        -- every seal that was accepted here, so that an older one is refused
  shipment TEXT NOT NULL,
  digest BLOB NOT NULL,
  supersedes BLOB,
  signer TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  sealed_at TEXT NOT NULL,
  document BLOB NOT NULL,        -- seal.json
  first_seen_at TEXT NOT NULL,
  PRIMARY KEY (shipment, digest)
) STRICT;
CREATE TABLE volume (            -- one volume belongs to one disk UUID for ever
  disk TEXT PRIMARY KEY,         -- UUID
  site TEXT NOT NULL,            -- UUID
  site_name TEXT NOT NULL,
  machine TEXT NOT NULL,
  disk_name TEXT NOT NULL,
  kind TEXT NOT NULL,            -- dir, dev, nbd, rbd, cinder
  location TEXT NOT NULL,
  identity TEXT NOT NULL,        -- JSON: what the volume is bound by
  bytes INTEGER NOT NULL,
  fresh_for INTEGER,             -- the import that made it: all zeros until then
  assigned_at TEXT NOT NULL
) STRICT;
CREATE TABLE import (            -- one disk of one seal into its volume
  id INTEGER PRIMARY KEY,
  disk TEXT NOT NULL REFERENCES volume (disk),
  shipment TEXT NOT NULL,
  seal BLOB NOT NULL,
  generation INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  block_bytes INTEGER NOT NULL,
  phase TEXT NOT NULL,           -- planned, writing, written, reading, proven, damaged, unreadable, releasing, released, done
  mark INTEGER NOT NULL,         -- blocks below are written or damaged, and flushed
  readback TEXT NOT NULL,        -- full, sample, none
  readback_mark INTEGER NOT NULL,
  re_read INTEGER NOT NULL,      -- blocks compared with what the medium holds, holes included
  holes INTEGER NOT NULL,        -- of these, holes by the file system's word
  trusted INTEGER NOT NULL,      -- blocks not read back
  through_cache INTEGER NOT NULL,
  digest BLOB,                   -- of the volume, merged from its leaves, once released
  accepted_unreadable INTEGER NOT NULL,
  began_at TEXT NOT NULL,
  written_at TEXT,
  finished_at TEXT,
  recovery_point TEXT,           -- how the cloud calls the snapshot of what was proven
  UNIQUE (disk, shipment, seal)
) STRICT;
CREATE TABLE import_damage (     -- blocks that are not on the volume; the next delta repairs them
  import INTEGER NOT NULL REFERENCES import (id),
  block INTEGER NOT NULL,
  offset INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  stage TEXT NOT NULL,           -- record: not proven; readback: the volume differs; rewritten: waits for its read-back
  file TEXT,
  file_offset INTEGER,
  why TEXT NOT NULL,
  PRIMARY KEY (import, block)
) STRICT, WITHOUT ROWID;
CREATE TABLE import_run (        -- every time somebody ran import
  id INTEGER PRIMARY KEY,
  shipment TEXT NOT NULL,
  seal BLOB NOT NULL,
  target TEXT NOT NULL,
  tool TEXT NOT NULL,
  engine TEXT NOT NULL,
  verify_time TEXT,
  began_at TEXT NOT NULL,
  ended_at TEXT,
  ending TEXT
) STRICT;
