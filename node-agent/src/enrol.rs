//! Enrolment: brings the kernel and the agent's listeners in line with the pods that the configuration names.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::net::TcpListener;
use weir_abi::ListenerSlot;

use crate::{
    config::MtlsMode,
    datapath::{DatapathError, PodHandle},
    mesh::LocalPod,
    netns::NetNs,
    node::{Node, Pod},
    serve::Serve,
    sockets,
};

/// Why a pod is not enrolled. It is tried again as long as the configuration names it.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Its namespace's file is not there.
    #[error("its network namespace is not there (yet): {path}: {source}")]
    NetNs {
        /// The file.
        path: String,
        /// The error.
        source: io::Error,
    },
    /// Its namespace is that of another pod.
    #[error("its network namespace is already that of pod '{0}'")]
    SharedNetNs(String),
    /// It shares the node's network.
    #[error("it uses the node's own network namespace, which cannot be captured")]
    HostNetwork,
    /// A listener cannot be made.
    #[error("no listener in its network namespace: {0}")]
    Listen(io::Error),
    /// The kernel refuses.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// Enrols and removes pods. One at work at a time.
pub struct Enrolment {
    node: Arc<Node>,
    serve: Arc<Serve>,
    host_cookie: u64,
    problems: Mutex<BTreeMap<String, String>>,
}

impl Enrolment {
    /// Enrolment for a node.
    ///
    /// # Errors
    /// When the agent's own network namespace cannot be opened.
    pub fn new(node: Arc<Node>, serve: Arc<Serve>) -> io::Result<Self> {
        let host = NetNs::open("/proc/thread-self/ns/net".as_ref())?;
        Ok(Self {
            node,
            serve,
            host_cookie: host.cookie(),
            problems: Mutex::default(),
        })
    }

    /// Why pods are not enrolled, by uid.
    #[must_use]
    pub fn problems(&self) -> BTreeMap<String, String> {
        self.problems
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Removes what left, enrols what came, and changes modes. Cheap when nothing changed.
    pub fn reconcile(&self) {
        let mesh = self.node.mesh.load_full();
        let wanted: BTreeMap<&str, &Arc<LocalPod>> = mesh
            .local()
            .iter()
            .map(|pod| (pod.workload.uid.as_str(), pod))
            .collect();
        for pod in self.node.pods() {
            let stays = wanted
                .get(pod.workload.uid.as_str())
                .is_some_and(|local| local.workload == pod.workload);
            if !stays {
                self.remove(&pod, "it left the configuration");
            } else if !pod.netns.is_current() {
                self.remove(&pod, "its network namespace is gone");
            }
        }
        let mut problems = BTreeMap::new();
        for (uid, local) in wanted {
            match self.node.pod(uid) {
                Some(pod) => self.set_mode(&pod, local.mode),
                None => {
                    if let Err(error) = self.enrol(local) {
                        problems.insert(uid.to_owned(), error.to_string());
                    }
                }
            }
        }
        let mut known = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        for (uid, problem) in &problems {
            if known.get(uid) != Some(problem) {
                tracing::warn!(pod = uid, problem, "pod is not enrolled");
            }
        }
        *known = problems;
    }

    /// Detaches what an earlier agent left for pods that are gone.
    pub fn reap(&self) {
        let present: HashSet<u32> = self.node.pods().iter().map(|pod| pod.handle.0).collect();
        for (cookie, pod) in self.node.datapath.pods() {
            if !present.contains(&pod.handle) {
                self.node.datapath.remove_pod(Some(cookie), PodHandle(pod.handle));
            }
        }
        self.node.datapath.detach_all_but(&present);
    }

    fn enrol(&self, local: &LocalPod) -> Result<(), EnrolError> {
        let open = |source| EnrolError::NetNs {
            path: local.netns.display().to_string(),
            source,
        };
        let netns = NetNs::open(&local.netns).map_err(open)?;
        let cookie = netns.cookie();
        if cookie == self.host_cookie {
            return Err(EnrolError::HostNetwork);
        }
        if let Some(other) = self.node.pods().iter().find(|pod| pod.netns.cookie() == cookie) {
            return Err(EnrolError::SharedNetNs(other.workload.uid.clone()));
        }
        let datapath = &self.node.datapath;
        let workload = &local.workload;
        // An earlier agent's pod of this namespace goes on under its handle, if its addresses are the same.
        let known = datapath.pods().into_iter().find(|(known, _)| *known == cookie);
        let handle = match known {
            Some((_, pod)) if pod == weir_abi::Pod::new(pod.handle, &workload.addresses) => {
                PodHandle(pod.handle)
            }
            Some((_, pod)) => {
                datapath.detach_pod(PodHandle(pod.handle));
                datapath.remove_pod(Some(cookie), PodHandle(pod.handle));
                datapath.new_handle()
            }
            None => datapath.new_handle(),
        };
        let entry = weir_abi::Pod::new(handle.0, &workload.addresses);
        let pod = Arc::new(Pod::new(handle, local, netns));
        // Inbound first, then outbound: a pod never sends through the mesh before it also receives through it.
        let result = self.listen(&pod, &entry).and_then(|()| {
            datapath.set_state(handle, local.mode == MtlsMode::Strict)?;
            datapath.attach_pod(&entry, pod.netns.as_fd())?;
            datapath.insert_pod(cookie, &entry)?;
            Ok(())
        });
        if let Err(error) = result {
            pod.left.cancel();
            datapath.detach_pod(handle);
            datapath.remove_pod(Some(cookie), handle);
            return Err(error);
        }
        tracing::info!(pod = workload.uid, identity = %workload.identity, handle = handle.0, "pod enrolled");
        self.node.insert(pod);
        Ok(())
    }

    /// Opens the pod's listeners, puts them into their slots, and starts accepting.
    fn listen(&self, pod: &Arc<Pod>, entry: &weir_abi::Pod) -> Result<(), EnrolError> {
        let families = [(true, entry.v4 != 0), (false, entry.v6 != [0; 4])];
        for (v4, _) in families.iter().filter(|(_, present)| *present) {
            for slot in [
                ListenerSlot::OUTBOUND,
                ListenerSlot::HBONE,
                ListenerSlot::PLAINTEXT,
            ] {
                let listener = sockets::listen(&pod.netns, *v4).map_err(EnrolError::Listen)?;
                let family = if *v4 { 0 } else { ListenerSlot::V6 };
                self.node
                    .datapath
                    .set_listener(pod.handle, slot + family, &listener)?;
                self.accept(pod, slot, listener);
            }
        }
        Ok(())
    }

    fn accept(&self, pod: &Arc<Pod>, slot: u32, listener: TcpListener) {
        let serve = self.serve.clone();
        let pod = pod.clone();
        tokio::spawn(async move { serve.accept(pod, slot, listener).await });
    }

    fn set_mode(&self, pod: &Arc<Pod>, mode: MtlsMode) {
        if *pod.mode.borrow() == mode {
            return;
        }
        if let Err(error) = self.node.datapath.set_state(pod.handle, mode == MtlsMode::Strict) {
            tracing::error!(pod = pod.workload.uid, %error, "the pod's mode cannot be changed");
            return;
        }
        tracing::info!(pod = pod.workload.uid, ?mode, "mode changed");
        pod.mode.send_replace(mode);
    }

    /// Capture ends first, so that new connections go the ordinary way at once.
    fn remove(&self, pod: &Arc<Pod>, why: &str) {
        self.node.remove(&pod.workload.uid);
        self.node
            .datapath
            .remove_pod(Some(pod.netns.cookie()), pod.handle);
        self.node.datapath.detach_pod(pod.handle);
        pod.left.cancel();
        self.serve.forget(pod);
        tracing::info!(pod = pod.workload.uid, why, "pod removed");
    }
}
