//! Which hosts may have a registry's repositories: containerd's `hosts.toml` directories.
//!
//! A directory holds one directory for each registry, `<host>`, `<host>:<port>` or `<host>_<port>_`, and `_default`
//! for all others; in it `hosts.toml` (containerd's docs/hosts.md), or, as docker has it, `*.crt` with authorities
//! and `*.cert` with `*.key` for the client.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::error::RegistryError;
use super::files;
pub use super::transport::Tls;
use crate::image::reference::DEFAULT_DOMAIN;

const HUB_HOST: &str = "registry-1.docker.io";

/// A host to ask.
#[derive(Debug, Clone)]
pub struct Host {
    /// Scheme, host, port and the path that the protocol's paths follow, without a slash at the end.
    pub base: Url,
    /// May say what a tag is.
    pub can_resolve: bool,
    /// May be asked for content by its digest.
    pub can_pull: bool,
    pub tls: Tls,
    /// Sent with each request to this host.
    pub headers: HeaderMap,
    /// How long a connection may take to be made, if not as long as everywhere.
    pub dial_timeout: Option<Duration>,
}

impl Host {
    /// A host without any setting, which may do all.
    pub(super) fn at(base: Url) -> Self {
        Self {
            base,
            can_resolve: true,
            can_pull: true,
            tls: Tls::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }

    /// Whether it is not the registry `domain` itself and must be told whose repository is meant (`?ns=`).
    pub fn is_mirror_of(&self, domain: &str) -> bool {
        let own = authority(&self.base);
        own != domain.to_ascii_lowercase() && !(domain == DEFAULT_DOMAIN && own == HUB_HOST)
    }
}

/// The hosts for `domain`, in the order to be asked. Without configuration, the registry itself.
///
/// # Errors
/// All mistakes of the configuration that is in force for `domain`, at once.
pub fn load(dirs: &[PathBuf], domain: &str) -> Result<Vec<Host>, RegistryError> {
    for dir in dirs {
        for name in directory_names(domain) {
            let path = dir.join(name);
            if path.is_dir() {
                return files::read(&path, domain);
            }
        }
    }
    Ok(vec![origin(domain)?])
}

/// `host_port_` comes first, as in containerd: file systems without colons have it.
fn directory_names(domain: &str) -> Vec<String> {
    let mut names = Vec::with_capacity(3);
    if let Some((host, port)) = domain.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(domain.to_owned());
    names.push("_default".to_owned());
    names
}

/// The registry itself: by TLS, but plain on loopback unless the port says otherwise.
pub(super) fn origin(domain: &str) -> Result<Host, RegistryError> {
    let authority = if domain == DEFAULT_DOMAIN { HUB_HOST } else { domain };
    // Not every domain that a reference may have is an address: 1.2.3.4.5 is none.
    let parse = |scheme: &str| {
        Url::parse(&format!("{scheme}://{authority}/v2")).map_err(|_| RegistryError::Address {
            registry: domain.to_owned(),
        })
    };
    let secure = parse("https")?;
    let is_plain = is_loopback(&secure) && !domain.ends_with(":443");
    Ok(Host::at(if is_plain { parse("http")? } else { secure }))
}

/// Whether `url` names this machine: `localhost`, 127.0.0.0/8 or ::1.
pub fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        || host
            .trim_matches(['[', ']'])
            .parse::<Ipv6Addr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Whether two addresses are of one scheme, host and port.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}

/// Host and port as in a reference.
pub(super) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// `server` or the name of a `[host]` table as an address. `override_path` takes its path as it is; else the
/// protocol's `/v2` ends it.
pub(super) fn base_url(text: &str, override_path: bool) -> Result<Url, String> {
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("https://{text}")
    };
    let mut url = Url::parse(&with_scheme).map_err(|error| format!("{text:?} is not an address: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("{text:?} is neither http:// nor https://"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(format!("{text:?} names no host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into an address".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("{text:?} has a query or a fragment"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    if override_path || path.ends_with("/v2") {
        url.set_path(&path);
    } else {
        url.set_path(&format!("{path}/v2"));
    }
    Ok(url)
}

/// Where `hosts.toml` lies in a registry's directory.
pub(super) fn hosts_file(directory: &Path) -> PathBuf {
    directory.join("hosts.toml")
}

#[cfg(test)]
mod tests {
    use super::{Host, base_url, directory_names, load, origin};
    use std::fs;
    use std::path::Path;

    fn write(dir: &Path, name: &str, text: &str) {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("hosts.toml"), text).unwrap();
    }

    fn bases(hosts: &[Host]) -> Vec<&str> {
        hosts.iter().map(|host| host.base.as_str()).collect()
    }

    #[test]
    fn without_configuration_the_registry_itself_is_asked() {
        for (domain, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("quay.io", "https://quay.io/v2"),
            ("h.io:5000", "https://h.io:5000/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("localhost", "http://localhost/v2"),
            ("127.3.2.1:5000", "http://127.3.2.1:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("localhost:443", "https://localhost/v2"),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/v2"),
        ] {
            assert_eq!(origin(domain).unwrap().base.as_str(), base);
        }
        assert!(origin("1.2.3.4.5").unwrap_err().to_string().contains("1.2.3.4.5"));
        assert!(!origin("docker.io").unwrap().is_mirror_of("docker.io"));
        assert!(!origin("localhost:5000").unwrap().is_mirror_of("localhost:5000"));
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "docker.io",
            r#"
            server = "https://registry-1.docker.io"
            [host."https://zz.example"]
              capabilities = ["pull", "resolve"]
              [host."https://zz.example".header]
                x-one = "1"
                x-many = ["a", "b"]
            [host."http://aa.example:5000/mirror"]
              capabilities = ["pull"]
              dial_timeout = "1m2.5s"
            [host."https://path.example/custom"]
              override_path = true
              skip_verify = true
            "#,
        );
        let hosts = load(&[dir.path().to_owned()], "docker.io").unwrap();
        assert_eq!(
            bases(&hosts),
            [
                "https://zz.example/v2",
                "http://aa.example:5000/mirror/v2",
                "https://path.example/custom",
                "https://registry-1.docker.io/v2"
            ]
        );
        assert_eq!(hosts[0].headers.get_all("x-many").iter().count(), 2);
        assert!(!format!("{:?}", hosts[0]).contains("\"1\""));
        assert!(!hosts[1].can_resolve && hosts[1].can_pull);
        assert_eq!(hosts[1].dial_timeout.unwrap().as_millis(), 62_500);
        assert!(hosts[2].tls.skip_verify && hosts[2].can_resolve);
        assert!(hosts[0].is_mirror_of("docker.io") && !hosts[3].is_mirror_of("docker.io"));
    }

    #[test]
    fn the_directory_is_found_by_each_of_its_names() {
        assert_eq!(directory_names("h.io:5000"), ["h.io_5000_", "h.io:5000", "_default"]);
        assert_eq!(directory_names("[::1]"), ["[::1]", "_default"]);
        let dir = tempfile::tempdir().unwrap();
        let dirs = [dir.path().join("missing"), dir.path().to_owned()];
        write(dir.path(), "_default", "[host.\"https://d.example\"]");
        assert_eq!(
            bases(&load(&dirs, "h.io:5000").unwrap()),
            ["https://d.example/v2", "https://h.io:5000/v2"]
        );
        write(dir.path(), "h.io:5000", "server = \"http://s.example\"");
        assert_eq!(bases(&load(&dirs, "h.io:5000").unwrap()), ["http://s.example/v2"]);
        write(dir.path(), "h.io_5000_", "server = \"t.example/v2/\"");
        assert_eq!(bases(&load(&dirs, "h.io:5000").unwrap()), ["https://t.example/v2"]);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            "h.io",
            r#"
            server = "ftp://h.io"
            capabilities = "pull"
            [host."https://u:secret@m.io"]
            [host."https://m.io"]
              capabilities = ["pull", "fly"]
              ca = "missing.pem"
              client = [["a", "b", "c"]]
              skip_verify = "yes"
              dial_timeout = "soon"
              [host."https://m.io".header]
                "bad name" = "x"
                good = 3
            "#,
        );
        let error = load(&[dir.path().to_owned()], "h.io").unwrap_err().to_string();
        for part in [
            "neither http:// nor https://",
            "capabilities",
            "credentials do not belong",
            "\"fly\"",
            "missing.pem",
            "client",
            "skip_verify",
            "dial_timeout",
            "bad name",
            "good",
            "hosts.toml",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("secret"), "{error}");
        write(dir.path(), "h.io", "server = ");
        assert!(
            load(&[dir.path().to_owned()], "h.io")
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
    }

    #[test]
    fn addresses_get_the_protocol_s_path_once() {
        assert_eq!(base_url("h.io/v2/", false).unwrap().as_str(), "https://h.io/v2");
        assert_eq!(base_url("http://h.io/a/", false).unwrap().as_str(), "http://h.io/a/v2");
        assert_eq!(base_url("http://h.io/a/", true).unwrap().as_str(), "http://h.io/a");
        assert!(base_url("https://", false).is_err());
    }
}
