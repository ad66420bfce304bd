//! The way to a pod's monitor, which the pod and its containers share.

use std::sync::Arc;

use tokio::sync::watch;

use super::client::{Client, QUICK};

#[derive(Clone)]
enum Standing {
    /// It has not answered yet: the daemon has just come back, and the monitor is busy or stopped.
    Silent,
    Up(Client),
    /// There is none, or none any more.
    Gone,
}

/// Who has this reaches the monitor, once and as long as it can be reached. Clones share it.
#[derive(Clone)]
pub struct Access(Arc<watch::Sender<Standing>>);

impl Access {
    fn new(standing: Standing) -> Self {
        Self(Arc::new(watch::Sender::new(standing)))
    }

    /// To a monitor that answers.
    pub fn up(client: Client) -> Self {
        Self::new(Standing::Up(client))
    }

    /// To a monitor that has yet to answer.
    pub fn silent() -> Self {
        Self::new(Standing::Silent)
    }

    /// To none.
    pub fn gone() -> Self {
        Self::new(Standing::Gone)
    }

    /// The monitor, if it can be reached now.
    pub fn client(&self) -> Option<Client> {
        match &*self.0.borrow() {
            Standing::Up(client) => Some(client.clone()),
            Standing::Silent | Standing::Gone => None,
        }
    }

    /// Whether it has yet to answer.
    pub fn is_silent(&self) -> bool {
        matches!(&*self.0.borrow(), Standing::Silent)
    }

    /// The monitor; one that has yet to answer is waited for as long as any quick request may take.
    pub async fn answering(&self) -> Option<Client> {
        let mut standing = self.0.subscribe();
        let settled = standing.wait_for(|standing| !matches!(standing, Standing::Silent));
        // Whatever came of it is in the standing now.
        let _ = tokio::time::timeout(QUICK, settled).await;
        self.client()
    }

    /// It answers.
    pub fn set(&self, client: Client) {
        self.0.send_replace(Standing::Up(client));
    }

    /// It is given up. Returns it if it could be reached until now.
    pub fn take(&self) -> Option<Client> {
        match self.0.send_replace(Standing::Gone) {
            Standing::Up(client) => Some(client),
            Standing::Silent | Standing::Gone => None,
        }
    }
}
