//! The kubelet: how the kernel programs know its probes from what else comes from the node.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;

use crate::{
    agent::Agent,
    datapath::preflight,
    netns::{NetNs, processes},
};

/// Where the kubelet's cgroup is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum KubeletCgroup {
    /// Where the process called `kubelet` is, found in `/proc`: the agent needs the node's PID namespace for it.
    Auto,
    /// A folder.
    Folder(PathBuf),
}

/// The kubelet as the kernel programs know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kubelet {
    /// Id of its cgroup: the inode of its folder.
    cgroup: u64,
    /// Cookie of its network namespace.
    netns: u64,
}

/// Names of the processes that are a kubelet: its own, and those of distributions that have it built in.
const NAMES: &[&str] = &["kubelet", "k3s-server", "k3s-agent", "microshift"];
/// How often it is looked for.
const INTERVAL: Duration = Duration::from_secs(1);
/// The part of the agent that its faults belong to.
const PART: &str = "kubelet's cgroup";

impl TryFrom<String> for KubeletCgroup {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "auto" => Ok(Self::Auto),
            path if path.starts_with('/') => Ok(Self::Folder(path.into())),
            _ => Err("expected 'auto' or an absolute path"),
        }
    }
}

impl KubeletCgroup {
    /// Finds the kubelet. `own`: the agent's network namespace, which counts where the folder is given and has no process.
    ///
    /// # Errors
    /// When it is not there, or in no cgroup of its own.
    pub fn find(&self, own: u64) -> io::Result<Kubelet> {
        let (folder, process) = match self {
            Self::Folder(folder) => (folder.clone(), first_process(folder)?),
            Self::Auto => {
                let process = search(processes::PROC.as_ref())?;
                let text = fs::read_to_string(process.join("cgroup"))?;
                (preflight::cgroup_folder(&text)?, Some(process))
            }
        };
        let netns = match process {
            Some(process) => NetNs::open(&process.join("ns/net"))?.cookie(),
            None => own,
        };
        let cgroup = folder.metadata()?.ino();
        Ok(Kubelet { cgroup, netns })
    }
}

/// The first process of a cgroup that this PID namespace shows, as its folder in `/proc`.
fn first_process(folder: &Path) -> io::Result<Option<PathBuf>> {
    let text = fs::read_to_string(folder.join("cgroup.procs"))?;
    // A process of another PID namespace is shown as 0.
    let pid = text.lines().find(|pid| *pid != "0");
    Ok(pid.map(|pid| Path::new(processes::PROC).join(pid)))
}

/// Finds root's process of that name that is in no pod, as its folder in `/proc`.
fn search(proc: &Path) -> io::Result<PathBuf> {
    let is_kubelet = |process: &PathBuf| {
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        NAMES.contains(&name.trim_end())
            && process.metadata().is_ok_and(|meta| meta.uid() == 0)
            && processes::pod_uid(process).is_ok_and(|pod| pod.is_none())
    };
    let mut found = processes::all(proc)?
        .into_iter()
        .map(|pid| proc.join(pid.to_string()));
    found.find(is_kubelet).ok_or_else(|| {
        let what = "no process called kubelet runs; where it has another name, give its cgroup's folder";
        io::Error::new(io::ErrorKind::NotFound, what)
    })
}

/// Tells the kernel how to know the kubelet. Again and again: a service manager makes another cgroup of the same name when
/// it restarts the kubelet.
pub async fn look_for(agent: Arc<Agent>, place: KubeletCgroup, own: u64) {
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut known = None;
    loop {
        ticks.tick().await;
        let found = tokio::task::block_in_place(|| place.find(own));
        let now = found.as_ref().ok().copied();
        if now != known {
            if let Err(error) = tell(&agent, now, own) {
                tracing::error!(%error, "the kernel cannot be told of the kubelet's cgroup");
                continue;
            }
            known = now;
        }
        let problem = found.err();
        let problem = problem.map(|error| format!("{place}: {error}; probes of STRICT pods fail"));
        agent.fault(PART, problem);
    }
}

fn tell(agent: &Agent, kubelet: Option<Kubelet>, own: u64) -> Result<(), crate::datapath::DatapathError> {
    let netns = kubelet.map_or(own, |kubelet| kubelet.netns);
    agent
        .node
        .datapath
        .set_kubelet(kubelet.map(|kubelet| kubelet.cgroup), netns)
}

impl std::fmt::Display for KubeletCgroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Folder(folder) => folder.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(proc: &Path, pid: u32, name: &str, cgroup: &str) {
        let folder = proc.join(pid.to_string());
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("comm"), format!("{name}\n")).unwrap();
        fs::write(folder.join("cgroup"), cgroup).unwrap();
    }

    #[test]
    fn a_pod_that_calls_itself_kubelet_is_not_it() {
        const UID: &str = "0b2f5c1e-1111-2222-3333-444455556666";
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 1, "systemd", "0::/init.scope\n");
        process(proc.path(), 7, "kubelet", &format!("0::/kubepods/pod{UID}/abc\n"));
        process(
            proc.path(),
            8,
            "kubelet",
            &format!("0::/../../kubepods/pod{UID}/abc\n"),
        );
        assert!(search(proc.path()).is_err());
        process(proc.path(), 90, "kubelet", "0::/system.slice/kubelet.service\n");
        assert_eq!(search(proc.path()).unwrap(), proc.path().join("90"));
    }

    #[test]
    fn a_place_is_a_path_or_the_word_auto() {
        assert_eq!(
            KubeletCgroup::try_from("auto".to_owned()),
            Ok(KubeletCgroup::Auto)
        );
        let folder = "/sys/fs/cgroup/kubelet";
        let expected = KubeletCgroup::Folder(folder.into());
        assert_eq!(KubeletCgroup::try_from(folder.to_owned()), Ok(expected));
        assert!(KubeletCgroup::try_from("kubelet".to_owned()).is_err());
    }
}
