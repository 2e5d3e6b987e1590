//! Drills of a real machine (Debian with its own kernel, initramfs and GRUB, as `tests/drill/machine` builds it), seeded from a raw disk,
//! imported or not, and booted by QEMU without KVM. What is looked at afterwards: the volume, processes, files, and the cloud.

mod adapt;
mod array;
mod clouds;
mod deaths;
mod local;
mod network;
mod signs;

use crate::common::{Branch, Motiongear, Ran, tool};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For a whole boot under TCG while other tests run.
pub const LOGIN: &str = "9m";
/// What GRUB says as soon as it has found its configuration on the root.
pub const EARLY: &str = "GRUB loads Debian";

/// The machine's disk.
pub fn machine() -> PathBuf {
    let disk = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("machine/disk.raw");
    assert!(disk.exists(), "{} is missing; tests/run brings it", disk.display());
    disk
}

/// A sealed shipment of a machine's disks, and the data centre that gets it; both on this ledger.
pub struct Centre {
    pub branch: Branch,
}

impl Centre {
    /// The machine, sealed.
    pub fn of_the_machine() -> Centre {
        Centre::of(&[("sda", &machine())])
    }

    pub fn of(disks: &[(&str, &Path)]) -> Centre {
        let branch = Branch::new();
        branch.init(&["--plaintext"]);
        branch.seed(disks, &["--point-in-time"]).ok();
        branch.seal();
        Centre { branch }
    }

    /// A machine whose plan tells of two network cards.
    pub fn of_a_plan_with_two_cards() -> Centre {
        let branch = Branch::new();
        branch.init(&["--plaintext"]);
        let disk = branch.place.join("disk.raw");
        crate::common::sparse(&disk, 8 << 20);
        tool("sgdisk", ["--new=1:1M:+1M", "--typecode=1:ef02", disk.to_str().unwrap()]);
        let card = |number: u32, addresses: &str| {
            format!(
                "[[machine.facts.nic]]\nname = 'eno{number}'\nmac = '02:00:00:00:00:0{number}'\naddresses = [{addresses}]\n"
            )
        };
        let plan = format!(
            "[[machine]]\nname = 'db01'\n[machine.facts]\nhostname = 'db01'\n{}{}[[machine.disk]]\nname = 'sda'\nsource = '{}'\npoint_in_time = true\n",
            card(1, ""),
            card(2, "'10.2.0.7/24'"),
            disk.display()
        );
        let plan = branch.place.file("plan.toml", plan);
        branch.on_array("seed", ["--plan", plan.to_str().unwrap()]).ok();
        branch.seal();
        Centre { branch }
    }

    /// Encrypted, sealed with `extra`.
    pub fn encrypted(disks: &[(&str, &Path)], extra: &[&str]) -> Centre {
        let branch = Branch::ready();
        branch.seed(disks, &["--point-in-time"]).ok();
        let (key, trust) = (branch.key.to_str().unwrap(), branch.trust.to_str().unwrap());
        branch.on_array("seal", [&["--key", key, "--trust", trust], extra].concat()).ok();
        Centre { branch }
    }

    /// `import ARRAY --to TO EXTRA`.
    pub fn import(&self, to: &str, extra: &[&str]) -> Motiongear {
        self.import_with(&[&["--to", to], extra].concat())
    }

    pub fn import_with(&self, options: &[&str]) -> Motiongear {
        let command = self.branch.motiongear().args(["--json", "import"]).arg(&self.branch.array).args(options);
        crate::cloud::as_user(command.arg("--trust").arg(&self.branch.trust), "bank")
    }

    /// Where `dir:` volumes lie.
    pub fn to_dir(&self) -> String {
        format!("dir:{}", self.branch.place.join("volumes").display())
    }

    /// The raw file of a disk.
    pub fn volume(&self, disk: &str) -> PathBuf {
        self.branch.place.join(format!("volumes/{}/db01/{disk}.raw", self.branch.site))
    }

    pub fn drill(&self, arguments: &[&str]) -> Motiongear {
        crate::cloud::as_user(self.branch.motiongear().args(["--json", "drill"]).args(arguments), "bank")
    }

    /// `drill start db01` on the bus that the machine has drivers for.
    pub fn start(&self, extra: &[&str]) -> Motiongear {
        let fixed = ["start", "db01", "--disk-bus", "virtio", "--memory", "512MiB", "--accel", "tcg"];
        self.drill(&[&fixed, extra].concat())
    }

    /// A drill that came up by what GRUB says.
    pub fn early(&self, extra: &[&str]) -> Value {
        let started = self.start(&[&["--marker", EARLY, "--within", LOGIN], extra].concat()).run().ok();
        assert_eq!(started["course"]["seen"]["sign"], "marker", "{started}");
        started
    }

    pub fn show(&self, id: &str) -> Value {
        self.drill(&["show", id]).run().ok()["drills"][0].clone()
    }

    pub fn confirm(&self, id: &str, verdict: &str, extra: &[&str]) -> Ran {
        let key = self.branch.key.to_str().unwrap();
        let fixed = ["confirm", id, verdict, "--key", key, "--person", "Zhao Min"];
        self.drill(&[&fixed, extra].concat()).run()
    }

    /// Ends it, and looks for what could be left over on this host.
    #[track_caller]
    pub fn end(&self, id: &str) -> Value {
        let done = self.drill(&["end", id]).run().ok();
        self.nothing_is_left(id);
        done
    }

    pub fn evidence(&self, id: &str) -> PathBuf {
        self.branch.state.join("drills").join(id)
    }

    /// Nothing of it runs, and of its files only the evidence is there.
    #[track_caller]
    pub fn nothing_is_left(&self, id: &str) {
        gone(|| processes(id).is_empty());
        let kept = [
            "adapt.log",
            "confirm-2.json",
            "confirm-2.json.sig",
            "confirm.json",
            "confirm.json.sig",
            "withdraw.json",
            "withdraw.json.sig",
            "course.json",
            "drill.json",
            "end.json",
            "lock",
            "picture.png",
            "serial.log",
        ];
        for entry in std::fs::read_dir(self.evidence(id)).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(kept.contains(&name.to_str().unwrap()), "{name:?} is left over");
        }
        // Directories of the keeper's sockets.
        let Some(keeper) = self.show(id)["course"]["keeper"].as_u64() else { return };
        for entry in std::fs::read_dir("/run/motiongear").into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap();
            assert!(!name.starts_with(&format!("server-{keeper}-")), "{name} is left over");
        }
    }

    /// All volumes still hold what was proven, by `verify --volumes`.
    #[track_caller]
    pub fn volumes_are_as_they_were(&self) {
        let command = self.branch.motiongear().args(["--json", "verify", "--volumes"]);
        let found = crate::cloud::as_user(command, "bank").run().ok();
        for volume in found["volumes"].as_array().unwrap() {
            assert_eq!(volume["found"], volume["expected"], "{volume}");
        }
    }
}

/// The UUID of what was started.
pub fn id_of(started: &Value) -> String {
    started["drill"]["drill"].as_str().unwrap().to_owned()
}

/// Processes with a text on their command line.
pub fn processes(text: &str) -> Vec<(i32, String)> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| {
        let process = entry.file_name().to_str()?.parse().ok()?;
        let words = String::from_utf8_lossy(&std::fs::read(entry.path().join("cmdline")).ok()?).replace('\0', " ");
        // Whoever only looks, as this test's own tools do, is not meant.
        let ours = words.contains("qemu-system") || words.contains("drill-keeper");
        (ours && words.contains(text)).then_some((process, words))
    })
    .collect()
}

/// SIGKILL to the one process of a drill that has `word` on its command line.
#[track_caller]
pub fn kill(id: &str, word: &str) {
    let found: Vec<_> = processes(id).into_iter().filter(|(_, words)| words.contains(word)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    tool("kill", ["-9", &found[0].0.to_string()]);
}

/// Waits until it is so.
#[track_caller]
pub fn gone(mut is: impl FnMut() -> bool) {
    let since = Instant::now();
    while !is() {
        assert!(since.elapsed() < Duration::from_secs(180), "it does not come to be");
        std::thread::sleep(Duration::from_millis(50));
    }
}
