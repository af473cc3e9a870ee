//! The server's state, its peers and its bounds.

use super::*;

#[tokio::test]
async fn the_state_of_the_server_is_told() {
    let records = Records::new();
    records.make(2500);
    let mut client = ask(&records).await;
    let status = client
        .server_status(ServerStatusRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (
            status.num_flows,
            status.max_flows,
            status.seen_flows,
            status.version.as_str()
        ),
        (2000, 2000, 2500, "1")
    );
    assert!(status.uptime_ns > 0 && status.num_connected_nodes.is_none());
    let nodes = client
        .get_nodes(GetNodesRequest {})
        .await
        .unwrap()
        .into_inner()
        .nodes;
    assert_eq!(
        (nodes.len(), nodes[0].name.as_str(), nodes[0].tls.clone()),
        (1, "n", None)
    );
    assert_eq!(
        (nodes[0].num_flows, nodes[0].state()),
        (2000, NodeState::NodeConnected)
    );
}

#[tokio::test]
async fn peers_are_told_and_then_what_changes() {
    use weir_proto::peer::ChangeNotificationType::{PeerAdded, PeerDeleted, PeerUpdated};
    let records = Records::new();
    let set = |all: &[(&str, &str)]| {
        let peer = |(name, address): &(&str, &str)| {
            let peer = PeerAddress {
                address: (*address).to_owned(),
                server_name: Some(format!("{name}.test")),
            };
            ((*name).to_owned(), peer)
        };
        records
            .peers
            .send_replace(Arc::new(all.iter().map(peer).collect()));
    };
    set(&[("a", "1:1"), ("b", "2:1")]);
    let mut client = PeerClient::new(connect(&records, Viewer::default()).await);
    let mut changes = client.notify(NotifyRequest {}).await.unwrap().into_inner();
    let mut expect = async |all: &[(weir_proto::peer::ChangeNotificationType, &str, &str)]| {
        for (kind, name, address) in all {
            let change = changes.message().await.unwrap().unwrap();
            let server_name = change.tls.clone().unwrap().server_name;
            assert_eq!(
                (
                    change.r#type(),
                    change.name.as_str(),
                    change.address.as_str(),
                    server_name
                ),
                (*kind, *name, *address, format!("{name}.test"))
            );
        }
    };
    expect(&[(PeerAdded, "a", "1:1"), (PeerAdded, "b", "2:1")]).await;
    set(&[("b", "2:2"), ("c", "3:1")]);
    expect(&[
        (PeerDeleted, "a", "1:1"),
        (PeerUpdated, "b", "2:2"),
        (PeerAdded, "c", "3:1"),
    ])
    .await;
}

#[tokio::test]
async fn more_streams_than_there_may_be_are_refused_and_those_that_end_make_room() {
    let records = Records::new();
    let server = Server::new(records);
    let ask = async || {
        let request = GetFlowsRequest {
            follow: true,
            ..Default::default()
        };
        server.get_flows(Request::new(request)).await
    };
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        open.push(ask().await.unwrap());
    }
    assert_eq!(ask().await.unwrap_err().code(), Code::ResourceExhausted);
    open.pop();
    while ask().await.is_err() {
        tokio::task::yield_now().await;
    }
}
