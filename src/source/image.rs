//! Image files in the formats that QEMU knows, read through a `qemu-nbd` of our own.
//!
//! The format is always given, never guessed: whoever has a raw disk can write the head of any format to it, and the "backing
//! file" that it names would then be any file of this host.

use crate::error::{Error, Result};
use crate::io::{Access, DirectFile};
use crate::nbd::Server;
use serde::Deserialize;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// The export's name at our own server.
pub const EXPORT: &str = "disk";
/// Clients that it serves: one session asks for holes, one looks at tables, four read.
const CLIENTS: u32 = 8;
/// The longest answer of `qemu-img info`, bytes.
const MAX_INFO_BYTES: usize = 4 << 20;
/// Files of an image that are looked at; longer chains are a mistake.
const MAX_CHAIN: usize = 200;

/// A format: the word that we use, and QEMU's.
const FORMATS: [(&str, &str); 6] =
    [("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vhdx", "vhdx"), ("vdi", "vdi"), ("vhd", "vpc"), ("raw", "raw")];

/// A disk in a file of another format, or in several of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Place in [`FORMATS`].
    format: usize,
    path: PathBuf,
}

impl Image {
    /// Reads `FORMAT:PATH`; `None` where no format that we know stands before the first colon.
    pub fn parse(text: &str) -> Option<Image> {
        let (word, path) = text.split_once(':')?;
        let format = FORMATS.iter().position(|(ours, _)| *ours == word)?;
        Some(Image { format, path: path.into() })
    }

    /// The file, or the first of a chain.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As we call the format.
    pub fn format(&self) -> &'static str {
        FORMATS[self.format].0
    }

    /// With an absolute path.
    ///
    /// # Errors
    /// The working directory is gone.
    pub fn absolute(self) -> std::io::Result<Image> {
        Ok(Image { path: std::path::absolute(&self.path)?, ..self })
    }

    /// What a user writes to have the disk in a file that looks like `kind`, as [`super::Signature`] calls it.
    pub fn hint(kind: &str, path: &Path) -> String {
        let path = path.display();
        let format = kind.trim_end_matches("-image");
        let known = FORMATS.iter().any(|(ours, _)| *ours == format);
        let write = match format {
            _ if known => format!("write {format}:{path} for the disk that is in it"),
            "qed" | "parallels" | "bochs" | "dmg" => {
                format!(
                    "convert it first: qemu-img convert -f {format} -O qcow2 {path} NEW.qcow2, then write qcow2:NEW.qcow2"
                )
            }
            "gzip" => format!("unpack it first: gzip -dc {path} > NEW.raw"),
            "xz" | "zstd" | "lz4" | "bzip2" | "lzip" | "lzop" => {
                format!("unpack it first: {format} -dc {path} > NEW.raw")
            }
            "zip" => format!("unpack it first: unzip {path}"),
            "7z" => format!("unpack it first: 7z x {path}"),
            "rar" => format!("unpack it first: unrar x {path}"),
            "cpio" => format!("unpack it first: cpio -id < {path}"),
            "tar" => format!("unpack it first: tar xf {path}; of an OVA write vmdk:FILE for each disk that was in it"),
            "vma" => format!("unpack it first, on a Proxmox host: vma extract {path} DIR"),
            "partclone" => format!("write it back first: partclone.restore -s {path} -o NEW.raw, of each partition"),
            "ewf" => format!("unpack it first: ewfexport -f raw {path}"),
            "aff" => format!("unpack it first: affconvert -r {path}"),
            "wim" => "apply it to a disk first: it holds files and no disk".to_owned(),
            "rbd-export" => {
                format!("give rbd:POOL/IMAGE@SNAPSHOT; or rbd import --export-format 2 {path}, and that image")
            }
            _ => "unpack the disk that is in it first".to_owned(),
        };
        format!("{write}; or raw:{path} for the file as it is")
    }

    /// Starts a server that offers the disk, read-only.
    ///
    /// # Errors
    /// QEMU is not installed; a file of the chain is missing, is no image of its format, or is written to by a running machine.
    pub fn serve(&self) -> Result<Server> {
        let about = |error: Error| Error::failed(format!("Image {self}: cannot be read")).because(error);
        let direct = self.chain().map_err(about)?.iter().all(|path| is_direct(path));
        // Past the page cache: what is read once is not worth the memory of the machines on this host.
        let cache = if direct { "none" } else { "writeback" };
        let arguments = |socket: &Path| -> Vec<OsString> {
            let format = FORMATS[self.format].1;
            let options = ["--read-only", "--persistent", "--aio=threads", "--export-name", EXPORT];
            let values = [format!("--shared={CLIENTS}"), format!("--format={format}"), format!("--cache={cache}")];
            let files = ["--socket".into(), socket.into(), "--".into(), self.path.clone().into()];
            options.map(OsString::from).into_iter().chain(values.map(OsString::from)).chain(files).collect()
        };
        Server::start("qemu-nbd", arguments).map_err(about)
    }

    /// All files that the disk lies in.
    ///
    /// # Errors
    /// A file is missing, or is no image of its format.
    pub fn chain(&self) -> Result<Vec<PathBuf>> {
        #[derive(Deserialize)]
        struct Link {
            filename: String,
        }
        let mut command = crate::program::command("qemu-img");
        command.args(["info", "--output=json", "--backing-chain", "-f", FORMATS[self.format].1, "--"]).arg(&self.path);
        let output = command.stdin(Stdio::null()).output().map_err(|error| {
            Error::io("qemu-img: cannot be started", error)
                .next("install it (Debian: qemu-utils; Red Hat: qemu-img; SUSE: qemu-tools)")
        })?;
        if !output.status.success() {
            let words = crate::nbd::wire::text(&output.stderr);
            return Err(Error::failed(words.trim().to_owned()).next(
                "bring the missing file back, or give the right format; of a running machine read a snapshot that it exports",
            ));
        }
        let what = |found: String| Error::failed(format!("qemu-img: expected the files of the image, found {found}"));
        if output.stdout.len() > MAX_INFO_BYTES {
            return Err(what(format!("{} bytes", output.stdout.len())));
        }
        let links: Vec<Link> = serde_json::from_slice(&output.stdout).map_err(|error| what(error.to_string()))?;
        if links.is_empty() || links.len() > MAX_CHAIN {
            return Err(what(format!("{} files", links.len())));
        }
        // A chain may lead anywhere that QEMU can reach. What lies elsewhere is exported on purpose, or not read.
        match links.iter().find(|link| !Path::new(&link.filename).exists()) {
            None => Ok(links.into_iter().map(|link| link.filename.into()).collect()),
            Some(link) => Err(what(format!("{}, which is no file of this host", link.filename))
                .next("export the image by a qemu-nbd of your own, and give its URI")),
        }
    }
}

fn is_direct(path: &Path) -> bool {
    DirectFile::open(path, Access::Read).is_ok_and(|file| file.is_direct())
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.format(), self.path.display())
    }
}
