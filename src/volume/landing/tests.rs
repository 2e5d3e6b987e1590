//! landing tests
