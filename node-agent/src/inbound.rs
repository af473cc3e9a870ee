//! Inbound HBONE: decides about a peer's request and connects it to the application.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::HeaderValue;
use weir_tunnel::{
    ConnectionState, PodKey,
    copy::CopyOutcome,
    hbone::{Accepted, Authority, ConnectRequest, Handler, Observer, Refusal, Refused},
};
use weir_types::{FlowPath, Reason, TrafficDirection};

use crate::{
    datapath::PodHandle,
    flows::Connection,
    node::{ConnectionCount, DescriptorCount, Node},
    open::OpenConnection,
    serve::{deliver, network},
};

/// The agent's answers to HBONE requests.
pub struct Inbound {
    node: Arc<Node>,
}

/// Records how a tunnelled connection went.
struct Recorder {
    flow: Option<Connection>,
    connection: Arc<ConnectionState>,
    open: OpenConnection,
    _count: ConnectionCount,
    _descriptors: DescriptorCount,
}

impl Inbound {
    /// For the pods of a node.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl Handler for Inbound {
    async fn connect(
        &self,
        pod: PodKey,
        request: &ConnectRequest,
        connection: &Arc<ConnectionState>,
    ) -> Result<Accepted, Refusal> {
        let Authority::Address(address) = request.authority else {
            return Err(Refusal {
                status: http::StatusCode::BAD_REQUEST,
                reason: Reason::BadAuthority,
                told: false,
            });
        };
        let Some(pod) = self.node.pod_by_handle(PodHandle(pod.0)) else {
            return Err(Refusal::unavailable(Reason::PolicyChanged));
        };
        let Some(descriptors) = self.node.admit(&pod, 1) else {
            return Err(Refusal::unavailable(Reason::ConnectionLimit));
        };
        let client = client(request.peer, request.forwarded.as_ref());
        let identity = request.peer_identity.clone();
        // The address is the connection's own: what the peer says of it is a hint.
        let open = OpenConnection::enter(&pod, Some(identity.clone()), request.peer, address);
        let judgement = self.node.judge(&pod, &open);
        let source = self.node.peer(client, Some(identity));
        let destination = pod.workload.verified_peer(address);
        let mut flow = self.node.flows.connection(
            TrafficDirection::Ingress,
            FlowPath::Tunnel,
            source,
            destination.clone(),
        );
        flow.towards(FlowPath::Tunnel, destination, Some(connection.tls.to_string()));
        flow.judged(&judgement);
        flow.traced(request.traceparent.as_ref());
        if !judgement.is_allowed() {
            flow.refuse(judgement.reason, judgement.detail);
            return Err(Refusal::POLICY.told());
        }
        let application = match deliver(&self.node, &pod, address, client).await {
            Ok(application) => application,
            Err((reason, error)) => {
                flow.refuse(reason, Some(error.to_string()));
                return Err(Refusal::unavailable(reason).told());
            }
        };
        let flow = flow.of(&pod).reversed();
        let counters = flow.counters();
        let observer = Recorder {
            flow: Some(flow),
            connection: connection.clone(),
            _count: pod.count(),
            _descriptors: descriptors,
            open,
        };
        Ok(Accepted {
            application,
            counters,
            stop: observer.open.ended(),
            observer: Box::new(observer),
        })
    }

    fn shook_hands(&self, took: Duration) {
        self.node.metrics.shook_hands(TrafficDirection::Ingress, took);
    }

    fn refused(&self, refused: Refused) {
        let pod = self.node.pod_by_handle(PodHandle(refused.pod.0));
        let address = match refused.authority {
            Some(Authority::Address(address)) => address,
            _ => refused.local,
        };
        let destination = match &pod {
            Some(pod) => pod.workload.verified_peer(address),
            None => self.node.peer(address, None),
        };
        let source = self.node.peer(refused.peer, refused.peer_identity);
        let flow =
            self.node
                .flows
                .connection(TrafficDirection::Ingress, FlowPath::Tunnel, source, destination);
        let detail = refused
            .by_peer
            .then(|| "the peer refused this workload's certificate".to_owned());
        flow.refuse(refused.reason, detail);
    }
}

impl Observer for Recorder {
    fn opened(&mut self, _: &Arc<ConnectionState>) {
        if let Some(flow) = &mut self.flow {
            let _ = flow.open();
        }
    }

    fn closed(&mut self, ended: CopyOutcome) {
        if let Some(mut flow) = self.flow.take() {
            if let Some(why) = self.open.why() {
                flow.judged(why);
            }
            flow.close(
                ended.ended,
                self.connection.socket.with(network).unwrap_or_default(),
            );
        }
    }
}

/// The client as the application shall see it: the tunnel's peer address, with the port that the peer names.
///
/// `forwarded` is a hint from the peer. Its port is taken only if its address is the connection's own: a pod speaks for
/// every port of its address anyway.
fn client(peer: SocketAddr, forwarded: Option<&HeaderValue>) -> SocketAddr {
    let named = forwarded
        .and_then(|value| value.to_str().ok())
        .and_then(forwarded_for);
    match named {
        Some(named) if named.ip() == peer.ip() && named.port() != 0 => named,
        _ => peer,
    }
}

/// The address in `for="ip:port"` (RFC 7239, section 6).
fn forwarded_for(value: &str) -> Option<SocketAddr> {
    let element = value.split(',').next()?;
    let parameter = element.split(';').map(str::trim).find_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        name.eq_ignore_ascii_case("for").then_some(value)
    })?;
    parameter.trim_matches('"').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarded_port_counts_only_with_the_peers_own_address() {
        let peer: SocketAddr = "10.0.0.1:40000".parse().unwrap();
        let table = [
            (Some("for=\"10.0.0.1:1234\""), "10.0.0.1:1234"),
            (
                Some("For=\"10.0.0.1:1234\";host=a, for=\"10.9.9.9:1\""),
                "10.0.0.1:1234",
            ),
            (Some("for=\"10.0.0.2:1234\""), "10.0.0.1:40000"),
            (Some("for=\"10.0.0.1:0\""), "10.0.0.1:40000"),
            (Some("for=10.0.0.1"), "10.0.0.1:40000"),
            (Some("by=x"), "10.0.0.1:40000"),
            (Some(""), "10.0.0.1:40000"),
            (None, "10.0.0.1:40000"),
        ];
        for (value, expected) in table {
            let header = value.map(|v| HeaderValue::from_str(v).unwrap());
            assert_eq!(
                client(peer, header.as_ref()),
                expected.parse().unwrap(),
                "{value:?}"
            );
        }
        let peer: SocketAddr = "[fd00::1]:40000".parse().unwrap();
        let header = HeaderValue::from_static("for=\"[fd00::1]:7\"");
        assert_eq!(client(peer, Some(&header)), "[fd00::1]:7".parse().unwrap());
    }
}
