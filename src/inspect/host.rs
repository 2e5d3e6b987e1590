//! What a host is: enough to build its twin in the cloud and to recognise it later. Goes into the manifest as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::source::SysRoot;
use crate::source::device::clean;

/// Network interfaces listed; a host with more has containers, not cards.
const NIC_LIMIT: usize = 256;

/// A host's facts. What a system does not tell stays empty; nothing here is ever needed to copy a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HostInventory {
    /// Who says all this.
    #[serde(skip_serializing_if = "KnownBy::is_looking")]
    pub known_by: KnownBy,
    /// As the kernel has it.
    pub hostname: Option<String>,
    /// `/etc/machine-id`.
    pub machine_id: Option<String>,
    /// Changes at every boot.
    pub boot_id: Option<String>,
    /// "SUSE Linux Enterprise Server 11 (x86_64)".
    pub os: Option<String>,
    /// Kernel release.
    pub kernel: Option<String>,
    /// `x86_64`, `aarch64` …
    pub architecture: String,
    /// `uefi` or `bios`; decides how the cloud machine must boot.
    pub firmware: Option<String>,
    /// Whether the firmware checks signatures at boot.
    pub secure_boot: Option<bool>,
    /// Maker of the machine, or of its hypervisor.
    pub vendor: Option<String>,
    /// Maker's name of the model.
    pub product: Option<String>,
    /// Maker's serial number.
    pub serial: Option<String>,
    /// SMBIOS UUID.
    pub product_uuid: Option<String>,
    /// The processor's name.
    pub cpu_model: Option<String>,
    /// Logical processors.
    pub cpus: u32,
    /// Memory that the kernel manages, bytes.
    pub memory_bytes: u64,
    /// Network interfaces without loopback, by name.
    pub nics: Vec<Nic>,
}

/// How an inventory came about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KnownBy {
    /// By looking, on the host itself.
    #[default]
    Looking,
    /// A plan told it.
    Plan,
    /// Nobody told anything.
    Nobody,
}

impl KnownBy {
    fn is_looking(&self) -> bool {
        *self == KnownBy::Looking
    }
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Nic {
    /// The kernel's name.
    pub name: String,
    /// Hardware address.
    pub mac: Option<String>,
    /// IPv4 and IPv6 with prefix length.
    pub addresses: Vec<String>,
    /// Mbit/s where the link tells.
    pub speed_mbit: Option<u64>,
    /// `up`, `down` …
    pub state: Option<String>,
    /// A card, not a bridge or bond.
    pub physical: bool,
}

impl HostInventory {
    /// Reads everything that can be read.
    pub fn gather(sys: &SysRoot) -> HostInventory {
        let line = |path: &str| sys.text(path).and_then(|text| clean(&text));
        let dmi = |name: &str| line(&format!("sys/class/dmi/id/{name}")).filter(|text| !is_filler(text));
        let efi = sys.path("sys/firmware/efi").is_dir();
        let architecture = std::env::consts::ARCH;
        let cpuinfo = sys.text("proc/cpuinfo").unwrap_or_default();
        HostInventory {
            known_by: KnownBy::Looking,
            hostname: line("proc/sys/kernel/hostname"),
            machine_id: line("etc/machine-id"),
            boot_id: line("proc/sys/kernel/random/boot_id"),
            os: os_release(sys),
            kernel: line("proc/sys/kernel/osrelease"),
            architecture: architecture.to_owned(),
            firmware: match (efi, architecture) {
                (true, _) => Some("uefi".into()),
                (false, "x86_64" | "x86") => Some("bios".into()),
                (false, _) => None,
            },
            secure_boot: secure_boot(sys),
            vendor: dmi("sys_vendor"),
            product: dmi("product_name"),
            serial: dmi("product_serial"),
            product_uuid: dmi("product_uuid"),
            cpu_model: colon_value(&cpuinfo, "model name").or_else(|| colon_value(&cpuinfo, "cpu")),
            cpus: count(&cpuinfo),
            memory_bytes: memory(sys),
            nics: nics(sys),
        }
    }
}

/// What makers leave in the field.
fn is_filler(text: &str) -> bool {
    matches!(
        text.to_ascii_lowercase().as_str(),
        "to be filled by o.e.m." | "default string" | "not specified" | "none" | "system serial number" | "0"
    )
}

fn colon_value(text: &str, key: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .and_then(|(_, v)| clean(v))
}

fn count(cpuinfo: &str) -> u32 {
    let processors = cpuinfo.lines().filter(|line| line.split(':').next().is_some_and(|key| key.trim() == "processor"));
    u32::try_from(processors.count()).unwrap_or(u32::MAX)
}

fn memory(sys: &SysRoot) -> u64 {
    let text = sys.text("proc/meminfo").unwrap_or_default();
    let kib =
        colon_value(&text, "MemTotal").and_then(|v| v.split(' ').next().and_then(|number| number.parse::<u64>().ok()));
    kib.and_then(|kib| kib.checked_mul(1024)).unwrap_or(0)
}

/// `os-release`, or what came before it: SUSE 11 and RHEL 6 have only their own files.
fn os_release(sys: &SysRoot) -> Option<String> {
    for path in ["etc/os-release", "usr/lib/os-release"] {
        let Some(text) = sys.text(path) else { continue };
        let fields: BTreeMap<&str, String> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter_map(|(key, value)| Some((key, clean(value.trim_matches('"'))?)))
            .collect();
        let named = fields.get("NAME").map(|name| match fields.get("VERSION") {
            Some(version) => format!("{name} {version}"),
            None => name.clone(),
        });
        if let Some(name) = fields.get("PRETTY_NAME").cloned().or(named) {
            return Some(name);
        }
    }
    ["etc/SuSE-release", "etc/redhat-release", "etc/debian_version"]
        .into_iter()
        .filter_map(|path| sys.text(path))
        .find_map(|text| clean(text.lines().next()?))
}

/// The variable holds four bytes of attributes and one of value.
fn secure_boot(sys: &SysRoot) -> Option<bool> {
    let path = sys.path("sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c");
    let bytes = std::fs::read(path).ok()?;
    bytes.get(4).map(|value| *value == 1)
}

fn nics(sys: &SysRoot) -> Vec<Nic> {
    let Ok(entries) = std::fs::read_dir(sys.path("sys/class/net")) else { return Vec::new() };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.retain(|name| name != "lo");
    names.sort();
    let addresses = addresses(sys);
    names
        .into_iter()
        .take(NIC_LIMIT)
        .map(|name| {
            let line =
                |attribute: &str| sys.text(&format!("sys/class/net/{name}/{attribute}")).and_then(|text| clean(&text));
            Nic {
                mac: line("address").filter(|mac| mac.chars().any(|c| !matches!(c, '0' | ':'))),
                addresses: addresses.get(&name).cloned().unwrap_or_default(),
                speed_mbit: line("speed").and_then(|speed| speed.parse().ok()),
                state: line("operstate"),
                physical: sys.path(&format!("sys/class/net/{name}/device")).exists(),
                name,
            }
        })
        .collect()
}

/// Addresses by interface. IPv6 stands in /proc; IPv4 only the C library (or `ip`, which old hosts may lack) tells.
fn addresses(sys: &SysRoot) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = if sys.is_live() { ipv4() } else { BTreeMap::new() };
    for line in sys.text("proc/net/if_inet6").unwrap_or_default().lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [address, _, prefix, _, _, name] = fields[..]
            && let (Ok(bits), Ok(prefix)) = (u128::from_str_radix(address, 16), u32::from_str_radix(prefix, 16))
        {
            found.entry(name.to_owned()).or_default().push(format!("{}/{prefix}", std::net::Ipv6Addr::from_bits(bits)));
        }
    }
    found
}

fn ipv4() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: `list` is a valid place for the result; the call hands over a list that is freed below.
    if unsafe { libc::getifaddrs(&mut list) } != 0 {
        return found;
    }
    let mut at = list;
    while !at.is_null() {
        // SAFETY: `at` is an element of the list, which stays whole until it is freed below.
        let entry = unsafe { &*at };
        if let (Some(address), Some(mask)) = (ipv4_of(entry.ifa_addr), ipv4_of(entry.ifa_netmask)) {
            // SAFETY: the name is a C string owned by the list.
            let name = unsafe { std::ffi::CStr::from_ptr(entry.ifa_name) }.to_string_lossy().into_owned();
            found.entry(name).or_default().push(format!("{address}/{}", mask.to_bits().count_ones()));
        }
        at = entry.ifa_next;
    }
    // SAFETY: `list` came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(list) };
    found
}

fn ipv4_of(address: *const libc::sockaddr) -> Option<std::net::Ipv4Addr> {
    if address.is_null() {
        return None;
    }
    // SAFETY: not null, and every sockaddr begins with its family.
    if i32::from(unsafe { (*address).sa_family }) != libc::AF_INET {
        return None;
    }
    // SAFETY: the family says that this is a sockaddr_in; it may be unaligned for one.
    let inet = unsafe { std::ptr::read_unaligned(address.cast::<libc::sockaddr_in>()) };
    Some(std::net::Ipv4Addr::from_bits(u32::from_be(inet.sin_addr.s_addr)))
}
