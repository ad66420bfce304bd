//! Reads one registry's directory: `hosts.toml`, certificates, keys. Every mistake is collected.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Identity};
use toml::{Table, Value};

use super::error::RegistryError;
use super::hosts::{Host, Tls, base_url, hosts_file, origin};

/// The largest configuration or certificate file that is read.
const FILE_LIMIT: u64 = 1024 * 1024;
const HOSTS_LIMIT: usize = 64;

/// The hosts that `directory` names for `domain`.
pub(super) fn read(directory: &Path, domain: &str) -> Result<Vec<Host>, RegistryError> {
    let path = hosts_file(directory);
    let origin = origin(domain)?;
    let mut reader = Reader {
        directory,
        mistakes: Vec::new(),
    };
    let hosts = if path.exists() {
        reader.hosts(&path, origin)
    } else {
        vec![reader.docker_style(origin)]
    };
    if reader.mistakes.is_empty() {
        Ok(hosts)
    } else {
        Err(RegistryError::Config {
            path,
            mistakes: reader.mistakes,
        })
    }
}

struct Reader<'a> {
    directory: &'a Path,
    mistakes: Vec<String>,
}

impl Reader<'_> {
    fn hosts(&mut self, path: &Path, origin: Host) -> Vec<Host> {
        let Some(bytes) = self.file(path) else {
            return Vec::new();
        };
        let table: Table = match std::str::from_utf8(&bytes) {
            Ok(text) => match text.parse() {
                Ok(table) => table,
                Err(error) => {
                    self.mistakes.push(error.to_string().trim().replace('\n', " "));
                    return Vec::new();
                }
            },
            Err(_) => {
                self.mistakes.push("not UTF-8".to_owned());
                return Vec::new();
            }
        };
        let mut hosts = Vec::new();
        match table.get("host") {
            Some(Value::Table(tables)) => {
                if tables.len() > HOSTS_LIMIT {
                    self.mistakes.push(format!("more than {HOSTS_LIMIT} hosts"));
                }
                for (name, value) in tables.iter().take(HOSTS_LIMIT) {
                    match value {
                        Value::Table(settings) => hosts.extend(self.host(name, settings)),
                        _ => self.mistakes.push("host: its entries must be tables".to_owned()),
                    }
                }
            }
            Some(_) => self.mistakes.push("host: must be a table".to_owned()),
            None => {}
        }
        hosts.extend(self.server(&table, origin));
        hosts
    }

    fn server(&mut self, table: &Table, origin: Host) -> Option<Host> {
        match table.get("server") {
            Some(Value::String(server)) if !server.is_empty() => self.host(server, table),
            Some(Value::String(_)) | None => {
                let settings = self.host(origin.base.as_str(), table)?;
                Some(Host {
                    base: origin.base,
                    ..settings
                })
            }
            Some(_) => {
                self.mistakes.push("server: must be a text".to_owned());
                None
            }
        }
    }

    fn host(&mut self, name: &str, settings: &Table) -> Option<Host> {
        // What it is called in the messages; an address with credentials is not repeated.
        let label = match name.rsplit_once('@') {
            Some((_, rest)) => rest,
            None => name,
        };
        for key in settings.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            tracing::warn!(directory = %self.directory.display(), host = label, key, "unknown key in hosts.toml");
        }
        let override_path = self.boolean(label, settings, "override_path");
        let base = base_url(name, override_path)
            .map_err(|why| self.mistakes.push(why))
            .ok();
        let capabilities = self.texts(label, settings, "capabilities");
        for unknown in capabilities
            .iter()
            .flatten()
            .filter(|text| !matches!(text.as_str(), "pull" | "resolve" | "push"))
        {
            self.mistakes.push(format!(
                "{label}: capabilities: {unknown:?} is none of pull, resolve, push"
            ));
        }
        let can = |what: &str| match &capabilities {
            Some(given) if !given.is_empty() => given.iter().any(|text| text == what),
            _ => true,
        };
        let (can_resolve, can_pull) = (can("resolve"), can("pull"));
        let mut tls = Tls {
            skip_verify: self.boolean(label, settings, "skip_verify"),
            ..Tls::default()
        };
        for path in self.texts(label, settings, "ca").unwrap_or_default() {
            tls.ca.extend(self.authorities(Path::new(&path)));
        }
        tls.identity = self.client(label, settings);
        let headers = self.headers(label, settings);
        let dial_timeout = self.duration(label, settings, "dial_timeout");
        Some(Host {
            base: base?,
            can_resolve,
            can_pull,
            tls,
            headers,
            dial_timeout,
        })
    }

    fn duration(&mut self, label: &str, settings: &Table, key: &str) -> Option<Duration> {
        let text = match settings.get(key)? {
            Value::String(text) if text.is_empty() => return None,
            Value::String(text) => text.as_str(),
            _ => "",
        };
        let duration = go_duration(text);
        if duration.is_none() {
            self.mistakes
                .push(format!("{label}: {key}: must be a duration such as \"5s\""));
        }
        duration
    }

    fn boolean(&mut self, label: &str, settings: &Table, key: &str) -> bool {
        match settings.get(key) {
            None => false,
            Some(Value::Boolean(value)) => *value,
            Some(_) => {
                self.mistakes.push(format!("{label}: {key}: must be true or false"));
                false
            }
        }
    }

    /// A text or an array of texts.
    fn texts(&mut self, label: &str, settings: &Table, key: &str) -> Option<Vec<String>> {
        let texts = match settings.get(key)? {
            Value::String(text) if key != "capabilities" => Some(vec![text.clone()]),
            Value::Array(values) => values.iter().map(|value| value.as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        if texts.is_none() {
            self.mistakes.push(format!("{label}: {key}: must be an array of texts"));
        }
        texts
    }

    /// `client` is one file with certificate and key, an array of such, or an array of `[certificate, key]`.
    fn client(&mut self, label: &str, settings: &Table) -> Option<Vec<u8>> {
        let entries: Vec<Vec<&str>> = match settings.get("client")? {
            Value::String(path) => vec![vec![path]],
            Value::Array(values) => values
                .iter()
                .map(|value| match value {
                    Value::String(path) => vec![path.as_str()],
                    Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect(),
                    _ => Vec::new(),
                })
                .collect(),
            _ => vec![Vec::new()],
        };
        if entries.iter().any(|paths| paths.is_empty() || paths.len() > 2) {
            self.mistakes.push(format!(
                "{label}: client: must be a file, or an array of [certificate, key] pairs"
            ));
            return None;
        }
        if entries.len() > 1 {
            self.mistakes.push(format!(
                "{label}: client: {} certificates, a host takes one",
                entries.len()
            ));
        }
        let paths: Vec<&Path> = entries.first()?.iter().map(Path::new).collect();
        self.identity(&paths)
    }

    fn headers(&mut self, label: &str, settings: &Table) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let table = match settings.get("header") {
            None => return headers,
            Some(Value::Table(table)) => table,
            Some(_) => {
                self.mistakes.push(format!("{label}: header: must be a table"));
                return headers;
            }
        };
        for (key, value) in table {
            let values: Option<Vec<&str>> = match value {
                Value::String(text) => Some(vec![text]),
                Value::Array(values) => values.iter().map(Value::as_str).collect(),
                _ => None,
            };
            let Some(values) = values else {
                self.mistakes
                    .push(format!("{label}: header {key:?}: must be a text or an array of texts"));
                continue;
            };
            for text in values {
                match (key.parse::<HeaderName>(), HeaderValue::from_str(text)) {
                    (Ok(name), Ok(mut value)) => {
                        value.set_sensitive(true);
                        headers.append(name, value);
                    }
                    _ => self
                        .mistakes
                        .push(format!("{label}: header {key:?}: not a name and a value of HTTP")),
                }
            }
        }
        headers
    }

    /// The directory as docker has it, without `hosts.toml`.
    fn docker_style(&mut self, mut host: Host) -> Host {
        let mut names: Vec<PathBuf> = match fs::read_dir(self.directory) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) => {
                self.mistakes.push(format!("read directory: {error}"));
                return host;
            }
        };
        names.sort();
        for path in &names {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => host.tls.ca.extend(self.authorities(path)),
                Some("cert") => host.tls.identity = self.identity(&[path, &path.with_extension("key")]),
                _ => {}
            }
        }
        // Who has certificates for it means TLS, also on loopback.
        if host.tls != Tls::default() && host.base.scheme() == "http" {
            host.base.set_scheme("https").expect("http can become https");
        }
        host
    }

    fn authorities(&mut self, path: &Path) -> Option<Vec<u8>> {
        let path = self.directory.join(path);
        let pem = self.file(&path)?;
        match Certificate::from_pem_bundle(&pem) {
            Ok(certificates) if !certificates.is_empty() => Some(pem),
            _ => {
                self.mistakes
                    .push(format!("{}: no certificate in PEM form", path.display()));
                None
            }
        }
    }

    fn identity(&mut self, paths: &[&Path]) -> Option<Vec<u8>> {
        let mut pem = Vec::new();
        for path in paths {
            pem.extend(self.file(&self.directory.join(path))?);
            pem.push(b'\n');
        }
        if Identity::from_pem(&pem).is_ok() {
            return Some(pem);
        }
        let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
        self.mistakes.push(format!(
            "{}: no certificate with its key in PEM form",
            names.join(" and ")
        ));
        None
    }

    fn file(&mut self, path: &Path) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| {
            if !file.metadata()?.is_file() {
                return Err(std::io::Error::other("not a regular file"));
            }
            file.take(FILE_LIMIT + 1).read_to_end(&mut bytes)
        });
        match read {
            Ok(_) if bytes.len() as u64 <= FILE_LIMIT => Some(bytes),
            Ok(_) => {
                self.mistakes
                    .push(format!("{}: larger than {FILE_LIMIT} bytes", path.display()));
                None
            }
            Err(error) => {
                self.mistakes.push(format!("{}: {error}", path.display()));
                None
            }
        }
    }
}

const KEYS: [&str; 9] = [
    "host",
    "server",
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "override_path",
    "header",
    "dial_timeout",
];

/// A duration in Go's form: `1m30s`, `500ms`, `2.5s`; positive.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| c.is_alphabetic() || c == 'µ')?;
        let number: f64 = rest[..unit_at].parse().ok()?;
        let after = &rest[unit_at..];
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let scale = match &after[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * scale;
        rest = &after[unit_end..];
    }
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
}
