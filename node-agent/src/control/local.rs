//! The pods of this node where the control plane tells of workloads alone, as istiod does.
//!
//! A pod is found by its UID, which such a control plane does not tell. The kubelet keeps a folder of logs for each pod of its
//! node, whose name says which pod has which UID; only root can write there.

use std::{
    collections::HashMap,
    future, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{Interval, MissedTickBehavior, interval};
use weir_abi::ProbePort;

use crate::{
    mesh::{PodSource, Received, Update},
    netns::NetNsRef,
};

/// How often it is looked whether there are other pods than before.
const LOOK: Duration = Duration::from_millis(500);
/// Folders that are looked at: far more than a kubelet keeps, which stops at a few hundred pods.
const MOST: usize = 16_384;

/// UIDs by namespace and name.
type Uids = HashMap<(String, String), Arc<str>>;

/// Finds the pods of this node that are to be enrolled.
#[derive(Debug)]
pub(super) struct LocalPods {
    logs: PathBuf,
    uids: Uids,
    ticks: Interval,
    problem: Option<String>,
}

// === impl LocalPods ===

impl LocalPods {
    /// By the kubelet's folder of logs. Needs a runtime.
    pub(super) fn new(logs: &Path) -> Self {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            logs: logs.to_owned(),
            uids: Uids::new(),
            ticks,
            problem: None,
        }
    }

    /// Waits until there are other pods than before; for ever where the control plane says so itself.
    pub(super) async fn next(local: &mut Option<Self>) {
        let Some(local) = local else {
            return future::pending().await;
        };
        loop {
            local.ticks.tick().await;
            if local.look() {
                return;
            }
        }
    }

    /// Whether there are other pods than before.
    fn look(&mut self) -> bool {
        let found = read(&self.logs).map_err(|error| format!("{}: {error}", self.logs.display()));
        match found {
            Ok(uids) => {
                self.problem = None;
                let is_new = uids != self.uids;
                self.uids = uids;
                is_new
            }
            Err(problem) => {
                // What was known stays: pods do not leave the mesh because a folder cannot be read.
                if self.problem.as_ref() != Some(&problem) {
                    tracing::error!(
                        problem,
                        "new pods of this node cannot be found, and are not enrolled"
                    );
                    self.problem = Some(problem);
                }
                false
            }
        }
    }

    /// Adds to an update which pods are to be enrolled with it, and which are no more.
    pub(super) fn tell(&mut self, received: &Received, update: &mut Update) {
        self.look();
        let mut pods: HashMap<&Arc<str>, PodSource> = HashMap::new();
        for workload in received.to_capture(update) {
            let name = (workload.identity.namespace().to_owned(), workload.name.clone());
            if let Some(uid) = self.uids.get(&name) {
                let pod = PodSource {
                    workload: workload.uid.clone(),
                    netns: NetNsRef::Pod(uid.clone()),
                    probe_ports: vec![ProbePort::ANY],
                    observed: false,
                };
                pods.insert(uid, pod);
            }
        }
        let known = received.pods();
        let gone = known
            .keys()
            .filter(|uid| !pods.contains_key(&Arc::from(uid.as_str())));
        let mut told: Vec<(String, Option<PodSource>)> = gone.map(|uid| (uid.clone(), None)).collect();
        let new = pods
            .into_iter()
            .filter(|(uid, pod)| known.get(&***uid) != Some(pod));
        told.extend(new.map(|(uid, pod)| (uid.to_string(), Some(pod))));
        update.pods = told;
    }
}

/// The pods that a folder of logs names. Of several with one name the youngest counts: the others are gone, and their logs not
/// yet.
fn read(logs: &Path) -> io::Result<Uids> {
    let mut found: HashMap<(String, String), (SystemTime, Arc<str>)> = HashMap::new();
    for entry in std::fs::read_dir(logs)?.take(MOST) {
        let entry = entry?;
        let file = entry.file_name();
        let Some((namespace, name, uid)) = file.to_str().and_then(parts) else {
            continue;
        };
        // Gone meanwhile.
        let Ok(meta) = entry.metadata() else {
            continue;
        };
        if !meta.is_dir() {
            continue;
        }
        let made = meta.created().or_else(|_| meta.modified())?;
        let key = (namespace.to_owned(), name.to_owned());
        if found.get(&key).is_none_or(|(before, _)| *before < made) {
            found.insert(key, (made, uid.into()));
        }
    }
    let uids = found.into_iter();
    Ok(uids.map(|(name, (_, uid))| (name, uid)).collect())
}

/// `<namespace>_<name>_<uid>`: names of Kubernetes have no underscore.
fn parts(folder: &str) -> Option<(&str, &str, &str)> {
    let mut parts = folder.split('_');
    let (namespace, name, uid) = (parts.next()?, parts.next()?, parts.next()?);
    let whole = [namespace, name, uid].iter().all(|part| !part.is_empty());
    (whole && parts.next().is_none()).then_some((namespace, name, uid))
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    #[test]
    fn a_folder_of_logs_says_which_pod_has_which_uid() {
        for (folder, wanted) in [
            ("shop_web-0_11-22", Some(("shop", "web-0", "11-22"))),
            ("shop_web-0_", None),
            ("shop_web-0", None),
            ("shop_web-0_11_22", None),
            ("", None),
        ] {
            assert_eq!(parts(folder), wanted, "{folder}");
        }
    }

    #[test]
    fn of_pods_with_one_name_the_youngest_counts() {
        let logs = tempfile::tempdir().unwrap();
        for folder in ["shop_web-0_old", "shop_web-0_new", "shop_api_1", "other"] {
            fs::create_dir(logs.path().join(folder)).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
        fs::write(logs.path().join("shop_file_2"), "").unwrap();
        let uids = read(logs.path()).unwrap();
        let of = |name: &str| uids.get(&("shop".to_owned(), name.to_owned())).map(|uid| &**uid);
        assert_eq!(
            (of("web-0"), of("api"), of("file")),
            (Some("new"), Some("1"), None)
        );
        assert!(read(&logs.path().join("none")).is_err());
    }
}
