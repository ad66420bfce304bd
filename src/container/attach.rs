//! Attach: the streams of a container's first process, for one more who looks and types.

use std::sync::Arc;

use tokio::sync::watch;

use super::exec::{Pipes, output_pipe};
use super::{Container, ContainerError, Containers, State};
use crate::monitor::client::Client;

/// How much of its output may wait for one who attached, in bytes, beside what the monitor keeps.
const PIPE_BYTES: usize = 1 << 20;

/// Somebody who attached. Dropping it detaches; the container does not notice.
pub struct Attachment {
    container: Arc<Container>,
    state: watch::Receiver<State>,
    monitor: Client,
}

impl Containers {
    /// Attaches to a running container: what it writes from here on is copied. With a terminal all is on stdout.
    pub async fn attach(
        &self,
        id: &str,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<(Attachment, Pipes), ContainerError> {
        self.check_running(id)?;
        let container = self.find(id)?;
        let tty = container.record.config.tty;
        let pipe = |wanted: bool, stream: &'static str| {
            let made = wanted.then(output_pipe).transpose();
            made.map_err(ContainerError::path("make a pipe for", stream))
                .map(Option::unzip)
        };
        let (out_read, out_write) = pipe(stdout || (tty && stderr), "stdout")?;
        let (err_read, err_write) = pipe(stderr && !tty, "stderr")?;
        for read in out_read.iter().chain(&err_read) {
            // As it is if the user's share of pipe memory is used up.
            let _ = rustix::pipe::fcntl_setpipe_size(read, PIPE_BYTES);
        }
        let monitor = container.monitor().await?;
        let input = monitor
            .attach(&container.record.id, out_write, err_write)
            .await
            .map_err(ContainerError::monitor("attach", &container.record.id))?;
        let state = container.state.subscribe();
        let pipes = Pipes {
            stdin: input.filter(|_| stdin),
            stdout: out_read,
            stderr: err_read,
        };
        Ok((
            Attachment {
                container,
                state,
                monitor,
            },
            pipes,
        ))
    }
}

impl Attachment {
    /// Waits until the container has exited. May be cancelled.
    pub async fn ended(&mut self) {
        // The container's end of the watch lives as long as the container, which is held here.
        let _ = self.state.wait_for(|state| state.exit().is_some()).await;
    }

    /// Sets the size of the container's terminal, in characters.
    pub async fn resize(&self, columns: u16, rows: u16) {
        let id = &self.container.record.id;
        if let Err(error) = self.monitor.resize_tty(id, columns.into(), rows.into()).await {
            tracing::debug!(container_id = %id, error = %crate::model::chain(&error), "the terminal keeps its size");
        }
    }

    /// Who attached types no more. With `stdin_once` and no terminal that is the end of the container's input, as its
    /// configuration says. True if the attachment goes on for its output.
    pub async fn input_ended(&self) -> bool {
        let record = &self.container.record;
        if !record.config.stdin_once || record.config.tty {
            return false;
        }
        if let Err(error) = self.monitor.close_stdin(&record.id).await {
            tracing::debug!(container_id = %record.id, error = %crate::model::chain(&error), "stdin stays open");
        }
        true
    }
}
