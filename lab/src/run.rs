//! A run of a lab: its id, its folder of state, and the removal of everything that bears its id, by its owner or,
//! if that died, by the next run.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::{cgroup, netns};

/// State of all labs of the machine.
pub const FOLDER: &str = "/run/weir-lab";
const OWNER: &str = "owner";

/// One run's id and folders.
#[derive(Debug, Clone)]
pub struct Run {
    id: String,
}

impl Run {
    /// Claims an id and makes the run's folder, with the owner's name in it, and a bpffs of its own.
    ///
    /// # Errors
    /// When something cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let run = Self {
            id: format!("{name}-{pid}-{number}"),
        };
        fs::create_dir_all(FOLDER).context(FOLDER)?;
        // Appears under its name with its owner in it, or a sweep at the same time would take it for a dead one's.
        let unborn = Path::new(FOLDER).join(format!(".{}", run.id));
        let _ = fs::remove_dir_all(&unborn);
        fs::create_dir(&unborn).with_context(|| unborn.display().to_string())?;
        let start = start_time(pid).context("this process's start time")?;
        fs::write(unborn.join(OWNER), format!("{pid} {start}\n"))?;
        let folder = run.folder();
        fs::rename(&unborn, &folder).with_context(|| folder.display().to_string())?;
        for sub in ["bpf", "log"] {
            fs::create_dir(folder.join(sub))?;
        }
        rustix::mount::mount("bpf", run.bpffs(), "bpf", MountFlags::empty(), None).context(
            "mounting a bpf file system (kernel option CONFIG_BPF_SYSCALL, capability CAP_SYS_ADMIN)",
        )?;
        fs::create_dir(run.cgroup()?).context("making the lab's cgroup")?;
        Ok(run)
    }

    /// Short and unique on this machine.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `/run/weir-lab/<id>`.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.id)
    }

    /// The run's bpf file system.
    #[must_use]
    pub fn bpffs(&self) -> PathBuf {
        self.folder().join("bpf")
    }

    /// The run's cgroup.
    ///
    /// # Errors
    /// When no cgroup2 file system is mounted.
    pub fn cgroup(&self) -> Result<PathBuf> {
        Ok(cgroup::mount_point()?.join(format!("weir-lab-{}", self.id)))
    }

    /// Name of a network namespace of the run.
    #[must_use]
    pub fn netns(&self, place: &str) -> String {
        format!("{}{place}", self.netns_prefix())
    }

    // A dot ends the id, which has none: `demo-1-1` must not own `demo-1-10`'s.
    fn netns_prefix(&self) -> String {
        format!("weir-{}.", self.id)
    }

    /// Makes named network namespaces. Serialized over all labs: iproute2 makes its folder a mount point at first use,
    /// and two first uses at once hide each other's namespaces.
    ///
    /// # Errors
    /// When `ip` fails.
    pub fn add_netns(names: &[String]) -> Result<()> {
        let _lock = lock()?;
        let lines: Vec<_> = names.iter().map(|name| format!("netns add {name}")).collect();
        netns::ip(None, &lines)
    }

    /// Removes everything that bears the run's id: processes, namespaces (with their links), cgroups, the bpf file
    /// system (with its pins), the folder. Goes on after a failure and reports the first.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn remove(&self) -> Result<()> {
        let processes = self.cgroup().and_then(|root| cgroup::remove(&root));
        let prefix = self.netns_prefix();
        let namespaces = netns::names().and_then(|names| {
            let ours = names.iter().filter(|name| name.starts_with(&prefix));
            let lines: Vec<_> = ours.map(|name| format!("netns del {name}")).collect();
            if lines.is_empty() {
                Ok(())
            } else {
                netns::ip(None, &lines)
            }
        });
        let bpffs = match rustix::mount::unmount(self.bpffs(), UnmountFlags::DETACH) {
            // EINVAL: not a mount point. A run that died early never mounted it.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error).context("unmounting the lab's bpf file system"),
        };
        processes?;
        namespaces?;
        bpffs?;
        // Last, so that a failure above leaves the mark by which the next run finds the rest.
        match fs::remove_dir_all(self.folder()) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).context("removing the lab's folder")
            }
            _ => Ok(()),
        }
    }
}

/// Removes what runs whose owner is dead have left. Returns their ids.
///
/// # Errors
/// When something of theirs could not be removed.
pub fn sweep() -> Result<Vec<String>> {
    if !Path::new(FOLDER).exists() {
        return Ok(Vec::new());
    }
    // To the end: two sweeps at once would trip over each other.
    let _lock = lock()?;
    let mut swept = Vec::new();
    for (run, alive) in runs()? {
        if !alive {
            run.remove()
                .with_context(|| format!("removing what run {} left", run.id))?;
            swept.push(run.id);
        }
    }
    Ok(swept)
}

/// Runs whose owner is alive.
///
/// # Errors
/// When the folder of runs cannot be read.
pub fn live() -> Result<Vec<Run>> {
    Ok(runs()?
        .into_iter()
        .filter_map(|(run, alive)| alive.then_some(run))
        .collect())
}

fn runs() -> Result<Vec<(Run, bool)>> {
    if !Path::new(FOLDER).exists() {
        return Ok(Vec::new());
    }
    let mut runs = Vec::new();
    for entry in fs::read_dir(FOLDER).context(FOLDER)? {
        let entry = entry?;
        let id = entry.file_name().to_string_lossy().into_owned();
        if id.starts_with('.') || !entry.file_type()?.is_dir() {
            continue;
        }
        let alive = fs::read_to_string(entry.path().join(OWNER)).is_ok_and(|text| owner_lives(&text));
        runs.push((Run { id }, alive));
    }
    Ok(runs)
}

fn owner_lives(owner: &str) -> bool {
    let mut fields = owner.split_whitespace().map(str::parse::<u64>);
    let (Some(Ok(pid)), Some(Ok(start))) = (fields.next(), fields.next()) else {
        return false;
    };
    u32::try_from(pid).is_ok_and(|pid| start_time(pid) == Some(start))
}

/// When a process started, in clock ticks since boot: with its pid, a name that is never used again.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything; field 22 is the start.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    // A zombie holds nothing.
    (fields.next()? != "Z").then_some(())?;
    fields.nth(18)?.parse().ok()
}

fn lock() -> Result<File> {
    let path = Path::new(FOLDER).join(".lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    file.lock()
        .with_context(|| format!("locking {}", path.display()))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_its_pid_and_its_start() {
        let pid = std::process::id();
        let start = start_time(pid).unwrap();
        assert!(owner_lives(&format!("{pid} {start}\n")));
        assert!(!owner_lives(&format!("{pid} {}\n", start + 1)));
        assert!(!owner_lives(&format!("{pid}\n")));
        assert!(!owner_lives(""));
    }
}
