//! The folder of pinned maps and links: who works on it, and taking it out.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use weir_abi::LAYOUT_VERSION;

use super::DatapathError;

/// How long an agent that is just ending may still hold its pins, and how often it is looked.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// The right to work on a folder of pins, of whatever layout; held until it is dropped.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    _lock: File,
}

impl Pins {
    /// Claims a folder, which is made if it is missing.
    ///
    /// # Errors
    /// [`DatapathError::InUse`] when an agent is at work there; when the folder cannot be made or opened.
    pub fn claim(folder: &Path) -> Result<Self, DatapathError> {
        let failed = |source| DatapathError::PinDir {
            path: folder.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let lock = File::open(folder).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self {
                folder: folder.to_owned(),
                _lock: lock,
            }),
            Err(Errno::WOULDBLOCK) => Err(DatapathError::InUse {
                path: folder.to_owned(),
            }),
            Err(error) => Err(failed(error.into())),
        }
    }

    /// As [`Self::claim`], but with patience for an agent that is just ending.
    ///
    /// # Errors
    /// As [`Self::claim`].
    pub fn claim_soon(folder: &Path) -> Result<Self, DatapathError> {
        let end = Instant::now() + LOCK_PATIENCE;
        loop {
            match Self::claim(folder) {
                Err(DatapathError::InUse { .. }) if Instant::now() < end => std::thread::sleep(LOCK_PAUSE),
                claimed => return claimed,
            }
        }
    }

    /// Whether an agent is at work in a folder.
    #[must_use]
    pub fn are_claimed(folder: &Path) -> bool {
        matches!(Self::claim(folder), Err(DatapathError::InUse { .. }))
    }

    /// The folder for pins of this layout, which is made if it is missing.
    pub(super) fn own(&self) -> Result<PathBuf, DatapathError> {
        let path = self.folder.join(format!("v{LAYOUT_VERSION}"));
        match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(DatapathError::PinDir { path, source }),
        }
    }

    /// Takes out what agents of another layout left.
    pub(super) fn remove_other_versions(&self) -> Result<(), DatapathError> {
        for (version, pins) in self.versions() {
            if version != LAYOUT_VERSION {
                remove(&pins)?;
                tracing::info!(pins = %pins.display(), "took out the programs of another version");
            }
        }
        Ok(())
    }

    fn versions(&self) -> Vec<(u32, PathBuf)> {
        let entries = std::fs::read_dir(&self.folder).into_iter().flatten();
        let version = |path: PathBuf| {
            let number = path.file_name()?.to_str()?.strip_prefix('v')?;
            Some((number.parse().ok()?, path))
        };
        entries.filter_map(|entry| version(entry.ok()?.path())).collect()
    }
}

/// Takes out what an agent that is gone left: links, so that nothing is captured any more, then maps.
///
/// # Errors
/// When an agent is at work there, or the pins cannot be removed.
pub fn detach(folder: &Path) -> Result<(), DatapathError> {
    if !folder.exists() {
        return Ok(());
    }
    let pins = Pins::claim_soon(folder)?;
    for (_, versioned) in pins.versions() {
        remove(&versioned)?;
    }
    match std::fs::remove_dir(folder).map_err(|error| Errno::from_io_error(&error)) {
        // It is a mount, or somebody else's things are there too.
        Ok(()) | Err(Some(Errno::BUSY | Errno::NOTEMPTY | Errno::PERM)) => Ok(()),
        Err(error) => Err(DatapathError::PinDir {
            path: folder.to_owned(),
            source: error.map_or_else(|| std::io::ErrorKind::Other.into(), Into::into),
        }),
    }
}

/// Removes pins: links, so that nothing is captured any more, then maps.
fn remove(pins: &Path) -> Result<(), DatapathError> {
    let removed = |path: PathBuf| {
        let result = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        result.map_err(|source| DatapathError::PinDir { path, source })
    };
    let entries = std::fs::read_dir(pins).map_err(|source| DatapathError::PinDir {
        path: pins.to_owned(),
        source,
    })?;
    let (links, maps): (Vec<_>, Vec<_>) = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .partition(|path| path.is_dir());
    links.into_iter().chain(maps).try_for_each(removed)?;
    removed(pins.to_owned())
}
