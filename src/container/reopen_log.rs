//! ReopenContainerLog: the kubelet has renamed the log; go on in a new file at the old place.

use super::{ContainerError, Containers, blocking, log};

impl Containers {
    /// Swaps the log between two lines. A container that does not run gets an error, and no file.
    pub async fn reopen_log(&self, id: &str) -> Result<(), ContainerError> {
        let container = self.find(id)?;
        let id = &container.record.id;
        container.check_running()?;
        let Some(path) = container.record.log_path.clone() else {
            return Err(ContainerError::NoLog {
                container_id: id.clone(),
            });
        };
        let file = blocking(move || log::open(&path)).await?;
        container
            .monitor()
            .await?
            .reopen_log(id, file)
            .await
            .map_err(ContainerError::monitor("reopen the log", id))
    }
}
