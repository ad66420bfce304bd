//! PortForward: connections to the ports of a pod's localhost.

use std::net::TcpStream;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{SandboxError, Sandboxes};
use crate::container::blocking;
use crate::network::netns;

/// How long a connection may take, for each of IPv4 and IPv6.
const DEADLINE: Duration = Duration::from_secs(10);

/// Who may enter a namespace at a time, of all sessions: the threads for it are those of all that blocks in the daemon.
static ENTERING: Semaphore = Semaphore::const_new(16);

impl Sandboxes {
    /// Connects to `port` in the pod's network namespace, or in the node's for a pod that lives there: IPv4 first, then
    /// IPv6. The socket does not block. May be cancelled.
    pub async fn connect(&self, id: &str, port: u16) -> Result<TcpStream, SandboxError> {
        let sandbox = self.find(id)?;
        let sandbox_id = sandbox.record.id.clone();
        if !sandbox.is_ready() {
            return Err(SandboxError::NotReady { sandbox_id });
        }
        let path = sandbox.record.netns.clone();
        let connected = async {
            let place = ENTERING.acquire().await;
            let sockets = blocking(move || {
                // As long as the thread is, even if nobody waits for it any more.
                let _place = place;
                netns::sockets(path.as_deref())
            });
            let connection = sockets.await?.connect(port, DEADLINE).await?;
            connection.set_nodelay(true)?;
            connection.into_std()
        };
        connected.await.map_err(|source| SandboxError::Connect {
            port,
            sandbox_id,
            source,
        })
    }
}
