//! One call of `virsh`. Its connection is the environment's or libvirt's own default; a machine is always named by its UUID once that is
//! known, so that no name is taken for an option or for the number of another one.

use crate::error::{Error, Result};
use crate::program::{self, Ended};
use std::time::Duration;

/// For what libvirt answers from what it knows, or asks QEMU in passing; it waits up to 30 s for another who has the machine.
const LIMIT: Duration = Duration::from_secs(60);
const INSTALL: &str = "Debian: libvirt-clients; SUSE, RHEL: libvirt-client";

/// Calls `virsh` with these words; says what it said.
///
/// # Errors
/// It is not there, or does not end in time.
pub fn call(words: &[&str]) -> Result<Ended> {
    let mut command = program::command("virsh");
    // Its words are looked at, and shown beside our own.
    command.env("LC_ALL", "C").arg("--quiet").args(words);
    program::run(command, LIMIT, INSTALL)
}

/// As [`call`], where it must do what it is asked for; its output as text.
///
/// # Errors
/// As [`call`]; it says no.
pub fn ask(words: &[&str]) -> Result<String> {
    let ended = call(words)?;
    match ended.code {
        Some(0) => Ok(String::from_utf8_lossy(&ended.output).into_owned()),
        _ => Err(refused(words, &ended)),
    }
}

/// What stands for a call that libvirt refused.
pub fn refused(words: &[&str], ended: &Ended) -> Error {
    let said = match ended.words.as_str() {
        "" => ended.code.map_or_else(|| "a signal".into(), |code| format!("exit {code}")),
        words => words.trim_start_matches("error: ").to_owned(),
    };
    let error = Error::failed(format!("Libvirt: expected 'virsh {}' to do it, found: {said}", words.join(" ")));
    match said.contains("failed to connect") {
        true => {
            error.next("see whether libvirt runs here: virsh list; another connection is named by LIBVIRT_DEFAULT_URI")
        }
        false => error,
    }
}

/// Refuses a connection to another host, or to what is not QEMU: the snapshot is read through a socket of this host.
///
/// # Errors
/// It is such a one; as [`ask`].
pub fn expect_local() -> Result<()> {
    let uri = ask(&["uri"])?;
    match is_local(uri.trim()) {
        true => Ok(()),
        false => Err(Error::failed(format!(
            "Libvirt: expected a connection to QEMU on this host, found {:.200}",
            uri.trim()
        ))
        .next("run motiongear on the machine's own host, or name its connection: LIBVIRT_DEFAULT_URI=qemu:///system")),
    }
}

fn is_local(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else { return false };
    (scheme == "qemu" || scheme == "qemu+unix") && rest.starts_with('/')
}

/// The version of the QEMU that libvirt starts, where it says so.
///
/// # Errors
/// As [`ask`].
pub fn qemu_version() -> Result<Option<(u64, u64)>> {
    Ok(version(&ask(&["version"])?))
}

fn version(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("Running hypervisor: QEMU "))?;
    let mut parts = line.trim().split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_host_and_another_hypervisor_are_not_of_this_host() {
        for uri in ["qemu:///system", "qemu:///session?socket=/run/x", "qemu+unix:///system"] {
            assert!(is_local(uri), "{uri}");
        }
        for uri in ["qemu+ssh://host/system", "qemu://host/system", "test:///default", "xen:///", "qemu", ""] {
            assert!(!is_local(uri), "{uri}");
        }
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!(version("Using API: QEMU 9.0.0\nRunning hypervisor: QEMU 10.0.2\n"), Some((10, 0)));
        assert_eq!(version("Running hypervisor: QEMU ten"), None);
        assert_eq!(version(""), None);
    }
}
