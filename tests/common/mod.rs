//! What the tests of the real binary share: a place on a big disk, keys, arrays, disks, and running `motiongear` itself.
//!
//! Everything a test makes lies in its own [`Place`] below `target/tmp` and goes with it; loop devices and mounts are
//! let go on drop, also when a test fails.
#![allow(dead_code, unused_imports, reason = "every test file uses its own part")]

pub mod devices;
pub mod disks;
pub mod run;
pub mod source_fs;

use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub use devices::{Loop, LoopArray, Mount, loop_device};
pub use disks::{b3sum, cmp, noise, noise_at, sparse, write_at};
pub use run::{Background, Motiongear, Ran, tool, try_tool};
pub use source_fs::{Fault, SourceFs};

/// The site of every test that needs no other.
pub const SITE: &str = "river-bank";

/// Whether the fault suites run in full (`tests/faults/full`) or as the bounded selection of `tests/run`.
pub fn full() -> bool {
    std::env::var_os("MOTIONGEAR_FAULTS").is_some_and(|value| value == "full")
}

/// The seed of a test's random choices, printed so that a failure can be had again: `MOTIONGEAR_SEED`, or another each time.
pub fn seed_of_this_run() -> u64 {
    let seed = match std::env::var("MOTIONGEAR_SEED") {
        Ok(text) => text.parse().expect("MOTIONGEAR_SEED is a number"),
        Err(_) => std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos().into(),
    };
    eprintln!("MOTIONGEAR_SEED={seed}");
    seed
}

/// Random numbers of a known seed (xorshift64).
pub struct Dice(u64);
impl Dice {
    /// Of `seed`, any number.
    pub fn new(seed: u64) -> Dice {
        // Zero is the one state xorshift never leaves.
        Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Writes a file that only its owner can read, as the program wants secrets to be.
pub fn secret(path: &Path, bytes: &[u8]) {
    use std::os::unix::fs::OpenOptionsExt;
    let file = std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(path);
    std::io::Write::write_all(&mut file.unwrap(), bytes).unwrap();
}

/// A directory on the disk that holds `target/` (never a tmpfs), removed on drop.
pub struct Place(TempDir);

impl Place {
    /// A fresh one.
    pub fn new() -> Place {
        let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
        std::fs::create_dir_all(base).unwrap();
        Place(tempfile::Builder::new().prefix("mg-").tempdir_in(base).unwrap())
    }
    pub fn path(&self) -> &Path {
        self.0.path()
    }
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }
    /// A directory in it.
    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }
    /// A file in it.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// A branch: a place with a state directory, keys, and an array, which is a plain directory unless a test mounts one.
pub struct Branch {
    /// Where `STATE` is.
    pub state: PathBuf,
    /// Where the array is.
    pub array: PathBuf,
    /// OpenSSH private key whose comment is `zhang@SITE`.
    pub key: PathBuf,
    /// Allowed-signers file with that key.
    pub trust: PathBuf,
    /// age identity file.
    pub identity: PathBuf,
    /// Its public key.
    pub recipient: String,
    /// The site's name.
    pub site: String,
    /// For anything else; last, so that it goes when all that lies in it is let go.
    pub place: Place,
}

impl Branch {
    /// A branch of [`SITE`] with an array that is a plain directory; nothing initialised yet.
    pub fn new() -> Branch {
        Branch::of_site(SITE)
    }

    /// A branch of another site.
    pub fn of_site(site: &str) -> Branch {
        let place = Place::new();
        let key = ssh_key(&place.join("engineer"), &format!("zhang@{site}"), "ed25519", "");
        let trust = place.file("allowed_signers", trust_line(&key, &format!("zhang@{site}"), ""));
        let identity = place.join("identity.txt");
        let recipient = age_key(&identity);
        let array = place.dir("array");
        Branch { state: place.join("state"), array, key, trust, identity, recipient, site: site.to_owned(), place }
    }

    /// A prepared, encrypted array in a plain directory.
    pub fn ready() -> Branch {
        let branch = Branch::new();
        branch.init(&[]);
        branch
    }

    /// `motiongear --state STATE` without a verb yet.
    pub fn motiongear(&self) -> run::Motiongear {
        run::Motiongear::new(&self.state)
    }

    /// Runs a verb with `--json`.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        self.motiongear().args(["--json"]).args(arguments).run()
    }

    /// Runs a verb on the array: `VERB ARRAY ARGUMENTS`.
    pub fn on_array<S: AsRef<OsStr>>(&self, verb: &str, arguments: impl IntoIterator<Item = S>) -> Ran {
        let command = self.motiongear().args(["--json", verb]).arg(&self.array).args(arguments);
        command.args(self.plaintext_for(verb)).run()
    }

    /// Prepares the array; encrypted to [`Branch::recipient`] unless `extra` says `--plaintext`.
    pub fn init(&self, extra: &[&str]) -> Value {
        let mut arguments = vec!["--site", &self.site, "--asset", "TAG-7", "--allow-system-disk"];
        if !extra.contains(&"--plaintext") {
            arguments.extend(["--recipient", &self.recipient]);
        }
        arguments.extend(extra);
        self.on_array("init", arguments).ok()
    }

    /// `seed ARRAY --machine db01 --disk NAME=PATH… EXTRA`.
    pub fn seed(&self, disks: &[(&str, &Path)], extra: &[&str]) -> Ran {
        self.seed_command(disks, extra).run()
    }

    /// As [`Branch::seed`], to be started by the caller.
    pub fn seed_command(&self, disks: &[(&str, &Path)], extra: &[&str]) -> run::Motiongear {
        let mut command = self.motiongear().args(["--json", "seed"]).arg(&self.array).args(["--machine", "db01"]);
        command = command.args(self.plaintext_for("seed"));
        for (name, path) in disks {
            command = command.arg("--disk").arg(format!("{name}={}", path.display()));
        }
        command.args(extra)
    }

    /// `seal ARRAY --key KEY --trust TRUST`.
    pub fn seal(&self) -> Value {
        let (key, trust) = (self.key.to_str().unwrap(), self.trust.to_str().unwrap());
        self.on_array("seal", ["--key", key, "--trust", trust]).ok()
    }

    /// `--plaintext` for the verbs that want it said of an array that is prepared so.
    pub fn plaintext_for(&self, verb: &str) -> Option<&'static str> {
        let document = std::fs::read_to_string(self.on("shipment.json")).unwrap_or_default();
        let plaintext = document.contains("\"suite\": \"plaintext\"");
        (plaintext && ["seed", "seal"].contains(&verb)).then_some("--plaintext")
    }

    /// A file below `ARRAY/motiongear`.
    pub fn on(&self, relative: &str) -> PathBuf {
        self.array.join("motiongear").join(relative)
    }

    /// `seal.json`, parsed.
    pub fn seal_json(&self) -> Value {
        json_file(&self.on("seal.json"))
    }

    /// `shipment.json`, parsed.
    pub fn shipment_json(&self) -> Value {
        json_file(&self.on("shipment.json"))
    }

    /// The live manifest of the shipment on the array.
    pub fn live_manifest(&self) -> PathBuf {
        self.live_manifest_of(self.shipment_json()["shipment"].as_str().unwrap())
    }

    /// The live manifest of a shipment, for when its array is gone.
    pub fn live_manifest_of(&self, shipment: &str) -> PathBuf {
        self.state.join("shipments").join(shipment).join("manifest.db")
    }

    /// The file numbers of all packs on the array.
    pub fn packs(&self) -> Vec<PathBuf> {
        let mut packs: Vec<_> = std::fs::read_dir(self.on("packs")).unwrap().map(|e| e.unwrap().path()).collect();
        packs.sort();
        packs
    }

    /// Every check that stock tools and the stand-alone checker can make on the sealed array.
    pub fn check_with_stock_tools(&self) {
        let seal = self.seal_json();
        for pack in seal["packs"].as_array().unwrap() {
            let path = self.on(pack["file"].as_str().unwrap());
            assert_eq!(b3sum(&path), pack["blake3"], "b3sum of {}", path.display());
            assert_eq!(path.metadata().unwrap().len(), pack["bytes"]);
        }
        for (file, digest) in seal["pins"].as_object().unwrap() {
            assert_eq!(b3sum(&self.on(file)), *digest, "pin of {file}");
            assert_eq!(b3sum(&self.on("copy").join(file)), *digest, "second copy of {file}");
        }
        let manifest = self.on(seal["manifest"]["file"].as_str().unwrap());
        assert_eq!(b3sum(&manifest), seal["manifest"]["blake3"]);
        let sha256 = tool("sha256sum", [&manifest]);
        assert_eq!(sha256.split(' ').next(), seal["manifest"]["sha256"].as_str());
        verify_signature(&self.trust, seal["signer"].as_str().unwrap(), "motiongear-seal", &self.on("seal.json"));
    }

    /// Runs `motiongear-verify ARRAY`, with the identity: decrypts and compares every record.
    pub fn check_stand_alone(&self) {
        let checker = Path::new(env!("CARGO_BIN_EXE_motiongear")).with_file_name("motiongear-verify");
        assert!(checker.exists(), "{} is missing: cargo build --release --workspace", checker.display());
        let mut command = Command::new(checker);
        command.arg(&self.array).arg("--trust").arg(&self.trust);
        if self.shipment_json()["recipients"].as_array().is_some_and(|list| !list.is_empty()) {
            command.arg("--identity").arg(&self.identity);
        }
        let out = command.output().unwrap();
        let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "motiongear-verify: {said}");
    }
}

/// Reads a JSON file.
pub fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// The disk `name` in a list of the result, where it has a field `disk` that ends in it.
pub fn disk<'a>(list: &'a Value, name: &str) -> &'a Value {
    let found = list.as_array().unwrap().iter().find(|d| d["disk"].as_str().unwrap().rsplit('/').next() == Some(name));
    found.unwrap_or_else(|| panic!("no disk {name} in {list}"))
}

/// One value by SQL with the stock `sqlite3`, read-only.
pub fn sql(db: &Path, query: &str) -> String {
    tool("sqlite3", ["-readonly".as_ref(), "-cmd".as_ref(), ".timeout 20000".as_ref(), db.as_os_str(), query.as_ref()])
        .trim_end()
        .to_owned()
}

/// As [`sql`], of a database whose writer was killed: a copy of it is read, as recovery writes, and the next run shall have its
/// own to do.
pub fn sql_after_crash(db: &Path, query: &str) -> String {
    let place = Place::new();
    let name = db.file_name().unwrap().to_str().unwrap();
    for part in ["", "-wal", "-journal"] {
        let part = format!("{name}{part}");
        let _ = std::fs::copy(db.with_file_name(&part), place.join(&part));
    }
    tool("sqlite3", [place.join(name).as_os_str(), query.as_ref()]).trim_end().to_owned()
}

/// `ssh-keygen -Y verify`.
pub fn verify_signature(trust: &Path, signer: &str, namespace: &str, file: &Path) {
    let mut signature = file.as_os_str().to_owned();
    signature.push(".sig");
    let out = Command::new("ssh-keygen")
        .args(["-Y", "verify", "-I", signer, "-n", namespace, "-f"])
        .arg(trust)
        .arg("-s")
        .arg(&signature)
        .stdin(std::fs::File::open(file).unwrap())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("Good"), "ssh-keygen -Y verify {}: {said}", file.display());
}

/// Makes an OpenSSH key pair with the stock tool; `kind` as `ssh-keygen -t` takes it.
pub fn ssh_key(path: &Path, comment: &str, kind: &str, passphrase: &str) -> PathBuf {
    let path_text = path.to_str().unwrap();
    let cost = if passphrase.is_empty() { "16" } else { "4" };
    tool("ssh-keygen", ["-q", "-t", kind, "-a", cost, "-N", passphrase, "-C", comment, "-f", path_text]);
    path.to_owned()
}

/// A line of an allowed-signers file for the public half of `key`.
pub fn trust_line(key: &Path, principal: &str, options: &str) -> String {
    let public = std::fs::read_to_string(key.with_extension("pub")).unwrap();
    let mut words = public.split_whitespace();
    let (kind, blob) = (words.next().unwrap(), words.next().unwrap());
    let space = if options.is_empty() { "" } else { " " };
    format!("{principal} {options}{space}{kind} {blob}\n")
}

/// Makes an age identity with the stock tool; its public key.
pub fn age_key(path: &Path) -> String {
    let text = path.to_str().unwrap();
    tool("age-keygen", ["-o", text]);
    tool("age-keygen", ["-y", text]).trim().to_owned()
}
