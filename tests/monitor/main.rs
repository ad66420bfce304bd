//! The monitor as it runs: the real programs, driven through the daemon's client, as root.

mod cgroups;
mod cost;
mod exec;
mod hazards;
mod life;
mod logs;
mod pod;
mod reconnect;
