-- What the branch remembers. Digests are 32 raw bytes, times RFC 3339.
CREATE TABLE shipment (
  uuid TEXT PRIMARY KEY,
  site_uuid TEXT NOT NULL,
  site TEXT NOT NULL,
  label TEXT NOT NULL,
  asset_tag TEXT NOT NULL,
  document BLOB NOT NULL,       -- BLAKE3 of shipment.json when it was first seen
  array TEXT NOT NULL,          -- where the array was mounted last
  state TEXT NOT NULL,          -- seeding, sealed, dispatched, moved
  began_at TEXT NOT NULL
) STRICT;
CREATE TABLE seal (
  shipment TEXT NOT NULL REFERENCES shipment (uuid),
  digest BLOB NOT NULL,
  signer TEXT NOT NULL,
  sealed_at TEXT NOT NULL,
  supersedes BLOB,
  PRIMARY KEY (shipment, digest)
) STRICT;
CREATE TABLE verification (
  id INTEGER PRIMARY KEY,
  shipment TEXT NOT NULL,
  seal BLOB NOT NULL,
  at TEXT NOT NULL,
  good INTEGER NOT NULL,
  with_identity INTEGER NOT NULL,
  damaged_packs TEXT NOT NULL   -- JSON: file, sealed digest
) STRICT;
CREATE TABLE snapshot (
  shipment TEXT NOT NULL,
  machine TEXT NOT NULL,
  taken TEXT NOT NULL,          -- JSON
  PRIMARY KEY (shipment, machine)
) STRICT;
CREATE TABLE scan (
  id INTEGER PRIMARY KEY,
  disk TEXT NOT NULL,           -- UUID
  shipment TEXT NOT NULL,
  finished_at TEXT NOT NULL,
  outcome TEXT NOT NULL         -- JSON; the changed blocks lie in STATE/scans
) STRICT;
