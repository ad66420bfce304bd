//! What only a machine with pure cgroup v2, systemd as PID 1 and AppArmor can show: `hack/lane` runs this there.
//!
//! Needs root and `hack/build`; `systemd::` and `apparmor::` also CRISP_TEST_CGROUP_DRIVER=systemd, while `limits::` takes
//! either driver.

mod apparmor;
#[path = "../support/endpoint.rs"]
mod endpoint;
#[path = "../pods/fixture/mod.rs"]
#[allow(dead_code, reason = "the tests of pods use the rest")]
mod fixture;
#[path = "../support/handlers.rs"]
#[allow(dead_code, reason = "the tests of pods use the rest")]
mod handlers;
mod limits;
#[path = "../pods/registry.rs"]
#[allow(dead_code, reason = "the tests of pods use the rest")]
mod registry;
mod systemd;
