//! Enrolment: brings the kernel and the agent's listeners in line with the pods that the configuration names.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::net::TcpListener;
use weir_abi::ListenerSlot;

use crate::{
    datapath::{DatapathError, PodHandle},
    mesh::{LocalPod, Mesh},
    netns::{NetNs, NetNsRef},
    node::{Node, Pod, Told},
    revalidate,
    same_node::Link,
    serve::Serve,
    sockets::{self, Carries},
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
    /// Its routes cannot be read.
    #[error("the routes of its network namespace cannot be read: {0}")]
    Routes(io::Error),
    /// A listener cannot be made.
    #[error("no listener in its network namespace: {0}")]
    Listen(io::Error),
    /// The kernel refuses.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
}

/// How long after a pod left its counts are kept, for the records of connections that ended with it.
const LAST_RECORDS: Duration = Duration::from_secs(5);

/// Enrols and removes pods, one after the other whoever asks.
pub struct Enrolment {
    node: Arc<Node>,
    serve: Arc<Serve>,
    host_cookie: u64,
    /// Held by who is at work.
    at_work: Mutex<()>,
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
            at_work: Mutex::default(),
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
        // It guards no data: what is half done when it panics, the next one finds and does.
        let _at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        let mesh = self.node.mesh.load_full();
        let wanted = mesh.local();
        for pod in self.node.pods() {
            if !wanted.contains_key(&pod.workload.uid) {
                self.remove(&pod, "it left the configuration");
            } else if !self.is_current(&pod) {
                self.remove(&pod, "its network namespace is gone");
            }
        }
        let mut problems = BTreeMap::new();
        let mut new = Vec::new();
        for (uid, local) in wanted {
            let enrolled = self.node.pod(uid);
            if let Some(pod) = enrolled.as_ref().filter(|pod| pod.is(local)) {
                self.tell(pod, told(&mesh, local));
            } else if let Err(error) = self.enrol(&mesh, local, enrolled.as_ref()) {
                problems.insert(uid.to_owned(), error.to_string());
            } else {
                new.push(uid);
            }
        }
        // Connections of before that it may not have. Once all are enrolled: who is not known may not be a client.
        let new: Vec<Arc<Pod>> = new.into_iter().filter_map(|uid| self.node.pod(uid)).collect();
        revalidate::of(&self.node, &mesh, &new);
        // What was decided while they were not there.
        let about = |pod: &Arc<Pod>| mesh.addresses_about(&pod.workload.uid);
        self.node.datapath.forget(new.iter().flat_map(about));
        let mut known = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        for (uid, problem) in &problems {
            if known.get(uid) != Some(problem) {
                tracing::warn!(pod = uid, problem, "pod is not enrolled");
            }
        }
        *known = problems;
    }

    /// Detaches what an earlier agent left for pods that are gone. A pod that is still configured keeps it, also when it
    /// could not be enrolled: until it can, it fails closed.
    pub fn reap(&self) {
        let mesh = self.node.mesh.load();
        let cookie = |pod: &Arc<LocalPod>| self.find(&pod.netns).ok().map(|netns| netns.cookie());
        let configured: HashSet<u64> = mesh.local().values().filter_map(cookie).collect();
        // Of pods that are just starting the runtime has made the namespace, and there is no process yet to find it by: what
        // bears their addresses stays until they are enrolled again, and fails closed.
        let unfound: Vec<&Arc<LocalPod>> = mesh
            .local()
            .values()
            .filter(|pod| cookie(pod).is_none())
            .collect();
        let may_be_starting = |known: &weir_abi::Pod| {
            unfound.iter().any(|local| {
                let same = weir_abi::Pod::new(known.handle, &local.workload.addresses);
                *known == same.observed(local.observed)
            })
        };
        let mut kept: HashSet<u32> = self.node.pods().iter().map(|pod| pod.handle.0).collect();
        for (cookie, pod) in self.node.datapath.pods() {
            if configured.contains(&cookie) || may_be_starting(&pod) {
                kept.insert(pod.handle);
            } else {
                self.node.datapath.remove_pod(Some(cookie), PodHandle(pod.handle));
            }
        }
        self.node.datapath.detach_all_but(&kept);
    }

    /// The cookie of the node's own network namespace.
    #[must_use]
    pub fn host_cookie(&self) -> u64 {
        self.host_cookie
    }

    /// A pod's namespace: as the container runtime gave it, else where its source leads.
    fn find(&self, source: &NetNsRef) -> io::Result<NetNs> {
        match self.node.sandboxes.of(source) {
            Some(sandbox) => sandbox.netns(),
            None => NetNs::find(source),
        }
    }

    /// Whether a pod is still in the namespace that it was enrolled in.
    fn is_current(&self, pod: &Pod) -> bool {
        match self.node.sandboxes.of(pod.netns.source()) {
            Some(sandbox) => sandbox.cookie() == pod.netns.cookie(),
            None => pod.netns.is_current(),
        }
    }

    /// Enrols a pod, or puts what it is now in the place of what it was. The kernel keeps the old until it has the new:
    /// there is no moment in which plaintext passes that must not.
    fn enrol(&self, mesh: &Mesh, local: &LocalPod, before: Option<&Arc<Pod>>) -> Result<(), EnrolError> {
        let open = |source| EnrolError::NetNs {
            path: local.netns.to_string(),
            source,
        };
        let netns = self.find(&local.netns).map_err(open)?;
        let cookie = netns.cookie();
        if cookie == self.host_cookie {
            return Err(EnrolError::HostNetwork);
        }
        let workload = &local.workload;
        let shares = |pod: &&Arc<Pod>| pod.netns.cookie() == cookie && pod.workload.uid != workload.uid;
        if let Some(other) = self.node.pods().iter().find(shares) {
            return Err(EnrolError::SharedNetNs(other.workload.uid.clone()));
        }
        let datapath = &self.node.datapath;
        let known = datapath
            .pods()
            .into_iter()
            .find(|(known, _)| *known == cookie)
            .map(|(_, pod)| pod);
        // An earlier agent's pod of this namespace goes on under its handle, if its addresses are the same.
        let same = |pod: &weir_abi::Pod| {
            before.is_none()
                && *pod == weir_abi::Pod::new(pod.handle, &workload.addresses).observed(local.observed)
        };
        let handle = match known.filter(same) {
            Some(pod) => PodHandle(pod.handle),
            None => datapath.new_handle()?,
        };
        let entry = weir_abi::Pod::new(handle.0, &workload.addresses).observed(local.observed);
        let link = Link::of(&netns).map_err(EnrolError::Routes)?;
        let pod = Arc::new(Pod::new(handle, local, netns, link, told(mesh, local)));
        let told = pod.told().clone();
        // Inbound first, then outbound: a pod never sends through the mesh before it also receives through it.
        let result = datapath
            .set_state(handle, told.strict)
            .and_then(|()| datapath.set_probe_ports(handle, &told.probe_ports))
            .map_err(EnrolError::from)
            .and_then(|()| {
                // What reaches a pod that is only observed does not concern the agent.
                let mut listeners = Vec::new();
                if !local.observed {
                    listeners = self.listen(&pod, &entry)?;
                    datapath.attach_pod(&entry, pod.netns.as_fd())?;
                }
                datapath.insert_pod(cookie, &entry)?;
                Ok(listeners)
            });
        let old = known
            .map(|pod| PodHandle(pod.handle))
            .filter(|old| *old != handle);
        let listeners = match result {
            Ok(listeners) => listeners,
            Err(error) => {
                // What was there before stays: without listeners it refuses.
                if known.is_none() || old.is_some() {
                    datapath.detach_pod(handle);
                    datapath.remove_pod(None, handle);
                }
                return Err(error);
            }
        };
        tracing::info!(
            pod = workload.uid, identity = %workload.identity, handle = handle.0, observed = local.observed,
            "pod enrolled"
        );
        self.node.insert(pod.clone());
        // Only now: who carries a connection looks for its pod. What came meanwhile waits in the backlog.
        for (slot, listener) in listeners {
            tokio::spawn(self.serve.clone().accept(pod.clone(), slot, listener));
        }
        if let Some(old) = old {
            datapath.detach_pod(old);
            datapath.remove_pod(None, old);
        }
        if let Some(before) = before {
            if before.netns.cookie() != cookie {
                datapath.remove_pod(Some(before.netns.cookie()), before.handle);
                datapath.detach_pod(before.handle);
            }
            before.left.cancel();
            self.serve.forget(before);
        }
        Ok(())
    }

    /// Opens the pod's listeners and puts them into their slots.
    fn listen(&self, pod: &Pod, entry: &weir_abi::Pod) -> Result<Vec<(u32, TcpListener)>, EnrolError> {
        let families = [(true, entry.v4 != 0), (false, entry.v6 != [0; 4])];
        let mut listeners = Vec::new();
        for (v4, _) in families.iter().filter(|(_, present)| *present) {
            for slot in [
                ListenerSlot::OUTBOUND,
                ListenerSlot::HBONE,
                ListenerSlot::PLAINTEXT,
            ] {
                let carries = if slot == ListenerSlot::HBONE {
                    Carries::Tls
                } else {
                    Carries::Bytes
                };
                let listener = sockets::listen(&pod.netns, *v4, carries).map_err(EnrolError::Listen)?;
                let family = if *v4 { 0 } else { ListenerSlot::V6 };
                self.node
                    .datapath
                    .set_listener(pod.handle, slot + family, &listener)?;
                listeners.push((slot, listener));
            }
        }
        Ok(listeners)
    }

    /// Tells the kernel what may change of a pod.
    fn tell(&self, pod: &Pod, now: Told) {
        let mut told = pod.told();
        if *told == now {
            return;
        }
        let datapath = &self.node.datapath;
        let result = datapath
            .set_state(pod.handle, now.strict)
            .and_then(|()| datapath.set_probe_ports(pod.handle, &now.probe_ports));
        match result {
            Ok(()) => {
                tracing::info!(
                    pod = pod.workload.uid,
                    strict = now.strict,
                    "mode or probed ports changed"
                );
                *told = now;
            }
            Err(error) => {
                tracing::error!(pod = pod.workload.uid, %error, "the pod's mode or probed ports cannot be changed");
            }
        }
    }

    /// Capture ends first, so that new connections go the ordinary way at once.
    fn remove(&self, pod: &Arc<Pod>, why: &str) {
        self.node.remove(&pod.workload.uid);
        self.node
            .datapath
            .remove_pod(Some(pod.netns.cookie()), pod.handle);
        self.node.datapath.detach_pod(pod.handle);
        self.node.datapath.forget(pod.workload.addresses.iter().copied());
        pod.left.cancel();
        self.serve.forget(pod);
        let workload = pod.workload.clone();
        let metrics = self.node.metrics.clone();
        let forgotten = workload.clone();
        tokio::spawn(async move {
            // The last records of its connections are on their way.
            tokio::time::sleep(LAST_RECORDS).await;
            metrics.forget_pod(forgotten.identity.namespace(), &forgotten.name);
        });
        tracing::info!(pod = workload.uid, why, "pod removed");
    }
}

/// What the kernel is to know of a pod.
fn told(mesh: &Mesh, local: &LocalPod) -> Told {
    Told {
        strict: mesh.policies_of(&local.workload).mtls().is_strict_everywhere(),
        probe_ports: local.probe_ports.clone(),
    }
}
