//! Inbound plaintext: from outside the mesh to a PERMISSIVE pod.

use std::sync::Arc;

use weir_tunnel::copy::copy_plain;
use weir_types::{FlowPath, Reason, TrafficDirection};

use crate::{
    config::MtlsMode,
    node::{Node, Pod},
    serve::{self, Accepted, deliver},
    sockets,
};

/// Carries one connection to its end.
pub async fn carry(node: &Arc<Node>, pod: &Arc<Pod>, accepted: Accepted) {
    let Accepted { stream, peer, local } = accepted;
    let source = node.peer(peer, None);
    let destination = pod.workload.verified_peer(local);
    let mut flow = node.flows.connection(
        TrafficDirection::Ingress,
        FlowPath::Plaintext,
        source,
        destination,
    );
    let mut mode = pod.mode.subscribe();
    // The kernel decides this; the mode may have changed since.
    if *mode.borrow_and_update() == MtlsMode::Strict {
        flow.refuse(Reason::PlaintextToStrict, None);
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
    let reason = tokio::select! {
        outcome = copy_plain(stream, application, &counters) => outcome.ended,
        _ = mode.wait_for(|mode| *mode == MtlsMode::Strict) => Reason::PolicyChanged,
    };
    flow.close(reason, network.read());
}
