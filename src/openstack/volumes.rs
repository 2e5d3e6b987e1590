//! Block Storage v3: volumes, attachments, snapshots. What a cloud says is taken field by field; what is missing is empty.

use super::http::Answer;
use super::session::Session;
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two looks at something that takes its time.
const LOOK: Duration = Duration::from_millis(500);
/// The longest id, bytes; they are UUIDs.
const MAX_ID_BYTES: usize = 64;
/// What to do about a limit of the project.
const QUOTA: &str = "the project's quota is used up: ask for more, or remove what is not needed";

/// A volume as the cloud describes it.
#[derive(Debug, Clone)]
pub struct Volume {
    /// UUID.
    pub id: String,
    /// `creating`, `available`, `reserved`, `attaching`, `in-use`, `error` …
    pub status: String,
    /// Size, bytes; the cloud counts in GiB.
    pub bytes: u64,
    /// What was written on it.
    pub metadata: BTreeMap<String, String>,
    /// When it was made, as the cloud says it: texts of one form, which sort.
    pub created_at: String,
    /// Servers that have it.
    pub servers: Vec<String>,
}

/// A way to a volume's bytes.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// UUID.
    pub id: String,
    /// The server that has it, where it is one.
    pub instance: Option<String>,
    /// It was asked for, and there is no way to the bytes yet.
    pub is_reserved: bool,
    /// How its bytes are reached.
    pub connection: Value,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct NewVolume<'a> {
    /// For people.
    pub name: &'a str,
    /// GiB.
    pub gib: u64,
    /// The cloud's default where absent.
    pub volume_type: Option<&'a str>,
    /// The cloud's default where absent.
    pub zone: Option<&'a str>,
    /// Made from this snapshot, of whose type it is then.
    pub snapshot: Option<&'a str>,
    /// Whose it is.
    pub metadata: &'a [(String, String)],
}

/// What of a project is limited, by Cinder's name for it: how many it may have, and how many it has.
pub type Quotas = BTreeMap<String, (u64, u64)>;

impl Session {
    /// The project's quotas, as far as there are any.
    ///
    /// # Errors
    /// The cloud does not answer or refuses; so with all that follow.
    pub fn quotas(&self) -> Result<Quotas> {
        let answer = self.ask("GET", &format!("/os-quota-sets/{}?usage=True", self.project()), None)?;
        // Below 0 there is no limit.
        let limited = |name: &str, most: &Value, used: u64| Some((name.to_owned(), (most.as_u64()?, used)));
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        if !matches!(answer.code, 403 | 404) {
            let body = self.good(answer, "its quotas")?;
            let all = body["quota_set"].as_object().into_iter().flatten();
            let used = |one: &Value| number(&one["in_use"]).saturating_add(number(&one["reserved"]));
            return Ok(all.filter_map(|(name, one)| limited(name, &one["limit"], used(one))).collect());
        }
        // Where ordinary users may not look there: without what is limited for one type.
        let body = self.get("/limits", "its limits")?;
        let absolute = &body["limits"]["absolute"];
        let known = [
            ("volumes", "maxTotalVolumes", "totalVolumesUsed"),
            ("snapshots", "maxTotalSnapshots", "totalSnapshotsUsed"),
            ("gigabytes", "maxTotalVolumeGigabytes", "totalGigabytesUsed"),
        ];
        Ok(known
            .iter()
            .filter_map(|(name, most, used)| limited(name, &absolute[most], number(&absolute[used])))
            .collect())
    }

    /// The name of the type that volumes get which ask for none.
    ///
    /// # Errors
    /// As above.
    pub fn default_volume_type(&self) -> Result<Option<String>> {
        let answer = self.ask("GET", "/types/default", None)?;
        if answer.code == 404 {
            return Ok(None);
        }
        let body = self.good(answer, "its default volume type")?;
        Ok(body["volume_type"]["name"].as_str().map(str::to_owned))
    }

    /// Names of the volume types that we may use.
    ///
    /// # Errors
    /// As above.
    pub fn volume_types(&self) -> Result<Vec<String>> {
        let body = self.get("/types?is_public=None", "its volume types")?;
        Ok(list(&body, "volume_types").iter().filter_map(|kind| kind["name"].as_str().map(str::to_owned)).collect())
    }

    /// Volumes on which `key` = `value` was written, oldest first.
    ///
    /// # Errors
    /// As above.
    pub fn volumes_marked(&self, key: &str, value: &str) -> Result<Vec<Volume>> {
        // As openstacksdk writes it: a Python dictionary.
        let filter = format!("{{'{key}': '{value}'}}");
        let filter = percent_encoding::utf8_percent_encode(&filter, percent_encoding::NON_ALPHANUMERIC);
        let body = self.get(&format!("/volumes/detail?metadata={filter}"), "its volumes")?;
        let volumes: Result<Vec<Volume>> = list(&body, "volumes").iter().map(volume).collect();
        let mut volumes = volumes?;
        // A cloud whose administrator took this filter away returns all.
        volumes.retain(|volume| volume.metadata.get(key).is_some_and(|found| found == value));
        volumes.sort_by(|a, b| (&a.created_at, &a.id).cmp(&(&b.created_at, &b.id)));
        Ok(volumes)
    }

    /// One volume; `None` if there is none of this id.
    ///
    /// # Errors
    /// As above.
    pub fn volume(&self, id: &str) -> Result<Option<Volume>> {
        let answer = self.ask("GET", &format!("/volumes/{id}"), None)?;
        if answer.code == 404 {
            return Ok(None);
        }
        volume(&self.good(answer, &format!("volume {id}"))?["volume"]).map(Some)
    }

    /// Asks for a new volume, which is made after this returns.
    ///
    /// # Errors
    /// As above.
    pub fn create_volume(&self, new: &NewVolume<'_>) -> Result<Volume> {
        let metadata: BTreeMap<&String, &String> = new.metadata.iter().map(|(key, value)| (key, value)).collect();
        let mut body = json!({ "size": new.gib, "name": new.name, "metadata": metadata });
        let options =
            [("volume_type", new.volume_type), ("availability_zone", new.zone), ("snapshot_id", new.snapshot)];
        for (key, value) in options {
            if let Some(value) = value {
                body[key] = value.into();
            }
        }
        let body = self.post("/volumes", &json!({ "volume": body }), &format!("a volume of {} GiB", new.gib))?;
        volume(&body["volume"])
    }

    /// Waits until a volume has one of `wanted` as its status.
    ///
    /// # Errors
    /// It gets into an error, is gone, or takes longer than `limit`.
    pub fn wait_for_volume(&self, id: &str, wanted: &[&str], limit: Duration) -> Result<Volume> {
        let since = Instant::now();
        loop {
            let Some(volume) = self.volume(id)? else {
                return Err(self.failed(format!("volume {id}: expected it there, found it gone")));
            };
            if wanted.contains(&volume.status.as_str()) {
                return Ok(volume);
            }
            let expected = wanted.join(" or ");
            if volume.status.starts_with("error") {
                let why = self.why(id);
                return Err(self
                    .failed(format!("volume {id}: expected status {expected}, found {}{why}", volume.status))
                    .next(
                        "ask the cloud's administrator (openstack volume show, the log of cinder-volume); --abort removes one that never came up",
                    ));
            }
            if since.elapsed() > limit {
                let seconds = limit.as_secs();
                return Err(self.failed(format!(
                    "volume {id}: expected status {expected} within {seconds} s, found {}",
                    volume.status
                )));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What the cloud tells users of what went wrong with a volume.
    fn why(&self, id: &str) -> String {
        let body = self.get(&format!("/messages?resource_uuid={id}"), "its messages").unwrap_or_default();
        let mut words = list(&body, "messages").iter().filter_map(|message| message["user_message"].as_str());
        words.next().map(|words| format!(" ({words:.300})")).unwrap_or_default()
    }

    /// Removes a volume; one that is gone is fine.
    ///
    /// # Errors
    /// As above; it is in use, or has snapshots.
    pub fn delete_volume(&self, id: &str, limit: Duration) -> Result<()> {
        let answer = self.ask("DELETE", &format!("/volumes/{id}"), None)?;
        if answer.code != 404 {
            self.good(answer, &format!("volume {id} gone"))?;
        }
        let since = Instant::now();
        while let Some(volume) = self.volume(id)? {
            if volume.status != "deleting" && volume.status.starts_with("error") || since.elapsed() > limit {
                return Err(self.failed(format!("volume {id}: expected it gone, found it {}", volume.status)));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Writes on a volume, beside what is there.
    ///
    /// # Errors
    /// As above.
    pub fn mark_volume(&self, id: &str, metadata: &[(String, String)]) -> Result<()> {
        let metadata: BTreeMap<&String, &String> = metadata.iter().map(|(key, value)| (key, value)).collect();
        self.post(&format!("/volumes/{id}/metadata"), &json!({ "metadata": metadata }), "metadata of a volume")
            .map(drop)
    }

    /// Lets machines boot from a volume, and says what such a machine must be like.
    ///
    /// # Errors
    /// As above.
    pub fn make_bootable(&self, id: &str, image: &[(&str, &str)]) -> Result<()> {
        let path = format!("/volumes/{id}/action");
        self.post(&path, &json!({ "os-set_bootable": { "bootable": true } }), "a bootable volume")?;
        let metadata: BTreeMap<&str, &str> = image.iter().copied().collect();
        if metadata.is_empty() {
            return Ok(());
        }
        let body = json!({ "os-set_image_metadata": { "metadata": metadata } });
        self.post(&path, &body, "image metadata of a volume").map(drop)
    }

    /// All attachments of a volume, without their connections.
    ///
    /// # Errors
    /// As above.
    pub fn attachments(&self, volume: &str) -> Result<Vec<Attachment>> {
        let body = self.get(&format!("/attachments/detail?volume_id={volume}"), "its attachments")?;
        let of_volume = list(&body, "attachments").iter().filter(|entry| entry["volume_id"] == volume);
        of_volume.map(attachment).collect()
    }

    /// Attaches a volume to this host, no server of the cloud.
    ///
    /// # Errors
    /// As above; somebody else has it.
    pub fn attach(&self, volume: &str, connector: &Value) -> Result<Attachment> {
        let body = json!({ "attachment": { "volume_uuid": volume, "connector": connector, "mode": "rw" } });
        attachment(&self.post("/attachments", &body, &format!("volume {volume} attached"))?["attachment"])
    }

    /// Whether an attachment is there.
    ///
    /// # Errors
    /// As above.
    pub fn is_attached(&self, attachment: &str) -> Result<bool> {
        let answer = self.ask("GET", &format!("/attachments/{attachment}"), None)?;
        if answer.code == 404 {
            return Ok(false);
        }
        self.good(answer, &format!("attachment {attachment}")).map(|_| true)
    }

    /// Says that an attachment is in use.
    ///
    /// # Errors
    /// As above.
    pub fn complete(&self, attachment: &str) -> Result<()> {
        let path = format!("/attachments/{attachment}/action");
        self.post(&path, &json!({ "os-complete": {} }), "a complete attachment").map(drop)
    }

    /// Ends an attachment; one that is gone is fine.
    ///
    /// # Errors
    /// As above.
    pub fn detach(&self, attachment: &str) -> Result<()> {
        let answer = self.ask("DELETE", &format!("/attachments/{attachment}"), None)?;
        if answer.code == 404 {
            return Ok(());
        }
        self.good(answer, &format!("attachment {attachment} ended")).map(drop)
    }

    /// Id and status of the snapshot `name` of a volume, where there is one.
    ///
    /// # Errors
    /// As above.
    pub fn find_snapshot(&self, volume: &str, name: &str) -> Result<Option<(String, String)>> {
        let body = self.get(&format!("/snapshots/detail?volume_id={volume}"), "its snapshots")?;
        let mut own = list(&body, "snapshots").iter().filter(|s| s["volume_id"] == volume && s["name"] == name);
        own.next().map(|s| Ok((id(&s["id"])?, text(&s["status"])))).transpose()
    }

    /// The snapshot `name` of a volume: taken, unless it is there already; returns its id when it is complete.
    ///
    /// # Errors
    /// As above; it gets into an error, or takes longer than `limit`.
    pub fn snapshot(&self, volume: &str, name: &str, metadata: &[(String, String)], limit: Duration) -> Result<String> {
        let find = || self.find_snapshot(volume, name);
        if find()?.is_none() {
            let metadata: BTreeMap<&String, &String> = metadata.iter().map(|(key, value)| (key, value)).collect();
            let body = json!({ "snapshot": { "volume_id": volume, "name": name, "metadata": metadata } });
            self.post("/snapshots", &body, &format!("a snapshot of volume {volume}"))?;
        }
        let since = Instant::now();
        loop {
            match find()? {
                Some((id, status)) if status == "available" => return Ok(id),
                Some((_, status)) if !status.starts_with("error") && since.elapsed() < limit => {
                    std::thread::sleep(LOOK)
                }
                found => {
                    let found = found.map_or_else(|| "none".into(), |(_, status)| format!("one that is {status}"));
                    return Err(self
                        .failed(format!("volume {volume}: expected a snapshot {name}, found {found}"))
                        .next("remove the snapshot if it failed, then run the same command again"));
                }
            }
        }
    }

    fn get(&self, path: &str, what: &str) -> Result<Value> {
        let answer = self.ask("GET", path, None)?;
        self.good(answer, what)
    }

    fn post(&self, path: &str, body: &Value, what: &str) -> Result<Value> {
        let answer = self.ask("POST", path, Some(body))?;
        self.good(answer, what)
    }

    /// What it says, where it did what was asked.
    pub(super) fn good(&self, answer: Answer, what: &str) -> Result<Value> {
        match answer.code {
            200..=299 => Ok(answer.body),
            code => {
                let next = match code {
                    403 if answer.words().contains("uota") => QUOTA,
                    401 | 403 => "see whether this account may do that in this project",
                    413 => QUOTA,
                    _ => "mend that, then run the same command again",
                };
                Err(self.failed(format!("expected {what}, found {}", answer.words())).next(next))
            }
        }
    }

    /// Of this cloud.
    pub(super) fn failed(&self, what: String) -> Error {
        Error::failed(format!("Cloud {}: {what}", self.shown()))
    }

    /// Its name, for people.
    pub fn shown(&self) -> &str {
        match self.cloud() {
            "" => "of the OS_* variables",
            name => name,
        }
    }
}

pub(super) fn list<'a>(body: &'a Value, key: &str) -> &'a [Value] {
    body[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

pub(super) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// An id goes into paths: it may not lead elsewhere.
pub(super) fn id(value: &Value) -> Result<String> {
    let plain = |id: &&str| {
        !id.is_empty() && id.len() <= MAX_ID_BYTES && id.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    match value.as_str().filter(plain) {
        Some(id) => Ok(id.to_owned()),
        None => {
            let found: String = value.to_string().chars().take(100).collect();
            Err(Error::failed(format!("Cloud: expected an id, found {found}")))
        }
    }
}

fn volume(value: &Value) -> Result<Volume> {
    let metadata = value["metadata"].as_object().into_iter().flatten();
    let servers = list(value, "attachments").iter().map(|attachment| text(&attachment["server_id"]));
    Ok(Volume {
        id: id(&value["id"])?,
        status: text(&value["status"]),
        bytes: value["size"].as_u64().and_then(|gib| gib.checked_mul(1 << 30)).unwrap_or(0),
        metadata: metadata.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
        created_at: text(&value["created_at"]),
        servers: servers.filter(|server| !server.is_empty()).collect(),
    })
}

fn attachment(value: &Value) -> Result<Attachment> {
    let instance = value["instance"].as_str().filter(|instance| !instance.is_empty()).map(str::to_owned);
    let is_reserved = value["status"] == "reserved";
    Ok(Attachment { id: id(&value["id"])?, instance, is_reserved, connection: value["connection_info"].clone() })
}
