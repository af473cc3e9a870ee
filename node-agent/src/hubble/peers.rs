//! Who else serves flows, for a relay: the agents of other nodes.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use tokio::sync::watch;
use weir_hubble::observer::{PeerAddress, Peers};

use crate::{agent::Agent, config::HubbleConfig, mesh::Mesh};

/// How often it is looked whether agents have come or gone.
const LOOK: Duration = Duration::from_secs(1);

/// The peers, as long as somebody looks at them.
pub(super) fn watch(agent: &Arc<Agent>, config: Option<&HubbleConfig>) -> watch::Receiver<Peers> {
    let Some(config) = config.cloned() else {
        return watch::channel(Peers::default()).1;
    };
    let agent = agent.clone();
    let own = std::env::var("POD_IP").ok().and_then(|text| text.parse().ok());
    let (peers, receiver) = watch::channel(find(&agent.node.mesh.load(), &agent.node.name, own, &config));
    tokio::spawn(async move {
        let mut version = None;
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            ticks.tick().await;
            if peers.is_closed() {
                return;
            }
            let mesh = agent.node.mesh.load_full();
            if version.replace(mesh.version()) == Some(mesh.version()) {
                continue;
            }
            let now = find(&mesh, &agent.node.name, own, &config);
            peers.send_if_modified(|before| {
                let is_new = *before != now;
                *before = now;
                is_new
            });
        }
    });
    receiver
}

/// Pods with the agent's own identity are agents, by their nodes' names. Without a pod of its own the agent knows of itself alone.
fn find(mesh: &Mesh, node: &str, own: Option<IpAddr>, config: &HubbleConfig) -> Peers {
    let port = config.address.port();
    let peer = |node: &str, address: IpAddr| PeerAddress {
        address: std::net::SocketAddr::new(address, port).to_string(),
        server_name: Some(config.server_name_of(node)),
    };
    let mut peers = BTreeMap::new();
    let identity = own.and_then(|own| mesh.workload(own)).map(|own| &own.identity);
    if let Some(identity) = identity {
        for workload in mesh.workloads().filter(|one| one.identity == *identity) {
            if let Some(address) = workload.addresses.first() {
                peers.insert(workload.node.clone(), peer(&workload.node, *address));
            }
        }
    }
    let address = own.unwrap_or_else(|| config.address.ip());
    peers.insert(node.to_owned(), peer(node, address));
    Arc::new(peers)
}
