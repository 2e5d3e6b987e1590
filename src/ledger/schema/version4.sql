-- What version 4 added; a new ledger has it from the start.
ALTER TABLE known_seal ADD COLUMN compared TEXT;  -- by what it was known to be the one that left the branch: code, received, uncompared
CREATE TABLE known_site (        -- one name for a site, for ever
  uuid TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  first_seen_at TEXT NOT NULL
) STRICT;
CREATE TABLE known_shipment (    -- one site for a shipment, for ever
  uuid TEXT PRIMARY KEY,
  site TEXT NOT NULL,            -- UUID
  first_seen_at TEXT NOT NULL
) STRICT;
INSERT OR IGNORE INTO known_site SELECT site, site_name, assigned_at FROM volume ORDER BY assigned_at;
INSERT OR IGNORE INTO known_shipment
  SELECT shipment, site, began_at FROM import JOIN volume USING (disk) ORDER BY import.id;
CREATE TABLE prepared (         -- shipment.json of the arrays that `init` prepared at this host; since version 4
  shipment TEXT PRIMARY KEY,
  document BLOB NOT NULL        -- its BLAKE3
) STRICT;
ALTER TABLE volume ADD COLUMN project TEXT;  -- the project of OpenStack that it was made in, by its id
-- Attachments in Block Storage that this ledger made; no other one is ended.
CREATE TABLE attachment (
  volume TEXT NOT NULL,          -- as the cloud numbers it
  id TEXT NOT NULL,              -- likewise; empty while it is asked for
  PRIMARY KEY (volume, id)
) STRICT;
-- What whole reads of imported volumes found ('verify --volumes').
CREATE TABLE volume_check (
  id INTEGER PRIMARY KEY,
  import INTEGER NOT NULL REFERENCES import (id) ON DELETE CASCADE,
  checked_at TEXT NOT NULL,
  digest BLOB,                   -- of what was read; NULL where a block could not be read
  holes INTEGER NOT NULL,        -- blocks that are holes by the word of the file system or server
  through_cache INTEGER NOT NULL,
  differing INTEGER NOT NULL,    -- blocks that differ or cannot be read
  why TEXT,                      -- why the volume could not be read at all
  missing_point TEXT,            -- the recovery point that was not there
  accepted_at TEXT,              -- when the difference was accepted
  reason TEXT,                   -- and why
  mended_at TEXT                 -- when an import wrote again what differed, and proved all of it
) STRICT;
CREATE INDEX volume_check_import ON volume_check (import);
CREATE TABLE volume_difference ( -- which blocks differ, in ranges
  volume_check INTEGER NOT NULL REFERENCES volume_check (id) ON DELETE CASCADE,
  first INTEGER NOT NULL,
  blocks INTEGER NOT NULL,
  PRIMARY KEY (volume_check, first)
) STRICT, WITHOUT ROWID;
