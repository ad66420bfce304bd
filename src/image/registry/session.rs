//! One pull's view of a registry: its hosts in order, tried one after the other and then again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;

use super::RegistryConfig;
use super::auth::{self, Auth, Secret};
use super::error::{RegistryError, shown_url};
use super::hosts;
use super::request::Endpoint;
use super::transport::Transports;
use crate::image::reference::Reference;

/// The registry client: settings and connections, for as long as the daemon lives.
pub struct Client {
    pub(super) config: RegistryConfig,
    pub(super) transports: Transports,
}

impl Client {
    pub fn new(config: RegistryConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            transports: Transports::default(),
        })
    }

    /// Reads the configuration for `reference`'s registry and readies the credentials for those who may see them.
    ///
    /// # Errors
    /// Mistakes in the configuration, or in the form of the credentials.
    pub async fn session(
        self: &Arc<Self>,
        reference: &Reference,
        auth: Option<&Auth>,
    ) -> Result<Arc<Session>, RegistryError> {
        let dirs = self.config.hosts_dirs.clone();
        let domain = reference.domain().to_owned();
        let hosts = tokio::task::spawn_blocking(move || hosts::load(&dirs, &domain))
            .await
            .map_err(|source| RegistryError::Interrupted {
                op: "read registry configuration",
                source,
            })??;
        let secret = match auth {
            Some(auth) => Secret::from_auth(auth, reference.domain())?,
            None => None,
        };
        let address = match auth {
            Some(auth) if !auth.server_address.is_empty() => auth.server_address.as_str(),
            _ => reference.domain(),
        };
        let endpoints = hosts
            .into_iter()
            .map(|host| {
                let secret = secret.clone().filter(|_| auth::may_see(address, &host.base));
                let authorization = Mutex::new(Endpoint::initial(secret.as_ref()));
                let scope = format!("repository:{}:pull", reference.path());
                Candidate {
                    endpoint: Endpoint {
                        host,
                        secret,
                        scope,
                        authorization,
                    },
                    has_failed: AtomicBool::new(false),
                }
            })
            .collect();
        Ok(Arc::new(Session {
            client: self.clone(),
            reference: reference.clone(),
            candidates: endpoints,
        }))
    }
}

struct Candidate {
    endpoint: Endpoint,
    /// It was out of reach in this pull: it comes last from then on.
    has_failed: AtomicBool,
}

/// One pull's view of a registry.
pub struct Session {
    pub(super) client: Arc<Client>,
    pub(super) reference: Reference,
    candidates: Vec<Candidate>,
}

/// What a host must be configured for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Capability {
    Resolve,
    Pull,
}

impl Session {
    /// Whether there are hosts to pull from beside `excluded`.
    pub fn has_more_than(&self, excluded: &[usize]) -> bool {
        self.rounds(Capability::Pull, excluded).is_ok()
    }

    /// The address of the host of that number, for messages.
    pub fn host_of(&self, index: Option<usize>) -> String {
        match index.and_then(|index| self.candidates.get(index)) {
            Some(candidate) => shown_url(&candidate.endpoint.host.base),
            None => self.reference.domain().to_owned(),
        }
    }

    /// The hosts to try for one thing, leaving out `excluded`.
    pub(super) fn rounds(&self, capability: Capability, excluded: &[usize]) -> Result<Rounds<'_>, RegistryError> {
        let mut order: Vec<usize> = (0..self.candidates.len())
            .filter(|index| {
                let host = &self.candidates[*index].endpoint.host;
                let may = match capability {
                    Capability::Resolve => host.can_resolve,
                    Capability::Pull => host.can_pull,
                };
                may && !excluded.contains(index)
            })
            .collect();
        order.sort_by_key(|index| self.candidates[*index].has_failed.load(Ordering::Relaxed));
        if order.is_empty() {
            return Err(RegistryError::NoHost {
                registry: self.reference.domain().to_owned(),
                capability: match capability {
                    Capability::Resolve => "resolve tags",
                    Capability::Pull => "be pulled from",
                },
            });
        }
        Ok(Rounds {
            session: self,
            order,
            position: 0,
            round: 0,
            pause: Duration::ZERO,
            best: None,
        })
    }
}

/// Walks the hosts, and again after a pause as long as one of them may do better then.
pub(super) struct Rounds<'a> {
    session: &'a Session,
    order: Vec<usize>,
    position: usize,
    round: u32,
    /// The longest pause that a host asked for in this round.
    pause: Duration,
    /// What to tell in the end, and whether the registry itself says it: that counts more than what a mirror says.
    best: Option<(bool, RegistryError)>,
}

impl<'a> Rounds<'a> {
    /// The host to try now.
    pub(super) fn endpoint(&self) -> &'a Endpoint {
        &self.session.candidates[self.index()].endpoint
    }

    /// Its number among the session's hosts.
    pub(super) fn index(&self) -> usize {
        self.order[self.position]
    }

    /// Something was received: patience begins anew.
    pub(super) fn progressed(&mut self) {
        self.round = 0;
    }

    /// The host failed: goes on to the next, after a pause if all have been tried.
    ///
    /// # Errors
    /// When no host is left that could do better.
    pub(super) async fn failed(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let session = self.session;
        let candidate = &session.candidates[self.index()];
        if !error.is_of_the_host() {
            return Err(error);
        }
        let error = error.or_too_busy(session.client.config.longest_pause);
        if error.is_transient() {
            candidate.has_failed.store(true, Ordering::Relaxed);
            self.pause = self.pause.max(error.retry_after().unwrap_or_default());
            self.position += 1;
        } else {
            self.order.remove(self.position);
        }
        let has_next = self.position < self.order.len();
        if has_next || self.may_go_round() {
            let host = shown_url(&candidate.endpoint.host.base);
            let error = chain(&error);
            tracing::warn!(reference = %session.reference, host, error, "registry host failed, going on");
        }
        let is_registry = !candidate.endpoint.host.is_mirror_of(session.reference.domain());
        if is_registry || !self.best.as_ref().is_some_and(|(of_registry, _)| *of_registry) {
            self.best = Some((is_registry, error));
        }
        if has_next {
            return Ok(());
        }
        if !self.may_go_round() {
            let (_, error) = self.best.take().expect("a round ends with a failure");
            return Err(error);
        }
        self.next_round().await;
        Ok(())
    }

    fn may_go_round(&self) -> bool {
        !self.order.is_empty() && self.round + 1 < self.session.client.config.attempts
    }

    async fn next_round(&mut self) {
        let config = &self.session.client.config;
        let doubled = config.backoff.saturating_mul(1 << self.round.min(16));
        // Half of it is chance, so that the nodes of a cluster do not come back all at once.
        let jittered = doubled.min(config.longest_pause).mul_f64(rand::random_range(0.5..1.0));
        self.position = 0;
        self.round += 1;
        let pause = std::mem::take(&mut self.pause).max(jittered);
        tokio::time::sleep(pause).await;
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
