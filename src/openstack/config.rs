//! Which cloud, and as whom.

use crate::error::{Error, IoContext, Result};
use crate::io::read_bounded;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// The largest clouds.yaml, bytes.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What the surroundings say of clouds. `cli` reads it.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// Those that begin with `OS_`.
    pub variables: BTreeMap<String, String>,
    /// Where clouds.yaml may lie, the first one wins.
    pub directories: Vec<PathBuf>,
    /// Passwords and tokens may travel in clear.
    pub insecure_http: bool,
}

/// One cloud and our account there.
pub struct Cloud {
    /// As the user calls it; empty where the environment describes it.
    pub name: String,
    /// Keystone, with its version: `https://keystone:5000/v3`.
    pub auth_url: String,
    /// The body of the request for a token.
    pub(super) request: Zeroizing<String>,
    /// Which endpoints of the catalogue.
    pub region: Option<String>,
    /// `public`, `internal` or `admin`.
    pub interface: String,
    /// Certificates to believe besides the system's.
    pub certificates: Option<PathBuf>,
    /// Passwords and tokens may travel in clear.
    insecure_http: bool,
}

impl Cloud {
    /// The cloud `name` of clouds.yaml; with an empty name the one that `OS_CLOUD` names, else the one that the `OS_*` variables describe.
    ///
    /// In `project` (name or UUID), where one is named, instead of the one that stands there.
    ///
    /// # Errors
    /// There is none, or what is said of it is not enough; the credentials are of one project.
    pub fn find(name: &str, project: Option<&str>, environment: &Environment) -> Result<Cloud> {
        let variable = |key: &str| environment.variables.get(key).filter(|value| !value.is_empty());
        let named = if name.is_empty() { variable("OS_CLOUD").map_or("", String::as_str) } else { name };
        if named.is_empty() {
            return Cloud::new("", &of_variables(&environment.variables), project, environment.insecure_http);
        }
        let files = match variable("OS_CLIENT_CONFIG_FILE") {
            Some(file) => vec![PathBuf::from(file)],
            None => environment.directories.iter().map(|dir| dir.join("clouds.yaml")).collect(),
        };
        let Some(file) = files.iter().find(|file| file.exists()) else {
            let list: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
            return Err(Error::usage(format!(
                "Cloud '{named}': expected a clouds.yaml, found none of {}",
                list.join(", ")
            ))
            .next("write one, or name it with OS_CLIENT_CONFIG_FILE"));
        };
        let mut clouds = read(file)?;
        // Passwords may be kept apart.
        let secure = file.with_file_name("secure.yaml");
        if secure.exists() {
            merge(&mut clouds, read(&secure)?);
        }
        match clouds.get("clouds").and_then(|clouds| clouds.get(named)).and_then(Value::as_object) {
            Some(cloud) => Cloud::new(named, cloud, project, environment.insecure_http),
            None => {
                let known =
                    clouds.get("clouds").and_then(Value::as_object).map(|clouds| clouds.keys().cloned().collect());
                let known: Vec<String> = known.unwrap_or_default();
                let file = file.display();
                Err(Error::usage(format!("Cloud '{named}': expected one of {file}, found only: {}", known.join(", "))))
            }
        }
    }

    fn new(name: &str, cloud: &Map<String, Value>, project: Option<&str>, insecure_http: bool) -> Result<Cloud> {
        let mut auth = cloud.get("auth").and_then(Value::as_object).cloned().unwrap_or_default();
        let shown = if name.is_empty() { "of the OS_* variables" } else { name };
        let lack = |what: &str| {
            Error::usage(format!("Cloud {shown}: expected {what}, found none")).next(
                "take the openrc file or clouds.yaml that the cloud's dashboard gives; or make application credentials",
            )
        };
        let text = |map: &Map<String, Value>, key: &str| match map.get(key) {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            Some(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        };
        if cloud.get("verify").is_some_and(|verify| verify == &Value::Bool(false)) {
            return Err(Error::usage(format!(
                "Cloud {shown}: expected its certificate to be checked, found verify: false"
            ))
            .next("name the certificate of its authority with cacert (OS_CACERT)"));
        }
        let url = text(&auth, "auth_url").ok_or_else(|| lack("auth_url (OS_AUTH_URL)"))?;
        let url = url.trim_end_matches('/');
        let auth_url = if url.ends_with("/v3") { url.to_owned() } else { format!("{url}/v3") };
        if let Some(project) = project {
            if auth.contains_key("application_credential_secret") {
                return Err(Error::usage(format!(
                    "Cloud {shown}: expected credentials that may choose project {project}, found an application credential, which is of one project"
                ))
                .next("name a cloud of clouds.yaml for each project, and leave project= out"));
            }
            // A UUID as Keystone writes it, or a name.
            let by_id = project.len() == 32 && project.bytes().all(|byte| byte.is_ascii_hexdigit());
            auth.retain(|key, _| !["project_id", "project_name", "tenant_id", "tenant_name"].contains(&key.as_str()));
            auth.insert(if by_id { "project_id" } else { "project_name" }.into(), project.into());
        }
        let body = request(&auth, text(cloud, "auth_type").as_deref(), &text).map_err(lack)?;
        let cloud_of = |auth_url: String| Cloud {
            name: name.to_owned(),
            auth_url,
            request: Zeroizing::new(body.to_string()),
            region: text(cloud, "region_name"),
            interface: text(cloud, "interface").unwrap_or_else(|| "public".into()).trim_end_matches("URL").to_owned(),
            certificates: text(cloud, "cacert").map(PathBuf::from),
            insecure_http,
        };
        let found = cloud_of(auth_url);
        found.expect_private("Identity", &found.auth_url).map(|()| found)
    }

    /// Refuses an address to which passwords and tokens would go in clear, unless that was allowed. Whoever is on the way, or listens at the
    /// port on this host, could read them, and answer.
    ///
    /// # Errors
    /// A usage error.
    pub(super) fn expect_private(&self, service: &str, url: &str) -> Result<()> {
        let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
        if scheme.eq_ignore_ascii_case("https") || self.insecure_http {
            return Ok(());
        }
        Err(Error::usage(format!(
            "Cloud {self}: the address of {service}, {url}, is not https; passwords and tokens would travel in clear"
        ))
        .next("use the https address of the cloud, or pass --insecure-http, which is recorded"))
    }
}

/// What is asked of Keystone for a token.
fn request(
    auth: &Map<String, Value>,
    kind: Option<&str>,
    text: &dyn Fn(&Map<String, Value>, &str) -> Option<String>,
) -> Result<Value, &'static str> {
    let get = |key: &str| text(auth, key);
    // By id, or by name within a domain.
    let domain = |what: &str| {
        get(&format!("{what}_domain_id"))
            .or_else(|| get("domain_id"))
            .map(|id| serde_json::json!({ "id": id }))
            .or_else(|| {
                let name = get(&format!("{what}_domain_name")).or_else(|| get("domain_name"));
                name.map(|name| serde_json::json!({ "name": name }))
            })
    };
    let user = || {
        get("user_id").map(|id| serde_json::json!({ "id": id })).or_else(|| {
            let name = get("username")?;
            Some(serde_json::json!({ "name": name, "domain": domain("user").unwrap_or(serde_json::json!({ "id": "default" })) }))
        })
    };
    let by_application = get("application_credential_secret").is_some();
    if kind.map_or(by_application, |kind| kind.contains("applicationcredential")) {
        let secret = get("application_credential_secret").ok_or("application_credential_secret")?;
        let mut credential = serde_json::json!({ "secret": secret });
        match (get("application_credential_id"), get("application_credential_name")) {
            (Some(id), _) => credential["id"] = id.into(),
            (None, Some(name)) => {
                credential["name"] = name.into();
                credential["user"] = user().ok_or("username or user_id beside application_credential_name")?;
            }
            (None, None) => return Err("application_credential_id"),
        }
        // Its project is part of it.
        let identity =
            serde_json::json!({ "methods": ["application_credential"], "application_credential": credential });
        return Ok(serde_json::json!({ "auth": { "identity": identity } }));
    }
    if kind.is_some_and(|kind| !["password", "v3password"].contains(&kind)) {
        return Err("auth_type password or v3applicationcredential");
    }
    let mut user = user().ok_or("username (OS_USERNAME)")?;
    user["password"] = get("password").ok_or("password (OS_PASSWORD)")?.into();
    let project = get("project_id").map(|id| serde_json::json!({ "id": id })).or_else(|| {
        let name = get("project_name")?;
        Some(serde_json::json!({ "name": name, "domain": domain("project").unwrap_or(serde_json::json!({ "id": "default" })) }))
    });
    let project = project.ok_or("project_name or project_id (OS_PROJECT_NAME)")?;
    let identity = serde_json::json!({ "methods": ["password"], "password": { "user": user } });
    Ok(serde_json::json!({ "auth": { "identity": identity, "scope": { "project": project } } }))
}

/// The variables as a cloud of clouds.yaml.
fn of_variables(variables: &BTreeMap<String, String>) -> Map<String, Value> {
    let (mut cloud, mut auth) = (Map::new(), Map::new());
    for (name, value) in variables {
        let Some(key) = name.strip_prefix("OS_").map(str::to_ascii_lowercase) else { continue };
        let value = Value::String(value.clone());
        match key.as_str() {
            "region_name" | "interface" | "cacert" | "auth_type" => cloud.insert(key, value),
            "endpoint_type" => cloud.insert("interface".into(), value),
            "tenant_name" => auth.insert("project_name".into(), value),
            _ => auth.insert(key, value),
        };
    }
    cloud.insert("auth".into(), Value::Object(auth));
    cloud
}

/// Refuses credentials that came with an array, or that another user could have written: they would lead elsewhere.
fn expect_own(file: &Path) -> Result<()> {
    let what = || format!("File {}", file.display());
    let real = file.canonicalize().context(what)?;
    if let Some(array) = real.ancestors().find(|dir| dir.join("motiongear/shipment.json").symlink_metadata().is_ok()) {
        return Err(Error::untrusted(format!("{} lies on the array {}", what(), array.display()))
            .next("change to another directory, or name your own clouds.yaml with OS_CLIENT_CONFIG_FILE"));
    }
    let meta = std::fs::metadata(&real).context(what)?;
    let own = rustix::process::geteuid().as_raw();
    if ![0, own].contains(&meta.uid()) || meta.mode() & 0o022 != 0 {
        return Err(Error::untrusted(format!(
            "{}: another user can write it (owner {}, mode {:o})",
            what(),
            meta.uid(),
            meta.mode() & 0o7777
        ))
        .next("make it your own and run 'chmod go-w' on it, after a look at what it says"));
    }
    Ok(())
}

fn read(file: &Path) -> Result<Value> {
    expect_own(file)?;
    let what = || Error::usage(format!("File {}: expected clouds as openstacksdk describes them", file.display()));
    let bytes = read_bounded(file, MAX_FILE_BYTES)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| what().because(error))?;
    // What it says of the place may quote a line with a password.
    serde_saphyr::from_str(text).map_err(|_| what().next("see whether it is YAML: its indentation is the usual fault"))
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(dir: &Path, variables: &[(&str, &str)]) -> Environment {
        let variables = variables.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Environment { variables, directories: vec![dir.join("none"), dir.to_owned()], insecure_http: false }
    }

    fn body(cloud: &Cloud) -> Value {
        serde_json::from_str(&cloud.request).unwrap()
    }

    #[test]
    fn a_cloud_is_found_where_stock_clients_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let yaml = "clouds:\n  bank:\n    auth:\n      auth_url: https://keystone:5000\n      username: mover\n      project_name: river\n      \
                    user_domain_name: Default\n      project_domain_id: default\n    region_name: West\n    interface: internal\n    cacert: /ca.pem\n  \
                    app:\n    auth_type: v3applicationcredential\n    auth:\n      auth_url: https://keystone:5000/v3/\n      \
                    application_credential_id: abc\n      application_credential_secret: s3\n";
        std::fs::write(dir.path().join("clouds.yaml"), yaml).unwrap();
        let secure = "clouds:\n  bank:\n    auth:\n      password: 12345\n";
        std::fs::write(dir.path().join("secure.yaml"), secure).unwrap();
        let bank = Cloud::find("bank", None, &environment(dir.path(), &[])).unwrap();
        assert_eq!((bank.auth_url.as_str(), bank.interface.as_str()), ("https://keystone:5000/v3", "internal"));
        assert_eq!((bank.region.as_deref(), bank.certificates), (Some("West"), Some("/ca.pem".into())));
        let bank = Cloud::find("", None, &environment(dir.path(), &[("OS_CLOUD", "bank")])).unwrap();
        let user = &body(&bank)["auth"]["identity"]["password"]["user"];
        assert_eq!((&user["password"], &user["domain"]["name"]), (&"12345".into(), &"Default".into()));
        assert_eq!(body(&bank)["auth"]["scope"]["project"]["domain"]["id"], "default");
        let app = Cloud::find("app", None, &environment(dir.path(), &[])).unwrap();
        assert_eq!(app.auth_url, "https://keystone:5000/v3");
        assert_eq!(body(&app)["auth"]["identity"]["application_credential"]["id"], "abc");
        assert!(body(&app)["auth"].get("scope").is_none());
        let error = Cloud::find("mine", None, &environment(dir.path(), &[])).err().unwrap().to_string();
        assert!(error.contains("found only: app, bank") || error.contains("found only: bank, app"), "{error}");
    }

    #[test]
    fn variables_describe_a_cloud_too_and_what_is_missing_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let all =
            [("OS_AUTH_URL", "https://k/v3"), ("OS_USERNAME", "u"), ("OS_PASSWORD", "p"), ("OS_PROJECT_NAME", "x")];
        let cloud = Cloud::find("", None, &environment(dir.path(), &all)).unwrap();
        assert_eq!(body(&cloud)["auth"]["identity"]["password"]["user"]["domain"]["id"], "default");
        for lacking in 0..all.len() {
            let some: Vec<_> = all.iter().copied().filter(|pair| *pair != all[lacking]).collect();
            let error = Cloud::find("", None, &environment(dir.path(), &some)).err().unwrap().to_string();
            assert!(error.contains(all[lacking].0), "{error}");
        }
        std::fs::write(
            dir.path().join("clouds.yaml"),
            "clouds:\n bank: {auth: {auth_url: https://x}, verify: false}\n",
        )
        .unwrap();
        let error = Cloud::find("bank", None, &environment(dir.path(), &[])).err().unwrap().to_string();
        assert!(error.contains("cacert"), "{error}");
        std::fs::write(dir.path().join("clouds.yaml"), "clouds: [\n password: geheim").unwrap();
        let error = Cloud::find("bank", None, &environment(dir.path(), &[])).err().unwrap().to_string();
        assert!(!error.contains("geheim") && error.contains("YAML"), "{error}");
    }

    #[test]
    fn passwords_go_over_https_and_to_no_address_that_came_with_an_array() {
        let dir = tempfile::tempdir().unwrap();
        let variables =
            [("OS_AUTH_URL", "http://k/v3"), ("OS_USERNAME", "u"), ("OS_PASSWORD", "p"), ("OS_PROJECT_NAME", "x")];
        let mut clear = environment(dir.path(), &variables);
        assert_eq!(Cloud::find("", None, &clear).err().unwrap().kind, crate::error::Kind::Usage);
        clear.insecure_http = true;
        assert!(Cloud::find("", None, &clear).is_ok());
        let file = dir.path().join("clouds.yaml");
        let yaml = "clouds:\n bank: {auth: {auth_url: 'https://k', username: u, password: p, project_name: x}}\n";
        std::fs::write(&file, yaml).unwrap();
        let find = || Cloud::find("bank", None, &environment(dir.path(), &[])).map_err(|error| error.kind).err();
        assert_eq!(find(), None);
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(find(), Some(crate::error::Kind::Untrusted));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::create_dir(dir.path().join("motiongear")).unwrap();
        std::fs::write(dir.path().join("motiongear/shipment.json"), "").unwrap();
        assert_eq!(find(), Some(crate::error::Kind::Untrusted));
    }
}
