//! Real clouds: Keystone, Cinder and Ceph as `stack` brings them up. What MotionGear did there is looked at with `rbd` and plain REST.

mod instance;
mod nova;
mod plan;
mod since;
mod source;
pub mod stack;
mod trouble;
mod volumes;

pub use stack::{Rest, as_user, image_of, rbd, shared};
