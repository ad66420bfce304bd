//! One per pod: parent of its processes. Started by crispd with its three descriptors in 0, 1 and 2.

use std::process::ExitCode;

use crisp::monitor::server::{self, Inheritance};

fn main() -> ExitCode {
    crisp::sys::process::set_name(c"crisp-monitor");
    let Some(sandbox_id) = std::env::args().nth(1) else {
        return ExitCode::from(2);
    };
    let outcome = Inheritance::take().and_then(|inheritance| server::run(sandbox_id.clone(), inheritance));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There is no terminal and no log: the daemon sees its connection end, the node's log has the reason.
            let _ = std::fs::write("/dev/kmsg", format!("crisp-monitor {sandbox_id}: {error}\n"));
            ExitCode::FAILURE
        }
    }
}
