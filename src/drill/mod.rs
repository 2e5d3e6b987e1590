//! `drill start|show|confirm|withdraw|end`: boots a clone of a recovery point, or what is sealed on an array, apart from everything, and keeps evidence of what
//! became of it. Neither volume nor array is ever written to, and nothing boots that was not proven.
//!
//! Who does what, and what each death leaves:
//! 1. `start` writes down what will be made, makes it, and hands over to the keeper. Killed, it leaves a drill that `end` clears away.
//! 2. The *keeper* is a process of its own (the hidden verb `drill-keeper`) that outlives `start`: it opens the clones, has them adapted where that was
//!    asked for, has QEMU as its child, listens to the serial console, takes the picture. Killed, QEMU, the converter and the servers of the clones end
//!    with it. Through Nova it asks for the server and reads its console; killed, the server runs on until `end`, which finds it by its name.
//! 3. `end` asks the keeper to end, waits for it, and removes whatever is there, kept alive or left over; it may be run again.
//!
//! * `record`: the documents of a drill; `folder`: its files, and who writes which
//! * `plan`: which firmware, on which bus; all that can be refused
//! * `volumes`, `array`: where the disks come from: recovery points of imported ones, or a sealed array as it is
//! * `network`, `tap`: networks of drills only, apart from this host, and cards on them
//! * `machine`: QEMU's command line
//! * `console`: the serial console
//! * `running`: a machine that runs, whoever runs it: `here` QEMU, `nova` the compute service of the cloud in which the volumes are
//! * `adapt`, `adapter`: what a machine needs to boot on hardware that it never had; and the box that its converter works in
//! * `keeper`, `start`, `show`, `confirm`, `withdraw`, `end`: one step each

mod adapt;
mod adapter;
mod array;
mod confirm;
mod console;
mod end;
pub mod folder;
mod here;
mod keeper;
mod machine;
mod network;
mod nova;
mod plan;
pub mod record;
mod running;
mod show;
mod start;
mod tap;
mod volumes;
mod withdraw;

pub use adapter::{Options as AdapterOptions, main as adapter};
pub use confirm::{Confirmed, Options as ConfirmOptions, run as confirm};
pub use end::{Done, run as end};
pub use keeper::run as keeper;
pub use plan::{From as StartFrom, Options as StartOptions, Through as StartThrough};
pub use record::{Accel, Bus, Firmware, SealedArray};
pub use show::{DrillFacts, Shown, Status, facts, run as show};
pub use start::{Started, run as start};
pub use withdraw::{Done as Withdrawn, Options as WithdrawOptions, run as withdraw};
