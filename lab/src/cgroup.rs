//! The lab's own part of the cgroup tree. Nothing above it is touched.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Where the cgroup2 file system is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
///
/// # Errors
/// When it is not mounted.
pub fn mount_point() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    parse_mountinfo(&table).context(
        "no cgroup2 file system is mounted, and the agent attaches to one: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    )
}

fn parse_mountinfo(table: &str) -> Option<PathBuf> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (right.split(' ').next() == Some("cgroup2")).then(|| left.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Kills every process in a cgroup and below, and removes all of it. Nothing but a lab's own processes is ever there.
///
/// # Errors
/// When the cgroup is still there afterwards.
pub fn remove(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    // Linux 5.14; the agent needs a newer one anyway.
    fs::write(root.join("cgroup.kill"), "1")
        .with_context(|| format!("killing what is in {}", root.display()))?;
    let what = format!("{} to be removable", root.display());
    // The kernel counts a process until it has let go of its sockets, which can take a while.
    crate::poll(&what, Duration::from_secs(10), || match remove_tree(root) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
        Err(error) => Err(error).context(what.clone()),
    })
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

/// Process ids in a cgroup and below.
///
/// # Errors
/// When it cannot be read.
pub fn processes(root: &Path) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let text =
            fs::read_to_string(folder.join("cgroup.procs")).with_context(|| folder.display().to_string())?;
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup2_mount_is_found_alone_and_beside_version_1() {
        let alone = "24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(parse_mountinfo(alone), Some("/sys/fs/cgroup".into()));
        let beside = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(parse_mountinfo(beside), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(parse_mountinfo("31 23 0:28 / / rw - ext4 /dev/sda rw\n"), None);
    }
}
