//! A network card's end on this side: a tap, by the kernel's `Documentation/networking/tuntap.rst`.

use crate::error::{Error, IoContext, Result};
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

/// Opens a new tap called `name` in the network namespace of this thread. It is gone when nobody has it open any more.
///
/// # Errors
/// There is no `/dev/net/tun`, the kernel refuses, or the name is too long.
pub fn open(name: &str) -> Result<OwnedFd> {
    const CONTROL: &str = "/dev/net/tun";
    let what = || format!("Network card {name}");
    let control = File::options().read(true).write(true).open(CONTROL).context(|| format!("{}: {CONTROL}", what()))?;
    // SAFETY: `ifreq` is plain data, for which zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero: the name's end.
    if name.len() >= request.ifr_name.len() {
        return Err(Error::failed(format!("{}: the name is too long", what())));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // Ethernet frames as they are; a tap of that name is no other's.
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq` through the pointer, which outlives the call.
    if unsafe { libc::ioctl(control.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) } < 0 {
        return Err(std::io::Error::last_os_error()).context(what);
    }
    Ok(control.into())
}
