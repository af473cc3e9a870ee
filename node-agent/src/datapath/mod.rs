//! The kernel side: loads the programs, pins their links and maps, and reads and writes the maps.

mod fill;
mod links;
mod maps;
mod pins;
pub(crate) mod sock_diag;
mod sys;
mod verdicts;

pub mod events;
pub mod preflight;

use std::{
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, RingBuf, SockHash},
    programs::{CgroupSockAddr, Program, ProgramFd, SkLookup, SockOps},
};
use weir_abi::{
    Budget, Config, Conn, ConnKind, FlowKey, ListenerSlot, Pending, Pod, PodState, ProbePort, SockState,
};
use weir_types::api::ProgramStatus;

pub use maps::PodHandle;
pub(crate) use maps::monotonic_ns;
pub use pins::{Pins, detach};
pub use verdicts::Remember;

/// The kernel programs.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir-datapath"));

/// Every map is pinned, so that connections outlive the agent.
const MAPS: &[&str] = &[
    "SOCKETS",
    "CONFIG",
    "PODS",
    "POD_STATES",
    "BUDGETS",
    "CONNECTING",
    "PENDING",
    "CONNECTIONS",
    "VERDICTS",
    "BACKENDS",
    "PROBE_PORTS",
    "LISTENERS",
    "DENIALS",
    "EVENTS",
    "LOST",
];

/// How long the entry of a closed socket waits for the agent to accept the connection, nanoseconds. An agent that takes
/// longer is not there.
const UNCLAIMED_NS: u64 = 60_000_000_000;

/// What went wrong between the agent and the kernel. Trying again may help where the cause is a lack of memory.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The folder for pins cannot be made.
    #[error("{}: cannot make the folder for pinned maps: {source}", path.display())]
    PinDir {
        /// The folder.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// An agent is at work on the same pins.
    #[error("{}: another agent uses these pins; stop it first, or set another 'pinDir'", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The cgroup cannot be opened.
    #[error("{}: cannot open the cgroup: {source}", path.display())]
    Cgroup {
        /// The folder.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// The object cannot be loaded.
    #[error("the kernel programs cannot be loaded: {0}")]
    Load(#[from] aya::EbpfError),
    /// A program is refused or cannot be attached.
    #[error("program {name}: {source}")]
    Program {
        /// The program.
        name: &'static str,
        /// The error.
        source: aya::programs::ProgramError,
    },
    /// A program is refused, when it was tried whether it is not.
    #[error("the kernel refuses the program {name}: {source}")]
    Refused {
        /// The program.
        name: String,
        /// The error.
        source: aya::programs::ProgramError,
    },
    /// A link cannot be pinned, opened or updated.
    #[error("link {}: {source}", path.display())]
    Link {
        /// The pin.
        path: PathBuf,
        /// The error.
        source: io::Error,
    },
    /// A map is missing or cannot be accessed.
    #[error("map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// The error.
        source: aya::maps::MapError,
    },
    /// The object lacks something that this agent expects: they are not of one build.
    #[error("the kernel programs lack '{0}'")]
    Missing(&'static str),
}

/// The loaded programs and their maps.
pub struct Datapath {
    pins: PathBuf,
    cgroup: PathBuf,
    links: links::Links,
    /// Two agents on the same pins would undo each other's work.
    claim: Mutex<Option<Pins>>,
    sockets: OwnedFd,
    connections_fd: OwnedFd,
    connections: HashMap<MapData, FlowKey, Conn>,
    pending: Mutex<HashMap<MapData, u64, Pending>>,
    lost: Array<MapData, u64>,
    gauge: fill::Gauge,
    /// How long decisions hold after the agent's last sign of life.
    lease: Duration,
    tables: Mutex<Tables>,
}

/// The maps that aya writes through `&mut`.
struct Tables {
    config: Array<MapData, Config>,
    pods: HashMap<MapData, u64, Pod>,
    pod_states: Array<MapData, PodState>,
    budgets: Array<MapData, Budget>,
    verdicts: verdicts::VerdictTable,
    probe_ports: HashMap<MapData, ProbePort, u32>,
    listeners: SockHash<MapData, u32>,
}

impl Datapath {
    /// Loads the programs and attaches them to a cgroup, or updates those that an earlier agent left attached. What is
    /// remembered of decisions holds for `lease` after the last [`Datapath::heartbeat`]. Without `records` the programs report
    /// refusals alone.
    ///
    /// # Errors
    /// When the kernel refuses something.
    pub fn load(
        claim: Pins,
        cgroup: &Path,
        lease: Duration,
        records: bool,
    ) -> Result<(Self, RingBuf<MapData>), DatapathError> {
        let pins = claim.own()?;
        let mut ebpf = load_object(&pins, &Pod::default(), records)?;
        let opened = File::open(cgroup).and_then(|file| Ok((file.metadata()?.ino(), file)));
        let (inode, target) = opened.map_err(|source| DatapathError::Cgroup {
            path: cgroup.to_owned(),
            source,
        })?;
        let links = links::Links::new(&pins, inode)?;
        // Before what notes something for it: in between, an older one would not know of the note.
        let name = "weir_sock_ops";
        let sock_ops: &mut SockOps = program(&mut ebpf, name)?;
        sock_ops
            .load()
            .map_err(|source| DatapathError::Program { name, source })?;
        links.attach_sock_ops(name, sock_ops, target.as_fd())?;
        for name in ["weir_connect4", "weir_connect6", "weir_getpeer4", "weir_getpeer6"] {
            let program: &mut CgroupSockAddr = program(&mut ebpf, name)?;
            program
                .load()
                .map_err(|source| DatapathError::Program { name, source })?;
            links.attach_sock_addr(name, program, target.as_fd())?;
        }
        links.leave_other_cgroups()?;
        let pinned = |name: &str| {
            let path = pins.join(name);
            sys::object(&path).map_err(|source| DatapathError::Link { path, source })
        };
        let (sockets, connections_fd) = (pinned("SOCKETS")?, pinned("CONNECTIONS")?);
        let events =
            RingBuf::try_from(maps::take(&mut ebpf, "EVENTS")?).map_err(|source| DatapathError::Map {
                name: "EVENTS",
                source,
            })?;
        let tables = Tables::new(&mut ebpf)?;
        let datapath = Self {
            cgroup: cgroup.to_owned(),
            links,
            claim: Mutex::new(Some(claim)),
            sockets,
            connections_fd,
            connections: maps::hash(&mut ebpf, "CONNECTIONS")?,
            pending: Mutex::new(maps::hash(&mut ebpf, "PENDING")?),
            lost: maps::array(&mut ebpf, "LOST")?,
            gauge: fill::Gauge::new(&pins)?,
            lease,
            tables: Mutex::new(tables),
            pins,
        };
        Ok((datapath, events))
    }

    /// Takes out what an agent of another layout left: its programs decide beside ours until then, and refuse what it enrolled. To
    /// be called once the pods are ours.
    ///
    /// # Errors
    /// When pins cannot be removed.
    pub fn remove_other_versions(&self) -> Result<(), DatapathError> {
        let claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        claim.as_ref().map_or(Ok(()), Pins::remove_other_versions)
    }

    /// Lets another agent have the pins. From here on this one may only carry the connections that it has, and accept from its
    /// listeners.
    pub fn give_up(&self) {
        *self.claim.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Attaches the pod's own `sk_lookup` program to its namespace, or updates the one that is there.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn attach_pod(&self, pod: &Pod, netns: BorrowedFd<'_>) -> Result<(), DatapathError> {
        // Its program reports refusals alone, which are always told.
        let mut ebpf = load_object(&self.pins, pod, true)?;
        let name = "weir_sk_lookup";
        let program: &mut SkLookup = program(&mut ebpf, name)?;
        program
            .load()
            .map_err(|source| DatapathError::Program { name, source })?;
        self.links.attach_sk_lookup(pod.handle, program, netns)
    }

    /// Detaches a pod's `sk_lookup` program.
    pub fn detach_pod(&self, handle: PodHandle) {
        self.links.remove_sk_lookup(handle.0);
    }

    /// Detaches what belongs to handles that no present pod has: pods that went while no agent ran.
    pub fn detach_all_but(&self, handles: &std::collections::HashSet<u32>) {
        self.links.retain_sk_lookup(handles);
    }

    /// The attached programs.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramStatus> {
        self.links.status(&self.cgroup)
    }

    /// Marks a socket before it connects.
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn mark(&self, socket: BorrowedFd<'_>, conn: Conn) -> io::Result<()> {
        let state = SockState {
            conn,
            ..SockState::default()
        };
        sys::set_socket_state(self.sockets.as_fd(), socket, &state)
    }

    /// All registered connections. Walks the table.
    #[must_use]
    pub fn connections(&self) -> std::collections::HashMap<FlowKey, Conn> {
        self.connections.iter().filter_map(Result::ok).collect()
    }

    /// What a connection is registered as.
    #[must_use]
    pub fn connection(&self, key: &FlowKey) -> Option<Conn> {
        self.connections.get(key, 0).ok()
    }

    /// Removes what a connection that the agent is done with was registered as, unless another has its 4-tuple by now.
    pub fn release(&self, key: &FlowKey, conn: &Conn) {
        if self.connection(key).is_some_and(|now| now.cookie == conn.cookie)
            && let Err(error) = sys::remove_connection(self.connections_fd.as_fd(), key)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(%error, "a connection's entry cannot be removed");
        }
    }

    /// Removes entries that nobody else does: of sockets that closed some time ago and were never accepted, of pods that
    /// left, and of direct connections that never sent their SYN.
    pub fn sweep(&self, enrolled: impl Fn(PodHandle) -> bool) {
        let now = monotonic_ns();
        let unclaimed =
            |conn: &Conn| conn.closed_ns != 0 && now.saturating_sub(conn.closed_ns) > UNCLAIMED_NS;
        for (key, conn) in self.connections.iter().filter_map(Result::ok) {
            let is_known = conn.kind == ConnKind::HOST || enrolled(PodHandle(conn.pod));
            if unclaimed(&conn) || !is_known {
                self.release(&key, &conn);
            }
        }
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut left = 0;
        let given_up: Vec<u64> = pending
            .iter()
            .filter_map(Result::ok)
            .inspect(|_| left += 1)
            .filter(|(_, pending)| now.saturating_sub(pending.conn.started_ns) > UNCLAIMED_NS)
            .map(|(cookie, _)| cookie)
            .collect();
        self.gauge
            .pending
            .store(left - given_up.len() as u64, Ordering::Relaxed);
        for cookie in given_up {
            let _ = pending.remove(&cookie);
        }
    }

    /// Number of entries in the table of connections. Walks it.
    #[must_use]
    pub fn connection_count(&self) -> u64 {
        self.connections.keys().filter(Result::is_ok).count() as u64
    }

    /// Events that found no room in the ring buffer, since the maps were made.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.lost.get(&0, 0).unwrap_or(0)
    }

    /// Puts a listener into a pod's slot. The socket must be of the pod's namespace and of the slot's family.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn set_listener(
        &self,
        handle: PodHandle,
        slot: u32,
        socket: &impl AsRawFd,
    ) -> Result<(), DatapathError> {
        self.tables()
            .listeners
            .insert(ListenerSlot::key(handle.0, slot), socket.as_raw_fd(), 0)
            .map_err(|source| DatapathError::Map {
                name: "LISTENERS",
                source,
            })
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        // Each method leaves the maps consistent at every step, so a panic elsewhere does no harm here.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries whether the kernel takes the programs. Nothing is attached or pinned.
///
/// # Errors
/// When it does not.
pub fn rehearse() -> Result<(), DatapathError> {
    let mut ebpf = EbpfLoader::new().load(OBJECT)?;
    let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    for name in names {
        let loaded = match ebpf.program_mut(&name) {
            Some(Program::CgroupSockAddr(program)) => program.load(),
            Some(Program::SockOps(program)) => program.load(),
            Some(Program::SkLookup(program)) => program.load(),
            _ => Ok(()),
        };
        loaded.map_err(|source| DatapathError::Refused { name, source })?;
    }
    Ok(())
}

fn load_object(pins: &Path, pod: &Pod, records: bool) -> Result<Ebpf, DatapathError> {
    let mut loader = EbpfLoader::new();
    for name in MAPS {
        loader.map_pin_path(name, pins.join(name));
    }
    loader.override_global("OWN_POD", pod, true);
    let records = u32::from(records);
    loader.override_global("RECORDS", &records, true);
    Ok(loader.load(OBJECT)?)
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(DatapathError::Missing(name))?
        .try_into()
        .map_err(|source| DatapathError::Program { name, source })
}

fn program_fd<'a>(
    name: &'static str,
    fd: Result<&'a ProgramFd, aya::programs::ProgramError>,
) -> Result<BorrowedFd<'a>, DatapathError> {
    fd.map(|fd| fd.as_fd())
        .map_err(|source| DatapathError::Program { name, source })
}
