//! Goal: nothing in the chain minds a shipment of 50 TB. Method: a manifest of 50 million blocks on 300 disks is written by the
//! product's own writer in the batches that a seed commits, over an array whose packs are holes but for the first, which a real
//! seed wrote. From there on the real verbs run, each measured by time (until its first block where the rest would need 50 TB)
//! and by memory, from `/proc`.
//!
//! ```text
//! cargo bench --bench growth                        50 million blocks: half an hour, 20 GB below target/tmp, as root
//! cargo bench --bench growth -- --blocks 1000000    a quick look
//!     --in DIR       keeps everything there, and does not write the manifest again when it is there
//!     --only STEP    just one of: inserts status scan seal verify import report
//!     --piece N      writes N rows of the manifest and ends; the next call goes on
//!     --batch N      commits after N blocks of data, instead of 16 as a seed does
//! ```
//! What `verify` and `import` do behind the manifest is work on packs, and is measured on real ones elsewhere.

#[path = "../../common/mod.rs"]
mod common;
mod forge;
mod measure;
mod site;

use common::{Place, disks, sql};
use measure::{Figures, Room, Watched, cold, first_block, first_job};
use site::Site;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Blocks of 50 TB, and a little more.
const BLOCKS: u64 = 50_000_000;
/// Bytes of the one disk that is real.
const REAL_BYTES: u64 = 256 << 20;
/// No verb may take longer to its first block.
const PATIENCE: Duration = Duration::from_secs(900);

fn main() {
    let asked = Asked::parse();
    let place = asked.dir.is_none().then(Place::new);
    let dir = asked.dir.clone().or_else(|| Some(place.as_ref()?.path().to_owned())).unwrap();
    let mut figures = Figures::default();
    let site = Site::open(&dir);
    if !Path::new(site.array()).exists() {
        site.prepare();
        // The records that an import reaches first are real ones.
        let real = site.join("real.img");
        disks::noise(&real, REAL_BYTES, 7);
        let source = format!("real={}", real.display());
        site.motiongear(&["seed", site.array(), "--disk", &source, "--machine", "db01", "--codec", "none"]).run().ok();
    }
    if !site.forged() {
        if !forge::disks(&site, asked.blocks, asked.piece, asked.batch, &mut figures) {
            return;
        }
        site.set_forged();
    }
    let manifest = site.manifest();
    let rows: u64 = sql(&manifest, "SELECT count(*) FROM block").parse().unwrap();
    let bytes = manifest.metadata().unwrap().len();
    figures.say("manifest", format!("{rows} rows, {bytes} bytes, {:.1} a row", bytes as f64 / rows as f64));
    let signed = ["--key", &site.key, "--trust", &site.trust];
    let trusted = ["--trust", &site.trust, "--identity", &site.identity];

    if asked.step("status") {
        figures.run("status ARRAY", Watched::start(&site.state, &["status", site.array()]), 0);
    }
    if asked.step("scan") {
        cold(&manifest);
        let scan = Watched::start(&site.state, &["scan"]);
        first_block(&mut figures, "scan", scan, &site.state, PATIENCE);
    }
    if asked.step("seal") && !site.on("seal.json").exists() {
        cold(&manifest);
        figures.run("seal", Watched::start(&site.state, &[&["seal", site.array()], &signed[..]].concat()), 3);
    }
    // The data centre is another host, and the array was on the road.
    let centre = site.join("centre");
    let road = || ["manifest.db.age", "copy/manifest.db.age"].iter().for_each(|file| cold(&site.on(file)));
    if asked.step("verify") {
        road();
        let verify = Watched::start(&centre, &[&["verify", site.array()], &trusted[..]].concat());
        first_job(&mut figures, "verify, until the packs", verify, &centre, PATIENCE);
    }
    if asked.step("import") {
        let volumes = Room::for_volumes(&site.join("volumes"));
        let target = format!("dir:{}", volumes.path().display());
        for what in ["import", "import, resumed"] {
            road();
            let arguments = [&["import", site.array(), "--uncompared", "--to", &target], &trusted[..]].concat();
            first_block(&mut figures, what, Watched::start(&centre, &arguments), &centre, PATIENCE);
        }
        // A volume that is gone cannot be gone on with.
        let _ = std::fs::remove_dir_all(&centre);
    }
    if asked.step("report") {
        cold(&manifest);
        let out = site.join("report");
        let arguments = ["report", "handover", site.array(), "--trust", &site.trust, "--out", out.to_str().unwrap()];
        figures.run("report handover", Watched::start(&site.state, &arguments), 3);
    }
    figures.table();
}

/// What was typed.
struct Asked {
    blocks: u64,
    piece: u64,
    batch: Option<u64>,
    dir: Option<PathBuf>,
    only: Option<String>,
}

impl Asked {
    fn parse() -> Asked {
        let mut asked = Asked { blocks: BLOCKS, piece: u64::MAX, batch: None, dir: None, only: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} takes a value"));
            match argument.as_str() {
                "--blocks" => asked.blocks = value().parse().expect("--blocks takes a number"),
                "--piece" => asked.piece = value().parse().expect("--piece takes a number"),
                "--batch" => asked.batch = Some(value().parse().expect("--batch takes a number")),
                "--in" => asked.dir = Some(value().into()),
                "--only" => asked.only = Some(value()),
                // Cargo's own.
                "--bench" => {}
                other => panic!("{other}: expected --blocks, --in, --only, --piece or --batch"),
            }
        }
        asked
    }
    fn step(&self, step: &str) -> bool {
        self.only.as_ref().is_none_or(|only| only == step)
    }
}
