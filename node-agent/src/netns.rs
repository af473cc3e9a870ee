//! Network namespaces: finding those of pods, and entering one for the time of a few socket calls.

pub(crate) mod processes;

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where a pod's network namespace is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetNsRef {
    /// Behind a file.
    File(PathBuf),
    /// That of the processes of the Kubernetes pod with this UID.
    Pod(Arc<str>),
}

/// A network namespace. Keeps it alive while held.
#[derive(Debug)]
pub struct NetNs {
    file: OwnedFd,
    source: NetNsRef,
    /// The file that it was opened by: one of a process may go before the namespace does. None if the runtime gave it.
    path: Option<PathBuf>,
    inode: u64,
    cookie: u64,
}

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS: rustix::fs::FsWord = 0x6e73_6673;

/// The namespace that the agent was started in.
static HOME: LazyLock<io::Result<OwnedFd>> =
    LazyLock::new(|| Ok(OwnedFd::from(File::open("/proc/thread-self/ns/net")?)));

fn home() -> io::Result<BorrowedFd<'static>> {
    HOME.as_ref()
        .map(|fd| fd.as_fd())
        .map_err(|error| io::Error::new(error.kind(), error.to_string()))
}

impl NetNsRef {
    /// The UID of the Kubernetes pod, if it is found by that.
    #[must_use]
    pub fn pod_uid(&self) -> Option<&str> {
        match self {
            Self::File(_) => None,
            Self::Pod(uid) => Some(uid),
        }
    }
}

impl fmt::Display for NetNsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Pod(uid) => write!(f, "processes of pod {uid}"),
        }
    }
}

impl NetNs {
    /// Opens the namespace behind a file.
    ///
    /// # Errors
    /// When the file cannot be opened, or is no network namespace.
    pub fn open(path: &Path) -> io::Result<Self> {
        home()?;
        Self::of_file(File::open(path)?, Some(path), NetNsRef::File(path.to_owned()))
    }

    /// Finds the namespace of a pod.
    ///
    /// # Errors
    /// When it cannot be found or opened.
    pub fn find(source: &NetNsRef) -> io::Result<Self> {
        match source {
            NetNsRef::File(path) => Self::open(path),
            NetNsRef::Pod(uid) => {
                home()?;
                let (file, path) = processes::open_netns(Path::new(processes::PROC), uid)?;
                Self::of_file(file, Some(&path), source.clone())
            }
        }
    }

    /// The namespace of a pod, by a descriptor that the container runtime gave.
    ///
    /// # Errors
    /// When it is no network namespace.
    pub fn given(file: OwnedFd, uid: &Arc<str>) -> io::Result<Self> {
        home()?;
        let problem = "the descriptor is not one of a network namespace";
        let refused = || io::Error::new(io::ErrorKind::InvalidInput, problem);
        // A process's descriptor leads into its namespaces as well, and is none.
        if rustix::fs::fstatfs(&file)?.f_type != NSFS {
            return Err(refused());
        }
        // Entering it, which asks for a network namespace, tells it from those of other kinds.
        let entered = Self::of_file(file.into(), None, NetNsRef::Pod(uid.clone()));
        entered.map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => refused(),
            _ => error,
        })
    }

    fn of_file(file: File, path: Option<&Path>, source: NetNsRef) -> io::Result<Self> {
        let inode = file.metadata()?.ino();
        let mut netns = Self {
            file: file.into(),
            source,
            path: path.map(Path::to_owned),
            inode,
            cookie: 0,
        };
        netns.cookie = netns.run(cookie)??;
        Ok(netns)
    }

    /// The namespace's cookie, unique on this kernel since boot (SO_NETNS_COOKIE, kernel 5.14).
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The namespace, for attaching programs.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// How it was found.
    #[must_use]
    pub fn source(&self) -> &NetNsRef {
        &self.source
    }

    /// Whether it is still what its source leads to. One that cannot be looked at for another cause than that it is gone
    /// is taken for the same.
    #[must_use]
    pub fn is_current(&self) -> bool {
        let is_gone = match self.path.as_ref().map(std::fs::metadata) {
            Some(Ok(meta)) => meta.ino() != self.inode,
            Some(Err(error)) => error.kind() == io::ErrorKind::NotFound,
            None => true,
        };
        match &self.source {
            // The process may be gone, and the namespace that of the pod's other ones.
            NetNsRef::Pod(_) if is_gone => {
                Self::find(&self.source).is_ok_and(|found| found.cookie == self.cookie)
            }
            _ => !is_gone,
        }
    }

    /// Runs `f` in the namespace, on this thread. `f` must not block or wait: the thread's other work would go on there.
    ///
    /// # Errors
    /// When the namespace cannot be entered; `f` did not run.
    pub fn run<R>(&self, f: impl FnOnce() -> R) -> io::Result<R> {
        let home = home()?;
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
        let _back = Back(home);
        Ok(f())
    }
}

/// Returns the thread to its namespace, also when it unwinds.
struct Back(BorrowedFd<'static>);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = move_into_link_name_space(self.0, Some(LinkNameSpaceType::Network)) {
            // Going on would open the agent's sockets in a pod's namespace.
            eprintln!("weir-agent: cannot return to the node's network namespace: {error}");
            std::process::abort();
        }
    }
}

/// The cookie of the thread's present namespace.
fn cookie() -> io::Result<u64> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None)?;
    let mut value = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the buffer is 8 bytes, as `length` says.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value)
    } else {
        Err(io::Error::last_os_error())
    }
}
