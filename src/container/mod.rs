//! A container's life. [`spec`] describes one, and is pure.

pub mod spec;
