//! A token and the ways to a cloud's services. Tokens end while an import runs for days: a new one is taken then.

use super::config::Cloud;
use super::http::{Answer, Http};
use crate::error::{Error, Result};
use serde_json::Value;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zeroize::Zeroizing;

/// A service of a cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// Cinder. A cloud without it is none of ours.
    BlockStorage,
    /// Nova.
    Compute,
    /// Neutron.
    Network,
}

impl Service {
    /// What it is called in catalogues.
    fn types(self) -> &'static [&'static str] {
        match self {
            Service::BlockStorage => &["block-storage", "volumev3", "block-store"],
            Service::Compute => &["compute"],
            Service::Network => &["network"],
        }
    }

    /// For people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Service::BlockStorage => "Block Storage",
            Service::Compute => "Compute",
            Service::Network => "Networking",
        }
    }

    /// The least that we need of it: attachments with a mode came with 3.54 (OpenStack Rocky), servers without a network with 2.37 (Newton).
    /// Neutron has no versions to ask for.
    fn version(self) -> &'static str {
        match self {
            Service::Network => "network 2.0",
            Service::BlockStorage => "volume 3.54",
            Service::Compute => "compute 2.37",
        }
    }
}

/// Questions are asked again where the cloud is busy or on the way is something wrong; so long after each.
const PAUSES: [u64; 5] = [1, 2, 4, 8, 15];

/// Our session with one cloud; threads may share it.
pub struct Session {
    cloud: Cloud,
    http: Http,
    way: Mutex<Way>,
}

struct Way {
    token: Zeroizing<String>,
    /// Of Block Storage, with the project.
    storage: String,
    /// Of Compute, where the cloud has it.
    compute: Option<String>,
    /// Of Networking, where the cloud has it.
    network: Option<String>,
    /// The project's id.
    project: String,
    /// The project's name.
    project_name: String,
}

impl Way {
    fn endpoint(&self, of: Service) -> Option<&str> {
        match of {
            Service::BlockStorage => Some(&self.storage),
            Service::Compute => self.compute.as_deref(),
            Service::Network => self.network.as_deref(),
        }
    }
}

impl Session {
    /// Logs in.
    ///
    /// # Errors
    /// Nobody answers; the credentials are wrong or over; the catalogue knows no Block Storage.
    pub fn open(cloud: Cloud) -> Result<Session> {
        let http = Http::new(cloud.certificates.as_deref())?;
        let way = Mutex::new(log_in(&http, &cloud)?);
        Ok(Session { cloud, http, way })
    }

    /// As the user calls it.
    pub fn cloud(&self) -> &str {
        &self.cloud.name
    }

    /// The host of Block Storage.
    pub fn host(&self) -> String {
        let endpoint = self.way().storage.clone();
        let uri: Option<ureq::http::Uri> = endpoint.parse().ok();
        uri.and_then(|uri| uri.host().map(|host| host.trim_matches(['[', ']']).to_owned())).unwrap_or_default()
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of the project that we are in.
    pub fn project(&self) -> String {
        self.way().project.clone()
    }

    /// Its name.
    pub fn project_name(&self) -> String {
        self.way().project_name.clone()
    }

    /// Whether the catalogue has this service.
    pub(super) fn has(&self, service: Service) -> bool {
        self.way().endpoint(service).is_some()
    }

    /// Asks Block Storage.
    pub(super) fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        self.ask_of(Service::BlockStorage, method, path, body)
    }

    /// Asks a service; the answer is whatever it says but "log in again". Questions (GET) and removals are repeated where the
    /// cloud is busy; what makes something is not.
    pub(super) fn ask_of(&self, of: Service, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let body = body.map(Value::to_string);
        let mut pauses = PAUSES.iter().filter(|_| matches!(method, "GET" | "DELETE"));
        loop {
            match self.once(of, method, path, body.as_deref()) {
                Ok(answer) if !matches!(answer.code, 429 | 500 | 502..=504) => return Ok(answer),
                last => match pauses.next() {
                    Some(pause) => std::thread::sleep(Duration::from_secs(*pause)),
                    None => return last,
                },
            }
        }
    }

    fn once(&self, of: Service, method: &str, path: &str, body: Option<&str>) -> Result<Answer> {
        let (endpoint, token) = {
            let way = self.way();
            (way.endpoint(of).map(str::to_owned), way.token.clone())
        };
        let endpoint = endpoint.ok_or_else(|| {
            Error::failed(format!("Cloud {}: expected {} in its catalogue, found none", self.cloud, of.name()))
                .next("see 'openstack catalog list', and region_name and interface (OS_REGION_NAME, OS_INTERFACE)")
        })?;
        let url = format!("{endpoint}{path}");
        let ask = |token: &str| {
            let headers = [("X-Auth-Token", token), ("OpenStack-API-Version", of.version())];
            self.http.ask(method, &url, &headers, body, "")
        };
        let answer = ask(&token)?;
        if answer.code == 406 {
            return Err(Error::failed(format!(
                "Cloud {}: expected {} API {} or newer, found {}",
                self.cloud,
                of.name(),
                of.version(),
                answer.words()
            ))
            .next("OpenStack Rocky or newer is needed"));
        }
        if answer.code != 401 {
            return Ok(answer);
        }
        let way = log_in(&self.http, &self.cloud)?;
        let token = way.token.clone();
        *self.way() = way;
        ask(&token)
    }
}

impl std::fmt::Display for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name.as_str() {
            "" => write!(f, "at {}", self.auth_url),
            name => write!(f, "{name} ({})", self.auth_url),
        }
    }
}

fn log_in(http: &Http, cloud: &Cloud) -> Result<Way> {
    let url = format!("{}/auth/tokens", cloud.auth_url);
    let answer = http.ask("POST", &url, &[], Some(&cloud.request), "X-Subject-Token")?;
    let failed = |found: String, next: &str| {
        Err(Error::failed(format!("Cloud {cloud}: expected a token, found {found}")).next(next))
    };
    let token = match (answer.code, &answer.token) {
        (200 | 201, Some(token)) => Zeroizing::new(token.clone()),
        (401, _) => {
            return failed(
                answer.words(),
                "see whether user, password or application credential are right and not over",
            );
        }
        _ => return failed(answer.words(), "see whether OS_AUTH_URL (auth_url) is the address of Identity"),
    };
    let body = &answer.body["token"];
    let entries = body["catalog"].as_array().map(Vec::as_slice).unwrap_or_default();
    let of = |service: Service| {
        entries
            .iter()
            .filter(move |entry| entry["type"].as_str().is_some_and(|kind| service.types().contains(&kind)))
            .flat_map(|entry| entry["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default())
    };
    let fits = |endpoint: &&Value| {
        let region = endpoint["region_id"].as_str().or_else(|| endpoint["region"].as_str());
        endpoint["interface"] == cloud.interface.as_str()
            && cloud.region.as_deref().is_none_or(|wanted| region == Some(wanted))
    };
    let url = |service: Service| {
        let url = of(service).find(fits).and_then(|endpoint| endpoint["url"].as_str());
        url.map(|url| url.trim_end_matches('/').to_owned())
    };
    let Some(storage) = url(Service::BlockStorage) else {
        let kinds: Vec<&str> = entries.iter().filter_map(|entry| entry["type"].as_str()).collect();
        let region = cloud.region.as_deref().map(|region| format!(" of region {region}")).unwrap_or_default();
        let Cloud { interface, .. } = cloud;
        return Err(Error::failed(format!(
            "Cloud {cloud}: expected the {interface} endpoint of Block Storage{region} in the catalogue, found {} of other regions or interfaces, and services {}",
            of(Service::BlockStorage).count(),
            kinds.join(", ")
        ))
        .next("see 'openstack catalog list', and set region_name and interface (OS_REGION_NAME, OS_INTERFACE)"));
    };
    // It stands in paths.
    let project = super::volumes::id(&body["project"]["id"])?;
    // Some catalogues name the version, others do not.
    let network = url(Service::Network).map(|url| url.strip_suffix("/v2.0").unwrap_or(&url).to_owned());
    let project_name = super::volumes::text(&body["project"]["name"]);
    Ok(Way { token, storage, compute: url(Service::Compute), network, project, project_name })
}
