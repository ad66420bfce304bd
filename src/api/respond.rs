//! One span and one log line per RPC, whatever it does.

use std::future::Future;
use std::time::Instant;

use tonic::{Code, Response, Status};
use tracing::Instrument;

/// How loud an RPC is in the log: what changes something is told, what only looks is for debugging.
#[derive(Clone, Copy)]
pub enum Loudness {
    Change,
    Look,
}

/// Runs an RPC's work inside its span, logs its end once with its time, and wraps its answer.
pub async fn respond<T>(
    rpc: &'static str,
    id: &str,
    loudness: Loudness,
    work: impl Future<Output = Result<T, Status>>,
) -> Result<Response<T>, Status> {
    let started = Instant::now();
    let span = tracing::info_span!("rpc", rpc, id);
    async {
        let answer = work.await;
        let ms = started.elapsed().as_secs_f64() * 1e3;
        match (&answer, loudness) {
            (Ok(_), Loudness::Change) => tracing::info!(ms, "done"),
            (Ok(_), Loudness::Look) => tracing::debug!(ms, "done"),
            (Err(status), Loudness::Look) if status.code() == Code::NotFound => {
                tracing::debug!(ms, error = status.message(), "not found");
            }
            (Err(status), _) => tracing::warn!(ms, code = ?status.code(), error = status.message(), "failed"),
        }
        answer.map(Response::new)
    }
    .instrument(span)
    .await
}
