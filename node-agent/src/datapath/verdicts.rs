//! The agent's decisions, as the kernel programs cache them: written here alone, so what is in the maps is known without
//! walking them.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
    net::IpAddr,
};

use aya::maps::{HashMap as BpfMap, MapData, MapError};
use weir_abi::{
    Backend, BackendKey, Endpoint, Reason, Verdict, VerdictKey, VerdictKind, user::address_words,
};

use super::{Datapath, DatapathError, PodHandle, maps::failed};

/// Verdicts of one pod: a port scan pushes out the pod's own oldest, and nobody else's.
const VERDICTS_PER_POD: usize = 4096;
/// Backends of the services in one pod's verdicts.
const BACKENDS_PER_POD: usize = 16_384;

/// A decision to remember for a pod and a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remember {
    /// Outside the mesh: leave it alone.
    Pass,
    /// To a pod on this node, in the clear.
    Direct(PodHandle),
    /// Refuse it at once.
    Deny(Reason),
    /// To one of these, each equally often.
    Service(Vec<Backend>),
}

pub(super) struct VerdictTable {
    verdicts: BpfMap<MapData, VerdictKey, Verdict>,
    backends: BpfMap<MapData, BackendKey, Backend>,
    /// What is in `verdicts`.
    known: HashMap<VerdictKey, Known>,
    by_address: HashMap<[u32; 4], HashSet<VerdictKey>>,
    by_pod: HashMap<u32, Share>,
    next_set: u32,
}

/// What is remembered under a key.
struct Known {
    generation: u32,
    remember: Remember,
    set: u32,
    count: u32,
}

/// What one pod has.
#[derive(Default)]
struct Share {
    /// Oldest first. May name some that are gone.
    order: VecDeque<VerdictKey>,
    verdicts: usize,
    backends: usize,
}

impl VerdictTable {
    /// Takes the maps over, and forgets what an earlier agent decided.
    pub(super) fn new(
        verdicts: BpfMap<MapData, VerdictKey, Verdict>,
        backends: BpfMap<MapData, BackendKey, Backend>,
    ) -> Self {
        let mut table = Self {
            verdicts,
            backends,
            known: HashMap::new(),
            by_address: HashMap::new(),
            by_pod: HashMap::new(),
            // A program that read an earlier agent's verdict a moment ago must not find another set under its number.
            next_set: rand::random(),
        };
        let stale: Vec<VerdictKey> = table.verdicts.keys().filter_map(Result::ok).collect();
        for key in stale {
            let _ = table.verdicts.remove(&key);
        }
        let stale: Vec<BackendKey> = table.backends.keys().filter_map(Result::ok).collect();
        for key in stale {
            let _ = table.backends.remove(&key);
        }
        table
    }

    fn insert(&mut self, key: VerdictKey, generation: u32, remember: &Remember) -> Result<(), MapError> {
        let remember = remember.in_order();
        let same = |known: &Known| known.generation == generation && known.remember == remember;
        if self.known.get(&key).is_some_and(same) {
            return Ok(());
        }
        self.remove(&key);
        let mut verdict = Verdict {
            generation,
            key,
            ..Verdict::default()
        };
        let mut backends: &[Backend] = &[];
        match &remember {
            Remember::Pass => verdict.kind = VerdictKind::PASS,
            Remember::Direct(pod) => (verdict.kind, verdict.dest_pod) = (VerdictKind::DIRECT, pod.0),
            Remember::Deny(reason) => (verdict.kind, verdict.reason) = (VerdictKind::DENY, *reason as u32),
            Remember::Service(set) => {
                if set.is_empty() || set.len() > BACKENDS_PER_POD {
                    return Ok(());
                }
                self.next_set = self.next_set.wrapping_add(1);
                (verdict.kind, verdict.set) = (VerdictKind::SERVICE, self.next_set);
                backends = set;
            }
        }
        let count = u32::try_from(backends.len()).unwrap_or(u32::MAX);
        verdict.count = count;
        self.make_room(key.pod, backends.len());
        for (index, backend) in (0..).zip(backends) {
            let slot = BackendKey {
                set: verdict.set,
                index,
            };
            let backend = Backend {
                key: slot,
                ..*backend
            };
            if let Err(error) = self.backends.insert(slot, backend, 0) {
                self.remove_backends(verdict.set, index);
                return Err(error);
            }
        }
        if let Err(error) = self.verdicts.insert(key, verdict, 0) {
            self.remove_backends(verdict.set, count);
            return Err(error);
        }
        let share = self.by_pod.entry(key.pod).or_default();
        share.order.push_back(key);
        share.verdicts += 1;
        share.backends += backends.len();
        self.by_address.entry(key.dst.addr).or_default().insert(key);
        let known = Known {
            generation,
            set: verdict.set,
            count,
            remember,
        };
        self.known.insert(key, known);
        Ok(())
    }

    /// Pushes out a pod's oldest verdicts until it may have another with this many backends.
    fn make_room(&mut self, pod: u32, backends: usize) {
        while let Some(share) = self.by_pod.get_mut(&pod) {
            let full = share.verdicts >= VERDICTS_PER_POD || share.backends + backends > BACKENDS_PER_POD;
            // Names of what is gone are dropped on the way, so that they do not pile up.
            if !full && share.order.len() < 2 * VERDICTS_PER_POD {
                return;
            }
            match share.order.pop_front() {
                Some(oldest) => self.remove(&oldest),
                None => return,
            }
        }
    }

    fn remove(&mut self, key: &VerdictKey) {
        let Some(known) = self.known.remove(key) else {
            return;
        };
        let _ = self.verdicts.remove(key);
        self.remove_backends(known.set, known.count);
        if let Some(keys) = self.by_address.get_mut(&key.dst.addr) {
            keys.remove(key);
            if keys.is_empty() {
                self.by_address.remove(&key.dst.addr);
            }
        }
        if let Some(share) = self.by_pod.get_mut(&key.pod) {
            share.verdicts -= 1;
            share.backends -= known.count as usize;
        }
    }

    fn remove_backends(&mut self, set: u32, count: u32) {
        for index in 0..count {
            let _ = self.backends.remove(&BackendKey { set, index });
        }
    }

    /// Verdicts, and backends of the services among them.
    pub(super) fn count(&self) -> (u64, u64) {
        let backends: usize = self.by_pod.values().map(|share| share.backends).sum();
        (self.known.len() as u64, backends as u64)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.by_address.clear();
        self.by_pod.clear();
        for (key, known) in std::mem::take(&mut self.known) {
            let _ = self.verdicts.remove(&key);
            self.remove_backends(known.set, known.count);
        }
    }

    /// Forgets what leads straight to a pod that is not there under this handle any more.
    pub(super) fn forget_destination(&mut self, pod: PodHandle) {
        let leads = |known: &Known| match &known.remember {
            Remember::Direct(to) => *to == pod,
            Remember::Service(backends) => backends.iter().any(|backend| backend.dest_pod == pod.0),
            Remember::Pass | Remember::Deny(_) => false,
        };
        let all: Vec<VerdictKey> = self
            .known
            .iter()
            .filter(|(_, known)| leads(known))
            .map(|(key, _)| *key)
            .collect();
        for key in all {
            self.remove(&key);
        }
    }

    /// Forgets what was decided for a pod.
    pub(super) fn forget_pod(&mut self, pod: u32) {
        if let Some(share) = self.by_pod.remove(&pod) {
            // Its share is gone: `remove` has nothing to count down there.
            for key in share.order {
                self.remove(&key);
            }
        }
    }

    fn forget_address(&mut self, address: IpAddr) {
        let keys = self.by_address.get(&address_words(address)).cloned();
        for key in keys.unwrap_or_default() {
            self.remove(&key);
        }
    }
}

impl fmt::Display for Remember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("PASS: leave it alone"),
            Self::Direct(_) => f.write_str("DIRECT: leave it alone and register it"),
            Self::Deny(reason) => write!(f, "DENY: ECONNREFUSED ({reason})"),
            Self::Service(backends) => {
                let here = backends.iter().filter(|backend| backend.dest_pod != 0).count();
                write!(
                    f,
                    "SERVICE: pick one of {} endpoints, {here} of them direct",
                    backends.len()
                )
            }
        }
    }
}

impl Remember {
    /// Whether the agent does not see the connection.
    pub(crate) fn is_final(&self) -> bool {
        match self {
            Self::Pass | Self::Direct(_) | Self::Deny(_) => true,
            Self::Service(backends) => backends.iter().all(|backend| backend.dest_pod != 0),
        }
    }

    /// The same, with backends in an order of their own: two sets of the same backends are one.
    fn in_order(&self) -> Self {
        match self {
            Self::Service(backends) => {
                let mut backends = backends.clone();
                backends.sort_unstable_by_key(|backend| (backend.address.addr, backend.address.port));
                Self::Service(backends)
            }
            other => other.clone(),
        }
    }
}

impl Datapath {
    /// Remembers a decision, unless `still_holds` says that what it was decided under is not in force any more. That is
    /// asked under the lock under which [`Datapath::forget`] works, so nothing stale stays.
    ///
    /// # Errors
    /// When the maps are full.
    pub fn remember(
        &self,
        pod: PodHandle,
        destination: Endpoint,
        generation: u32,
        remember: &Remember,
        still_holds: impl FnOnce() -> bool,
    ) -> Result<(), DatapathError> {
        let mut tables = self.tables();
        if !still_holds() {
            return Ok(());
        }
        let key = VerdictKey {
            pod: pod.0,
            dst: destination,
        };
        tables
            .verdicts
            .insert(key, generation, remember)
            .map_err(failed("VERDICTS"))
    }

    /// What the kernel follows for a pod and a destination without asking the agent; nothing if that was decided under another
    /// generation than the kernel's.
    #[must_use]
    pub fn remembered(&self, pod: PodHandle, destination: Endpoint) -> Option<Remember> {
        let tables = self.tables();
        let key = VerdictKey {
            pod: pod.0,
            dst: destination,
        };
        let known = tables.verdicts.known.get(&key)?;
        let config = tables.config.get(&0, 0).ok()?;
        (known.generation == config.generation).then(|| known.remember.clone())
    }

    /// Forgets what was decided about these destinations.
    pub fn forget(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut tables = self.tables();
        for address in addresses {
            tables.verdicts.forget_address(address);
        }
    }
}
