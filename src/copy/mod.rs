//! The data plane that verbs share: reading disks, leaves of zeros, limits, pauses.
//!
//! * `read`: disks block by block; `ahead`: what comes next of one; `known`: what the ledger knows of it; `samples`: whether it is
//!   still that disk; `bitmap`: sets of blocks
//! * `patience`: waiting for a medium that may stop answering
//! * `handles`: what is costly to open, shared; `zeros`: zero test and cached leaves; `credits`: bytes under way; `crew`: threads and their first error
//! * `throttle`: one place that every reader asks; `bucket`, `windows`, `guard`, `priority`, `clock`: what it is made of

mod ahead;
pub mod bitmap;
pub mod bucket;
pub mod clock;
pub mod credits;
pub mod crew;
pub mod fetch;
pub mod guard;
pub mod handles;
pub mod known;
pub mod patience;
pub mod priority;
pub mod read;
pub mod samples;
pub mod throttle;
pub mod windows;
pub mod zeros;
