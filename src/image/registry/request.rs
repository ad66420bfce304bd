//! One request to one host: redirects, authorization, and the answer's status as an error.

use std::time::{Duration, SystemTime};

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RANGE, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode, Url};
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::auth::Secret;
use super::challenge;
use super::error::{RegistryError, shown, shown_url};
use super::hosts::{Host, is_loopback, same_origin};
use super::session::Client;

const REDIRECTS_LIMIT: usize = 8;
/// How much of an error's text is read.
const DETAIL_LIMIT: usize = 8 * 1024;

/// What is asked of a host.
#[derive(Clone)]
pub(super) struct Ask {
    /// For messages: what is being done.
    pub(super) op: &'static str,
    pub(super) method: Method,
    pub(super) url: Url,
    /// The types of manifest that are understood, if it is about one.
    pub(super) accept: Option<&'static str>,
    /// The first byte wanted.
    pub(super) from: u64,
}

/// A host, the secret that it may see, and how it wants to be told.
pub(super) struct Endpoint {
    pub(super) host: Host,
    /// Only there if this host may see it.
    pub(super) secret: Option<Secret>,
    /// The pull scope of the repository, for token servers whose challenge names none.
    pub(super) scope: String,
    /// The `Authorization` that the host accepted or is to be tried with.
    pub(super) authorization: Mutex<Option<HeaderValue>>,
}

impl Endpoint {
    /// Sends `ask`, with authorization if the host asks for it. The answer is a success.
    pub(super) async fn send(&self, client: &Client, ask: &Ask) -> Result<Response, RegistryError> {
        let mut authorization = self.authorization.lock().await.clone();
        let (mut response, mut url) = self.follow(client, ask, authorization.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED && same_origin(&url, &ask.url) {
            let Some(fresh) = self.authorize(client, &response, authorization.as_ref()).await? else {
                return Err(denied(
                    ask.op,
                    &url,
                    authorization.is_some(),
                    detail(response, client).await,
                ));
            };
            authorization = Some(fresh);
            (response, url) = self.follow(client, ask, authorization.as_ref()).await?;
        }
        if response.status().is_success() {
            return Ok(response);
        }
        Err(failure(ask.op, &url, self.secret.is_some(), response, client).await)
    }

    /// Follows redirects. Credentials, the host's own headers and its client certificate stay at the host.
    pub(super) async fn follow(
        &self,
        client: &Client,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response, Url), RegistryError> {
        let mut url = ask.url.clone();
        for _ in 0..=REDIRECTS_LIMIT {
            let at_home = same_origin(&url, &self.host.base);
            let http =
                client
                    .transports
                    .client(&client.config, &self.host.tls, self.host.dial_timeout, &url, at_home)?;
            let mut headers = if at_home {
                self.host.headers.clone()
            } else {
                HeaderMap::new()
            };
            if let Some(authorization) = authorization.filter(|_| same_origin(&url, &ask.url)) {
                headers.insert(AUTHORIZATION, authorization.clone());
            }
            if let Some(accept) = ask.accept {
                headers.insert(ACCEPT, HeaderValue::from_static(accept));
            }
            // What is verified and counted is the content, not some proxy's compression of it.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if ask.from > 0 {
                let range = format!("bytes={}-", ask.from);
                headers.insert(
                    RANGE,
                    HeaderValue::from_str(&range).expect("digits are a header's value"),
                );
            }
            let request = http.request(ask.method.clone(), url.clone()).headers(headers);
            let response = answer(client, ask.op, &url, request).await?;
            if !response.status().is_redirection() {
                return Ok((response, url));
            }
            url = redirected(ask.op, &url, &response)?;
        }
        Err(RegistryError::Redirect {
            op: ask.op,
            url: shown_url(&ask.url),
            why: "too many",
        })
    }

    /// Finds the `Authorization` that `response` asks for. `None` if there is nothing to try that was not tried.
    async fn authorize(
        &self,
        client: &Client,
        response: &Response,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let challenge = challenge::strongest(response.headers());
        // Requests that run at the same time share one token.
        let mut current = self.authorization.lock().await;
        if current.as_ref() != used {
            return Ok(current.clone());
        }
        let fresh = self.answer(client, challenge, used).await?;
        if fresh.is_some() {
            current.clone_from(&fresh);
        }
        Ok(fresh)
    }
}

/// Sends and waits for the head of the answer, no longer than a connection may stall.
pub(super) async fn answer(
    client: &Client,
    op: &'static str,
    url: &Url,
    request: reqwest::RequestBuilder,
) -> Result<Response, RegistryError> {
    // A connection has its own limit; what follows it, the other.
    let after = client.config.connect_timeout + client.config.stall_timeout;
    match timeout(after, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(source)) => Err(network(op, url, source)),
        Err(_) => Err(RegistryError::Stalled {
            op,
            url: shown_url(url),
            after,
        }),
    }
}

/// The next piece of the body, waited for no longer than a connection may stall.
pub(super) async fn chunk(
    client: &Client,
    op: &'static str,
    url: &Url,
    response: &mut Response,
) -> Result<Option<bytes::Bytes>, RegistryError> {
    let after = client.config.stall_timeout;
    match timeout(after, response.chunk()).await {
        Ok(Ok(chunk)) => Ok(chunk),
        Ok(Err(source)) => Err(network(op, url, source)),
        Err(_) => Err(RegistryError::Stalled {
            op,
            url: shown_url(url),
            after,
        }),
    }
}

/// The whole body, which goes into memory and so may have `limit` bytes at most.
pub(super) async fn body(
    client: &Client,
    op: &'static str,
    url: &Url,
    mut response: Response,
    limit: u64,
) -> Result<Vec<u8>, RegistryError> {
    let mut body = Vec::new();
    while let Some(chunk) = chunk(client, op, url, &mut response).await? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(RegistryError::TooLarge {
                op,
                url: shown_url(url),
                limit,
            });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn network(op: &'static str, url: &Url, source: reqwest::Error) -> RegistryError {
    RegistryError::Network {
        op,
        url: shown_url(url),
        source: source.without_url(),
    }
}

fn redirected(op: &'static str, url: &Url, response: &Response) -> Result<Url, RegistryError> {
    let refused = |why| RegistryError::Redirect {
        op,
        url: shown_url(url),
        why,
    };
    let location = response.headers().get(LOCATION).ok_or_else(|| refused("no location"))?;
    let location = location
        .to_str()
        .map_err(|_| refused("the location is not an address"))?;
    let next = url
        .join(location)
        .map_err(|_| refused("the location is not an address"))?;
    match next.scheme() {
        "https" => {}
        "http" if url.scheme() == "http" => {}
        "http" => return Err(refused("from https to http")),
        _ => return Err(refused("neither http nor https")),
    }
    if is_loopback(&next) && !is_loopback(url) {
        return Err(refused("to this machine"));
    }
    Ok(next)
}

fn denied(op: &'static str, url: &Url, sent: bool, detail: String) -> RegistryError {
    RegistryError::Denied {
        op,
        url: shown_url(url),
        sent,
        detail,
    }
}

/// The error that an unsuccessful answer means.
pub(super) async fn failure(
    op: &'static str,
    url: &Url,
    sent: bool,
    response: Response,
    client: &Client,
) -> RegistryError {
    let status = response.status();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(pause);
    let detail = detail(response, client).await;
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => denied(op, url, sent, detail),
        StatusCode::NOT_FOUND => RegistryError::NotFound {
            op,
            url: shown_url(url),
            detail,
        },
        _ => RegistryError::Status {
            op,
            url: shown_url(url),
            status: status.as_u16(),
            detail,
            retry_after,
        },
    }
}

/// `Retry-After`: seconds or a date.
fn pause(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

/// What the registry says of its error, if it does so in the protocol's form, ready to follow the message.
async fn detail(mut response: Response, client: &Client) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(serde::Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut text = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            text.extend_from_slice(&chunk);
            if text.len() > DETAIL_LIMIT {
                break;
            }
        }
    };
    // Whatever came until then will do.
    let _ = timeout(client.config.stall_timeout.min(Duration::from_secs(5)), read).await;
    match serde_json::from_slice::<Errors>(&text)
        .ok()
        .and_then(|errors| errors.errors.into_iter().next())
    {
        Some(Error { code, message }) => format!(": {}", shown(&format!("{code}: {message}"))),
        None => String::new(),
    }
}
