//! A request, prepared once for all sets of rules that it is put to.

use weir_types::Identity;

use crate::{Request, cidr::Address};

/// Longest `<trust domain>/ns/<namespace>/sa/<account>`, as [`Identity`] bounds its parts.
const MAX_PRINCIPAL: usize = 255 + 4 + 63 + 4 + 253;
/// Longest `<namespace>/<account>`.
const MAX_ACCOUNT: usize = 63 + 1 + 253;
/// Blocks that one address can be in: one for each prefix length.
const MAX_BLOCKS: usize = 129;

/// A request in the form in which it is compared.
pub(crate) struct Prepared<'a> {
    pub(super) source: Option<Source<'a>>,
    pub(super) source_ip: Address,
    pub(super) destination_ip: Address,
    pub(super) port: u16,
}

/// The source's identity, as texts.
pub(super) struct Source<'a> {
    namespace: &'a str,
    principal: Text<MAX_PRINCIPAL>,
    account: Text<MAX_ACCOUNT>,
}

/// A short text on the stack.
struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

/// The ids of a request's values in one set of rules; `None` for those that the set does not have.
pub(super) struct Facts<'a> {
    pub(super) request: &'a Prepared<'a>,
    pub(super) namespace: Option<u32>,
    pub(super) principal: Option<u32>,
    pub(super) account: Option<u32>,
    pub(super) port: Option<u32>,
    pub(super) source_blocks: Blocks,
    pub(super) destination_blocks: Blocks,
}

/// Ids of the blocks that an address is in.
pub(super) struct Blocks {
    ids: [u32; MAX_BLOCKS],
    len: usize,
}

// === impl Prepared ===

impl<'a> Prepared<'a> {
    pub(crate) fn new(request: &Request<'a>) -> Self {
        Self {
            source: request.source.map(Source::new),
            source_ip: request.source_ip.into(),
            destination_ip: request.destination_ip.into(),
            port: request.destination_port,
        }
    }
}

// === impl Source ===

impl<'a> Source<'a> {
    fn new(identity: &'a Identity) -> Self {
        let (namespace, account) = (identity.namespace(), identity.service_account());
        let trust_domain = identity.trust_domain().as_str();
        Self {
            namespace,
            principal: Text::new([trust_domain, "/ns/", namespace, "/sa/", account]),
            account: Text::new([namespace, "/", account]),
        }
    }

    pub(super) fn namespace(&self) -> &[u8] {
        self.namespace.as_bytes()
    }

    pub(super) fn principal(&self) -> &[u8] {
        self.principal.bytes()
    }

    /// `<namespace>/<account>`: neither of the two has a slash in it.
    pub(super) fn account(&self) -> &[u8] {
        self.account.bytes()
    }
}

// === impl Text ===

impl<const N: usize> Text<N> {
    /// The parts fit: [`Identity`] bounds the length of each.
    fn new<const PARTS: usize>(parts: [&str; PARTS]) -> Self {
        let (mut bytes, mut len) = ([0; N], 0);
        for part in parts {
            bytes[len..len + part.len()].copy_from_slice(part.as_bytes());
            len += part.len();
        }
        Self { bytes, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

// === impl Facts ===

impl Facts<'_> {
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        let single = [self.principal, self.account, self.namespace, self.port];
        let blocks = self.source_blocks.iter().chain(self.destination_blocks.iter());
        single.into_iter().flatten().chain(blocks)
    }
}

// === impl Blocks ===

impl Blocks {
    pub(super) fn new() -> Self {
        Self {
            ids: [0; MAX_BLOCKS],
            len: 0,
        }
    }

    /// There is room: an address is in one block of each length.
    pub(super) fn push(&mut self, id: u32) {
        self.ids[self.len] = id;
        self.len += 1;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = u32> {
        self.ids[..self.len].iter().copied()
    }
}
