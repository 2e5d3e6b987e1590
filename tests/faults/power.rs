//! Goal: to be written.
