//! What the branch remembers: shipments it seeds, their seals, verifications, dispatches, recipients, scans.
