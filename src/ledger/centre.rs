//! What the data centre remembers: volumes, what they hold, imports in progress, damaged blocks, custody of its own.
