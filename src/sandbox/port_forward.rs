//! PortForward: connections to the ports of a pod's localhost.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::{SandboxError, Sandboxes};
use crate::container::blocking;
use crate::network::netns;

/// How long a connection may take, for each of IPv4 and IPv6.
const DEADLINE: Duration = Duration::from_secs(10);

impl Sandboxes {
    /// Connects to `port` in the pod's network namespace, or in the node's for a pod that lives there: IPv4 first, then
    /// IPv6. The socket does not block.
    pub async fn connect(&self, id: &str, port: u16) -> Result<TcpStream, SandboxError> {
        let sandbox = self.find(id)?;
        let sandbox_id = sandbox.record.id.clone();
        if !sandbox.is_ready() {
            return Err(SandboxError::NotReady { sandbox_id });
        }
        let path = sandbox.record.netns.clone();
        let connected = blocking(move || {
            let connection = match path {
                Some(path) => netns::connect(&path, port, DEADLINE),
                None => netns::connect_here(port, DEADLINE),
            }?;
            connection.set_nonblocking(true)?;
            connection.set_nodelay(true)?;
            io::Result::Ok(connection)
        });
        connected.await.map_err(|source| SandboxError::Connect {
            port,
            sandbox_id,
            source,
        })
    }
}
