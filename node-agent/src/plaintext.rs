//! What comes in plaintext: from outside the mesh, from the kubelet, or from a pod of this node under permissions that are out
//! of date.

use std::sync::Arc;

use weir_abi::{Conn, ConnKind, FlowKey};
use weir_tunnel::copy::copy_plain;
use weir_types::{FlowPath, FlowPeer, Reason, TrafficDirection};

use crate::{
    datapath::PodHandle,
    node::{Node, Pod, process},
    open::OpenConnection,
    serve::{self, Accepted, deliver},
    sockets,
};

/// Carries one connection to its end.
pub async fn carry(node: &Arc<Node>, pod: &Arc<Pod>, accepted: Accepted) {
    let Accepted { stream, peer, local } = accepted;
    let key = FlowKey {
        src: peer.into(),
        dst: local.into(),
    };
    let registered = registered(node, pod, &key);
    if let Registered::Kubelet(conn) = registered {
        return probe(node, pod, Accepted { stream, peer, local }, &conn).await;
    }
    let (identity, still_direct) = match &registered {
        Registered::Pod(source) => {
            let mesh = node.mesh.load();
            let (from, to) = (&source.workload.uid, &pod.workload.uid);
            let same_node = node.router(&mesh).same_node(from, to, local, peer.ip());
            (
                Some(source.workload.identity.clone()),
                same_node.is_some_and(|now| now.direct),
            )
        }
        // Somebody's, but of nobody who is still here: not to be taken for a stranger's.
        Registered::Gone => (None, false),
        Registered::Kubelet(_) | Registered::Not => (None, true),
    };
    let path = if identity.is_some() {
        FlowPath::Direct
    } else {
        FlowPath::Plaintext
    };
    let open = OpenConnection::enter(pod, identity.clone(), peer, local);
    let judgement = node.judge(pod, &open);
    let source = node.peer(peer, identity);
    let destination = pod.workload.verified_peer(local);
    let mut flow = node
        .flows
        .connection(TrafficDirection::Ingress, path, source, destination);
    flow.judged(&judgement);
    if !judgement.is_allowed() {
        flow.refuse(judgement.reason, judgement.detail);
        return sockets::reset(stream);
    }
    if !still_direct {
        // Its next connection is told to go over mutual TLS.
        flow.refuse(Reason::PolicyChanged, None);
        return sockets::reset(stream);
    }
    let application = match deliver(node, pod, local, peer).await {
        Ok(application) => application,
        Err((reason, error)) => {
            flow.refuse(reason, Some(error.to_string()));
            return sockets::reset(stream);
        }
    };
    let counters = flow.open();
    let network = serve::NetworkProbe::new(&stream);
    let ended = open.ended();
    let reason = tokio::select! {
        outcome = copy_plain(stream, application, &counters) => outcome.ended,
        () = ended.cancelled() => Reason::PolicyChanged,
    };
    if let Some(why) = open.why() {
        flow.judged(why);
    }
    flow.close(reason, network.read());
}

/// Who registered a connection to a pod.
enum Registered {
    /// A pod of this node: its permission is of an earlier configuration, so it is decided again, but who it is stays known.
    Pod(Arc<Pod>),
    /// A process in the kubelet's cgroup, to a port that it probes, and its socket is connected.
    Kubelet(Conn),
    /// A pod that is not enrolled any more.
    Gone,
    /// Nobody.
    Not,
}

fn registered(node: &Node, pod: &Pod, key: &FlowKey) -> Registered {
    match node.datapath.connection(key) {
        Some(conn) if conn.kind == ConnKind::DIRECT && conn.dest_pod == pod.handle.0 => {
            let source = node.pod_by_handle(PodHandle(conn.pod));
            let source = source.filter(|source| source.netns.cookie() == conn.netns);
            source.map_or(Registered::Gone, Registered::Pod)
        }
        // Not connected: somebody else got its port. Whoever it is, he is nobody.
        Some(conn)
            if conn.kind == ConnKind::HOST
                && conn.established != 0
                && u16::try_from(key.dst.port).is_ok_and(|port| pod.told().is_probed(port)) =>
        {
            Registered::Kubelet(conn)
        }
        _ => Registered::Not,
    }
}

/// Carries a probe of the kubelet's. No policy is asked: it is how the pod's own author wants it looked after.
async fn probe(node: &Arc<Node>, pod: &Arc<Pod>, accepted: Accepted, conn: &Conn) {
    let Accepted { stream, peer, local } = accepted;
    let source = FlowPeer::unknown(peer);
    let destination = pod.workload.verified_peer(local);
    let mut flow = node.flows.connection(
        TrafficDirection::Ingress,
        FlowPath::Plaintext,
        source,
        destination,
    );
    flow.process(process(conn.pid, &conn.comm));
    match deliver(node, pod, local, peer).await {
        Ok(application) => {
            let counters = flow.open();
            let network = serve::NetworkProbe::new(&stream);
            let ended = copy_plain(stream, application, &counters).await.ended;
            flow.close(ended, network.read());
        }
        Err((reason, error)) => {
            flow.refuse(reason, Some(error.to_string()));
            sockets::reset(stream);
        }
    }
}
