//! Network
pub mod netns;
