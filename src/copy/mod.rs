//! The data plane that verbs share: pipeline, limits, pauses.

pub mod bucket;
pub mod clock;
pub mod guard;
pub mod priority;
pub mod throttle;
pub mod windows;
