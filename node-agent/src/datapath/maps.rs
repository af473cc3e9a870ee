//! The maps that the agent writes: pods, modes, budgets, verdicts, configuration.

use aya::{
    Ebpf,
    maps::{Array, HashMap, Map, MapData, MapError, SockHash},
};
use weir_abi::{Budget, Config, HOST_HANDLE, Pod, PodState, ProbePort, slot};

use super::{Datapath, DatapathError, Tables, verdicts::VerdictTable};

/// Entries of the connection table that one pod may have: half of an ordinary range of ephemeral ports, both ways.
const CONNECTIONS_PER_POD: u64 = 32_768;
/// Entries of the connection table that the kubelet may have: it probes some hundred pods, each a few times at once.
const HOST_CONNECTIONS: u64 = 8192;

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
            pod_states: array(ebpf, "POD_STATES")?,
            budgets: array(ebpf, "BUDGETS")?,
            verdicts: VerdictTable::new(hash(ebpf, "VERDICTS")?, hash(ebpf, "BACKENDS")?),
            probe_ports: hash(ebpf, "PROBE_PORTS")?,
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
        let taken: Vec<u32> = tables
            .pods
            .iter()
            .filter_map(Result::ok)
            .map(|(_, pod)| slot(pod.handle))
            .chain([slot(HOST_HANDLE)])
            .collect();
        let mut handle = 0;
        tables.change(|config| {
            handle = config.next_handle;
            while taken.contains(&slot(handle)) {
                handle += 1;
            }
            config.next_handle = handle + 1;
        })?;
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
            pod: handle.0,
        };
        tables
            .pod_states
            .set(slot(handle.0), state, 0)
            .map_err(failed("POD_STATES"))?;
        tables.give_share(handle.0, CONNECTIONS_PER_POD)
    }

    /// Sets the ports at which the kubelet probes a pod.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_probe_ports(&self, handle: PodHandle, ports: &[u16]) -> Result<(), DatapathError> {
        let mut tables = self.tables();
        let key = |port: u16| ProbePort {
            pod: handle.0,
            port: u32::from(port),
        };
        let wanted: Vec<ProbePort> = ports.iter().copied().map(key).collect();
        let stale = tables.probe_ports_of(handle.0, &wanted);
        for port in stale {
            let _ = tables.probe_ports.remove(&port);
        }
        for port in wanted {
            tables
                .probe_ports
                .insert(port, 1, 0)
                .map_err(failed("PROBE_PORTS"))?;
        }
        Ok(())
    }

    /// Says how the kubelet's connections are recognised: by the id of its cgroup, in the node's own network namespace.
    /// `None`: not at all.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_kubelet(&self, cgroup: Option<u64>, host_netns: u64) -> Result<(), DatapathError> {
        let mut tables = self.tables();
        tables.give_share(HOST_HANDLE, HOST_CONNECTIONS)?;
        tables.change(|config| {
            config.kubelet_cgroup = cgroup.unwrap_or_default();
            config.host_netns = host_netns;
        })
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
        let own = slot(handle.0);
        if tables
            .pod_states
            .get(&own, 0)
            .is_ok_and(|state| state.pod == handle.0)
        {
            let _ = tables.pod_states.set(own, PodState::default(), 0);
        }
        if tables
            .budgets
            .get(&own, 0)
            .is_ok_and(|budget| budget.pod == handle.0)
        {
            let _ = tables.budgets.set(own, Budget::default(), 0);
        }
        let probes = tables.probe_ports_of(handle.0, &[]);
        for port in probes {
            let _ = tables.probe_ports.remove(&port);
        }
        tables.verdicts.forget_pod(handle.0);
        tables.verdicts.forget_destination(handle);
    }

    /// Puts another policy generation in force: verdicts of any other hold no more.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_generation(&self, generation: u32) -> Result<(), DatapathError> {
        let mut tables = self.tables();
        let lease_until_ns = self.lease_end();
        tables.change(|config| {
            config.lease_until_ns = lease_until_ns;
            config.generation = generation;
        })?;
        tables.verdicts.clear();
        Ok(())
    }

    /// The policy generation in the kernel.
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
        let lease_until_ns = self.lease_end();
        self.tables()
            .change(|config| config.lease_until_ns = lease_until_ns)
    }

    fn lease_end(&self) -> u64 {
        monotonic_ns() + u64::try_from(self.lease.as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Tables {
    fn change(&mut self, change: impl FnOnce(&mut Config)) -> Result<(), DatapathError> {
        let mut config = self.config.get(&0, 0).map_err(failed("CONFIG"))?;
        change(&mut config);
        self.config.set(0, config, 0).map_err(failed("CONFIG"))
    }

    /// Gives a handle its share of the connection table, unless it has one: what it uses is counted there.
    fn give_share(&mut self, handle: u32, limit: u64) -> Result<(), DatapathError> {
        let known = self.budgets.get(&slot(handle), 0).map_err(failed("BUDGETS"))?;
        if known.pod == handle && known.limit != 0 {
            return Ok(());
        }
        let budget = Budget {
            used: 0,
            limit,
            pod: handle,
            pad: 0,
        };
        self.budgets
            .set(slot(handle), budget, 0)
            .map_err(failed("BUDGETS"))
    }

    /// The probed ports of a pod, but for those that stay.
    fn probe_ports_of(&self, handle: u32, stay: &[ProbePort]) -> Vec<ProbePort> {
        self.probe_ports
            .keys()
            .filter_map(Result::ok)
            .filter(|port| port.pod == handle && !stay.contains(port))
            .collect()
    }
}

pub(super) fn failed(name: &'static str) -> impl Fn(MapError) -> DatapathError {
    move |source| DatapathError::Map { name, source }
}

/// Nanoseconds of CLOCK_MONOTONIC, as `bpf_ktime_get_ns` counts them.
pub(crate) fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}
