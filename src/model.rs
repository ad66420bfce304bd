//! Ids, and how an error is told. Code, records, logs and errors use the same words: `sandbox_id`, `container_id`, `image_id`, `pid`.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[cfg_attr(feature = "daemon", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "daemon", serde(transparent))]
        pub struct $name(String);

        impl $name {
            /// Takes an id that is already known to be well formed.
            pub fn new(id: impl Into<String>) -> Self {
                Self(id.into())
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<std::path::Path> for $name {
            fn as_ref(&self) -> &std::path::Path {
                self.0.as_ref()
            }
        }
    };
}

id!(
    /// A pod sandbox: 64 lower-case hexadecimal digits.
    SandboxId
);
id!(
    /// A container: 64 lower-case hexadecimal digits.
    ContainerId
);
id!(
    /// An image: `sha256:` and the digest of its configuration; the same string in `Image.id`, `image_ref` and `image_id`.
    ImageId
);

/// Whether `id` could be an id that crisp gave out: 64 lower-case hexadecimal digits. Ids become file names, so
/// whatever arrives from outside is checked by this first.
pub fn is_well_formed(id: &str) -> bool {
    id.len() == 64 && id.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A new id: 64 hexadecimal digits that nobody can guess or meet twice.
#[cfg(feature = "daemon")]
pub fn random_id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An external OCI runtime, as it is run.
#[cfg(feature = "daemon")]
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OciRuntime {
    /// Absolute.
    pub path: std::path::PathBuf,
    /// What comes before its commands.
    pub options: Vec<String>,
    /// Annotations of pods and containers that it is told: names, or beginnings of names followed by `*`.
    #[serde(default)]
    pub annotations: Vec<String>,
}

#[cfg(feature = "daemon")]
impl OciRuntime {
    /// Whether it is told the annotation `name`.
    pub fn is_told(&self, name: &str) -> bool {
        self.annotations.iter().any(|told| match told.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => name == told,
        })
    }
}

/// An error with all its causes, once, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Some libraries repeat their cause in their own text.
        if !told.ends_with(&text) {
            told.push_str(": ");
            told.push_str(&text);
        }
        cause = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::is_well_formed;

    #[test]
    fn only_64_lower_case_hexadecimal_digits_are_an_id() {
        assert!(is_well_formed(&"0a".repeat(32)));
        assert!(!is_well_formed(&"0A".repeat(32)));
        assert!(!is_well_formed("../../etc"));
        assert!(!is_well_formed(""));
    }
}
