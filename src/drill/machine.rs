//! The machine as QEMU is told of it. A pure function: the same drill and the same layers give the same command line. Nothing of a disk or
//! of a person stands in it that was not checked before, and no secret.

use super::folder::Folder;
use super::record::{Accel, Bus, Drill, Firmware};
use crate::volume::layer::Layer;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::Path;

/// Disks on one AHCI controller.
const PORTS: usize = 6;
/// Names of sockets in the private directory, beside the monitor's.
pub const SERIAL_SOCKET: &str = "serial";
/// The screen's.
pub const SCREEN_SOCKET: &str = "vnc";

/// QEMU's arguments. `cards` are the numbers under which it finds its network cards' taps open, `socket` is the monitor's, in a directory that only we can enter; `code` OVMF's, where it boots by it.
pub fn arguments(
    drill: &Drill,
    folder: &Folder,
    layers: &[Layer],
    cards: &[i32],
    socket: &Path,
    code: Option<&Path>,
) -> Vec<OsString> {
    let dir = socket.parent().unwrap_or(Path::new("/"));
    let mut all: Vec<OsString> = Vec::new();
    let mut put = |name: &str, value: String| all.extend([OsString::from(name), value.into()]);
    put("-name", format!("motiongear-drill-{}", drill.drill));
    let mut machine = format!("pc,accel={}", drill.accel.word());
    if code.is_some() {
        machine += ",pflash0=code,pflash1=variables";
    }
    put("-machine", machine);
    // All that is there: systems are built for ever newer processors.
    put("-cpu", "max".into());
    put("-smp", drill.cpus.to_string());
    put("-m", format!("{}M", drill.memory_bytes >> 20));
    // What runs in it may be anything: QEMU gives up what it does not need.
    put("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into());
    put("-rtc", "base=utc".into());
    put("-qmp", format!("unix:{},server=on,wait=off", comma(socket)));
    put("-vnc", format!("unix:{}", comma(&dir.join(SCREEN_SOCKET))));
    put("-chardev", format!("socket,id=serial,path={}", comma(&dir.join(SERIAL_SOCKET))));
    put("-serial", "chardev:serial".into());
    put("-device", "VGA".into());
    // A pointer that follows the one of whoever looks.
    put("-device", "qemu-xhci".into());
    put("-device", "usb-tablet".into());
    if let (Firmware::Uefi, Some(code)) = (drill.firmware, code) {
        put(
            "-blockdev",
            json!({ "driver": "file", "node-name": "code", "filename": code, "read-only": true }).to_string(),
        );
        put(
            "-blockdev",
            json!({ "driver": "file", "node-name": "variables", "filename": folder.variables() }).to_string(),
        );
    }
    for (slot, layer) in layers.iter().enumerate() {
        put("-blockdev", blockdev(folder, slot, layer).to_string());
    }
    for device in devices(drill) {
        put("-device", device.to_string());
    }
    match &drill.network {
        None => put("-nic", "none".into()),
        Some(network) => {
            let model = if drill.bus == Bus::Virtio { "virtio-net-pci" } else { "e1000" };
            for (slot, (nic, card)) in network.nics.iter().zip(cards).enumerate() {
                let id = format!("net{slot}");
                put("-netdev", json!({ "type": "tap", "id": id, "fd": card.to_string() }).to_string());
                let device = json!({ "driver": model, "netdev": id, "mac": nic.mac, "romfile": "" });
                put("-device", device.to_string());
            }
        }
    }
    all.extend(["-nodefaults", "-no-user-config"].map(OsString::from));
    all
}

/// A disk's bytes: a clone as it is, or a layer of our own above what is read only.
fn blockdev(folder: &Folder, slot: usize, layer: &Layer) -> Value {
    let node = format!("disk{slot}");
    match layer.writable {
        true => json!({ "driver": "raw", "node-name": node, "file": layer.disk }),
        false => json!({
            "driver": "qcow2",
            "node-name": node,
            "discard": "unmap",
            "file": { "driver": "file", "filename": folder.overlay(slot) },
            "backing": { "driver": "raw", "read-only": true, "file": layer.disk },
        }),
    }
}

/// Controllers and disks. What boots comes first.
fn devices(drill: &Drill) -> Vec<Value> {
    let count = drill.disks.len();
    let mut devices = match drill.bus {
        Bus::Virtio | Bus::Ide | Bus::Nvme => Vec::new(),
        Bus::VirtioScsi => vec![json!({ "driver": "virtio-scsi-pci", "id": "scsi" })],
        Bus::Pvscsi => vec![json!({ "driver": "pvscsi", "id": "scsi" })],
        Bus::Sata => {
            (0..count.div_ceil(PORTS)).map(|n| json!({ "driver": "ich9-ahci", "id": format!("ahci{n}") })).collect()
        }
    };
    let order = drill.boot_order();
    for (slot, disk) in drill.disks.iter().enumerate() {
        let boot = order.iter().position(|at| *at == slot).unwrap_or(slot) + 1;
        let mut device = match drill.bus {
            Bus::Virtio => json!({ "driver": "virtio-blk-pci" }),
            Bus::Nvme => json!({ "driver": "nvme" }),
            Bus::VirtioScsi | Bus::Pvscsi => json!({ "driver": "scsi-hd", "bus": "scsi.0", "scsi-id": slot }),
            Bus::Ide => json!({ "driver": "ide-hd", "bus": format!("ide.{}", slot / 2), "unit": slot % 2 }),
            Bus::Sata => json!({ "driver": "ide-hd", "bus": format!("ahci{}.{}", slot / PORTS, slot % PORTS) }),
        };
        device["drive"] = format!("disk{slot}").into();
        device["bootindex"] = boot.into();
        // Twenty characters are what every bus takes: enough to tell disks of one machine apart.
        device["serial"] = disk.uuid.simple().to_string()[..20].into();
        devices.push(device);
    }
    devices
}

/// A comma in a value of QEMU's is written twice.
fn comma(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Who plays the processor, for people.
pub fn accel_words(accel: Accel) -> &'static str {
    match accel {
        Accel::Kvm => "KVM",
        Accel::Tcg => "TCG",
        Accel::Nova => "Nova",
    }
}
