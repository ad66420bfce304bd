//! Image references: `[domain[:port]/]path[:tag][@digest]`, with docker's defaults.
//!
//! The grammar is that of the distribution project's `reference` package; the defaults are docker's: no domain
//! means `docker.io`, a single path component there means `library/`, neither tag nor digest means `latest`.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

/// The domain of references that name none.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag of references that have neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
/// Longest text looked at, longest repository path, longest domain (DNS's limit and a port) and longest tag, in bytes.
const TEXT_LIMIT: usize = 1024;
const PATH_LIMIT: usize = 255;
const DOMAIN_LIMIT: usize = 253 + 6;
const TAG_LIMIT: usize = 128;

/// Why a text is no reference or no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Nothing, or nothing before the tag or the digest.
    #[error("image reference {text:?}: no repository name")]
    Empty { text: String },
    /// Longer than anything that is looked at.
    #[error("image reference: {part} of {length} bytes, where {limit} are the most")]
    TooLong {
        part: &'static str,
        length: usize,
        limit: usize,
    },
    /// The domain is not a host name, an IPv4 or a bracketed IPv6 address, with or without a port.
    #[error("image reference {text:?}: {domain:?} is not a registry host")]
    Domain { text: String, domain: String },
    /// A component of the path breaks the grammar.
    #[error(
        "image reference {text:?}: {component:?} in the repository path: lower-case letters and digits, separated by \
         one period, one or two underscores or any number of hyphens"
    )]
    Path { text: String, component: String },
    /// The tag breaks the grammar.
    #[error(
        "image reference {text:?}: {tag:?} is not a tag: at most 128 of letters, digits, `_`, `.` and `-`, not beginning with `.` or `-`"
    )]
    Tag { text: String, tag: String },
    /// 64 hexadecimal digits are an image id and not a repository's name.
    #[error("image reference {text:?}: 64 hexadecimal digits are an image id, not a repository")]
    LooksLikeId { text: String },
    /// Not `algorithm:hex`, or of the wrong length for the algorithm.
    #[error("{text:?} is not a digest: `sha256:` and 64 or `sha512:` and 128 lower-case hexadecimal digits")]
    Digest { text: String },
}

/// A normalised reference: the domain and the whole path are always there, and a tag or a digest or both.
/// Its `Display` is the canonical form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses and normalises any form that docker, kubelet and crictl accept.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > TEXT_LIMIT {
            return Err(ReferenceError::TooLong {
                part: "a text",
                length: text.len(),
                limit: TEXT_LIMIT,
            });
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        // A colon behind the last slash begins a tag; before it, it belongs to a port.
        let (name, tag) = match name.rfind(':') {
            Some(colon) if !name[colon..].contains('/') => (&name[..colon], Some(&name[colon + 1..])),
            _ => (name, None),
        };
        if name.is_empty() {
            return Err(ReferenceError::Empty { text: text.to_owned() });
        }
        let (domain, path) = split_domain(name);
        if !is_domain(&domain) {
            return Err(ReferenceError::Domain {
                text: text.to_owned(),
                domain,
            });
        }
        if path.len() > PATH_LIMIT {
            return Err(ReferenceError::TooLong {
                part: "a repository path",
                length: path.len(),
                limit: PATH_LIMIT,
            });
        }
        if let Some(component) = path.split('/').find(|component| !is_path_component(component)) {
            let component = component.to_owned();
            return Err(ReferenceError::Path {
                text: text.to_owned(),
                component,
            });
        }
        if name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(ReferenceError::LooksLikeId { text: text.to_owned() });
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(ReferenceError::Tag {
                text: text.to_owned(),
                tag: tag.to_owned(),
            });
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self {
            domain,
            path,
            tag,
            digest,
        })
    }

    /// The registry's name, with its port if one was given: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if one was given or implied.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was given. It, and not the tag, then says which image is meant.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Domain and path: `docker.io/library/busybox`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The name that the image gets in `repo_tags` by this reference: the canonical tag, unless a digest decides.
    pub fn repo_tag(&self) -> Option<String> {
        match (&self.tag, &self.digest) {
            (Some(tag), None) => Some(format!("{}:{tag}", self.repository())),
            _ => None,
        }
    }

    /// The name of the content `digest` in this repository, as in `repo_digests`.
    pub fn repo_digest(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.repository())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The first component is a domain when it cannot be a repository's: it has a period, a colon or an upper-case
/// letter, or is `localhost`.
fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':', '['])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == LEGACY_DOMAIN {
        DEFAULT_DOMAIN
    } else {
        domain
    };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("{OFFICIAL}{path}")
    } else {
        path.to_owned()
    };
    (domain.to_owned(), path)
}

fn is_domain(domain: &str) -> bool {
    if domain.len() > DOMAIN_LIMIT {
        return false;
    }
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, rest)) => match rest.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let host_is_good = if domain.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
    };
    let port_is_good = match port {
        Some(port) => port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0),
        None => true,
    };
    host_is_good && port_is_good
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9');
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_word(first)
        && is_word(last)
        && component
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= TAG_LIMIT
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

pub(super) fn shortened(text: &str) -> String {
    match text.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Reference, ReferenceError};

    const HEX: &str = "e4d909c290d0fb1ca068ffaddf22cbd0e4d909c290d0fb1ca068ffaddf22cbd0";

    fn canonical(text: &str) -> String {
        Reference::parse(text)
            .unwrap_or_else(|error| panic!("{text}: {error}"))
            .to_string()
    }

    #[test]
    fn docker_defaults_are_filled_in() {
        for (given, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/thing", "docker.io/user/thing:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("library/busybox", "docker.io/library/busybox:latest"),
            ("localhost/thing", "localhost/thing:latest"),
            ("localhost:5000/thing:a", "localhost:5000/thing:a"),
            ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[2001:db8::1]/a", "[2001:db8::1]/a:latest"),
            ("Upper/thing", "Upper/thing:latest"),
            ("xn--n3h.com/a--b__c.d_e", "xn--n3h.com/a--b__c.d_e:latest"),
            ("a:5000", "docker.io/library/a:5000"),
        ] {
            assert_eq!(canonical(given), expected, "{given}");
        }
        assert_eq!(
            canonical(&format!("a@sha256:{HEX}")),
            format!("docker.io/library/a@sha256:{HEX}")
        );
        assert_eq!(
            canonical(&format!("h.io/a:t@sha256:{HEX}")),
            format!("h.io/a:t@sha256:{HEX}")
        );
        assert_eq!(
            canonical(&format!("h.io/a@sha512:{HEX}{HEX}")),
            format!("h.io/a@sha512:{HEX}{HEX}")
        );
    }

    #[test]
    fn the_canonical_form_parses_to_the_same_reference() {
        for text in ["busybox", "user/thing:1", "localhost:5000/a/b", "docker.io/library/a/b"] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused_with_the_reason() {
        let too_long = "a".repeat(256);
        let long_tag = format!("a:{}", "t".repeat(129));
        let bad_digest = format!("a@sha256:{}", &HEX[1..]);
        let upper_digest = format!("a@sha256:{}", HEX.to_uppercase());
        let two_digests = format!("a@sha256:{HEX}@sha256:{HEX}");
        for (text, part) in [
            ("", "no repository name"),
            (":tag", "no repository name"),
            ("@sha256:", "not a digest"),
            ("a//b", "\"\" in the repository path"),
            ("a/", "\"\" in the repository path"),
            ("/a", "\"\" in the repository path"),
            ("Busybox", "\"Busybox\" in the repository path"),
            ("a..b/c", "not a registry host"),
            ("a/b..c", "\"b..c\" in the repository path"),
            ("a/../b", "\"..\" in the repository path"),
            ("h.io/../../etc/passwd", "\"..\" in the repository path"),
            ("a___b", "in the repository path"),
            ("-a", "in the repository path"),
            ("a-", "in the repository path"),
            ("a b", "in the repository path"),
            ("a\n", "in the repository path"),
            ("h.io:99999/a", "not a registry host"),
            ("h.io:0/a", "not a registry host"),
            ("h.io:/a", "not a registry host"),
            ("h_x.io/a", "not a registry host"),
            ("[::1/a", "not a registry host"),
            ("[::1]x/a", "not a registry host"),
            ("https://h.io/a", "not a registry host"),
            ("user:pw@h.io/a", "not a digest"),
            ("a:", "not a tag"),
            ("a:.b", "not a tag"),
            ("a:b c", "not a tag"),
            (HEX, "image id"),
            (&too_long, "a repository path of"),
            (&long_tag, "not a tag"),
            (&bad_digest, "not a digest"),
            (&upper_digest, "not a digest"),
            (&two_digests, "not a digest"),
            ("a@md5:d41d8cd98f00b204e9800998ecf8427e", "not a digest"),
        ] {
            let error = Reference::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert!(matches!(
            Reference::parse(&"a/".repeat(600)),
            Err(ReferenceError::TooLong { limit: 1024, .. })
        ));
    }

    #[test]
    fn a_digest_decides_and_the_tag_beside_it_names_nothing() {
        let both = Reference::parse(&format!("a:t@sha256:{HEX}")).unwrap();
        assert_eq!(both.repo_tag(), None);
        assert_eq!(both.tag(), Some("t"));
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        assert_eq!(both.repo_digest(&digest), format!("docker.io/library/a@sha256:{HEX}"));
        assert_eq!(digest.hex(), HEX);
        assert_eq!(
            Reference::parse("a:t").unwrap().repo_tag().as_deref(),
            Some("docker.io/library/a:t")
        );
    }
}
