//! `WWW-Authenticate` headers: RFC 9110 section 11.6.1, and the parameters of the token specification.

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// How a registry wants to be asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: String,
        scope: String,
    },
}

/// More is not read of a header, and no more challenges are taken.
const LENGTH_LIMIT: usize = 16 * 1024;
const CHALLENGES_LIMIT: usize = 16;

/// The strongest challenge that can be met: a token before a password.
pub(super) fn strongest(headers: &HeaderMap) -> Option<Challenge> {
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE).iter().take(CHALLENGES_LIMIT) {
        if let Some(text) = value.to_str().ok().filter(|text| text.len() <= LENGTH_LIMIT) {
            parse(text, &mut found);
        }
    }
    let bearer = found
        .iter()
        .position(|challenge| matches!(challenge, Challenge::Bearer { .. }));
    match bearer {
        Some(index) => Some(found.swap_remove(index)),
        None => found.pop(),
    }
}

fn parse(text: &str, found: &mut Vec<Challenge>) {
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() && found.len() < CHALLENGES_LIMIT {
        let (scheme, after) = rest.split_once(' ').unwrap_or((rest, ""));
        let (parameters, after) = parameters(after);
        rest = after;
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let value = |name: &str| {
                parameters
                    .iter()
                    .find(|(key, _)| key.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.clone())
            };
            if let Some(realm) = value("realm") {
                found.push(Challenge::Bearer {
                    realm,
                    service: value("service").unwrap_or_default(),
                    scope: value("scope").unwrap_or_default(),
                });
            }
        }
    }
}

/// Reads `key=value` pairs up to the next scheme: a word that no `=` follows.
fn parameters(mut rest: &str) -> (Vec<(String, String)>, &str) {
    let mut parameters = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', ',', '\t']);
        let end = rest.find(['=', ' ', ',']).unwrap_or(rest.len());
        let Some(after) = rest[end..].trim_start_matches(' ').strip_prefix('=') else {
            return (parameters, rest);
        };
        let key = rest[..end].to_owned();
        let (value, after) = value(after.trim_start_matches(' '));
        parameters.push((key, value));
        rest = after;
    }
}

fn value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::{Challenge, strongest};
    use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};

    fn of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        strongest(&headers)
    }

    fn bearer(realm: &str, service: &str, scope: &str) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.to_owned(),
            scope: scope.to_owned(),
        })
    }

    #[test]
    fn the_hub_s_challenge_is_read() {
        assert_eq!(
            of(&[
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#
            ]),
            bearer(
                "https://auth.docker.io/token",
                "registry.docker.io",
                "repository:a/b:pull,push"
            )
        );
    }

    #[test]
    fn a_token_is_preferred_wherever_it_stands() {
        let expected = bearer("https://t", "", "");
        assert_eq!(of(&["Basic realm=\"x\"", "bearer realm=\"https://t\""]), expected);
        assert_eq!(of(&["Basic realm=\"x\", Bearer realm=\"https://t\""]), expected);
        assert_eq!(
            of(&["Bearer realm=https://t , error=\"invalid_token\", Basic realm=\"x, y\""]),
            expected
        );
    }

    #[test]
    fn what_cannot_be_met_is_left_out() {
        assert_eq!(of(&["Negotiate", "Basic"]), Some(Challenge::Basic));
        assert_eq!(of(&["Negotiate abc==, Basic realm=x"]), Some(Challenge::Basic));
        assert_eq!(of(&["Bearer service=\"x\""]), None);
        assert_eq!(of(&["Digest realm=\"x\", nonce=\"y"]), None);
        assert_eq!(of(&["", ",,,", "=", "\"", " = ="]), None);
        assert_eq!(of(&[r#"Bearer realm="a\"b""#]), bearer("a\"b", "", ""));
    }
}
