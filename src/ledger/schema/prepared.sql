CREATE TABLE prepared (         -- shipment.json of the arrays that `init` prepared at this host; since version 4
  shipment TEXT PRIMARY KEY,
  document BLOB NOT NULL        -- its BLAKE3
) STRICT;
CREATE TABLE seal_note (        -- seals that may lie on an array and are not (yet) in `seal`; since version 4
  shipment TEXT NOT NULL,
  digest BLOB NOT NULL,
  kind TEXT NOT NULL,           -- announced: written here next; adopted: taken from the array by a ledger that was set back
  PRIMARY KEY (shipment, digest, kind)
) STRICT;
