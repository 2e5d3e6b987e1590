//! OpenStack: credentials, Identity v3 (Keystone), Block Storage v3 (Cinder), Compute v2.1 (Nova), Networking v2.0 (Neutron).
//! Sources: <https://docs.openstack.org/api-ref/identity/v3/>, <https://docs.openstack.org/api-ref/block-storage/v3/>,
//! <https://docs.openstack.org/api-ref/compute/>, <https://docs.openstack.org/api-ref/network/v2/>,
//! clouds.yaml as in <https://docs.openstack.org/openstacksdk/latest/user/config/configuration.html>.
//!
//! * `config`: which cloud, and as whom: clouds.yaml, or `OS_*`
//! * `http`: one request; nothing from the other side is trusted
//! * `session`: the token, renewed when it is over, and the catalogue
//! * `volumes`: volumes, attachments and snapshots
//! * `server`: what a machine is to be there
//! * `servers`: machines that run there
//! * `expected`: whether the cloud has what a plan says of a machine

mod config;
pub mod expected;
mod http;
pub mod server;
pub mod servers;
mod session;
pub mod volumes;

pub use config::{Cloud, Environment};
pub use session::Session;
