//! Long lists in several messages: each item once, the end of the stream after the last one.

use std::pin::Pin;

use futures_util::Stream;
use prost::Message;
use tonic::Status;

/// What one message may weigh. Counting items instead would let fat ones exceed the client's limit.
const BATCH_BYTES: usize = 1024 * 1024;

/// The messages of an answer that is a stream.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `items` in batches, each made a message by `respond`.
pub fn batches<T: Message + 'static, R: Send + 'static>(
    items: Vec<T>,
    respond: impl Fn(Vec<T>) -> R + Send + 'static,
) -> Answers<R> {
    let messages = split(items).into_iter().map(move |batch| Ok(respond(batch)));
    Box::pin(futures_util::stream::iter(messages))
}

fn split<T: Message>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut batches: Vec<Vec<T>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let size = item.encoded_len();
        match batches.last_mut() {
            Some(batch) if bytes + size <= BATCH_BYTES => batch.push(item),
            _ => {
                batches.push(vec![item]);
                bytes = 0;
            }
        }
        bytes += size;
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_comes_once_and_no_batch_is_too_heavy() {
        let item = |n: usize| crate::cri::Container {
            id: format!("{n}"),
            image_ref: "x".repeat(300_000),
            ..Default::default()
        };
        let batches = split((0..10).map(item).collect::<Vec<_>>());
        let ids: Vec<_> = batches.iter().flatten().map(|container| container.id.clone()).collect();
        assert_eq!(ids, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(
            batches
                .iter()
                .all(|batch| batch.iter().map(Message::encoded_len).sum::<usize>() <= BATCH_BYTES)
        );
        assert!(split(Vec::<crate::cri::Container>::new()).is_empty());
    }
}
