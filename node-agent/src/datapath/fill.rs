//! How full the kernel's maps are. Asks the kernel for nothing that grows with traffic: what the agent wrote it counts
//! itself, and connections are counted by the pods' shares.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::MapInfo;
use weir_abi::{HOST_HANDLE, slot};

use super::{Datapath, DatapathError, Tables, sys};

/// The maps that may fill up.
const WATCHED: [&str; 5] = ["CONNECTIONS", "PENDING", "PODS", "VERDICTS", "BACKENDS"];

/// How full a map is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapFill {
    /// Its name.
    pub name: &'static str,
    /// What it holds: entries, or bytes of a ring buffer.
    pub entries: u64,
    /// What it has room for.
    pub capacity: u64,
}

/// What is known from the start, and what is counted elsewhere.
pub(super) struct Gauge {
    /// In the order of `WATCHED`.
    capacities: [u64; WATCHED.len()],
    /// Left in `PENDING` by the last sweep.
    pub(super) pending: AtomicU64,
    ring: Positions,
}

/// The positions of the ring buffer's writer and reader, as the kernel shows them: a page each, the reader's first.
struct Positions {
    pages: NonNull<libc::c_void>,
    page: usize,
    capacity: u64,
}

// SAFETY: the pages are read alone, by atomic loads, and stay mapped until this is dropped.
unsafe impl Send for Positions {}
// SAFETY: as above.
unsafe impl Sync for Positions {}

// === impl Gauge ===

impl Gauge {
    pub(super) fn new(pins: &Path) -> Result<Self, DatapathError> {
        let mut capacities = [0; WATCHED.len()];
        for (capacity, name) in capacities.iter_mut().zip(WATCHED) {
            *capacity = room(pins, name)?;
        }
        let path = pins.join("EVENTS");
        let room = room(pins, "EVENTS")?;
        let ring = sys::object(&path).and_then(|map| Positions::new(&map, room));
        Ok(Self {
            capacities,
            pending: AtomicU64::new(0),
            ring: ring.map_err(|source| DatapathError::Link { path, source })?,
        })
    }
}

fn room(pins: &Path, name: &'static str) -> Result<u64, DatapathError> {
    let info = MapInfo::from_pin(pins.join(name)).map_err(|source| DatapathError::Map { name, source })?;
    Ok(u64::from(info.max_entries()))
}

// === impl Positions ===

impl Positions {
    fn new(map: &impl AsFd, capacity: u64) -> io::Result<Self> {
        // SAFETY: takes and gives integers.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let page = usize::try_from(page).map_err(|_| io::Error::last_os_error())?;
        // SAFETY: a new mapping of our own, which the kernel places; it refuses what is no ring buffer.
        let pages = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * page,
                libc::PROT_READ,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                0,
            )
        };
        match NonNull::new(pages) {
            Some(pages) if pages.as_ptr() != libc::MAP_FAILED => Ok(Self {
                pages,
                page,
                capacity,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Bytes that were written and not read.
    fn unread(&self) -> u64 {
        // The reader's first: it never overtakes the writer, so the difference is not negative.
        let read = self.position(0);
        self.position(self.page).saturating_sub(read).min(self.capacity)
    }

    fn position(&self, offset: usize) -> u64 {
        // SAFETY: both pages are mapped and begin with the position, an aligned word that the kernel writes as a whole.
        unsafe { &*self.pages.as_ptr().byte_add(offset).cast::<AtomicU64>() }.load(Ordering::Acquire)
    }
}

impl Drop for Positions {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody has a reference into it any more.
        unsafe { libc::munmap(self.pages.as_ptr(), 2 * self.page) };
    }
}

// === impl Datapath ===

impl Datapath {
    /// How full the maps are that may fill up. Cheap: a look-up a pod.
    #[must_use]
    pub fn maps(&self) -> [MapFill; WATCHED.len()] {
        let tables = self.tables();
        let (pods, connections) = tables.pods_and_connections();
        let (verdicts, backends) = tables.verdicts.count();
        let entries = [
            connections,
            self.gauge.pending.load(Ordering::Relaxed),
            pods,
            verdicts,
            backends,
        ];
        std::array::from_fn(|place| MapFill {
            name: WATCHED[place],
            entries: entries[place],
            capacity: self.gauge.capacities[place],
        })
    }

    /// How full the ring buffer of events is, in bytes.
    #[must_use]
    pub fn event_ring(&self) -> MapFill {
        MapFill {
            name: "EVENTS",
            entries: self.gauge.ring.unread(),
            capacity: self.gauge.ring.capacity,
        }
    }
}

impl Tables {
    /// Number of enrolled pods, and of sockets that are registered, by the pods' shares.
    fn pods_and_connections(&self) -> (u64, u64) {
        let handles: Vec<u32> = self
            .pods
            .iter()
            .filter_map(Result::ok)
            .map(|(_, pod)| pod.handle)
            .collect();
        let connections = handles
            .iter()
            .copied()
            .chain([HOST_HANDLE])
            .filter_map(|handle| self.budgets.get(&slot(handle), 0).ok())
            .map(|budget| budget.used)
            .sum();
        (handles.len() as u64, connections)
    }
}
