//! Where and how exec, attach and port-forward are served.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

/// The longest time that any of the timeouts may be, in seconds: a week.
const MAX_TIMEOUT_SECONDS: u64 = 7 * 24 * 60 * 60;

/// The most sessions that may be allowed.
const MAX_SESSIONS: usize = 100_000;

/// The section `[streaming]` as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawStreaming {
    pub address: Option<String>,
    pub url_host: Option<String>,
    pub idle_timeout_seconds: Option<u64>,
    pub creation_timeout_seconds: Option<u64>,
    pub url_lifetime_seconds: Option<u64>,
    pub max_sessions: Option<usize>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
}

/// The certificate that clients are shown, with its chain, and its key: PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The validated section.
#[derive(Clone, Debug)]
pub struct Streaming {
    /// Where to listen; port 0 is any that is free.
    pub address: SocketAddr,
    /// The host in the URLs that clients get, as it stands there; none: the address itself.
    pub url_host: Option<String>,
    /// A session on which nothing moves ends after this long.
    pub idle: Duration,
    /// How long a client may take for its request, and then to open its streams.
    pub creation: Duration,
    /// How long a URL waits for its client.
    pub url_lifetime: Duration,
    /// The most sessions at a time, and the most URLs that wait.
    pub max_sessions: usize,
    pub tls: Option<TlsFiles>,
}

impl Default for Streaming {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            url_host: None,
            idle: Duration::from_secs(4 * 60 * 60),
            creation: Duration::from_secs(30),
            url_lifetime: Duration::from_secs(60),
            max_sessions: 1000,
            tls: None,
        }
    }
}

/// The section as it counts; what is wrong with it is added to `mistakes`.
pub fn validate(raw: RawStreaming, mistakes: &mut Vec<String>) -> Streaming {
    let default = Streaming::default();
    let mut seconds = |key: &str, given: Option<u64>, otherwise: Duration| match given {
        None => otherwise,
        Some(given) => {
            if !(1..=MAX_TIMEOUT_SECONDS).contains(&given) {
                mistakes.push(format!(
                    "streaming.{key} must be 1 to {MAX_TIMEOUT_SECONDS}, not {given}"
                ));
            }
            Duration::from_secs(given)
        }
    };
    let idle = seconds("idle_timeout_seconds", raw.idle_timeout_seconds, default.idle);
    let creation = seconds(
        "creation_timeout_seconds",
        raw.creation_timeout_seconds,
        default.creation,
    );
    let url_lifetime = seconds("url_lifetime_seconds", raw.url_lifetime_seconds, default.url_lifetime);
    let max_sessions = raw.max_sessions.unwrap_or(default.max_sessions);
    if !(1..=MAX_SESSIONS).contains(&max_sessions) {
        mistakes.push(format!(
            "streaming.max_sessions must be 1 to {MAX_SESSIONS}, not {max_sessions}"
        ));
    }
    Streaming {
        address: address(raw.address, default.address, mistakes),
        url_host: raw.url_host.and_then(|host| url_host(&host, mistakes)),
        idle,
        creation,
        url_lifetime,
        max_sessions,
        tls: tls(raw.tls_cert, raw.tls_key, mistakes),
    }
}

fn address(given: Option<String>, otherwise: SocketAddr, mistakes: &mut Vec<String>) -> SocketAddr {
    let Some(given) = given else { return otherwise };
    given.parse().unwrap_or_else(|_| {
        mistakes.push(format!(
            "streaming.address must be an IP address and a port, as 127.0.0.1:0 or [::1]:10250, not {given:?}"
        ));
        otherwise
    })
}

/// A host's name, or an address; an IPv6 one with the brackets that it has in a URL, whether given with them or not.
fn url_host(given: &str, mistakes: &mut Vec<String>) -> Option<String> {
    let bare = given.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    if let Ok(six) = bare.unwrap_or(given).parse::<Ipv6Addr>() {
        return Some(format!("[{six}]"));
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    if given.len() <= 253 && given.split('.').all(is_label) {
        return Some(given.to_owned());
    }
    mistakes.push(format!(
        "streaming.url_host must be the name or the address of a host, without a port, not {given:?}"
    ));
    None
}

fn tls(cert: Option<PathBuf>, key: Option<PathBuf>, mistakes: &mut Vec<String>) -> Option<TlsFiles> {
    for (name, path) in [("tls_cert", &cert), ("tls_key", &key)] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            mistakes.push(format!(
                "streaming.{name} must be an absolute path, not {}",
                path.display()
            ));
        }
    }
    match (cert, key) {
        (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
        (None, None) => None,
        _ => {
            mistakes.push("streaming.tls_cert and streaming.tls_key go together".to_owned());
            None
        }
    }
}

impl Streaming {
    /// The start of a URL for a server that listens on `bound`.
    pub fn url(&self, bound: SocketAddr) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        if let Some(host) = &self.url_host {
            return format!("{scheme}://{host}:{}", bound.port());
        }
        // The kubelet is on this node: an address that means any is not one to connect to.
        let ip: IpAddr = match bound.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        format!("{scheme}://{}", SocketAddr::new(ip, bound.port()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Streaming, Vec<String>> {
        let mut mistakes = Vec::new();
        let streaming = validate(toml::from_str(text).expect("parses"), &mut mistakes);
        if mistakes.is_empty() {
            Ok(streaming)
        } else {
            Err(mistakes)
        }
    }

    #[test]
    fn urls_name_what_clients_can_connect_to() {
        let url = |text: &str, bound: &str| read(text).unwrap().url(bound.parse().unwrap());
        assert_eq!(url("", "127.0.0.1:77"), "http://127.0.0.1:77");
        assert_eq!(url("", "0.0.0.0:77"), "http://127.0.0.1:77");
        assert_eq!(url("", "[::]:77"), "http://[::1]:77");
        assert_eq!(
            url("url_host = 'node-1.example'", "0.0.0.0:77"),
            "http://node-1.example:77"
        );
        assert_eq!(url("url_host = 'fd00::1'", "[::]:77"), "http://[fd00::1]:77");
        assert_eq!(url("url_host = '[fd00::1]'", "[::]:77"), "http://[fd00::1]:77");
        let tls = "tls_cert = '/c'\ntls_key = '/k'";
        assert_eq!(url(tls, "192.0.2.1:77"), "https://192.0.2.1:77");
    }

    #[test]
    fn every_mistake_is_told_by_its_key() {
        for (text, key) in [
            ("address = 'localhost:1'", "address"),
            ("address = '127.0.0.1'", "address"),
            ("address = '127.0.0.1:65536'", "address"),
            ("url_host = ''", "url_host"),
            ("url_host = 'a:1'", "url_host"),
            ("url_host = 'a/b'", "url_host"),
            ("url_host = 'user@host'", "url_host"),
            ("idle_timeout_seconds = 0", "idle_timeout_seconds"),
            ("creation_timeout_seconds = 999999999", "creation_timeout_seconds"),
            ("url_lifetime_seconds = 0", "url_lifetime_seconds"),
            ("max_sessions = 0", "max_sessions"),
            ("tls_cert = '/c'", "tls_key"),
            ("tls_key = '/k'", "tls_cert"),
            ("tls_cert = 'c'\ntls_key = '/k'", "tls_cert"),
        ] {
            let told = read(text).expect_err(text).join("\n");
            assert!(told.contains(&format!("streaming.{key}")), "{text}: {told}");
        }
        assert_eq!(read("idle_timeout_seconds = 0\nmax_sessions = 0").unwrap_err().len(), 2);
        assert!(toml::from_str::<RawStreaming>("adress = ''").is_err());
    }
}
