CREATE TABLE prepared (         -- shipment.json of the arrays that `init` prepared at this host; since version 4
  shipment TEXT PRIMARY KEY,
  document BLOB NOT NULL        -- its BLAKE3
) STRICT;
