//! Disks of machines under VMware, read through an nbdkit of our own with VMware's library (VDDK), which its owner has to install.
//! Source: nbdkit-vddk-plugin(1), <https://libguestfs.org/nbdkit-vddk-plugin.1.html>.
//!
//! What is read is a snapshot, or what the file holds at the moment: VMware is asked for nothing here. The password is in a file that
//! only we can read, and its path is all that stands on a command line.

use crate::error::{Error, IoContext, Result};
use crate::nbd::Server;
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const SCHEME: &str = "vddk:";
/// The longest of the values.
const MAX_VALUE_BYTES: usize = 1024;
/// What would be taken for something else in the form that people type.
const ODD: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'&').add(b'#').add(b'+').add(b' ');
const ODD_IN_NAMES: &AsciiSet = &ODD.add(b'@').add(b'/').add(b':');

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmDisk {
    /// Who asks; `root` where absent.
    pub user: Option<String>,
    /// vCenter or the ESXi host.
    pub server: String,
    /// The machine's managed object, `vm-16`: names may be there twice.
    pub vm: String,
    /// `[datastore] folder/disk.vmdk`, as the machine has it without snapshots.
    pub file: String,
    /// The snapshot's managed object, `snapshot-21`.
    pub snapshot: Option<String>,
    /// What the server's certificate must be: the digest of it, in hexadecimal with colons.
    pub thumbprint: String,
    /// A file with the password.
    pub password: PathBuf,
    /// Where VDDK is installed, if nbdkit does not find it by itself.
    pub library: Option<PathBuf>,
    /// The ways to the data that are tried, as VDDK calls them: `san:hotadd:nbdssl`.
    pub transports: Option<String>,
}

impl VmDisk {
    /// Whether `text` means one.
    pub fn is_one(text: &str) -> bool {
        text.starts_with(SCHEME)
    }

    /// Reads `vddk:[USER@]SERVER/VM?file=[DATASTORE] DISK.vmdk&thumbprint=AA:BB…&password=FILE[&snapshot=…&libdir=DIR&transports=…]`,
    /// where `%20` is a space and so on.
    ///
    /// # Errors
    /// A usage error that shows the form.
    pub fn parse(text: &str) -> Result<VmDisk> {
        let wrong = |found: &str| {
            Error::usage(format!(
                "Source '{text:.300}': expected vddk:[USER@]SERVER/VM?file=[DATASTORE]%20DISK.vmdk&thumbprint=AA:BB:…&password=/FILE\
                 [&snapshot=…&libdir=/DIR&transports=…], found {found:.200}"
            ))
        };
        let decode = |part: &str| match percent_decode_str(part).decode_utf8() {
            Ok(value) if value.is_empty() || value.len() > MAX_VALUE_BYTES => {
                Err(wrong("a value that is empty or too long"))
            }
            Ok(value) if value.chars().any(char::is_control) => Err(wrong("a control character")),
            Ok(value) => Ok(value.into_owned()),
            Err(_) => Err(wrong("bytes that are no UTF-8")),
        };
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| wrong("no vddk:"))?;
        let (place, query) = rest.split_once('?').ok_or_else(|| wrong("no ?file="))?;
        let (account, vm) = place.split_once('/').ok_or_else(|| wrong("no VM"))?;
        let (user, server) = match account.rsplit_once('@') {
            Some((user, server)) => (Some(decode(user)?), decode(server)?),
            None => (None, decode(account)?),
        };
        // A managed object and nothing else: what comes behind `moref=` is not to be another parameter.
        let vm = decode(vm)?;
        let plain = |value: &str| value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte));
        let (mut file, mut snapshot, mut thumbprint, mut password) = (None, None, None, None);
        let (mut library, mut transports) = (None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| wrong(pair))?;
            let value = decode(value)?;
            let once = match key {
                "file" => file.replace(value).is_none(),
                "snapshot" if plain(&value) => snapshot.replace(value).is_none(),
                "thumbprint" if plain(&value) => thumbprint.replace(value).is_none(),
                "transports" if plain(&value) => transports.replace(value).is_none(),
                "password" if value.starts_with('/') => password.replace(PathBuf::from(value)).is_none(),
                "libdir" if value.starts_with('/') => library.replace(PathBuf::from(value)).is_none(),
                _ => false,
            };
            if !once {
                return Err(wrong(pair));
            }
        }
        if !plain(&vm) || !plain(&server) {
            return Err(wrong("a name that neither a server nor a managed object (vm-16) has"));
        }
        Ok(VmDisk {
            user,
            server,
            vm,
            file: file.ok_or_else(|| wrong("no file="))?,
            snapshot,
            thumbprint: thumbprint.ok_or_else(|| wrong("no thumbprint="))?,
            password: password.ok_or_else(|| wrong("no password=/FILE"))?,
            library,
            transports,
        })
    }

    /// What it is, whoever asks and whatever snapshot is read.
    pub fn known_as(&self) -> String {
        format!("{SCHEME}{}/{}/{}", self.server, self.vm, self.file)
    }

    /// Starts a server of its bytes, read-only.
    ///
    /// # Errors
    /// nbdkit or its plugin for VDDK is not installed; others may read the password; VMware refuses: in nbdkit's words.
    pub fn serve(&self) -> Result<Server> {
        self.expect_secret()?;
        let started = Server::start("nbdkit", |socket| self.arguments(socket));
        started.map_err(|error| self.explain(error))
    }

    /// What is behind an error of nbdkit, or of who asked it.
    pub fn explain(&self, error: Error) -> Error {
        let next = "see the manual (Machines under VMware): what nbdkit and VMware's library need";
        Error::failed(format!("Source {self}: cannot be read")).because(error).next(next)
    }

    /// Of nbdkit(1).
    fn arguments(&self, socket: &Path) -> Vec<OsString> {
        let given = |key: &str, value: Option<&str>| value.map(|value| OsString::from(format!("{key}={value}")));
        let options = ["--foreground", "--exit-with-parent", "--readonly", "--unix"];
        let mut arguments: Vec<OsString> = options.map(OsString::from).into();
        arguments.extend([socket.into(), "vddk".into()]);
        let mut password = OsString::from("password=+");
        password.push(&self.password);
        arguments.push(password);
        arguments.extend(self.library.as_ref().map(|library| {
            let mut argument = OsString::from("libdir=");
            argument.push(library);
            argument
        }));
        arguments.extend(
            [
                given("server", Some(&self.server)),
                given("user", Some(self.user.as_deref().unwrap_or("root"))),
                given("vm", Some(&format!("moref={}", self.vm))),
                given("thumbprint", Some(&self.thumbprint)),
                given("snapshot", self.snapshot.as_deref()),
                given("transports", self.transports.as_deref()),
                given("file", Some(&self.file)),
            ]
            .into_iter()
            .flatten(),
        );
        arguments
    }

    fn expect_secret(&self) -> Result<()> {
        let path = self.password.display();
        let meta = std::fs::metadata(&self.password).context(|| format!("Password file {path}"))?;
        match meta.is_file() && meta.mode() & 0o077 == 0 {
            true => Ok(()),
            false => Err(Error::failed(format!(
                "Password file {path}: expected a file that only its owner can read, found mode {:o}",
                meta.mode() & 0o7777
            ))
            .next(format!("chmod 600 {path}"))),
        }
    }
}

impl fmt::Display for VmDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |text: &str| utf8_percent_encode(text, ODD_IN_NAMES).to_string();
        let value = |text: &str| utf8_percent_encode(text, ODD).to_string();
        f.write_str(SCHEME)?;
        if let Some(user) = &self.user {
            write!(f, "{}@", name(user))?;
        }
        write!(f, "{}/{}?file={}&thumbprint={}", self.server, self.vm, value(&self.file), self.thumbprint)?;
        for (key, text) in [("snapshot", &self.snapshot), ("transports", &self.transports)] {
            text.iter().try_for_each(|text| write!(f, "&{key}={text}"))?;
        }
        for (key, path) in [("password", Some(&self.password)), ("libdir", self.library.as_ref())] {
            path.iter().try_for_each(|path| write!(f, "&{key}={}", value(&path.to_string_lossy())))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "vddk:administrator%40vsphere.local@vcenter.bank/vm-16?file=[ssd%201]%20db01/db01.vmdk&thumbprint=AA:0B&\
                       snapshot=snapshot-21&transports=nbdssl:nbd&password=/root/vc%20pw&libdir=/opt/vddk";

    #[test]
    fn disks_read_as_people_type_them() {
        let disk = VmDisk::parse(ALL).unwrap();
        assert_eq!(
            (disk.user.as_deref(), disk.file.as_str()),
            (Some("administrator@vsphere.local"), "[ssd 1] db01/db01.vmdk")
        );
        assert_eq!((disk.to_string().as_str(), VmDisk::parse(&disk.to_string()).unwrap()), (ALL, disk.clone()));
        let words: Vec<String> =
            disk.arguments(Path::new("/run/s")).into_iter().map(|word| word.into_string().unwrap()).collect();
        assert_eq!(
            words,
            [
                "--foreground",
                "--exit-with-parent",
                "--readonly",
                "--unix",
                "/run/s",
                "vddk",
                "password=+/root/vc pw",
                "libdir=/opt/vddk",
                "server=vcenter.bank",
                "user=administrator@vsphere.local",
                "vm=moref=vm-16",
                "thumbprint=AA:0B",
                "snapshot=snapshot-21",
                "transports=nbdssl:nbd",
                "file=[ssd 1] db01/db01.vmdk",
            ]
        );
        let least = VmDisk::parse("vddk:esx1/1?file=[a]%20b&thumbprint=AA&password=/p").unwrap();
        assert!(least.arguments(Path::new("/s")).contains(&"user=root".into()));
    }

    #[test]
    fn what_is_none_is_refused() {
        for (from, to) in [
            ("vm-16", "vm-16%20libdir=/x"),
            ("vcenter.bank", "vcenter%20bank"),
            ("file=", "fale="),
            ("&thumbprint=AA:0B", ""),
            ("password=/root/vc%20pw", "password=vc"),
            ("password=", "cookie=/x&password="),
            ("snapshot-21", "snapshot-21%20x"),
            ("db01.vmdk", "%00"),
            ("db01.vmdk", "%ff"),
            ("snapshot=snapshot-21", "snapshot=a&snapshot=b"),
            ("/vm-16", ""),
            ("?file", "file"),
        ] {
            let changed = ALL.replace(from, to);
            assert_ne!(changed, ALL);
            assert!(VmDisk::parse(&changed).is_err(), "{changed}");
        }
    }
}
