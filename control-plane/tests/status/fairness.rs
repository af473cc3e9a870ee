//! One node's agent does not use up what may be written.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use weir_api_server::{TestCluster, eventually};

use crate::replica::{PACE, Replica, install};

const MESH: (&str, &str) = ("weir.dev/mesh", "enabled");

/// More than may be written while what was written rests.
fn many() -> usize {
    3 * PACE.per_second as usize * PACE.rest.as_millis() as usize / 1000
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_says_something_else_all_the_time_keeps_nobody_else_waiting() {
    let cluster = TestCluster::new().await;
    install(&cluster).await;
    let namespace = cluster.namespace("fair").await;
    let (loud, quiet) = (cluster.node("a-loud").await, cluster.node("quiet").await);
    let pod = |name: &str, node| cluster.pod(&namespace, name).on(node).annotations(&[MESH]);
    let mut uids = Vec::new();
    for number in 0..many() {
        uids.push(pod(&format!("a-{number}"), &loud).create().await.uid().unwrap());
    }
    let other = pod("z", &quiet).create().await.uid().unwrap();
    let replica = Replica::start(&cluster, cluster.client(), &namespace, "a");
    let mut round = 0;
    let mut say = || {
        round += 1;
        let why = format!("for the reason {round}");
        let pods: Vec<_> = uids.iter().map(|uid| (uid.as_str(), Err(why.as_str()))).collect();
        replica.report(&loud.name_any(), Some(&pods));
    };
    let pods = Api::<Pod>::namespaced(cluster.client(), &namespace);
    say();
    eventually("the loud one's first", || async {
        let pod = pods.get("a-0").await.unwrap();
        pod.annotations()
            .contains_key("weir.dev/not-enrolled")
            .then_some(())
    })
    .await;
    replica.report(&quiet.name_any(), Some(&[(&other, Ok(()))]));
    let started = std::time::Instant::now();
    loop {
        say();
        let pod = pods.get("z").await.unwrap();
        if pod.annotations().contains_key("weir.dev/enrolled") {
            break;
        }
        assert!(started.elapsed() < PACE.timeout * 2, "still waiting");
        tokio::time::sleep(PACE.coalesce).await;
    }
}
