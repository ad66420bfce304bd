//! Streams one blob, resuming at the byte where a connection ended, at the same host or the next.

use reqwest::header::CONTENT_RANGE;
use reqwest::{Method, Response, StatusCode};

use super::error::{RegistryError, shown_url};
use super::pipe::Writer;
use super::request::{Ask, Endpoint, chunk};
use super::resolve::RemoteLayer;
use super::session::{Capability, Session};

const OP: &str = "get layer";
/// A connection that brought this many bytes was of use: the count of attempts begins anew.
const PROGRESS: u64 = 64 * 1024;

/// How a transfer ended that was no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streamed {
    /// All bytes are in the pipe.
    Whole,
    /// The reader went away.
    Unread,
}

impl Session {
    /// Streams `layer` into `writer`, leaving out the hosts `excluded`. `used` gets the numbers of the hosts that
    /// contributed, `received` is told each count of bytes.
    ///
    /// # Errors
    /// When no host is left that could go on.
    pub async fn stream(
        &self,
        layer: &RemoteLayer,
        writer: &mut Writer,
        excluded: &[usize],
        used: &mut Vec<usize>,
        received: &(dyn Fn(u64) + Sync),
    ) -> Result<Streamed, RegistryError> {
        let mut rounds = self.rounds(Capability::Pull, excluded)?;
        loop {
            let before = writer.written();
            let outcome = self.transfer(rounds.endpoint(), layer, writer, received).await;
            if writer.written() > before && !used.contains(&rounds.index()) {
                used.push(rounds.index());
            }
            match outcome {
                Ok(streamed) => return Ok(streamed),
                Err(error) => {
                    if writer.written() - before >= PROGRESS {
                        rounds.progressed();
                    }
                    rounds.failed(error).await?;
                }
            }
        }
    }

    async fn transfer(
        &self,
        endpoint: &Endpoint,
        layer: &RemoteLayer,
        writer: &mut Writer,
        received: &(dyn Fn(u64) + Sync),
    ) -> Result<Streamed, RegistryError> {
        let from = writer.written();
        if from == layer.size {
            return Ok(Streamed::Whole);
        }
        let url = self.blob_url(endpoint, &layer.digest);
        let ask = Ask {
            op: OP,
            method: Method::GET,
            url,
            accept: None,
            from,
        };
        let mut response = endpoint.send(&self.client, &ask).await?;
        let mut skip = begins_at(&ask, &response, from)?;
        if let Some(length) = response.content_length() {
            let actual = from - skip + length;
            if actual != layer.size {
                return Err(wrong_length(&ask, layer, actual));
            }
        }
        while let Some(mut piece) = chunk(&self.client, OP, &ask.url, &mut response).await? {
            let skipped = skip.min(piece.len() as u64);
            skip -= skipped;
            let piece = piece.split_off(skipped as usize);
            if piece.is_empty() {
                continue;
            }
            let length = piece.len() as u64;
            let total = writer.written() + length;
            if total > layer.size {
                return Err(wrong_length(&ask, layer, total));
            }
            if !writer.write(piece).await {
                return Ok(Streamed::Unread);
            }
            received(length);
        }
        if writer.written() == layer.size {
            return Ok(Streamed::Whole);
        }
        let (url, received, expected) = (shown_url(&ask.url), writer.written(), layer.size);
        Err(RegistryError::Cut {
            op: OP,
            url,
            received,
            expected,
        })
    }
}

/// How many bytes to skip of an answer to a request for the bytes behind `from`.
fn begins_at(ask: &Ask, response: &Response, from: u64) -> Result<u64, RegistryError> {
    let wrong = |why| RegistryError::Protocol {
        op: OP,
        url: shown_url(&ask.url),
        why,
    };
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Ok(from);
    }
    if from == 0 {
        return Err(wrong("a part where the whole was asked for"));
    }
    let range = response
        .headers()
        .get(CONTENT_RANGE)
        .and_then(|value| value.to_str().ok());
    let start = range.and_then(|text| {
        text.trim()
            .strip_prefix("bytes ")?
            .split('-')
            .next()?
            .trim()
            .parse::<u64>()
            .ok()
    });
    match start {
        Some(start) if start <= from => Ok(from - start),
        _ => Err(wrong("another range than the one asked for")),
    }
}

fn wrong_length(ask: &Ask, layer: &RemoteLayer, actual: u64) -> RegistryError {
    RegistryError::LengthMismatch {
        op: OP,
        url: shown_url(&ask.url),
        expected: layer.size,
        actual,
    }
}
