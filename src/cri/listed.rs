//! The answers to ListContainers and ListPodSandbox, which a kubelet asks for every second, put together from bytes that were
//! encoded once: of an item only its state changes.

use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, encode_key, encode_varint, int32, message};
use prost::{DecodeError, Message};

use super::{Container, PodSandbox};

/// The field of the items, in both answers (CRI).
const ITEMS: u32 = 1;

macro_rules! listed {
    ($(#[$doc:meta])* $name:ident, $item:ident, $items:ident, $state:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            /// As decoded; an answer that is to be sent need not have any.
            pub $items: Vec<$item>,
            encoded: Vec<u8>,
        }

        impl $name {
            /// What of an item stays: all but its state.
            pub fn fixed(item: $item) -> Vec<u8> {
                let state = 0;
                <$item as Message>::encode_to_vec(&$item { state, ..item })
            }

            /// Adds an item, by what [`Self::fixed`] made of it and its state.
            pub fn push(&mut self, fixed: &[u8], state: i32) {
                encode_key(ITEMS, WireType::LengthDelimited, &mut self.encoded);
                // The order of fields is free.
                encode_varint((fixed.len() + int32::encoded_len($state, &state)) as u64, &mut self.encoded);
                self.encoded.extend_from_slice(fixed);
                int32::encode($state, &state, &mut self.encoded);
            }
        }

        impl Message for $name {
            fn encode_raw(&self, buffer: &mut impl BufMut) {
                message::encode_repeated(ITEMS, &self.$items, buffer);
                buffer.put_slice(&self.encoded);
            }

            fn merge_field(
                &mut self,
                tag: u32,
                wire_type: WireType,
                buffer: &mut impl Buf,
                context: DecodeContext,
            ) -> Result<(), DecodeError> {
                match tag {
                    ITEMS => message::merge_repeated(wire_type, &mut self.$items, buffer, context),
                    _ => prost::encoding::skip_field(wire_type, tag, buffer, context),
                }
            }

            fn encoded_len(&self) -> usize {
                message::encoded_len_repeated(ITEMS, &self.$items) + self.encoded.len()
            }

            fn clear(&mut self) {
                *self = Self::default();
            }
        }
    };
}

listed!(
    /// `ListContainersResponse` (CRI).
    ListContainersResponse,
    Container,
    containers,
    6
);
listed!(
    /// `ListPodSandboxResponse` (CRI).
    ListPodSandboxResponse,
    PodSandbox,
    items,
    3
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_is_read_as_what_it_was() {
        let container = |n: i32| Container {
            id: format!("{n}"),
            labels: [("key".to_owned(), "x".repeat(200))].into(),
            state: n,
            ..Container::default()
        };
        let sandbox = |n: i32| PodSandbox {
            id: format!("{n}"),
            state: n,
            ..PodSandbox::default()
        };
        let (mut containers, mut sandboxes) = (ListContainersResponse::default(), ListPodSandboxResponse::default());
        for state in [0, 1, 2, 3, 300, -1] {
            containers.push(&ListContainersResponse::fixed(container(state)), state);
        }
        for state in 0..2 {
            sandboxes.push(&ListPodSandboxResponse::fixed(sandbox(state)), state);
        }
        let bytes = containers.encode_to_vec();
        assert_eq!(bytes.len(), containers.encoded_len());
        let read = ListContainersResponse::decode(&bytes[..]).unwrap();
        assert_eq!(read.containers, [0, 1, 2, 3, 300, -1].map(container));
        // One that was read can be sent on.
        assert_eq!(read.encode_to_vec(), {
            let again = ListContainersResponse {
                containers: [0, 1, 2, 3, 300, -1].map(container).to_vec(),
                ..Default::default()
            };
            again.encode_to_vec()
        });
        let read = ListPodSandboxResponse::decode(&sandboxes.encode_to_vec()[..]).unwrap();
        assert_eq!(read.items, (0..2).map(sandbox).collect::<Vec<_>>());
    }
}
