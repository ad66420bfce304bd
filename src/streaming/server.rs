//! The HTTP server: a token in the path, an upgrade, and the connection goes to what the token stands for.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::offer::{Command, Dial, Wants};
use super::serve::Serve;
use super::tls::Tls;
use super::token::Tokens;
use super::upgrade::{prepare, refuse};
use super::{StreamingError, Timeouts};
use crate::config;

/// How many clients may be there beside those with a session: on their way to one, or to be told that there are too
/// many.
const SPARE: usize = 64;

/// A client that says nothing is asked whether it is still there after this long, and then as often as follows. One that
/// has gone without a word is found out within two minutes.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_PROBES: u32 = 6;

/// What a token stands for.
pub enum Offer {
    Command {
        path: &'static str,
        wants: Wants,
        command: Box<dyn Command>,
    },
    PortForward {
        ports: Vec<u16>,
        dial: Arc<dyn Dial>,
    },
}

impl Offer {
    pub fn path(&self) -> &'static str {
        match self {
            Self::Command { path, .. } => path,
            Self::PortForward { .. } => "portforward",
        }
    }
}

/// The server. It serves as long as the process lives.
pub struct Server {
    /// What all URLs begin with.
    url: String,
    shared: Arc<Shared>,
}

/// What every connection needs.
struct Shared {
    tokens: Tokens<Offer>,
    sessions: Arc<Semaphore>,
    max_sessions: usize,
    timeouts: Timeouts,
    tls: Option<Arc<Tls>>,
}

impl Server {
    /// Listens, and begins to serve. Must be called within the runtime.
    pub async fn listen(settings: &config::Streaming) -> Result<Self, StreamingError> {
        let address = settings.address;
        let tls = settings.tls.clone().map(Tls::load).transpose()?.map(Arc::new);
        let failed = |source| StreamingError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        if tls.is_none() && !bound.ip().is_loopback() {
            tracing::warn!(address = %bound, "exec, attach and port-forward are served beyond this node without TLS");
        }
        let shared = Arc::new(Shared {
            tokens: Tokens::new(settings.url_lifetime, settings.max_sessions),
            sessions: Arc::new(Semaphore::new(settings.max_sessions)),
            max_sessions: settings.max_sessions,
            timeouts: Timeouts {
                idle: settings.idle,
                creation: settings.creation,
            },
            tls,
        });
        tokio::spawn(accept_all(listener, shared.clone()));
        Ok(Self {
            url: settings.url(bound),
            shared,
        })
    }

    /// A URL for `command`'s streams as a process of its own.
    pub fn exec(&self, wants: Wants, command: impl Command + 'static) -> Result<String, StreamingError> {
        self.offer(Offer::Command {
            path: "exec",
            wants,
            command: Box::new(command),
        })
    }

    /// A URL for the streams of a process that runs already.
    pub fn attach(&self, wants: Wants, command: impl Command + 'static) -> Result<String, StreamingError> {
        self.offer(Offer::Command {
            path: "attach",
            wants,
            command: Box::new(command),
        })
    }

    /// A URL for connections by `dial`. `ports` are those for clients that cannot name them themselves.
    pub fn port_forward(&self, ports: Vec<u16>, dial: impl Dial + 'static) -> Result<String, StreamingError> {
        self.offer(Offer::PortForward {
            ports,
            dial: Arc::new(dial),
        })
    }

    fn offer(&self, offer: Offer) -> Result<String, StreamingError> {
        let limit = self.shared.max_sessions;
        // Who asks is told at once, and in words that reach the user.
        if self.shared.sessions.available_permits() == 0 {
            return Err(StreamingError::TooManySessions { limit });
        }
        let path = offer.path();
        let token = self.shared.tokens.issue(offer);
        let token = token.ok_or(StreamingError::TooManyTokens { limit })?;
        Ok(format!("{}/{path}/{token}", self.url))
    }
}

async fn accept_all(listener: TcpListener, shared: Arc<Shared>) {
    let places = Arc::new(Semaphore::new(shared.max_sessions + SPARE));
    loop {
        // Beyond that, the kernel lets clients wait.
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((connection, _)) => {
                tokio::spawn(serve_connection(connection, shared.clone(), Arc::new(place)));
            }
            Err(error) => {
                // Out of descriptors, as a rule: some will be free again.
                tracing::warn!(%error, "a streaming client could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Held by whoever serves a connection, in each of its phases.
type Place = Arc<OwnedSemaphorePermit>;

async fn serve_connection(connection: TcpStream, shared: Arc<Shared>, place: Place) {
    if let Err(error) = prepare_socket(&connection) {
        tracing::debug!(%error, "a streaming client's socket is as it comes");
    }
    let Some(tls) = shared.tls.clone() else {
        return serve_http(connection, shared, place).await;
    };
    match tokio::time::timeout(shared.timeouts.creation, tls.accept(connection)).await {
        Ok(Ok(connection)) => serve_http(connection, shared, place).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

fn prepare_socket(connection: &TcpStream) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    sockopt::set_socket_keepalive(connection, true)?;
    sockopt::set_tcp_keepidle(connection, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(connection, KEEP_ALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(connection, KEEP_ALIVE_PROBES)?;
    Ok(())
}

async fn serve_http<T>(connection: T, shared: Arc<Shared>, place: Place)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let wait = shared.timeouts.creation;
    let answer = service_fn(move |request| {
        let answer = answer(request, &shared, &place);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(wait)
        .max_buf_size(32 << 10)
        .serve_connection(TokioIo::new(connection), answer)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a streaming request ended");
    }
}

fn answer(mut request: Request<Incoming>, shared: &Shared, place: &Place) -> Response<String> {
    // Before the token is used up: the client may come again.
    let Ok(session) = shared.sessions.clone().try_acquire_owned() else {
        let limit = shared.max_sessions;
        tracing::warn!(limit, "too many streaming sessions: a client is turned away");
        return refuse(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("{limit} streaming sessions are open already\n"),
        );
    };
    let upgrade = hyper::upgrade::on(&mut request);
    match prepare(&request, &shared.tokens) {
        Ok((response, serve)) => {
            let (place, timeouts) = (place.clone(), shared.timeouts);
            tokio::spawn(run(upgrade, serve, timeouts, (session, place)));
            response
        }
        Err(refusal) => refusal,
    }
}

async fn run(upgrade: OnUpgrade, serve: Serve, timeouts: Timeouts, place: (OwnedSemaphorePermit, Place)) {
    match upgrade.await {
        Ok(upgraded) => serve.run(TokioIo::new(upgraded), timeouts, place).await,
        Err(error) => tracing::debug!(%error, "a streaming client left before its upgrade"),
    }
}
