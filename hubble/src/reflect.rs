//! Messages by their fields' names.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MessageDescriptor};

static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(weir_proto::DESCRIPTORS).ok());

/// The descriptor of a message that is compiled in.
pub(crate) fn message(name: &str) -> MessageDescriptor {
    let found = POOL.as_ref().and_then(|pool| pool.get_message_by_name(name));
    found.unwrap_or_else(|| unreachable!("{name} is compiled in"))
}
