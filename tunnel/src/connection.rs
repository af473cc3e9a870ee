//! What is known of an open tunnel connection, on either side, and the list of all of them.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use jiff::Timestamp;
use weir_types::{Identity, Reason, TrafficDirection, api::TunnelStatus};

use crate::{certs::PeerCertificate, io::SocketHandle};

/// A pod, by the number that the agent gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey(pub u32);

/// A tunnel connection after its handshake.
#[derive(Debug)]
pub struct ConnectionState {
    /// Outbound (egress) or inbound (ingress).
    pub direction: TrafficDirection,
    /// The local pod.
    pub pod: PodKey,
    /// The peer's verified identity.
    pub peer: Identity,
    /// The end of the peer's certificate.
    pub peer_not_after: SystemTime,
    /// The peer's address.
    pub address: SocketAddr,
    /// Version, suite and key exchange, as `TLS1.3 AES_256_GCM X25519MLKEM768`.
    pub tls: Arc<str>,
    /// When the handshake ended.
    pub since: Timestamp,
    /// The socket, for statistics.
    pub socket: SocketHandle,
    streams: AtomicUsize,
    ended: OnceLock<Reason>,
}

/// Open connections of pool and server, for the agent's status. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    inner: Arc<RegistryInner>,
}

#[derive(Debug, Default)]
struct RegistryInner {
    connections: Mutex<HashMap<u64, Weak<ConnectionState>>>,
    next: AtomicU64,
    seen: Mutex<HashMap<IpAddr, SeenPeer>>,
}

/// A peer's certificate, as it was seen in a handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenPeer {
    /// Its identity.
    pub identity: Identity,
    /// Its end.
    pub not_after: SystemTime,
    /// When it was seen.
    pub at: Timestamp,
}

/// Peers whose certificates are remembered: about 200 bytes each.
const SEEN: usize = 16_384;

/// Keeps a connection in the registry until it is dropped.
#[derive(Debug)]
pub(crate) struct Registered {
    registry: Registry,
    id: u64,
}

/// Counts a stream of a connection until it is dropped.
#[derive(Debug)]
pub(crate) struct StreamGuard(Arc<ConnectionState>);

// === impl ConnectionState ===

impl ConnectionState {
    pub(crate) fn new(
        direction: TrafficDirection,
        pod: PodKey,
        peer: &PeerCertificate,
        address: SocketAddr,
        tls: String,
        socket: SocketHandle,
    ) -> Arc<Self> {
        Arc::new(Self {
            direction,
            pod,
            peer: peer.identity.clone(),
            peer_not_after: peer.not_after,
            address,
            tls: tls.into(),
            since: Timestamp::now(),
            socket,
            streams: AtomicUsize::new(0),
            ended: OnceLock::new(),
        })
    }

    /// Streams open now.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Why the connection ended, once it has.
    #[must_use]
    pub fn ended(&self) -> Option<Reason> {
        self.ended.get().copied()
    }

    /// The first reason given stands.
    pub(crate) fn end(&self, reason: Reason) {
        let _ = self.ended.set(reason);
    }

    pub(crate) fn stream(self: &Arc<Self>) -> StreamGuard {
        self.streams.fetch_add(1, Ordering::Relaxed);
        StreamGuard(self.clone())
    }
}

// === impl StreamGuard ===

impl StreamGuard {
    pub(crate) fn connection(&self) -> &Arc<ConnectionState> {
        &self.0
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Registry ===

impl Registry {
    pub(crate) fn register(&self, state: &Arc<ConnectionState>) -> Registered {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.connections().insert(id, Arc::downgrade(state));
        self.remember(state);
        Registered {
            registry: self.clone(),
            id,
        }
    }

    fn remember(&self, state: &ConnectionState) {
        let mut seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let address = state.address.ip().to_canonical();
        if seen.len() >= SEEN && !seen.contains_key(&address) {
            // Rare, and whom it takes matters little: it is for people to read.
            let oldest = seen
                .iter()
                .min_by_key(|(_, peer)| peer.at)
                .map(|(address, _)| *address);
            oldest.map(|oldest| seen.remove(&oldest));
        }
        let peer = SeenPeer {
            identity: state.peer.clone(),
            not_after: state.peer_not_after,
            at: state.since,
        };
        seen.insert(address, peer);
    }

    /// The certificate that the peer at an address presented last.
    #[must_use]
    pub fn last_seen(&self, address: IpAddr) -> Option<SeenPeer> {
        let seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(&address.to_canonical()).cloned()
    }

    /// The open connections, oldest first.
    #[must_use]
    pub fn open(&self) -> Vec<Arc<ConnectionState>> {
        let mut open: Vec<_> = self
            .connections()
            .iter()
            .filter_map(|(id, state)| Some((*id, state.upgrade()?)))
            .collect();
        open.sort_by_key(|(id, _)| *id);
        open.into_iter().map(|(_, state)| state).collect()
    }

    /// The open connections, for people; `uid` names a local pod.
    pub fn status(&self, uid: impl Fn(PodKey) -> String) -> Vec<TunnelStatus> {
        let status = |state: Arc<ConnectionState>| TunnelStatus {
            direction: state.direction,
            pod: uid(state.pod),
            peer: state.peer.clone(),
            address: state.address,
            streams: u64::try_from(state.streams()).unwrap_or(u64::MAX),
            since: state.since,
        };
        self.open().into_iter().map(status).collect()
    }

    fn connections(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Weak<ConnectionState>>> {
        // Each critical section leaves the map whole, so a panic elsewhere does not spoil it.
        self.inner
            .connections
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.registry.connections().remove(&self.id);
    }
}
