//! Compute v2.1: servers that boot from volumes, what they say on their console, and volumes on them. What a cloud says is taken field by
//! field; what is missing is empty.

use super::http::Answer;
use super::session::{Service, Session};
use super::volumes::{id, list, text};
use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Between two looks at something that takes its time.
const LOOK: Duration = Duration::from_millis(500);

/// A server as the cloud describes it.
#[derive(Debug, Clone)]
pub struct Server {
    /// UUID.
    pub id: String,
    /// For people.
    pub name: String,
    /// `BUILD`, `ACTIVE`, `SHUTOFF`, `ERROR`, `DELETED` …
    pub status: String,
    /// What went wrong, where the cloud tells.
    pub fault: Option<String>,
    /// What was written on it.
    pub metadata: BTreeMap<String, String>,
}

/// A size of servers.
#[derive(Debug, Clone)]
pub struct Flavour {
    /// As the cloud calls it.
    pub id: String,
    /// For people.
    pub name: String,
    /// Processors.
    pub cpus: u32,
    /// Memory, bytes.
    pub memory_bytes: u64,
}

/// A server that is asked for: it has volumes and nothing else.
#[derive(Debug, Clone)]
pub struct NewServer<'a> {
    /// For people.
    pub name: &'a str,
    /// Id of its flavour.
    pub flavour: &'a str,
    /// Ids of its volumes; it boots from the first. They outlive it.
    pub volumes: &'a [String],
    /// Whose it is.
    pub metadata: &'a [(String, String)],
}

impl Session {
    /// The flavour of this name or id.
    ///
    /// # Errors
    /// There is none; the cloud does not answer or refuses, as with all that follow.
    pub fn flavour(&self, wanted: &str) -> Result<Flavour> {
        let body = self.compute("GET", "/flavors/detail", None, "its flavours")?;
        let all = list(&body, "flavors");
        let found = all.iter().find(|one| one["name"] == wanted).or_else(|| all.iter().find(|one| one["id"] == wanted));
        let Some(found) = found else {
            let known: Vec<&str> = all.iter().filter_map(|one| one["name"].as_str()).take(50).collect();
            return Err(Error::usage(format!(
                "Cloud {}: expected the flavour {wanted:.100}, found only: {}",
                self.shown(),
                known.join(", ")
            )));
        };
        Ok(Flavour {
            // What administrators write as an id is longer than a UUID at times, and goes into no path.
            id: text(&found["id"]),
            name: text(&found["name"]),
            cpus: found["vcpus"].as_u64().and_then(|cpus| cpus.try_into().ok()).unwrap_or(0),
            memory_bytes: found["ram"].as_u64().and_then(|mib| mib.checked_mul(1 << 20)).unwrap_or(0),
        })
    }

    /// One server; `None` if there is none of this id.
    ///
    /// # Errors
    /// As above.
    pub fn server(&self, server: &str) -> Result<Option<Server>> {
        let answer = self.ask_of(Service::Compute, "GET", &format!("/servers/{server}"), None)?;
        if answer.code == 404 {
            return Ok(None);
        }
        of(&self.good(answer, &format!("server {server}"))?["server"]).map(Some)
    }

    /// Servers of this very name on which `key` = `value` was written.
    ///
    /// # Errors
    /// As above.
    pub fn servers_marked(&self, name: &str, key: &str, value: &str) -> Result<Vec<Server>> {
        // The cloud takes it as a pattern, and ours have nothing in them that means something there.
        let path = format!("/servers/detail?name={name}");
        let body = self.compute("GET", &path, None, "its servers")?;
        let servers: Result<Vec<Server>> = list(&body, "servers").iter().map(of).collect();
        let ours = |server: &Server| server.name == name && server.metadata.get(key).is_some_and(|it| it == value);
        Ok(servers?.into_iter().filter(ours).collect())
    }

    /// Asks for a server, which is made after this returns; its id.
    ///
    /// # Errors
    /// As above; a quota, a volume that is no volume to boot from.
    pub fn create_server(&self, new: &NewServer<'_>) -> Result<String> {
        let metadata: BTreeMap<&String, &String> = new.metadata.iter().map(|(key, value)| (key, value)).collect();
        let volumes = new.volumes.iter().enumerate().map(|(slot, volume)| {
            json!({
                "uuid": volume,
                "source_type": "volume",
                "destination_type": "volume",
                "boot_index": if slot == 0 { 0 } else { -1 },
                "delete_on_termination": false,
            })
        });
        let volumes: Vec<Value> = volumes.collect();
        let body = json!({ "server": {
            "name": new.name,
            "flavorRef": new.flavour,
            "networks": "none",
            "metadata": metadata,
            "block_device_mapping_v2": volumes,
        } });
        let body = self.compute("POST", "/servers", Some(&body), &format!("server {}", new.name))?;
        id(&body["server"]["id"])
    }

    /// The end of what a server said on its serial console; the cloud decides how much of it. `None` while there is no console.
    ///
    /// # Errors
    /// As above.
    pub fn console(&self, server: &str) -> Result<Option<String>> {
        let body = json!({ "os-getConsoleOutput": {} });
        let path = format!("/servers/{server}/action");
        let answer = self.ask_of(Service::Compute, "POST", &path, Some(&body))?;
        if matches!(answer.code, 404 | 409) {
            return Ok(None);
        }
        let body = self.good(answer, &format!("the console of server {server}"))?;
        Ok(body["output"].as_str().map(str::to_owned))
    }

    /// Removes a server and waits until it is gone; its volumes stay.
    ///
    /// # Errors
    /// As above; it stays.
    pub fn delete_server(&self, server: &str, limit: Duration) -> Result<()> {
        let answer = self.ask_of(Service::Compute, "DELETE", &format!("/servers/{server}"), None)?;
        // One that is just being removed is fine, too.
        if !matches!(answer.code, 404 | 409) {
            self.good(answer, &format!("server {server} gone"))?;
        }
        let since = Instant::now();
        while let Some(found) = self.server(server)?.filter(|found| found.status != "DELETED") {
            if since.elapsed() > limit {
                let (seconds, status) = (limit.as_secs(), found.status);
                return Err(self
                    .failed(format!("server {server}: expected it gone within {seconds} s, found it {status}"))
                    .next("ask the cloud's administrator (the log of nova-compute), then run the same command again"));
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Gives a server a volume, which takes a moment after this returns.
    ///
    /// # Errors
    /// As above; somebody else has it.
    pub fn add_volume(&self, server: &str, volume: &str) -> Result<()> {
        let body = json!({ "volumeAttachment": { "volumeId": volume } });
        let path = format!("/servers/{server}/os-volume_attachments");
        self.compute("POST", &path, Some(&body), &format!("volume {volume} on server {server}")).map(drop)
    }

    /// Takes a volume from a server, likewise; one that it does not have is fine.
    ///
    /// # Errors
    /// As above.
    pub fn remove_volume(&self, server: &str, volume: &str) -> Result<()> {
        let path = format!("/servers/{server}/os-volume_attachments/{volume}");
        let answer = self.ask_of(Service::Compute, "DELETE", &path, None)?;
        if answer.code == 404 {
            return Ok(());
        }
        self.good(answer, &format!("volume {volume} off server {server}")).map(drop)
    }

    fn compute(&self, method: &str, path: &str, body: Option<&Value>, what: &str) -> Result<Value> {
        let answer: Answer = self.ask_of(Service::Compute, method, path, body)?;
        self.good(answer, what)
    }
}

fn of(value: &Value) -> Result<Server> {
    let metadata = value["metadata"].as_object().into_iter().flatten();
    let fault = value["fault"]["message"].as_str().filter(|fault| !fault.is_empty());
    Ok(Server {
        id: id(&value["id"])?,
        name: text(&value["name"]),
        status: text(&value["status"]),
        fault: fault.map(|fault| fault.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()),
        metadata: metadata.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
    })
}
