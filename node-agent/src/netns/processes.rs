//! The processes of a pod, found by the cgroup that the kubelet made for it.
//!
//! `/proc/PID/cgroup` says it with cgroup version 1 as with 2, whatever driver the kubelet uses and wherever the tree is
//! mounted. The agent needs the node's PID namespace for it.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read as _},
    path::{Path, PathBuf},
};

/// Where processes are.
pub(crate) const PROC: &str = "/proc";

/// Most bytes that are read of a process's cgroups: version 1 has a line for each of some fifteen controllers, and a path is
/// of at most 4096 bytes.
const MOST: u64 = 1 << 16;

/// Opens the network namespace of a pod's processes, and says by which file.
///
/// # Errors
/// When the UID is none, or the pod has no process (yet).
pub(super) fn open_netns(proc: &Path, uid: &str) -> io::Result<(File, PathBuf)> {
    if !is_uid(uid) {
        let problem = format!("'{uid}' is not the UID of a pod");
        return Err(io::Error::new(ErrorKind::InvalidInput, problem));
    }
    // The oldest first: the one that holds the namespace for the others was there before them.
    for pid in all(proc)? {
        let process = proc.join(pid.to_string());
        let is_of_pod = || pod_uid(&process).is_ok_and(|found| found.as_deref() == Some(uid));
        if !is_of_pod() {
            continue;
        }
        let path = process.join("ns/net");
        let Ok(file) = File::open(&path) else { continue };
        // The number may have become another's between the two.
        if is_of_pod() {
            return Ok((file, path));
        }
    }
    Err(io::Error::new(
        ErrorKind::NotFound,
        "no process of the pod runs (yet)",
    ))
}

/// Whether a text is a pod's UID: a UUID, or the hash of a static pod's manifest.
fn is_uid(text: &str) -> bool {
    (32..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// All processes, the lowest number first.
pub(crate) fn all(proc: &Path) -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = fs::read_dir(proc)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The UID of the pod that a process belongs to, if it belongs to one.
pub(crate) fn pod_uid(process: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    File::open(process.join("cgroup"))?
        .take(MOST)
        .read_to_string(&mut text)?;
    // `hierarchy:controllers:path` (cgroups(7)).
    let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    Ok(paths.find_map(pod_of))
}

/// The UID of the pod in whose cgroup this is. That of the first folder that is a pod's: below its own a pod may make folders
/// of any name.
fn pod_of(path: &str) -> Option<String> {
    path.split('/').find_map(|folder| {
        // The cgroupfs driver's `pod<uid>`, and the systemd driver's `...-pod<uid with _ for ->.slice`.
        let uid = match folder.strip_suffix(".slice") {
            Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
            None => folder.strip_prefix("pod")?.to_owned(),
        };
        is_uid(&uid).then_some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b2f5c1e-1111-2222-3333-444455556666";

    fn process(proc: &Path, pid: u32, cgroup: &str) {
        let folder = proc.join(pid.to_string());
        fs::create_dir_all(folder.join("ns")).unwrap();
        fs::write(folder.join("cgroup"), cgroup).unwrap();
        fs::write(folder.join("ns/net"), pid.to_string()).unwrap();
    }

    fn found(cgroups: &[&str]) -> Option<String> {
        let proc = tempfile::tempdir().unwrap();
        for (pid, cgroup) in (1..).zip(cgroups) {
            process(proc.path(), pid, cgroup);
        }
        let (mut file, _) = open_netns(proc.path(), UID).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn a_pods_oldest_process_is_found_whatever_the_driver_and_the_version() {
        let slice = "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
                     kubelet-kubepods-burstable-pod0b2f5c1e_1111_2222_3333_444455556666.slice/cri-containerd-1.scope\n";
        let cgroupfs = format!("0::/k8s-node1/kubepods/burstable/pod{UID}/abc\n");
        let version1 =
            format!("12:memory:/kubepods/pod{UID}/abc\n1:name=systemd:/kubepods/pod{UID}/abc\n0::/\n");
        for own in [slice, &cgroupfs, &version1] {
            assert_eq!(
                found(&["0::/init.scope\n", own, own]).as_deref(),
                Some("2"),
                "{own}"
            );
        }
    }

    #[test]
    fn another_pods_processes_are_not_taken_for_it() {
        assert_eq!(found(&["0::/\n"]), None);
        assert_eq!(found(&[&format!("0::/kubepods/pod{UID}0/abc\n")]), None);
        assert_eq!(found(&[&format!("0::/kubepods/mypod{UID}/abc\n")]), None);
        assert_eq!(found(&["0::/kubepods/poda/pod\n"]), None);
        let other = UID.replace('0', "1");
        let posing = format!("0::/kubepods/pod{other}/pod{UID}/abc\n");
        assert_eq!(
            found(&[&posing]),
            None,
            "a pod that makes a folder of another's name"
        );
    }

    #[test]
    fn what_is_no_uid_is_not_looked_for() {
        for uid in ["", "..", "a/b", "0b2f", &"../".repeat(12)] {
            let error = open_netns(Path::new(PROC), uid).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{uid}");
        }
    }
}
