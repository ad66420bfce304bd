//! The runtime that is tested: a crispd that the tests start, or whatever listens on a socket already.
//!
//! `hack/test --endpoint` runs the tests on another runtime, to see that they test the CRI. A test that cannot be asked there
//! comes to [`only_crisp`] with what it needs, and is counted by that; where the other runtime is wrong stands in
//! hack/endpoint.skips.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// The environment variable that names the socket.
const VARIABLE: &str = "CRISP_TEST_ENDPOINT";

/// Where another runtime listens; none: the tests start crispd.
pub fn socket() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).map(PathBuf::from)
}

/// Ends the test if crisp's own daemon is not what is tested. `needs` says what only that has.
pub fn only_crisp(needs: &str) {
    // hack/harness/endpoint.py looks for these words.
    assert!(socket().is_none(), "only crisp: {needs}");
}

/// Ends the test because the runtime does not say that it has `what`.
#[allow(dead_code, reason = "only the tests of pods ask")]
pub fn lacks(what: &str) -> ! {
    // So too.
    panic!("the runtime lacks: {what}");
}

/// Ends the test if this says that another runtime was written before the CRI had the method.
#[allow(dead_code, reason = "only the tests of pods ask")]
pub fn lacks_method(refusal: &tonic::Status) {
    let generated = refusal.message().contains("method ");
    if socket().is_some() && refusal.code() == tonic::Code::Unimplemented && generated {
        lacks(refusal.message());
    }
}

/// Who listens on `socket`, by the kernel's word.
pub fn pid(socket: &Path) -> u32 {
    let connected = UnixStream::connect(socket).unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
    let peer = getsockopt(&connected, PeerCredentials).expect("the kernel knows its peer");
    u32::try_from(peer.pid()).expect("a pid")
}

/// The network that `pid` is in.
pub fn network(pid: u32) -> File {
    File::open(format!("/proc/{pid}/ns/net")).expect("it lives")
}
