//! The answers to ListContainers and ListPodSandbox, which a kubelet asks for every second, put together from bytes that were
//! encoded once: of an item only its state changes.

use prost::bytes::{Buf, BufMut};
use prost::encoding::{DecodeContext, WireType, encode_key, encode_varint, message};
use prost::{DecodeError, Message};

use super::{Container, PodSandbox};

/// The field of the items, in both answers (CRI).
const ITEMS: u32 = 1;

macro_rules! listed {
    ($(#[$doc:meta])* $name:ident, $item:ty, $items:ident, $state:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            /// As decoded; an answer that is to be sent need not have any.
            pub $items: Vec<$item>,
            encoded: Vec<u8>,
        }

        impl $name {
            /// Adds an item: `fixed` is it encoded with a state of 0, which is to say without one.
            pub fn push(&mut self, fixed: &[u8], state: i32) {
                // A state is a small number: a key of one byte, a varint of one.
                let state = (state != 0).then(|| [($state << 3) as u8, state as u8]);
                let state = state.as_ref().map_or(&[][..], |state| &state[..]);
                encode_key(ITEMS, WireType::LengthDelimited, &mut self.encoded);
                encode_varint((fixed.len() + state.len()) as u64, &mut self.encoded);
                self.encoded.extend_from_slice(fixed);
                self.encoded.extend_from_slice(state);
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
        for state in 0..4 {
            let fixed = Container {
                state: 0,
                ..container(state)
            };
            containers.push(&fixed.encode_to_vec(), state);
        }
        for state in 0..2 {
            let fixed = PodSandbox {
                state: 0,
                ..sandbox(state)
            };
            sandboxes.push(&fixed.encode_to_vec(), state);
        }
        let bytes = containers.encode_to_vec();
        assert_eq!(bytes.len(), containers.encoded_len());
        let read = ListContainersResponse::decode(&bytes[..]).unwrap();
        assert_eq!(read.containers, (0..4).map(container).collect::<Vec<_>>());
        // One that was read can be sent on.
        assert_eq!(read.encode_to_vec(), {
            let again = ListContainersResponse {
                containers: (0..4).map(container).collect(),
                ..Default::default()
            };
            again.encode_to_vec()
        });
        let read = ListPodSandboxResponse::decode(&sandboxes.encode_to_vec()[..]).unwrap();
        assert_eq!(read.items, (0..2).map(sandbox).collect::<Vec<_>>());
    }
}
