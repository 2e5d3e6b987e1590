//! What names a disk of another machine: `ssh:[USER@]HOST:/PATH`. Port, keys and jump hosts are ssh's own to know, from its
//! configuration: HOST may be an alias there.

use crate::error::{Error, Result};
use std::fmt;

const SCHEME: &str = "ssh:";
/// The longest path and the longest host, bytes.
const MAX_BYTES: usize = 4096;

/// A path on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    host: String,
    path: String,
}

impl Place {
    /// Whether `text` begins as one.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads `ssh:[USER@]HOST:/PATH`.
    ///
    /// # Errors
    /// Another form; a host that ssh could take for an option or hand to a shell; a path that is relative or has control
    /// characters in it.
    pub fn parse(text: &str) -> Result<Place> {
        let wrong = |found: &str| {
            let shown: String = text.chars().take(200).flat_map(char::escape_debug).collect();
            Error::usage(format!("Source {shown}: expected ssh:[USER@]HOST:/PATH, found {found}"))
                .next("port, keys and jump hosts belong into ssh's configuration, under the name that HOST is")
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("something else"))?;
        // The first slash: a host has none.
        let Some((host, path)) = rest.find(":/").map(|at| (&rest[..at], &rest[at + 1..])) else {
            return Err(wrong("no absolute path behind a host"));
        };
        if host.is_empty() || host.split('@').any(|part| part.is_empty() || part.starts_with('-')) {
            return Err(wrong("no host, or one that begins with a hyphen"));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-:@%+".contains(c);
        if let Some(odd) = host.chars().find(|c| !fits(*c)) {
            return Err(wrong(&format!("{odd:?} in the host")));
        }
        if path.chars().any(char::is_control) {
            return Err(wrong("control characters in the path"));
        }
        if rest.len() > MAX_BYTES {
            return Err(wrong(&format!("{} bytes", rest.len())));
        }
        Ok(Place { host: host.to_owned(), path: path.to_owned() })
    }

    /// `[USER@]HOST`, as ssh takes it.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The host without the user.
    pub fn machine(&self) -> &str {
        self.host.rsplit('@').next().unwrap_or(&self.host)
    }

    /// Absolute, there.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}:{}", self.host, self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_what_could_mislead_ssh_or_a_shell_is_refused() {
        for (text, host, path) in [
            ("ssh:db07:/dev/sda", "db07", "/dev/sda"),
            ("ssh:root@db07.branch:/dev/vg0/a b", "root@db07.branch", "/dev/vg0/a b"),
            ("ssh:fe80::1%eth0:/dev/it's", "fe80::1%eth0", "/dev/it's"),
            ("ssh:db07:/a:/b", "db07", "/a:/b"),
        ] {
            let place = Place::parse(text).unwrap();
            assert_eq!((place.host(), place.path(), place.to_string().as_str()), (host, path, text));
        }
        assert_eq!(Place::parse("ssh:root@db07:/x").unwrap().machine(), "db07");
        let long = format!("ssh:h:/{}", "x".repeat(5000));
        for (text, found) in [
            ("ssh:db07", "no absolute path"),
            ("ssh:db07:dev/sda", "no absolute path"),
            ("ssh://db07/dev/sda", "no absolute path"),
            ("ssh::/dev/sda", "no host"),
            ("ssh:-oProxyCommand=x:/dev/sda", "hyphen"),
            ("ssh:root@-x:/dev/sda", "hyphen"),
            ("ssh:-l@x:/dev/sda", "hyphen"),
            ("ssh:a b:/dev/sda", "' ' in the host"),
            ("ssh:a;reboot:/dev/sda", "';' in the host"),
            ("ssh:$(x):/dev/sda", "'$' in the host"),
            ("ssh:h:/dev/sd\na", "control characters"),
            (&long, "5003 bytes"),
        ] {
            let error = Place::parse(text).unwrap_err();
            assert!(error.message.contains(found), "{text}: {error}");
        }
    }
}
