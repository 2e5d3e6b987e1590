//! The cloud of the tests, and looking at it from outside.

use crate::common::{Motiongear, Place, Ran, tool, try_tool};
use crate::import::{BLOCK, command};
use crate::shipment::{Disk, Made, Recipe, data, make};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::{OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

pub const CEPH: &str = "/var/tmp/mg-cloud/ceph/ceph.conf";
const KEYSTONE: &str = "http://127.0.0.1:5000/v3";
const CINDER: &str = "http://127.0.0.1:8776/v3";
const NEUTRON: &str = "http://127.0.0.1:9696/v2.0";
const NOVA: &str = "http://127.0.0.1:8774/v2.1";
pub const PASSWORD: &str = "secret";

/// Tests that hurt the cloud itself have it alone.
static CLOUD: RwLock<()> = RwLock::new(());

/// The cloud, shared with other tests.
pub fn shared() -> RwLockReadGuard<'static, ()> {
    up();
    CLOUD.read().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The cloud for one test alone.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    up();
    CLOUD.write().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn up() {
    static UP: OnceLock<()> = OnceLock::new();
    UP.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cloud/stack");
        // Not by `output()`: what is started there would keep its pipes.
        let log = std::env::temp_dir().join("mg-cloud-up.log");
        let said = std::fs::File::create(&log).unwrap();
        let status =
            std::process::Command::new(script).arg("up").stdout(said.try_clone().unwrap()).stderr(said).status();
        assert!(status.unwrap().success(), "{}", std::fs::read_to_string(&log).unwrap());
    });
}

/// What a user of the cloud has in the environment.
pub fn as_user(command: Motiongear, project: &str) -> Motiongear {
    [
        ("OS_AUTH_URL", KEYSTONE),
        ("OS_USERNAME", "bank"),
        ("OS_PASSWORD", PASSWORD),
        ("OS_PROJECT_NAME", project),
        ("OS_REGION_NAME", "RegionOne"),
        ("CEPH_CONF", CEPH),
    ]
    .into_iter()
    .fold(command, |command, (name, value)| command.env(name, value))
}

/// A user logged in, by curl.
pub struct Rest {
    token: String,
    project: String,
    user: String,
}

impl Rest {
    pub fn new(user: &str, project: &str) -> Rest {
        let domain = json!({ "id": "default" });
        let user = json!({ "name": user, "domain": domain, "password": PASSWORD });
        let identity = json!({ "methods": ["password"], "password": { "user": user } });
        let scope = json!({ "project": { "name": project, "domain": domain } });
        let body = json!({ "auth": { "identity": identity, "scope": scope } }).to_string();
        let url = format!("{KEYSTONE}/auth/tokens");
        let answer = tool("curl", ["-s", "-i", "-H", "Content-Type: application/json", "-d", &body, &url]);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let token = head.lines().find_map(|line| line.split_once("X-Subject-Token: ")).unwrap().1.trim().to_owned();
        let known = &serde_json::from_str::<Value>(body).unwrap()["token"];
        let id = |what: &str| known[what]["id"].as_str().unwrap().to_owned();
        Rest { token, project: id("project"), user: id("user") }
    }

    /// An application credential of this user in this project, which ends after `life`: its id and secret.
    pub fn credential(&self, name: &str, life: Duration) -> (String, String) {
        let ends = jiff::Timestamp::now() + jiff::SignedDuration::try_from(life).unwrap();
        let ends = ends.strftime("%Y-%m-%dT%H:%M:%S.000000").to_string();
        let body = json!({ "application_credential": { "name": name, "expires_at": ends } });
        let url = format!("{KEYSTONE}/users/{}/application_credentials", self.user);
        let (code, body) = self.call("POST", url, "identity 3", Some(body));
        assert_eq!(code, 201, "{body}");
        let text = |key: &str| body["application_credential"][key].as_str().unwrap().to_owned();
        (text("id"), text("secret"))
    }

    /// Block Storage's answer, and its code.
    pub fn ask(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.call(method, format!("{CINDER}/{}{path}", self.project), "volume 3.66", body)
    }

    /// Compute's answer, and its code.
    pub fn compute(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.call(method, format!("{NOVA}{path}"), "compute 2.37", body)
    }

    /// Networking's answer, and its code.
    pub fn networking(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.call(method, format!("{NEUTRON}{path}"), "network 2.0", body)
    }

    fn call(&self, method: &str, url: String, version: &str, body: Option<Value>) -> (u16, Value) {
        let version = format!("OpenStack-API-Version: {version}");
        let token = format!("X-Auth-Token: {}", self.token);
        let mut arguments = vec!["-s", "-X", method, "-w", "\n%{http_code}", "-H", &token];
        arguments.extend(["-H", &version, "-H", "Content-Type: application/json"]);
        let body = body.map(|body| body.to_string());
        arguments.extend(body.iter().flat_map(|body| ["-d", body.as_str()]));
        arguments.push(&url);
        let answer = tool("curl", arguments);
        let (body, code) = answer.rsplit_once('\n').unwrap();
        (code.trim().parse().unwrap(), serde_json::from_str(body).unwrap_or(Value::Null))
    }

    pub fn get(&self, path: &str) -> Value {
        let (code, body) = self.ask("GET", path, None);
        assert_eq!(code, 200, "{path}: {body}");
        body
    }

    pub fn project(&self) -> &str {
        &self.project
    }

    /// Volumes of a disk, as described by the cloud.
    pub fn volumes_of(&self, disk: &Disk) -> Vec<Value> {
        self.volumes_of_uuid(&disk.uuid.to_string())
    }

    /// The same of the disk of this UUID.
    pub fn volumes_of_uuid(&self, disk: &str) -> Vec<Value> {
        let all = self.get("/volumes/detail")["volumes"].as_array().unwrap().clone();
        all.into_iter().filter(|volume| volume["metadata"]["motiongear_disk"] == disk).collect()
    }

    /// The one volume of a disk, which nobody has and nothing is left on.
    #[track_caller]
    pub fn the_volume_of(&self, disk: &Disk) -> Value {
        let volumes = self.volumes_of(disk);
        assert_eq!(volumes.len(), 1, "{volumes:?}");
        let volume = volumes.into_iter().next().unwrap();
        assert_eq!(volume["status"], "available", "{volume}");
        let id = volume["id"].as_str().unwrap();
        let attachments = self.get(&format!("/attachments?volume_id={id}"));
        assert_eq!(attachments["attachments"], json!([]));
        assert_eq!(self.snapshots(id).len(), 1);
        volume
    }

    pub fn snapshots(&self, volume: &str) -> Vec<Value> {
        self.get(&format!("/snapshots/detail?volume_id={volume}"))["snapshots"].as_array().unwrap().clone()
    }
}

/// The image behind a volume of Cinder: both backends keep them in Ceph.
pub fn image_of(volume: &Value) -> String {
    format!("volume-{}", volume["id"].as_str().unwrap())
}

/// `rbd` as the cluster's administrator.
pub fn rbd(arguments: &[&str]) -> String {
    tool("rbd", ["--conf", CEPH].iter().chain(arguments))
}

/// The disk's bytes and then zeros are what an image of the pool holds.
#[track_caller]
pub fn check_image(place: &Place, image: &str, disk: &Disk) {
    let copy = place.join("exported");
    rbd(&["export", "--no-progress", &format!("volumes/{image}"), copy.to_str().unwrap()]);
    let found = std::fs::read(&copy).unwrap();
    std::fs::remove_file(&copy).unwrap();
    let (head, tail) = found.split_at(disk.data.len());
    assert!(head == disk.data, "{image} differs");
    assert!(tail.iter().all(|byte| *byte == 0), "{image} is not zero behind the disk");
}

/// A sealed shipment of one disk.
pub struct Truck {
    pub place: Place,
    pub disk: Disk,
    pub made: Made,
}

impl Truck {
    /// Of `mib` and a short block.
    pub fn new(mib: usize) -> Truck {
        let mut disk = Disk::new("db01", "sda", data((mib << 20) + 512, BLOCK, |block| block % 5 == 3));
        // As a branch has it of a disk with an MBR on a virtio bus.
        disk.facts = json!({
            "resolved": "/dev/vda", "transport": "virtio",
            "table": { "scheme": "mbr", "disk_id": "0badc0de", "sector_bytes": 512, "partitions": [
                { "number": 1, "start": 1048576, "bytes": 1048576, "type_id": "0x83" }] },
            "volumes": [{ "partition": 1, "contents": [{ "kind": "ext4" }] }],
        })
        .to_string();
        Truck::of(disk)
    }

    pub fn of(disk: Disk) -> Truck {
        let place = Place::new();
        let made =
            make(place.path(), std::slice::from_ref(&disk), &Recipe { records_per_pack: 200, ..Recipe::default() });
        Truck { place, disk, made }
    }

    /// `import --to TO EXTRA` as the user of the cloud.
    pub fn import(&self, to: &str, extra: &[&str]) -> Motiongear {
        as_user(command(&self.place, &self.made, "import", "auto").args(["--to", to]).args(extra), "bank")
    }

    pub fn run(&self, to: &str, extra: &[&str]) -> Ran {
        self.import(to, extra).run()
    }

    /// Blocks that the ledger calls written.
    pub fn mark(&self) -> u64 {
        self.ledger("mark").parse().unwrap_or(0)
    }

    /// A column of the import in the ledger; nothing while there is none.
    pub fn ledger(&self, column: &str) -> String {
        let file = self.place.join("state/ledger.db");
        let sql = format!("SELECT {column} FROM import");
        try_tool("sqlite3", ["-readonly".as_ref(), file.as_os_str(), sql.as_ref()]).stdout.trim().to_owned()
    }

    /// What `import --json` says of an import that is complete.
    #[track_caller]
    pub fn check(&self, imported: &Value) -> Value {
        let outcome = imported["disks"][0].clone();
        assert_eq!((&outcome["damaged"], &outcome["through_cache"]), (&0.into(), &false.into()), "{imported}");
        assert_eq!(outcome["digest"], outcome["sealed_digest"]);
        assert!(outcome["recovery_point"].is_string(), "{outcome}");
        outcome
    }

    /// Servers of ours that still run for this test's ledger or any other.
    pub fn servers(&self, word: &str) -> Vec<String> {
        let list = try_tool("pgrep", ["-af", "qemu-nbd"]).stdout;
        list.lines().filter(|line| line.contains(word)).map(str::to_owned).collect()
    }
}
