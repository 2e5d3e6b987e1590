//! Goal: on the road to the branch nobody can choose who reads the disks. Method: an array that the data centre prepared is changed as
//! a courier can change it, and seeded by a host that knows nothing of it.

use super::common::run::Motiongear;
use super::common::{Branch, Ran, age_key, ssh_key, trust_line};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// An array on the road, prepared by `wang@centre`; a branch that never saw it.
struct Road {
    branch: Branch,
    centre: PathBuf,
    prepared: Value,
    operator: PathBuf,
    disk: PathBuf,
}

impl Road {
    fn new(extra: &[&str]) -> Road {
        let mut branch = Branch::new();
        let operator = ssh_key(&branch.place.join("operator"), "wang@centre", "ed25519", "");
        let lines = std::fs::read_to_string(&branch.trust).unwrap() + &trust_line(&operator, "wang@centre", "");
        std::fs::write(&branch.trust, lines).unwrap();
        let disk = branch.place.file("disk.img", vec![7u8; 1 << 20]);
        let centre = branch.place.join("centre");
        branch.state = centre.clone();
        let key = ["--key", operator.to_str().unwrap()];
        let prepared = branch.init(if extra == ["signed"] { &key } else { extra });
        branch.state = branch.place.join("branch");
        Road { branch, centre, prepared, operator, disk }
    }
    fn signed() -> Road {
        Road::new(&["signed"])
    }
    fn code(&self) -> String {
        self.prepared["recipient_code"].as_str().unwrap().to_owned()
    }
    /// `seed` with nothing but `extra`: no helper says `--plaintext`.
    fn seed(&self, extra: &[&str]) -> Ran {
        let command = self.branch.motiongear().args(["--json", "seed"]).arg(&self.branch.array);
        let disk = format!("sda={}", self.disk.display());
        command.args(["--machine", "db01", "--point-in-time", "--disk", &disk]).args(extra).run()
    }
    /// Refused, in a dry run, too, and before the first record.
    #[track_caller]
    fn refused(&self, code: i32, extra: &[&str]) {
        self.seed(&[extra, &["--dry-run"]].concat()).code(code);
        self.seed(extra).code(code);
        assert!(self.branch.packs().is_empty() && self.branch.on("keys").read_dir().unwrap().next().is_none());
    }
    /// Both copies of `shipment.json`, changed, and without a signature unless `signed`.
    fn forge(&self, signed: bool, change: impl Fn(&mut Value)) {
        for dir in ["", "copy/"] {
            let path = self.branch.on(&format!("{dir}shipment.json"));
            let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            change(&mut document);
            if !signed {
                document.as_object_mut().unwrap().remove("signer");
                let _ = std::fs::remove_file(self.branch.on(&format!("{dir}shipment.json.sig")));
            }
            std::fs::write(&path, serde_json::to_vec_pretty(&document).unwrap()).unwrap();
        }
    }
    fn add_thief(&self, signed: bool) {
        let thief = age_key(&self.branch.place.join(format!("thief-{signed}")));
        self.forge(signed, |document| document["recipients"].as_array_mut().unwrap().push(json!(thief)));
    }
    fn downgrade(&self) {
        self.forge(false, |document| {
            document["recipients"] = json!([]);
            document["suite"] = json!("plaintext");
        });
    }
    fn trust(&self) -> &str {
        self.branch.trust.to_str().unwrap()
    }
}

#[test]
fn recipients_are_confirmed_before_the_first_record() {
    let road = Road::new(&[]);
    road.refused(2, &[]);
    road.refused(4, &["--recipient-code", "0000-0000-0000"]);
    // The code is told in any shape, and once.
    let said = road.code().to_lowercase().replace('-', " ");
    road.seed(&["--recipient-code", &said]).ok();
    assert_eq!(road.seed(&[]).ok()["plan"]["plaintext"], false);
}

#[test]
fn a_recipient_who_joined_on_the_road_is_refused() {
    let road = Road::new(&[]);
    road.add_thief(false);
    road.refused(2, &[]);
    road.refused(4, &["--recipient-code", &road.code()]);
}

/// A host that prepared the array remembers what it wrote, and is not asked.
#[test]
fn the_host_that_prepared_the_array_knows_its_document() {
    let mut road = Road::new(&[]);
    road.branch.state = road.centre.clone();
    road.seed(&["--dry-run"]).ok();
    road.add_thief(false);
    road.refused(4, &[]);
    road.refused(4, &["--recipient-code", &road.code()]);
}

#[test]
fn shipment_json_must_be_signed_where_the_trust_file_has_its_signer() {
    let road = Road::signed();
    road.seed(&["--trust", road.trust(), "--dry-run"]).ok();
    let only_engineers = trust_line(&road.branch.key, "zhang@river-bank", "namespaces=\"motiongear-seal\"");
    let only_engineers = road.branch.place.file("engineers", only_engineers);
    // Nobody there may prepare arrays: the recipients are confirmed as without a trust file.
    road.refused(2, &["--trust", only_engineers.to_str().unwrap()]);
    let others = road.branch.place.file("others", trust_line(&road.branch.key, "zhang@river-bank", ""));
    road.refused(4, &["--trust", others.to_str().unwrap()]);
    // Other bytes under the old signature, and none at all; the right code does not outweigh it.
    road.add_thief(true);
    road.refused(4, &["--trust", road.trust()]);
    road.forge(false, |_| ());
    road.refused(4, &["--trust", road.trust()]);
    road.refused(4, &["--trust", road.trust(), "--recipient-code", &road.code()]);
}

#[test]
fn a_signed_shipment_needs_no_code() {
    let road = Road::signed();
    road.seed(&["--trust", road.trust()]).ok();
}

#[test]
fn an_encrypted_shipment_that_became_plaintext_on_the_road_is_refused() {
    let road = Road::signed();
    road.downgrade();
    road.refused(2, &[]);
    road.refused(4, &["--recipient-code", &road.code()]);
    road.refused(4, &["--trust", road.trust()]);
    road.refused(4, &["--trust", road.trust(), "--plaintext"]);
}

/// Also where this host prepared it so: at `seed` and at `seal`.
#[test]
fn plaintext_is_said_again() {
    let mut road = Road::new(&["--plaintext"]);
    road.refused(2, &[]);
    road.branch.state = road.centre.clone();
    road.refused(2, &[]);
    assert_eq!(road.seed(&["--plaintext"]).ok()["plan"]["plaintext"], true);
    let seal = |extra: &[&str]| {
        let command = road.branch.motiongear().args(["--json", "seal"]).arg(&road.branch.array);
        command.arg("--key").arg(&road.branch.key).args(extra).run()
    };
    seal(&[]).code(2);
    assert!(!road.branch.on("seal.json").exists());
    assert_eq!(seal(&["--plaintext"]).ok()["plaintext"], true);
    // And of an encrypted one it is not said.
    Road::new(&[]).refused(2, &["--plaintext"]);
}

#[test]
fn the_data_centre_refuses_an_array_whose_document_is_not_its_own() {
    let road = Road::new(&["--plaintext"]);
    road.forge(false, |document| document["label"] = json!("another"));
    road.seed(&["--plaintext"]).ok();
    road.branch.seal();
    road.branch.on_array("verify", [] as [&str; 0]).ok();
    let custody = |state: &Path, way: &str, key: &Path| {
        let command = Motiongear::new(state).args(["--json", "custody", way]).arg(&road.branch.array);
        command.arg("--key").arg(key).args(["--trust", road.trust()]).run()
    };
    custody(&road.branch.state, "dispatch", &road.branch.key).ok();
    custody(&road.centre, "receive", &road.operator).code(4);
    let volumes = road.branch.place.join("volumes");
    let import = Motiongear::new(&road.centre).args(["--json", "import"]).arg(&road.branch.array);
    import.args(["--trust", road.trust()]).arg("--to").arg(format!("dir:{}", volumes.display())).run().code(4);
    assert!(!volumes.exists());
}

/// A host that was set back to before the seal: the array stays as it is sealed, and can be dispatched so.
#[test]
fn a_ledger_that_was_set_back_does_not_touch_a_sealed_array() {
    let branch = Branch::ready();
    let disk = branch.place.file("disk.img", vec![7u8; 1 << 20]);
    let sda: [(&str, &Path); 1] = [("sda", &disk)];
    branch.seed(&sda, &["--point-in-time"]).ok();
    let copy =
        |from: &Path, to: &Path| drop(super::common::tool("cp", ["-a", from.to_str().unwrap(), to.to_str().unwrap()]));
    let (old, sealed) = (branch.place.join("old"), branch.place.join("sealed-array"));
    copy(&branch.state, &old);
    let seal = branch.seal();
    copy(&branch.array, &sealed);
    std::fs::remove_dir_all(&branch.state).unwrap();
    std::fs::rename(&old, &branch.state).unwrap();
    let (key, trust) = (branch.key.to_str().unwrap(), branch.trust.to_str().unwrap());
    let shipment = branch.shipment_json()["shipment"].as_str().unwrap().to_owned();
    let package = branch.place.join("package");
    branch.on_array("seal", ["--key", key, "--trust", trust]).code(1);
    branch.seed(&sda, &[]).code(1);
    branch.seed(&sda, &["--reopen"]).code(1);
    branch.run(["ledger", "move", "--shipment", &shipment, "--export", package.to_str().unwrap()]).code(1);
    super::common::tool("diff", ["-r", branch.array.to_str().unwrap(), sealed.to_str().unwrap()]);
    // The way out that is named.
    branch.on_array("verify", ["--trust", trust]).ok();
    let dispatch = branch.motiongear().args(["--json", "custody", "dispatch"]).arg(&branch.array);
    dispatch.args(["--key", key, "--trust", trust]).run().ok();
    let shown = branch.run(["ledger", "show"]).ok();
    let known = &shown["shipments"][0];
    assert_eq!((&known["state"], &known["spoken_code"]), (&json!("dispatched"), &seal["code"]));
    branch.seed(&sda, &["--reopen"]).code(1);
}
