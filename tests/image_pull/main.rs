//! Pulls from registries that are honest, broken, slow or hostile, all in this process.

mod auth;
mod content;
mod faults;
mod hosts;
mod kinds;
mod real;
mod server;
mod sharing;
