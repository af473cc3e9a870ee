//! The maps that the agent writes: pods, modes, budgets, verdicts, configuration.

use std::time::Duration;

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, SockHash},
};
use weir_abi::{Budget, Pod, PodState, Verdict, VerdictKey};

use super::{Datapath, DatapathError, Tables};

/// Entries of the connection table that one pod may have: half of an ordinary range of ephemeral ports, both ways.
const CONNECTIONS_PER_POD: u64 = 32_768;
/// How long the agent's decisions hold after its last sign of life.
const LEASE: Duration = Duration::from_secs(300);

/// A pod's number in the kernel's maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodHandle(pub u32);

pub(super) fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, DatapathError> {
    ebpf.take_map(name).ok_or(DatapathError::Missing(name))
}

pub(super) fn hash<K: aya::Pod, V: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<HashMap<MapData, K, V>, DatapathError> {
    HashMap::try_from(take(ebpf, name)?).map_err(|source| DatapathError::Map { name, source })
}

pub(super) fn array<V: aya::Pod>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<Array<MapData, V>, DatapathError> {
    Array::try_from(take(ebpf, name)?).map_err(|source| DatapathError::Map { name, source })
}

impl Tables {
    pub(super) fn new(ebpf: &mut Ebpf) -> Result<Self, DatapathError> {
        let name = "LISTENERS";
        let listeners =
            SockHash::try_from(take(ebpf, name)?).map_err(|source| DatapathError::Map { name, source })?;
        let pods: HashMap<_, u64, Pod> = hash(ebpf, "PODS")?;
        Ok(Self {
            config: array(ebpf, "CONFIG")?,
            pods,
            pod_states: hash(ebpf, "POD_STATES")?,
            budgets: hash(ebpf, "BUDGETS")?,
            verdicts: hash(ebpf, "VERDICTS")?,
            listeners,
        })
    }
}

impl Datapath {
    /// The pods in the kernel's map, by network namespace cookie.
    #[must_use]
    pub fn pods(&self) -> Vec<(u64, Pod)> {
        self.tables().pods.iter().filter_map(Result::ok).collect()
    }

    /// A handle that no pod had. Never given again while pins last: an old entry must not speak for another pod.
    ///
    /// # Errors
    /// When the kernel refuses to remember it.
    pub fn new_handle(&self) -> Result<PodHandle, DatapathError> {
        let mut tables = self.tables();
        let mut config = tables.config.get(&0, 0).map_err(failed("CONFIG"))?;
        let handle = config.next_handle.max(1);
        config.next_handle = handle + 1;
        tables.config.set(0, config, 0).map_err(failed("CONFIG"))?;
        Ok(PodHandle(handle))
    }

    /// Sets a pod's mode and gives it its share of the connection table. Before this, its programs refuse plaintext.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_state(&self, handle: PodHandle, strict: bool) -> Result<(), DatapathError> {
        let mut tables = self.tables();
        let state = PodState {
            strict: u32::from(strict),
        };
        tables
            .pod_states
            .insert(handle.0, state, 0)
            .map_err(failed("POD_STATES"))?;
        if matches!(tables.budgets.get(&handle.0, 0), Err(MapError::KeyNotFound)) {
            let budget = Budget {
                used: 0,
                limit: CONNECTIONS_PER_POD,
            };
            tables
                .budgets
                .insert(handle.0, budget, 0)
                .map_err(failed("BUDGETS"))?;
        }
        Ok(())
    }

    /// Enters a pod: from now on its connections are captured.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn insert_pod(&self, cookie: u64, pod: &Pod) -> Result<(), DatapathError> {
        self.tables().pods.insert(cookie, pod, 0).map_err(failed("PODS"))
    }

    /// Removes all that is known of a pod.
    pub fn remove_pod(&self, cookie: Option<u64>, handle: PodHandle) {
        let mut tables = self.tables();
        if let Some(cookie) = cookie {
            let _ = tables.pods.remove(&cookie);
        }
        for slot in 0..8 {
            let _ = tables
                .listeners
                .remove(&weir_abi::ListenerSlot::key(handle.0, slot));
        }
        let _ = tables.pod_states.remove(&handle.0);
        let _ = tables.budgets.remove(&handle.0);
        let stale: Vec<VerdictKey> = tables
            .verdicts
            .keys()
            .filter_map(Result::ok)
            .filter(|key| key.pod == handle.0)
            .collect();
        for key in stale {
            let _ = tables.verdicts.remove(&key);
        }
    }

    /// Puts a configuration generation in force: verdicts of any other hold no more.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_generation(&self, generation: u32) -> Result<(), DatapathError> {
        let mut tables = self.tables();
        let mut config = tables.config.get(&0, 0).map_err(failed("CONFIG"))?;
        config.lease_until_ns = lease_end();
        config.generation = generation;
        tables.config.set(0, config, 0).map_err(failed("CONFIG"))?;
        let all: Vec<VerdictKey> = tables.verdicts.keys().filter_map(Result::ok).collect();
        for key in all {
            if tables
                .verdicts
                .get(&key, 0)
                .is_ok_and(|verdict| verdict.generation != generation)
            {
                let _ = tables.verdicts.remove(&key);
            }
        }
        Ok(())
    }

    /// The generation in the kernel.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.tables()
            .config
            .get(&0, 0)
            .map_or(0, |config| config.generation)
    }

    /// Says that the agent lives: its decisions hold for another lease.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn heartbeat(&self) -> Result<(), DatapathError> {
        let mut tables = self.tables();
        let mut config = tables.config.get(&0, 0).map_err(failed("CONFIG"))?;
        config.lease_until_ns = lease_end();
        tables.config.set(0, config, 0).map_err(failed("CONFIG"))
    }

    /// Remembers a decision for a pod and a destination.
    ///
    /// # Errors
    /// When the map is full.
    pub fn set_verdict(&self, key: &VerdictKey, verdict: Verdict) -> Result<(), DatapathError> {
        self.tables()
            .verdicts
            .insert(key, verdict, 0)
            .map_err(failed("VERDICTS"))
    }
}

fn failed(name: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { name, source }
}

/// Nanoseconds of CLOCK_MONOTONIC, as `bpf_ktime_get_ns` counts them.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

fn lease_end() -> u64 {
    monotonic_ns() + u64::try_from(LEASE.as_nanos()).unwrap_or(u64::MAX)
}
