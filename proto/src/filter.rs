//! Filters of flows, which say what of them was not understood.

use prost::{
    DecodeError, Message,
    bytes::{Buf, BufMut},
    encoding::{DecodeContext, WireType, skip_field},
};

use crate::flow::KnownFlowFilter;

/// Numbers of the fields that are known.
const KNOWN: &[u32] = include!(concat!(env!("OUT_DIR"), "/filter_tags.rs"));

/// `flow.FlowFilter`. Protobuf ignores what it does not know; a filter of which something is ignored matches more than its
/// author meant.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowFilter {
    /// What is known of it.
    pub known: KnownFlowFilter,
    /// Numbers of fields that are not.
    pub unknown: Vec<u32>,
}

impl From<KnownFlowFilter> for FlowFilter {
    fn from(known: KnownFlowFilter) -> Self {
        Self {
            known,
            unknown: Vec::new(),
        }
    }
}

impl Message for FlowFilter {
    fn encode_raw(&self, buf: &mut impl BufMut) {
        self.known.encode_raw(buf);
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buf: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        if KNOWN.contains(&tag) {
            return self.known.merge_field(tag, wire_type, buf, context);
        }
        if !self.unknown.contains(&tag) {
            self.unknown.push(tag);
        }
        skip_field(wire_type, tag, buf, context)
    }

    fn encoded_len(&self) -> usize {
        self.known.encoded_len()
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_filter_says_is_kept_and_what_is_not_known_is_named() {
        let known = KnownFlowFilter {
            source_pod: vec!["shop/web".to_owned()],
            verdict: vec![2],
            ..KnownFlowFilter::default()
        };
        let mut bytes = FlowFilter::from(known.clone()).encode_to_vec();
        assert_eq!(FlowFilter::decode(&*bytes).unwrap(), known.clone().into());
        // Field 500, a string of one byte, twice.
        bytes.extend([0xa2, 0x1f, 1, b'x', 0xa2, 0x1f, 1, b'y']);
        let read = FlowFilter::decode(&*bytes).unwrap();
        assert_eq!((read.known, read.unknown), (known, vec![500]));
    }
}
