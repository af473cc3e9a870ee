//! An agent that shares no code with ours, against our control plane: what it is told, and how it is refused.

use std::{collections::BTreeSet, path::PathBuf};

use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Pod as KubePod, ServiceAccount},
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::{Value, json};
use weir_api_server::object;
use weir_e2e::{
    cluster::{Cluster, Member, SYSTEM},
    identity,
    peers::{json_lines, python},
};
use weir_lab::{PATIENCE, Process, Spawn as _, poll};

/// Where agents find the control plane from their node.
const CONTROL: &str = "127.0.0.1:15012";
/// The longest that a certificate may be valid.
const DAY: f64 = 24.0 * 3600.0;
/// How far clocks may differ, in seconds: certificates begin that much before they are made.
const SKEW: f64 = 600.0;
/// Words that would tell someone who tries tokens or requests what is amiss, or what there is in the cluster.
const TELLING: [&str; 15] = [
    "audience",
    "bound",
    "expired",
    "signature",
    "curve",
    "rsa",
    "bits",
    "uri",
    "dns",
    "enrolled",
    "shop",
    "node1",
    "node2",
    "weir-agent",
    "account",
];

/// Starts what `tests/peers/control.py` does, on the first node, with the token of that node's agent.
fn peer(cluster: &Cluster, what: &str, arguments: &[&str]) -> Process {
    let roots = cluster.fetch_roots();
    let mut command = python("control.py");
    command.args([what, "--to", CONTROL]).args(arguments);
    command.arg("--roots").arg(roots);
    command
        .arg("--token")
        .arg(cluster.lab.folder().join("node1.token"));
    cluster.lab.node("node1").unwrap().spawn(command).unwrap()
}

/// Runs it to its end; gives its lines.
fn ask(cluster: &Cluster, what: &str, arguments: &[&str]) -> Vec<Value> {
    let finished = peer(cluster, what, arguments).wait(PATIENCE).unwrap();
    json_lines(&finished.success().unwrap())
}

/// Two pods with a label in common, so that one policy changes both.
fn two(cluster: &mut Cluster) -> [Member; 2] {
    let both = json!({ "metadata": { "labels": { "tier": "both" } } });
    [("node1", "a"), ("node2", "c")].map(|(node, name)| cluster.pod_with(node, "shop", name, both.clone()))
}

fn change_both(cluster: &Cluster) {
    let spec = json!({ "selector": { "matchLabels": { "tier": "both" } }, "rules": [{}] });
    cluster.policy("AuthorizationPolicy", "shop", "tagged", &spec);
}

fn uid(pod: &str) -> String {
    format!("Kubernetes//Pod/shop/{pod}")
}

fn uri(account: &str) -> String {
    identity(account).unwrap().to_string()
}

/// Names of the resources in a response.
fn names(response: &Value) -> BTreeSet<&str> {
    let resources = response["resources"].as_object().unwrap();
    resources.keys().map(String::as_str).collect()
}

/// That a response has just these resources, and says that just these are removed.
#[track_caller]
fn has(response: &Value, resources: &[&str], removed: &[&str]) {
    assert_eq!(names(response), resources.iter().copied().collect(), "{response}");
    assert_eq!(response["removed"], json!(removed), "{response}");
}

/// That a refusal is of this kind, and how it is put.
#[track_caller]
fn refused(line: &Value, code: &str) -> String {
    let refusal = &line["refused"];
    assert_eq!(refusal["code"], code, "{line}");
    assert_eq!(refusal["trailing"], json!([]), "{line}");
    let text = refusal["details"].as_str().unwrap().to_owned();
    let small = text.to_lowercase();
    let telling = TELLING.iter().find(|word| {
        small
            .split(|char: char| !char.is_alphanumeric() && char != '-')
            .any(|part| part == **word)
    });
    assert_eq!(telling, None, "{line}");
    text
}

#[test]
fn another_client_is_told_of_what_it_asks_for_of_what_changes_and_of_what_goes() {
    let mut cluster = Cluster::new("peerads");
    let [a, c] = two(&mut cluster);
    cluster.service("shop", "api", [10, 96, 0, 10].into(), (80, 7000), &[&a]);
    cluster.wait_enrolled(&[&a, &c]);
    // So that nothing but what is done here changes from here on.
    poll("an agent to know the service", PATIENCE, || {
        let known = cluster.agent(&a).workloads()?;
        Ok(known
            .iter()
            .any(|one| one.name == "a" && !one.services.is_empty())
            .then_some(()))
    })
    .unwrap();
    let [first, second] = ["a", "c"].map(uid);
    let alias = format!("/{}", c.v4());
    let service = "shop/api.shop.svc.cluster.local";
    let arguments = ["--first", &first, "--second", &second, "--alias", &alias];
    let peer = peer(&cluster, "discovery", &arguments);

    let all = peer.wait_json("wildcard").unwrap();
    let agents = ["node1", "node2"].map(|node| format!("Kubernetes//Pod/{SYSTEM}/weir-agent-{node}"));
    has(&all, &[&first, &second, service, &agents[0], &agents[1]], &[]);
    for (name, pod, node) in [(&first, &a, "node1"), (&second, &c, "node2")] {
        let said = &all["resources"][name];
        assert_eq!(
            (&said["kind"], &said["node"]),
            (&json!("workload"), &json!(node)),
            "{said}"
        );
        assert_eq!(said["addresses"], json!([pod.v4(), pod.v6()]), "{said}");
        // HBONE.
        assert_eq!(said["tunnel"], 1, "{said}");
    }
    let said = &all["resources"][service];
    assert_eq!(
        (&said["kind"], &said["name"]),
        (&json!("service"), &json!("api")),
        "{said}"
    );
    assert_eq!(said["addresses"], json!(["10.96.0.10"]), "{said}");

    let some = peer.wait_json("some").unwrap();
    has(&some, &[&first, &second], &["nobody"]);
    let aliases = some["resources"][&second]["aliases"].as_array().unwrap();
    assert!(aliases.contains(&json!(alias)), "{some}");
    has(&peer.wait_json("unsubscribed").unwrap(), &[], &["marker-1"]);

    change_both(&cluster);
    let change = peer.wait_json("change").unwrap();
    has(&change, &[&first, &second], &[]);
    assert_eq!(
        change["resources"][&first]["policies"],
        json!(["shop/tagged"]),
        "{change}"
    );
    let some = peer.wait_json("some_change").unwrap();
    has(&some[0], &[&second], &[]);
    has(&some[1], &[], &["marker-2"]);

    has(&peer.wait_json("resumed").unwrap(), &[], &[]);
    has(&peer.wait_json("outdated").unwrap(), &[&first], &["gone"]);

    cluster.remove_pod(&c);
    let gone = peer.wait_json("gone").unwrap();
    has(&gone, &[], &[&second]);
    let gone = peer.wait_json("some_gone").unwrap();
    has(&gone[0], &[], &[&alias, &second]);
    has(&gone[1], &[], &["marker-3"]);
    peer.wait(PATIENCE).unwrap().success().unwrap();
}

#[test]
fn answers_of_another_client_count_where_they_answer_and_what_nobody_serves_disturbs_nobody() {
    let mut cluster = Cluster::new("peernonce");
    let [a, c] = two(&mut cluster);
    cluster.wait_enrolled(&[&a, &c]);
    let [first, second] = ["a", "c"].map(uid);
    let peer = peer(&cluster, "answers", &[]);

    // What was rejected is not sent again, and what comes later is.
    let after = peer.wait_json("after").unwrap();
    has(&after, &[], &["marker-1"]);
    let rejected = peer.wait_json("rejected").unwrap();
    assert!(
        names(&rejected).is_superset(&[&*first, &*second].into()),
        "{rejected}"
    );
    change_both(&cluster);
    let change = peer.wait_json("change").unwrap();
    has(&change, &[&first, &second], &[]);

    // While that waits for its answer, nothing of its type follows.
    let meanwhile = peer.wait_json("meanwhile").unwrap();
    assert_eq!(meanwhile["type"], "istio.security.Authorization", "{meanwhile}");
    has(&meanwhile, &["shop/tagged"], &[]);
    let accepted = peer.wait_json("accepted").unwrap();
    has(&accepted, &[], &["made-up", "stale"]);
    let nonces =
        [&rejected, &after, &change, &meanwhile, &accepted].map(|one| one["nonce"].as_str().unwrap());
    assert_eq!(BTreeSet::from(nonces).len(), nonces.len(), "{nonces:?}");

    has(&peer.wait_json("beside").unwrap(), &[], &["nobody"]);
    let ended = peer.wait_json("ended").unwrap();
    assert_eq!(ended["code"], "RESOURCE_EXHAUSTED", "{ended}");
    has(&peer.wait_json("others").unwrap(), &[], &["marker-2"]);
    peer.wait(PATIENCE).unwrap().success().unwrap();
    let nacks = cluster.control_metric("weir_ads_nacks_total");
    assert!(
        (nacks - 1.0).abs() < f64::EPSILON,
        "{nacks}: one was, another answered nothing"
    );
}

/// Writes a token to a file, whose name it gives.
fn token_file(cluster: &Cluster, name: &str, token: &str) -> PathBuf {
    let file = cluster.lab.folder().join(name);
    std::fs::write(&file, token).unwrap();
    file
}

/// A token of a pod's service account for an audience, bound to the pod.
fn token(cluster: &Cluster, namespace: &str, account: &str, pod: &str, audience: &str) -> String {
    let (namespace, account, pod) = (namespace.to_owned(), account.to_owned(), pod.to_owned());
    let made = cluster.block(async |client| {
        let bound = Api::<KubePod>::namespaced(client.clone(), &namespace)
            .get(&pod)
            .await?;
        let request: TokenRequest = object(json!({ "spec": {
            "audiences": [audience],
            "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": pod, "uid": bound.metadata.uid },
        }}));
        let accounts = Api::<ServiceAccount>::namespaced(client, &namespace);
        accounts
            .create_token_request(&account, &PostParams::default(), &request)
            .await
    });
    made.status.unwrap().token
}

#[test]
fn whoever_shows_no_token_of_an_agent_is_told_nothing_by_either_service() {
    let mut cluster = Cluster::new("peertoken");
    let a = cluster.pod("node1", "shop", "a");
    cluster.wait_enrolled(&[&a]);
    let own = std::fs::read_to_string(cluster.lab.folder().join("node1.token")).unwrap();
    let (claims, _) = own.rsplit_once('.').unwrap();
    let agent = "weir-agent-node1";
    let tokens = [
        ("made up", format!("{claims}.bm8gc2lnbmF0dXJlIG9mIGFueWJvZHk")),
        (
            "other audience",
            token(&cluster, SYSTEM, "weir-agent", agent, "vault"),
        ),
        ("a pod's", token(&cluster, "shop", "a", "a", "weir")),
    ];
    let files = tokens.map(|(name, token)| token_file(&cluster, name, &token));
    let own = uri("a");
    let mut arguments = vec!["--own", &*own, "--tokens"];
    arguments.extend(files.iter().map(|file| file.to_str().unwrap()));
    let lines = ask(&cluster, "strangers", &arguments);
    let (good, bad): (Vec<_>, Vec<_>) = lines.iter().partition(|line| line["caller"] == "own");
    assert_eq!((good.len(), bad.len()), (2, 10), "{lines:?}");
    for line in good {
        assert!(line["answer"].as_u64() > Some(1), "{line}");
    }
    let told: BTreeSet<String> = bad.iter().map(|line| refused(line, "UNAUTHENTICATED")).collect();
    assert_eq!(told.len(), 1, "which of them it was is not told: {told:?}");
    // Our own log tells, and shows that each was refused for what it is.
    let log = std::fs::read_to_string(cluster.control_log()).unwrap();
    for reason in [
        "there is no bearer token",
        "the authorization header holds no service account's token",
        "the API server does not believe the token: \"[invalid bearer token, square/go-jose",
        "is invalid for the target audiences",
        "the token is that of \"system:serviceaccount:shop:a\", who is no agent",
    ] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
}

#[test]
fn another_client_gets_certificates_for_the_pods_of_its_node_and_for_nothing_else() {
    let mut cluster = Cluster::new("peercsr");
    let a = cluster.pod("node1", "shop", "a");
    let c = cluster.pod("node2", "shop", "c");
    cluster.namespace("legacy", None);
    let outsider = cluster.pod("node1", "legacy", "o");
    let orphan = cluster.pod("node1", "shop", "orphan");
    cluster.wait_enrolled(&[&a, &c, &orphan]);
    cluster.wait_known(&outsider, |enrolled, tunnel| !enrolled && tunnel == "NONE");
    // The pod outlives its service account, as Kubernetes lets it.
    cluster.block(async |client| {
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "shop");
        accounts
            .delete("orphan", &DeleteParams::default())
            .await
            .map(drop)
    });
    let (own, node2) = (uri("a"), format!("on node2={}", uri("c")));
    let arguments = [
        "--own",
        &*own,
        "--foreign",
        &node2,
        "not enrolled=spiffe://cluster.local/ns/legacy/sa/o",
        "of nobody=spiffe://cluster.local/ns/shop/sa/nobody",
        "of a deleted account=spiffe://cluster.local/ns/shop/sa/orphan",
        "an agent's=spiffe://cluster.local/ns/weir-system/sa/weir-agent",
        "of another mesh=spiffe://example.com/ns/shop/sa/a",
    ];
    let lines = ask(&cluster, "certificates", &arguments);
    let line = |wish: &str| lines.iter().find(|line| line["wish"] == wish).unwrap();

    for (wish, most) in [("a month", DAY), ("an hour", 3600.0)] {
        let issued = &line(wish)["issued"];
        assert_eq!(
            issued["subjects"],
            json!([["UniformResourceIdentifier", own]]),
            "{issued}"
        );
        assert_eq!(
            (&issued["own_key"], &issued["roots"]),
            (&json!(true), &json!(true)),
            "{issued}"
        );
        assert_eq!(issued["usages"], json!(["clientAuth", "serverAuth"]), "{issued}");
        let [left, began] = ["left", "began"].map(|name| issued[name].as_f64().unwrap());
        assert!(left <= most && left > most - SKEW, "{issued}");
        assert!((0.0..SKEW).contains(&began), "{issued}");
    }
    let table = [
        (
            "INVALID_ARGUMENT",
            &[
                "another URI",
                "two URIs",
                "a DNS name",
                "a URI and a DNS name",
                "an authority",
                "another's key",
                "RSA-1024",
                "secp256k1",
                "P-521",
                "no request",
            ][..],
        ),
        (
            "PERMISSION_DENIED",
            &[
                "nobody named",
                "on node2",
                "not enrolled",
                "of nobody",
                "of a deleted account",
                "an agent's",
                "of another mesh",
            ],
        ),
    ];
    assert_eq!(
        lines.len(),
        2 + table.iter().map(|(_, wishes)| wishes.len()).sum::<usize>()
    );
    for (code, wishes) in table {
        let told: BTreeSet<String> = wishes.iter().map(|wish| refused(line(wish), code)).collect();
        assert_eq!(told.len(), 1, "why is not told: {told:?}");
    }
    let log = std::fs::read_to_string(cluster.control_log()).unwrap();
    assert!(log.contains("its service account does not exist"), "{log}");
}
