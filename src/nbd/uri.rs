//! Where an export is: `nbd://HOST[:PORT]/EXPORT`, `nbd+unix:///EXPORT?socket=PATH`, and both with `nbds` for TLS.
//! Source: <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md>. Names of files for TLS as in nbd_connect_uri(3).

use super::pin::Pin;
use crate::error::{Error, Result};
use percent_encoding::percent_decode_str;
use std::fmt;
use std::path::{Path, PathBuf};

/// IANA's port for NBD.
const PORT: u16 = 10809;
/// The longest URI that is looked at, bytes.
const MAX_BYTES: usize = 16 << 10;

/// One export of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uri {
    /// Where the server listens.
    pub address: Address,
    /// The export; empty for the server's default.
    pub export: String,
    /// How to encrypt; `None` for the plain schemes.
    pub tls: Option<Tls>,
    text: String,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// TCP.
    Tcp {
        /// Name or address; an IPv6 address without its brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A socket in the file system.
    Unix(PathBuf),
}

/// Whom to believe.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tls {
    /// Directory with `ca-cert.pem`, and `client-cert.pem` and `client-key.pem` where the server asks for them.
    pub certificates: Option<PathBuf>,
    /// The name in the server's certificate, where it is not the host's.
    pub hostname: Option<String>,
    /// The certificate that the server must have, instead of all that: what `motiongear serve` shows.
    pub pin: Option<Pin>,
}

impl Uri {
    /// Whether `text` names an NBD server rather than a file.
    pub fn is_one(text: &str) -> bool {
        text.split_once("://").is_some_and(|(scheme, _)| ["nbd", "nbds", "nbd+unix", "nbds+unix"].contains(&scheme))
    }

    /// Of a server on a socket of this host.
    pub fn of_socket(socket: &Path, export: &str) -> Uri {
        let text = format!("nbd+unix:///{export}?socket={}", socket.display());
        Uri { address: Address::Unix(socket.to_owned()), export: export.to_owned(), tls: None, text }
    }

    /// How QEMU reaches it; `None` where that takes TLS.
    pub fn block_options(&self) -> Option<serde_json::Value> {
        use serde_json::json;
        if self.tls.is_some() {
            return None;
        }
        let server = match &self.address {
            Address::Tcp { host, port } => json!({ "type": "inet", "host": host, "port": port.to_string() }),
            Address::Unix(path) => json!({ "type": "unix", "path": path }),
        };
        Some(json!({ "driver": "nbd", "server": server, "export": self.export }))
    }

    /// Another export of the same server.
    pub fn with_export(&self, export: &str) -> Uri {
        let text = format!("{self} (export {export})");
        Uri { export: export.to_owned(), text, ..self.clone() }
    }

    /// What tells one export from another, however it is written: without TLS, with the port, links in the path of a socket
    /// resolved.
    pub fn canonical(&self) -> String {
        match &self.address {
            Address::Tcp { host, port } => format!("nbd://{}:{port}/{}", host.to_ascii_lowercase(), self.export),
            Address::Unix(path) => {
                let directory = path.parent().and_then(|parent| parent.canonicalize().ok());
                let path = match (directory, path.file_name()) {
                    (Some(directory), Some(name)) => directory.join(name),
                    _ => path.clone(),
                };
                format!("nbd+unix:///{}?socket={}", self.export, path.display())
            }
        }
    }

    /// Reads a URI.
    ///
    /// # Errors
    /// Another scheme; an unknown parameter; what does not go with the scheme.
    pub fn parse(text: &str) -> Result<Uri> {
        let wrong = |found: String| {
            Error::usage(format!("NBD URI {text:.200}: {found}"))
                .next("write nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or the same with nbds for TLS")
        };
        if text.len() > MAX_BYTES {
            return Err(wrong(format!("expected at most {MAX_BYTES} bytes, found {}", text.len())));
        }
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("expected a scheme, found none".into()))?;
        let (tls, unix) = match scheme {
            "nbd" => (false, false),
            "nbds" => (true, false),
            "nbd+unix" => (false, true),
            "nbds+unix" => (true, true),
            other => return Err(wrong(format!("expected nbd, nbds, nbd+unix or nbds+unix, found {other}"))),
        };
        if rest.contains('#') {
            return Err(wrong("expected no fragment, found #".into()));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let decode = |what: &str, text: &str| match percent_decode_str(text).decode_utf8() {
            Ok(text) if !text.contains('\0') => Ok(text.into_owned()),
            _ => Err(wrong(format!("expected text without NUL as the {what}, found {text:.100}"))),
        };
        let mut socket = None;
        let mut wanted = Tls::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decode(key, value)?;
            let once = match key {
                "socket" if unix => socket.replace(PathBuf::from(value)).is_none(),
                "tls-certificates" if tls => wanted.certificates.replace(value.into()).is_none(),
                "tls-hostname" if tls => wanted.hostname.replace(value).is_none(),
                "tls-pin" if tls => {
                    let pin = Pin::parse(&value);
                    let pin =
                        pin.ok_or_else(|| wrong(format!("expected a pin as XXXX-XXXX-XXXX-XXXX, found {value:.100}")))?;
                    wanted.pin.replace(pin).is_none()
                }
                "tls-type" if tls && value == "x509" => true,
                "tls-verify-peer" if tls && value == "1" => true,
                _ => {
                    let known = "socket (with +unix); tls-certificates, tls-hostname, tls-type=x509, tls-verify-peer=1, tls-pin (with nbds)";
                    return Err(wrong(format!("expected one of the parameters {known}, found {pair:.100}")));
                }
            };
            if !once {
                return Err(wrong(format!("expected {key} once, found it again")));
            }
        }
        if wanted.pin.is_some() && (wanted.certificates.is_some() || wanted.hostname.is_some()) {
            return Err(wrong("expected tls-pin alone, found tls-certificates or tls-hostname beside it".into()));
        }
        let address = match (unix, socket) {
            (true, _) if !authority.is_empty() => {
                return Err(wrong(format!("expected no host with a unix socket, found {authority}")));
            }
            (true, Some(path)) if path.as_os_str().is_empty() => {
                return Err(wrong("expected the path of a socket, found none".into()));
            }
            (true, Some(path)) => Address::Unix(path),
            (true, None) => return Err(wrong("expected ?socket=PATH, found none".into())),
            (false, _) => {
                let (host, port) = host_and_port(authority).map_err(wrong)?;
                Address::Tcp { host, port }
            }
        };
        let export = decode("export", path)?;
        Ok(Uri { address, export, tls: tls.then_some(wanted), text: text.to_owned() })
    }
}

fn host_and_port(authority: &str) -> Result<(String, u16), String> {
    if authority.contains('@') {
        return Err("expected no user name, found one".into());
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("expected ] after an IPv6 address, found none")?;
            (host, port)
        }
        None => authority.find(':').map_or((authority, ""), |at| authority.split_at(at)),
    };
    if host.is_empty() {
        return Err("expected a host, found none".into());
    }
    let port = match (port, port.strip_prefix(':')) {
        ("" | ":", _) => PORT,
        (_, Some(port)) => port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("expected a port from 1 to 65535, found {port}"))?,
        (found, None) => return Err(format!("expected :PORT after the address, found {found}")),
    };
    Ok((host.to_owned(), port))
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp { host: host.into(), port }
    }

    #[test]
    fn uris_of_the_specification() {
        for (text, address, export, tls) in [
            ("nbd://example.com:10810/export", tcp("example.com", 10810), "export", false),
            ("nbd://example.com/", tcp("example.com", PORT), "", false),
            ("nbd://example.com", tcp("example.com", PORT), "", false),
            ("nbd://example.com//disk", tcp("example.com", PORT), "/disk", false),
            ("nbds://example.com/hello%20world", tcp("example.com", PORT), "hello world", true),
            ("nbd://[2001:db8::7]:1/a", tcp("2001:db8::7", 1), "a", false),
            ("nbd://[::1]/a", tcp("::1", PORT), "a", false),
            ("nbd+unix:///disk?socket=/run/n%26b.sock", Address::Unix("/run/n&b.sock".into()), "disk", false),
            ("nbds+unix:///?socket=s&tls-hostname=h", Address::Unix("s".into()), "", true),
        ] {
            let uri = Uri::parse(text).unwrap();
            assert_eq!((&uri.address, uri.export.as_str(), uri.tls.is_some()), (&address, export, tls), "{text}");
            assert!(Uri::is_one(text) && uri.to_string() == text);
        }
        let uri = Uri::parse("nbds://h/?tls-certificates=/etc/pki/x&tls-hostname=n&tls-verify-peer=1").unwrap();
        assert_eq!(
            uri.tls,
            Some(Tls { certificates: Some("/etc/pki/x".into()), hostname: Some("n".into()), pin: None })
        );
        let uri = Uri::parse("nbds://h/sda?tls-pin=0123-4567-89ab-cdef").unwrap();
        assert_eq!(uri.tls.unwrap().pin, Pin::parse("O123 4567 89AB CDEF"));
    }

    #[test]
    fn what_is_none_is_refused_with_its_place() {
        for (text, found) in [
            ("http://h/", "found http"),
            ("/dev/sda", "expected a scheme"),
            ("nbd:///x", "expected a host"),
            ("nbd://h:0/", "found 0"),
            ("nbd://h:99999/", "found 99999"),
            ("nbd://[::1/x", "expected ]"),
            ("nbd://[::1]x/", "expected :PORT"),
            ("nbd://u@h/", "no user name"),
            ("nbd://h/?socket=x", "socket (with +unix)"),
            ("nbd://h/?tls-hostname=x", "tls-hostname (with nbds)"),
            ("nbds://h/?tls-verify-peer=0", "tls-verify-peer=1"),
            ("nbds://h/?tls-pin=0123-4567-89AB-CDE", "XXXX-XXXX-XXXX-XXXX"),
            ("nbds://h/?tls-pin=0123-4567-89AB-CDEF&tls-hostname=x", "tls-pin alone"),
            ("nbd://h/?tls-pin=0123-4567-89AB-CDEF", "found tls-pin=0123"),
            ("nbd+unix:///x", "?socket=PATH"),
            ("nbd+unix:///x?socket=", "path of a socket"),
            ("nbd+unix:///x?socket=a&socket=b", "once"),
            ("nbd+unix://h/x?socket=a", "no host"),
            ("nbd+unix:///x?socket=%00abstract", "without NUL"),
            ("nbd://h/%ff", "without NUL"),
            ("nbd://h/x#y", "no fragment"),
        ] {
            let error = Uri::parse(text).unwrap_err().to_string();
            let told = found.replace("tls-hostname (with nbds)", "found tls-hostname=x");
            assert!(error.contains(&told), "{text}: {error}");
        }
    }
}
