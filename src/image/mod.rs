//!
pub mod reference;
pub mod registry;
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    Invalid,
    NotFound,
    Denied,
    Unavailable,
    Timeout,
    Exhausted,
    Corrupt,
    Unsupported,
    Internal,
}
