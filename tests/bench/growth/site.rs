//! A branch and its array in one directory that may be come back to.

use super::common::{Motiongear, SITE, age_key, json_file, ssh_key, trust_line};
use std::path::{Path, PathBuf};

/// Where everything lies.
pub struct Site {
    dir: PathBuf,
    array: String,
    /// The branch's state directory.
    pub state: PathBuf,
    /// OpenSSH private key, allowed signers, age identity.
    pub key: String,
    pub trust: String,
    pub identity: String,
}

impl Site {
    pub fn open(dir: &Path) -> Site {
        let text = |name: &str| dir.join(name).to_str().expect("a path in UTF-8").to_owned();
        let (array, key, trust, identity) = (text("array"), text("engineer"), text("trust"), text("identity"));
        Site { dir: dir.to_owned(), array, state: dir.join("state"), key, trust, identity }
    }
    /// Whether the manifest was written to its end before.
    pub fn forged(&self) -> bool {
        self.join("forged").exists()
    }
    /// Says so.
    pub fn set_forged(&self) {
        std::fs::write(self.join("forged"), "").unwrap();
    }
    /// Keys, and a prepared array.
    pub fn prepare(&self) {
        std::fs::create_dir_all(self.array()).unwrap();
        let signer = format!("zhang@{SITE}");
        let key = ssh_key(Path::new(&self.key), &signer, "ed25519", "");
        std::fs::write(&self.trust, trust_line(&key, &signer, "")).unwrap();
        let recipient = age_key(Path::new(&self.identity));
        let arguments = ["init", self.array(), "--site", SITE, "--recipient", &recipient, "--allow-system-disk"];
        self.motiongear(&arguments).run().ok();
    }
    pub fn join(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    pub fn array(&self) -> &str {
        &self.array
    }
    /// A file on the array.
    pub fn on(&self, name: &str) -> PathBuf {
        Path::new(&self.array).join("motiongear").join(name)
    }
    /// The live manifest.
    pub fn manifest(&self) -> PathBuf {
        let shipment = json_file(&self.on("shipment.json"));
        self.state.join("shipments").join(shipment["shipment"].as_str().unwrap()).join("manifest.db")
    }
    /// A verb at the branch.
    pub fn motiongear(&self, arguments: &[&str]) -> Motiongear {
        Motiongear::new(&self.state).args(arguments)
    }
}
