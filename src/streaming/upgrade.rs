//! From a request to what its connection will be: the token is redeemed, the protocol agreed on.

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::protocol::{self, Forwarding, Version};
use super::serve::Serve;
use super::server::Offer;
use super::token::Tokens;

const SPDY: &str = "SPDY/3.1";
const WEBSOCKET: &str = "websocket";
const SPDY_PROTOCOL: &str = "x-stream-protocol-version";

/// An answer that is not an upgrade.
pub fn refuse(status: StatusCode, why: impl Into<String>) -> Response<String> {
    let mut response = Response::new(why.into());
    *response.status_mut() = status;
    response
}

/// Redeems the token and agrees on a protocol.
pub fn prepare(
    request: &Request<Incoming>,
    tokens: &Tokens<Offer>,
) -> Result<(Response<String>, Serve), Response<String>> {
    if ![Method::GET, Method::POST].contains(request.method()) {
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST\n"));
    }
    let headers = request.headers();
    let websocket = has_token(headers, header::UPGRADE, WEBSOCKET);
    if !has_token(headers, header::CONNECTION, "upgrade") || !(websocket || has_token(headers, header::UPGRADE, SPDY)) {
        return Err(refuse(
            StatusCode::BAD_REQUEST,
            format!("upgrade to {SPDY} or {WEBSOCKET}\n"),
        ));
    }
    let mut parts = request.uri().path().trim_start_matches('/').split('/');
    let (path, token) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let offer = tokens.redeem(token, |offer| offer.path() == path).ok_or_else(|| {
        refuse(
            StatusCode::NOT_FOUND,
            "no such token: it may be used once, and not for long\n",
        )
    })?;
    if websocket {
        prepare_websocket(headers, offer)
    } else {
        prepare_spdy(headers, offer)
    }
}

fn prepare_spdy(headers: &HeaderMap, offer: Offer) -> Result<(Response<String>, Serve), Response<String>> {
    let offered: Vec<&str> = headers
        .get_all(SPDY_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let (chosen, serve) = match offer {
        Offer::Command { wants, command, .. } => {
            // A client of the first version does not say so.
            let first = offered.is_empty().then_some(("", Version::V1));
            let chosen = first.or_else(|| protocol::choose(offered, &protocol::SPDY_COMMAND));
            let (name, version) = chosen.ok_or_else(|| no_protocol(&protocol::SPDY_COMMAND))?;
            (
                name,
                Serve::SpdyCommand {
                    wants,
                    command,
                    version,
                },
            )
        }
        Offer::PortForward { dial, .. } => {
            let first = offered.is_empty().then_some(("", ()));
            let chosen = first.or_else(|| protocol::choose(offered, &protocol::SPDY_PORT_FORWARD));
            let (name, ()) = chosen.ok_or_else(|| no_protocol(&protocol::SPDY_PORT_FORWARD))?;
            (name, Serve::SpdyPortForward { dial })
        }
    };
    let mut response = switching(SPDY);
    if !chosen.is_empty() {
        response
            .headers_mut()
            .insert(SPDY_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok((response, serve))
}

fn prepare_websocket(headers: &HeaderMap, offer: Offer) -> Result<(Response<String>, Serve), Response<String>> {
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .map(|key| derive_accept_key(key.as_bytes()));
    let accept = key.and_then(|key| HeaderValue::from_str(&key).ok());
    let accept = accept.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "no Sec-WebSocket-Key\n"))?;
    if headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        let mut refusal = refuse(StatusCode::UPGRADE_REQUIRED, "version 13 of WebSocket\n");
        refusal
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(refusal);
    }
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let offered: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    let (chosen, serve) = match offer {
        Offer::Command { wants, command, .. } => {
            let first = offered.is_empty().then_some(("", (Version::V1, false)));
            let chosen = first.or_else(|| protocol::choose(offered, &protocol::WEBSOCKET_COMMAND));
            let (name, (version, base64)) = chosen.ok_or_else(|| no_protocol(&protocol::WEBSOCKET_COMMAND))?;
            (
                name,
                Serve::WebSocketCommand {
                    wants,
                    command,
                    version,
                    base64,
                },
            )
        }
        Offer::PortForward { ports, dial } => {
            let first = offered
                .is_empty()
                .then_some(("", Forwarding::Channels { base64: false }));
            let chosen = first.or_else(|| protocol::choose(offered, &protocol::WEBSOCKET_PORT_FORWARD));
            let (name, forwarding) = chosen.ok_or_else(|| no_protocol(&protocol::WEBSOCKET_PORT_FORWARD))?;
            match forwarding {
                Forwarding::Tunnel => (name, Serve::Tunnel { dial }),
                // The numbers of channels are bytes.
                Forwarding::Channels { .. } if ports.is_empty() || ports.len() > 127 => {
                    return Err(refuse(
                        StatusCode::BAD_REQUEST,
                        "the request named no ports, or too many\n",
                    ));
                }
                Forwarding::Channels { base64 } => (name, Serve::WebSocketPortForward { ports, dial, base64 }),
            }
        }
    };
    let mut response = switching(WEBSOCKET);
    response.headers_mut().insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    if !chosen.is_empty() {
        response
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(chosen));
    }
    Ok((response, serve))
}

fn has_token(headers: &HeaderMap, name: header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values
        .flat_map(|value| value.split(','))
        .any(|word| word.trim().eq_ignore_ascii_case(token))
}

fn switching(to: &'static str) -> Response<String> {
    let mut response = refuse(StatusCode::SWITCHING_PROTOCOLS, "");
    response
        .headers_mut()
        .insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response
        .headers_mut()
        .insert(header::UPGRADE, HeaderValue::from_static(to));
    response
}

fn no_protocol<T>(served: &[(&'static str, T)]) -> Response<String> {
    let names: Vec<&str> = served.iter().map(|(name, _)| *name).collect();
    let mut refusal = refuse(
        StatusCode::FORBIDDEN,
        format!("no common protocol: served are {}\n", names.join(", ")),
    );
    for name in names {
        refusal
            .headers_mut()
            .append("x-accepted-stream-protocol-versions", HeaderValue::from_static(name));
    }
    refusal
}
