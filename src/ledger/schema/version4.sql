-- What version 4 added; a new ledger has it from the start.
ALTER TABLE known_seal ADD COLUMN compared TEXT;  -- by what it was known to be the one that left the branch: code, received, uncompared
ALTER TABLE import_run ADD COLUMN insecure_http INTEGER NOT NULL DEFAULT 0;  -- passwords and tokens of its cloud could travel in clear
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
