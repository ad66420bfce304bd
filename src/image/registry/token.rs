//! Meets a registry's challenge: a password, or a token of the server that the registry names
//! (the distribution project's docs/spec/auth/token.md and oauth.md).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;

use super::auth::Secret;
use super::challenge::Challenge;
use super::error::{RegistryError, shown, shown_url};
use super::hosts::{is_loopback, same_origin};
use super::request::{Ask, Endpoint, answer, body, failure};
use super::session::Client;

const OP: &str = "get a token from";
const TOKEN_LIMIT: u64 = 256 * 1024;
const CLIENT_ID: &str = "crisp";

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

impl Endpoint {
    /// The `Authorization` to send from the start: a token that the request brought.
    pub(super) fn initial(secret: Option<&Secret>) -> Option<HeaderValue> {
        match secret {
            Some(Secret::RegistryToken(token)) => bearer(token),
            _ => None,
        }
    }

    /// Meets `challenge`; `used` was refused. `None` if there is nothing to meet it with.
    pub(super) async fn answer(
        &self,
        client: &Client,
        challenge: Option<Challenge>,
        used: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        match (challenge, &self.secret) {
            (None, _) | (_, Some(Secret::RegistryToken(_))) => Ok(None),
            (Some(Challenge::Basic), Some(Secret::Password { username, password })) => {
                let value = basic(username, password);
                Ok(Some(value).filter(|value| Some(value) != used))
            }
            (Some(Challenge::Basic), _) => Ok(None),
            (Some(Challenge::Bearer { realm, service, scope }), secret) => {
                let realm = self.realm(&realm)?;
                let scope = if scope.is_empty() { &self.scope } else { &scope };
                let token = match secret {
                    Some(Secret::IdentityToken(token)) => self.refresh(client, realm, &service, scope, token).await?,
                    Some(Secret::Password { username, password }) => {
                        let authorization = basic(username, password);
                        self.fetch(client, realm, &service, scope, Some((username, authorization)))
                            .await?
                    }
                    _ => self.fetch(client, realm, &service, scope, None).await?,
                };
                Ok(bearer(&token))
            }
        }
    }

    /// The token server's address, if it may be asked at all: by TLS, or plain where the registry itself is plain,
    /// and then with credentials only on this machine or at the registry itself.
    fn realm(&self, realm: &str) -> Result<Url, RegistryError> {
        let refused = |why| RegistryError::Challenge {
            url: shown_url(&self.host.base),
            why,
        };
        let url = Url::parse(realm).map_err(|_| refused("the realm is not an address"))?;
        let base = &self.host.base;
        if url.host_str().is_none() || !url.username().is_empty() || url.password().is_some() {
            return Err(refused("the realm is not the address of a host"));
        }
        if is_loopback(&url) && !is_loopback(base) {
            return Err(refused("the realm is on this machine, the registry is not"));
        }
        match url.scheme() {
            "https" => Ok(url),
            "http" if is_loopback(&url) || same_origin(&url, base) => Ok(url),
            "http" if base.scheme() == "http" && self.secret.is_none() => Ok(url),
            "http" => Err(refused("the realm is not https: credentials would go in plain text")),
            _ => Err(refused("the realm is neither http nor https")),
        }
    }

    /// By GET, with a password or for anybody.
    async fn fetch(
        &self,
        client: &Client,
        mut realm: Url,
        service: &str,
        scope: &str,
        credentials: Option<(&str, HeaderValue)>,
    ) -> Result<String, RegistryError> {
        {
            let mut query = realm.query_pairs_mut();
            if !service.is_empty() {
                query.append_pair("service", service);
            }
            for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
                query.append_pair("scope", scope);
            }
            if let Some((username, _)) = &credentials {
                query
                    .append_pair("client_id", CLIENT_ID)
                    .append_pair("account", username);
            }
        }
        let authorization = credentials.map(|(_, value)| value);
        let ask = Ask {
            op: OP,
            method: Method::GET,
            url: realm,
            accept: None,
            from: 0,
        };
        let (response, url) = self.follow(client, &ask, authorization.as_ref()).await?;
        self.token(client, &url, response).await
    }

    /// By POST, with a refresh token. A redirect is not followed: it would take the token elsewhere.
    async fn refresh(
        &self,
        client: &Client,
        realm: Url,
        service: &str,
        scope: &str,
        refresh_token: &str,
    ) -> Result<String, RegistryError> {
        let at_home = same_origin(&realm, &self.host.base);
        let http = client
            .transports
            .client(&client.config, &self.host.tls, self.host.dial_timeout, &realm, at_home)?;
        let mut headers = if at_home {
            self.host.headers.clone()
        } else {
            HeaderMap::new()
        };
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let form = [
            ("grant_type", "refresh_token"),
            ("service", service),
            ("client_id", CLIENT_ID),
            ("scope", scope),
            ("refresh_token", refresh_token),
        ];
        let request = http.post(realm.clone()).headers(headers).form(&form);
        let response = answer(client, OP, &realm, request).await?;
        self.token(client, &realm, response).await
    }

    async fn token(&self, client: &Client, url: &Url, response: reqwest::Response) -> Result<String, RegistryError> {
        if !response.status().is_success() {
            return Err(failure(OP, url, self.secret.is_some(), response, client).await);
        }
        let bytes = body(client, OP, url, response, TOKEN_LIMIT).await?;
        let wrong = |why| RegistryError::Challenge {
            url: shown(&shown_url(url)),
            why,
        };
        let Token { token, access_token } =
            serde_json::from_slice(&bytes).map_err(|_| wrong("the answer is not a token"))?;
        match (token.is_empty(), access_token.is_empty()) {
            (false, _) => Ok(token),
            (true, false) => Ok(access_token),
            (true, true) => Err(wrong("the answer has no token")),
        }
    }
}

fn basic(username: &str, password: &str) -> HeaderValue {
    let encoded = STANDARD.encode(format!("{username}:{password}"));
    sensitive(&format!("Basic {encoded}")).expect("base64 is a header's value")
}

fn bearer(token: &str) -> Option<HeaderValue> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
