//! HTTP clients, one for each way to speak TLS that is configured.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use reqwest::{Certificate, Identity, Url, redirect};

use super::RegistryConfig;
use super::error::RegistryError;
use super::hosts::is_loopback;

/// How long an unused connection is kept, and how many clients.
const IDLE: Duration = Duration::from_secs(20);
const CLIENTS_LIMIT: usize = 64;

/// What a host's TLS needs beside the system's authorities. All PEM.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Tls {
    pub ca: Vec<Vec<u8>>,
    /// A certificate chain and its key.
    pub identity: Option<Vec<u8>>,
    pub skip_verify: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("authorities", &self.ca.len())
            .field("identity", &self.identity.is_some())
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    tls: Option<Tls>,
    /// Whether proxies are left out, as for loopback hosts.
    direct: bool,
    connect_timeout: Duration,
}

/// The clients made so far; each keeps its connections.
#[derive(Default)]
pub(super) struct Transports {
    clients: Mutex<HashMap<Key, reqwest::Client>>,
}

impl Transports {
    /// The client for `url`. The identity is only offered when `at_home`: to the host that it is configured for.
    pub(super) fn client(
        &self,
        config: &RegistryConfig,
        tls: &Tls,
        dial_timeout: Option<Duration>,
        url: &Url,
        at_home: bool,
    ) -> Result<reqwest::Client, RegistryError> {
        // Reading the system's authorities costs milliseconds: plain HTTP does without.
        let tls = (url.scheme() == "https").then(|| Tls {
            identity: tls.identity.clone().filter(|_| at_home),
            ..tls.clone()
        });
        let connect_timeout = dial_timeout.unwrap_or(config.connect_timeout);
        let key = Key {
            tls,
            direct: is_loopback(url),
            connect_timeout,
        };
        let mut clients = self.clients.lock().expect("nothing panics while it holds the clients");
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = build(&key).map_err(|source| RegistryError::Tls {
            host: url.host_str().unwrap_or_default().to_owned(),
            source,
        })?;
        if clients.len() >= CLIENTS_LIMIT {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

fn build(key: &Key) -> reqwest::Result<reqwest::Client> {
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("crisp/", env!("CARGO_PKG_VERSION")))
        // Followed by hand: credentials must not follow.
        .redirect(redirect::Policy::none())
        .referer(false)
        .connect_timeout(key.connect_timeout)
        .tcp_keepalive(Duration::from_secs(15))
        .pool_idle_timeout(IDLE)
        .http1_only();
    if key.direct {
        builder = builder.no_proxy();
    }
    match &key.tls {
        None => builder = builder.tls_built_in_root_certs(false),
        Some(tls) => {
            for pem in &tls.ca {
                for certificate in Certificate::from_pem_bundle(pem)? {
                    builder = builder.add_root_certificate(certificate);
                }
            }
            if let Some(identity) = &tls.identity {
                builder = builder.identity(Identity::from_pem(identity)?);
            }
            builder = builder.danger_accept_invalid_certs(tls.skip_verify);
        }
    }
    builder.build()
}
