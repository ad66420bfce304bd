//! Hashing by the algorithm that a digest names.

use sha2::{Digest as _, Sha256, Sha512};

use crate::image::digest::{Algorithm, Digest};

pub(super) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(super) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    pub(super) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::of_hash(Algorithm::Sha256, &hash.finalize()),
            Self::Sha512(hash) => Digest::of_hash(Algorithm::Sha512, &hash.finalize()),
        }
    }
}

/// The digest of `bytes`.
pub(super) fn digest_of(algorithm: Algorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}
