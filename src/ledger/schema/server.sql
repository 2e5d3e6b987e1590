CREATE TABLE server (            -- what a machine is to be in its cloud, as the last plan said; since version 3
  site TEXT NOT NULL,            -- UUID
  machine TEXT NOT NULL,
  wanted TEXT NOT NULL,          -- JSON: flavour, network interfaces
  given_at TEXT NOT NULL,
  PRIMARY KEY (site, machine)
) STRICT;
