//! One request and its answer. What comes back is bounded in length and in time.

use crate::error::{Error, Result};
use rustls::crypto::aws_lc_rs;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

/// The longest answer, bytes.
const MAX_ANSWER_BYTES: u64 = 16 << 20;
/// The largest file of certificates, bytes.
const MAX_CERTIFICATES_BYTES: u64 = 1 << 20;
/// How long a connection may take to come about.
const CONNECTS_WITHIN: Duration = Duration::from_secs(20);
/// How long a whole request may take: some drivers work while the client waits.
const ANSWERS_WITHIN: Duration = Duration::from_secs(180);
/// What is shown of an answer that is none.
const SHOWN_CHARACTERS: usize = 300;

/// The client of one cloud.
pub struct Http(Agent);

/// What came back.
pub struct Answer {
    /// HTTP's code.
    pub code: u16,
    /// A header's value, where the caller asked for it.
    pub token: Option<String>,
    /// The body as JSON; null where there is none, a text where it is something else.
    pub body: Value,
}

impl Answer {
    /// What it says went wrong.
    pub fn words(&self) -> String {
        let of = |body: &Value| {
            // {"badRequest": {"code": 400, "message": …}}, {"error": {"message": …}}, {"faultstring": …}
            let inner = body.as_object().and_then(|body| body.values().next());
            let message = inner.and_then(|inner| inner.get("message")).or_else(|| body.get("message"));
            message.or_else(|| inner.filter(|inner| inner.is_string())).and_then(Value::as_str).map(str::to_owned)
        };
        let text = of(&self.body).unwrap_or_else(|| match &self.body {
            Value::Null => String::new(),
            other => other.to_string(),
        });
        let text: String = text.chars().take(SHOWN_CHARACTERS).map(|c| if c.is_control() { ' ' } else { c }).collect();
        format!("HTTP {}: {}", self.code, text.trim())
    }
}

impl Http {
    /// `certificates`: a file of those to believe instead of the system's.
    ///
    /// # Errors
    /// The file cannot be read, or holds none.
    pub fn new(certificates: Option<&Path>) -> Result<Http> {
        let roots = match certificates {
            None => RootCerts::PlatformVerifier,
            Some(path) => {
                let what = || format!("Certificates {}", path.display());
                let bytes = crate::io::read_bounded(path, MAX_CERTIFICATES_BYTES)?;
                let found: Vec<Certificate<'static>> = parse_pem(&bytes)
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(certificate)) => Some(certificate.to_owned()),
                        _ => None,
                    })
                    .collect();
                if found.is_empty() {
                    return Err(Error::usage(format!("{}: expected PEM certificates, found none", what())));
                }
                RootCerts::new_with_certs(&found)
            }
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(Arc::new(aws_lc_rs::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECTS_WITHIN))
            .timeout_global(Some(ANSWERS_WITHIN))
            // A token must not follow wherever an answer leads.
            .max_redirects(0)
            .user_agent("motiongear")
            .build();
        Ok(Http(agent.into()))
    }

    /// Sends a request and takes the answer, whatever its code; `token` is the name of a header that is wanted too.
    ///
    /// # Errors
    /// Nobody answers in time, or what comes back is no HTTP or too long.
    pub fn ask(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
        token: &str,
    ) -> Result<Answer> {
        let what = || format!("{method} {}", url.split('?').next().unwrap_or(url));
        let mut request = ureq::http::Request::builder().method(method).uri(url).header("Accept", "application/json");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header("Content-Type", "application/json");
        }
        let failed = |error: ureq::Error| {
            let next = "see whether the address is right and reachable from here, then run the same command again";
            Error::io(what(), error.into_io()).next(next)
        };
        let odd = |error: ureq::http::Error| Error::usage(what()).because(error);
        let answer = match body {
            Some(body) => self.0.run(request.body(body.to_owned()).map_err(odd)?),
            None => self.0.run(request.body(()).map_err(odd)?),
        };
        let mut answer = answer.map_err(failed)?;
        let code = answer.status().as_u16();
        let token = answer.headers().get(token).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let bytes = answer.body_mut().with_config().limit(MAX_ANSWER_BYTES).read_to_vec().map_err(failed)?;
        let body = match bytes.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&bytes).unwrap_or_else(|_| {
                Value::String(String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned())
            }),
        };
        Ok(Answer { code, token, body })
    }
}
