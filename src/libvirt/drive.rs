//! A disk of a machine of libvirt, named by the machine and by the disk's target there.

use super::domain::Domain;
use crate::error::{Error, Result};
use std::fmt;

const SCHEME: &str = "libvirt:";

/// `libvirt:DOMAIN#DISK`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainDisk {
    /// The machine's name or UUID in libvirt.
    pub domain: String,
    /// `vda`, `sda` …; empty where somebody wants to be told what there are.
    pub target: String,
}

impl DomainDisk {
    /// Whether the scheme stands before it.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads it. The connection is libvirt's own default, or what the environment's `LIBVIRT_DEFAULT_URI` names.
    ///
    /// # Errors
    /// A usage error that shows the form.
    pub fn parse(text: &str) -> Result<DomainDisk> {
        let rest = text.strip_prefix(SCHEME).unwrap_or(text);
        // No disk's target has a #.
        let (domain, target) = rest.rsplit_once('#').unwrap_or((rest, ""));
        if domain.is_empty() || domain.chars().chain(target.chars()).any(char::is_control) {
            let form = format!("Source {text:?}: expected {SCHEME}DOMAIN#DISK");
            return Err(Error::usage(form).next("'virsh list' shows domains, 'virsh domblklist DOMAIN' their disks"));
        }
        Ok(DomainDisk { domain: domain.to_owned(), target: target.to_owned() })
    }

    /// What tells the disk from others, whatever its machine is called by then, and its size in bytes.
    ///
    /// # Errors
    /// libvirt does not answer; the machine does not run or has no such disk.
    pub fn look(&self) -> Result<(String, u64)> {
        let domain = Domain::look(&self.domain)?;
        let disk = domain.find(&self.target)?;
        domain.expect_running()?;
        Ok((format!("{SCHEME}{}#{}", domain.uuid, disk.target), domain.bytes(disk)?))
    }
}

impl fmt::Display for DomainDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}#{}", self.domain, self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_named_by_its_machine_and_its_target() {
        for (text, domain, target) in
            [("libvirt:db01#vda", "db01", "vda"), ("libvirt:a#b#sdb", "a#b", "sdb"), ("libvirt:db01", "db01", "")]
        {
            let disk = DomainDisk::parse(text).unwrap();
            assert_eq!((disk.domain.as_str(), disk.target.as_str()), (domain, target));
        }
        assert_eq!(DomainDisk::parse("libvirt:db01#vda").unwrap().to_string(), "libvirt:db01#vda");
        for text in ["libvirt:", "libvirt:#vda", "libvirt:a\nb#vda"] {
            assert!(DomainDisk::parse(text).is_err(), "{text}");
        }
    }
}
