//! Credentials: what they are, and which host may see them.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use reqwest::Url;

use super::error::RegistryError;
use super::hosts::is_loopback;

/// Docker's registry has several names; credentials for one are for all.
const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The credentials of a pull request, as in CRI's `AuthConfig`. Empty means not given.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Auth {
    pub username: String,
    pub password: String,
    /// Base64 of `username:password`.
    pub auth: String,
    /// The only host that may see the credentials; if empty, the one that the reference names.
    pub server_address: String,
    /// Exchanged for access tokens (OAuth 2 refresh token).
    pub identity_token: String,
    /// An access token.
    pub registry_token: String,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// What proves who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Secret {
    Password { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Password { .. } => "Secret(password)",
            Self::IdentityToken(_) => "Secret(identity token)",
            Self::RegistryToken(_) => "Secret(registry token)",
        })
    }
}

impl Secret {
    /// The secret among the fields of `auth`, tokens first; `None` if there is none.
    pub(super) fn from_auth(auth: &Auth, domain: &str) -> Result<Option<Self>, RegistryError> {
        if !auth.registry_token.is_empty() {
            return Ok(Some(Self::RegistryToken(auth.registry_token.clone())));
        }
        if !auth.identity_token.is_empty() {
            return Ok(Some(Self::IdentityToken(auth.identity_token.clone())));
        }
        if !auth.username.is_empty() {
            let (username, password) = (auth.username.clone(), auth.password.clone());
            return Ok(Some(Self::Password { username, password }));
        }
        if auth.auth.is_empty() {
            return Ok(None);
        }
        let engine = GeneralPurpose::new(
            &STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let decoded = engine
            .decode(auth.auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        // Some docker clients padded the password with zero bytes.
        match decoded
            .as_deref()
            .map(|text| text.trim_end_matches('\0'))
            .and_then(|text| text.split_once(':'))
        {
            Some((username, password)) => Ok(Some(Self::Password {
                username: username.to_owned(),
                password: password.to_owned(),
            })),
            None => Err(RegistryError::Credentials {
                host: domain.to_owned(),
            }),
        }
    }
}

/// Whether credentials for `address` (`server_address`, or the domain of the reference) may be shown to `host`.
pub(super) fn may_see(address: &str, host: &Url) -> bool {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (Some(scheme), rest),
        None => (None, address),
    };
    if scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
        && host.scheme() != "https"
        && !is_loopback(host)
    {
        return false;
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let Ok(wanted) = Url::parse(&format!("{}://{authority}/", host.scheme())) else {
        return false;
    };
    let (Some(wanted_host), Some(host_name)) = (wanted.host_str(), host.host_str()) else {
        return false;
    };
    let is_hub = |name: &str| HUB.contains(&name);
    let same_name = wanted_host == host_name || (is_hub(wanted_host) && is_hub(host_name));
    same_name && wanted.port_or_known_default() == host.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::{Auth, Secret, may_see};

    #[test]
    fn secrets_are_not_printed() {
        let auth = Auth {
            username: "user".to_owned(),
            password: "hunter2".to_owned(),
            identity_token: "hunter2".to_owned(),
            registry_token: "hunter2".to_owned(),
            auth: "hunter2".to_owned(),
            server_address: "h.io".to_owned(),
        };
        assert!(!format!("{auth:?}").contains("hunter2"));
        assert!(!format!("{:?}", Secret::from_auth(&auth, "h.io")).contains("hunter2"));
    }

    #[test]
    fn the_auth_field_is_base64_of_user_and_password() {
        let secret = |auth: &str| {
            Secret::from_auth(
                &Auth {
                    auth: auth.to_owned(),
                    ..Auth::default()
                },
                "h.io",
            )
        };
        let expected = Secret::Password {
            username: "user".to_owned(),
            password: "pa:ss".to_owned(),
        };
        assert_eq!(secret("dXNlcjpwYTpzcw==").unwrap(), Some(expected.clone()));
        assert_eq!(secret("dXNlcjpwYTpzcw").unwrap(), Some(expected));
        assert!(secret("dXNlcg==").unwrap_err().to_string().contains("h.io"));
        assert!(!secret("!!secret!!").unwrap_err().to_string().contains("secret!!"));
        assert_eq!(secret("").unwrap(), None);
    }

    #[test]
    fn credentials_are_for_one_host() {
        for (address, host, expected) in [
            ("h.io", "https://h.io/v2", true),
            ("h.io:443", "https://h.io/v2", true),
            ("H.io", "https://h.io/v2", true),
            ("h.io:5000", "https://h.io:5000/v2", true),
            ("h.io:5000", "https://h.io/v2", false),
            ("h.io", "https://h.io:5000/v2", false),
            ("h.io", "https://mirror.h.io/v2", false),
            ("h.io", "https://h.io.evil.org/v2", false),
            ("docker.io", "https://registry-1.docker.io/v2", true),
            ("https://index.docker.io/v1/", "https://registry-1.docker.io/v2", true),
            ("https://index.docker.io/v1/", "https://mirror.gcr.io/v2", false),
            ("https://h.io/v2/", "http://h.io/v2", false),
            ("http://h.io/v2/", "http://h.io/v2", true),
            ("https://localhost:5000", "http://localhost:5000/v2", true),
            ("h.io@evil.org", "https://h.io/v2", false),
            ("", "https://h.io/v2", false),
        ] {
            assert_eq!(may_see(address, &host.parse().unwrap()), expected, "{address} {host}");
        }
    }
}
