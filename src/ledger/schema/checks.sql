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
