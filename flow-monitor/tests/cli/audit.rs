use kube::ResourceExt as _;
use serde_json::{Value, json};
use weir_types::api::{Request, Response};

use crate::world::{World, flow, status};

fn answers(node: &'static str) -> impl Fn(Request) -> Vec<Response> + Send + 'static {
    move |_| status(node, &json!({}))
}

#[tokio::test]
async fn evidence_is_of_all_nodes_and_says_where_it_is_not() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let second = world.cluster.node("second").await;
    let shop = world
        .cluster
        .namespace_with("shop", &[("weir.dev/mesh", "enabled")])
        .await;
    let pod = world.cluster.pod(&shop, "web").on(&first);
    pod.annotations(&[("weir.dev/enrolled", "true")]).create().await;
    let _agent = world
        .agent_with(&first, vec![flow("first", 1)], answers("first"))
        .await;
    let arguments = ["audit", "--output", "json", "--since", "36500d"];
    let ran = world.run(&arguments);
    assert_eq!(ran.code, 0, "all agents that there are have answered");
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(json["report"]["complete"], true);
    assert_eq!(json["report"]["totals"]["mutualTls"], 1);
    assert_eq!(json["sha256"].as_str().map(str::len), Some(64));
    let enrolled = json["report"]["enrolment"].as_array().unwrap().iter();
    let shops: Vec<&Value> = enrolled.filter(|one| one["namespace"] == *shop).collect();
    assert_eq!(shops[0]["enrolled"], json!(["web"]));

    // An agent that cannot be asked.
    world.agent_pod(&second).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let out = file.path().to_str().unwrap();
    let ran = world.run(&["audit", "--out", out, "--since", "36500d"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(
        ran.err
            .contains(&format!("incomplete: node {}", second.name_any()))
    );
    let text = std::fs::read_to_string(file.path()).unwrap();
    let incomplete = text.find("**This evidence is incomplete.**").unwrap();
    assert!(incomplete < text.find("## Versions").unwrap());
    let ran = world.run(&["audit", "--since", "soon"]);
    assert_eq!(ran.code, 2);
}

#[tokio::test]
async fn a_node_with_pods_of_the_mesh_and_no_agent_makes_it_incomplete() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let second = world.cluster.node("second").await;
    let _agent = world
        .agent_with(&first, vec![flow("first", 1)], answers("first"))
        .await;
    let shop = world
        .cluster
        .namespace_with("shop", &[("weir.dev/mesh", "enabled")])
        .await;
    world.cluster.pod(&shop, "web").on(&second).create().await;
    let ran = world.run(&["audit", "--output", "json"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("it has pods of the mesh, and no agent"));
}
