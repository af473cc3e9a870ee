//! Explain and live verdicts are the same, over generated policies and connections.

use std::{collections::HashMap, net::SocketAddr};

use proptest::prelude::*;
use serde_json::{Value, json};
use weir_policy::Request;
use weir_types::{Reason, explain::ExplainedPath};

use super::*;
use crate::{
    config,
    datapath::{PodHandle, Remember},
    policy::{self, Judgement},
    route::{Enrolled, Locate, NoRoute, Router},
    same_node::Link,
};

/// Pods of the node, with their handles and how they hang on the network.
struct Pods(HashMap<&'static str, (u32, Link)>);

impl Locate for Pods {
    fn enrolled(&self, uid: &str) -> Option<Enrolled> {
        let (handle, link) = self.0.get(uid)?;
        Some(Enrolled {
            handle: PodHandle(*handle),
            link: *link,
        })
    }
}

fn values(of: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(prop::sample::select(of), 0..3)
}

prop_compose! {
    fn source()(
        principals in values(&["cluster.local/ns/shop/sa/a", "cluster.local/ns/shop/sa/c", "cluster.local/ns/shop/*", "*"]),
        not_principals in values(&["cluster.local/ns/shop/sa/a", "*/sa/c"]),
        namespaces in values(&["shop", "other"]),
        ip_blocks in values(&["10.1.0.0/24", "10.2.0.0/16", "192.0.2.7", "fd00::/16"]),
        not_ip_blocks in values(&["10.1.0.1", "10.2.0.0/24"]),
    ) -> Value {
        let fields = [
            ("principals", principals), ("notPrincipals", not_principals), ("namespaces", namespaces),
            ("ipBlocks", ip_blocks), ("notIpBlocks", not_ip_blocks),
        ];
        let set: serde_json::Map<_, _> =
            fields.into_iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| (k.to_owned(), json!(v))).collect();
        if set.is_empty() { json!({ "namespaces": ["*"] }) } else { Value::Object(set) }
    }
}

prop_compose! {
    fn rule()(
        from in prop::collection::vec(source(), 0..2),
        ports in values(&["80", "8080", "9090"]),
    ) -> Value {
        let mut rule = json!({});
        if !from.is_empty() {
            rule["from"] = from.into_iter().map(|source| json!({ "source": source })).collect();
        }
        if !ports.is_empty() {
            rule["to"] = json!([{ "operation": { "ports": ports } }]);
        }
        rule
    }
}

prop_compose! {
    fn policy()(
        namespace in prop::sample::select(&["shop", "weir-system", "other"][..]),
        app in prop::option::of(prop::sample::select(&["a", "b", "c"][..])),
        deny in any::<bool>(),
        dry_run in prop::bool::weighted(0.2),
        rules in prop::collection::vec(rule(), 0..3),
    ) -> Value {
        let mut policy = json!({ "namespace": namespace, "dryRun": dry_run, "rules": rules });
        policy["action"] = json!(if deny { "DENY" } else { "ALLOW" });
        if let Some(app) = app {
            policy["selector"] = json!({ "matchLabels": { "app": app } });
        }
        policy
    }
}

prop_compose! {
    fn peer_authentication()(
        app in prop::option::of(prop::sample::select(&["b", "c"][..])),
        mode in prop::sample::select(&["STRICT", "PERMISSIVE", "UNSET"][..]),
        port in prop::option::of(prop::sample::select(&["STRICT", "PERMISSIVE"][..])),
    ) -> Value {
        let mut policy = json!({ "namespace": "shop", "mtls": { "mode": mode } });
        if let Some(app) = app {
            policy["selector"] = json!({ "matchLabels": { "app": app } });
            if let Some(port) = port {
                policy["portLevelMtls"] = json!({ "8080": { "mode": port } });
            }
        }
        policy
    }
}

fn named(policies: Vec<Value>) -> Vec<Value> {
    let name = |(index, mut policy): (usize, Value)| {
        policy["name"] = json!(format!("p{index}"));
        policy
    };
    policies.into_iter().enumerate().map(name).collect()
}

fn mesh(policies: Vec<Value>, peers: Vec<Value>, same_node: &str) -> Mesh {
    let workload = |name: &str, node: u8, host: u8| {
        json!({
            "uid": name, "namespace": "shop", "serviceAccount": name, "node": format!("n{node}"), "labels": { "app": name },
            "addresses": [format!("10.{node}.0.{host}"), format!("fd00:{node}::{host}")],
        })
    };
    let pod = |name: &str| json!({ "uid": name, "namespace": "shop", "serviceAccount": name, "netns": "/n" });
    let config = json!({
        "node": "n1", "trustDomain": "cluster.local", "ca": { "dir": "/ca" },
        "sameNode": { "mode": same_node },
        "authorizationPolicies": named(policies), "peerAuthentications": named(peers),
        "pods": [pod("a"), pod("b")],
        "workloads": [workload("a", 1, 1), workload("b", 1, 2), workload("c", 2, 1)],
        "services": [{
            "name": "api", "namespace": "shop", "addresses": ["10.96.0.1", "fd96::1"],
            "ports": [{ "port": 80, "targetPort": 8080 }], "endpoints": [{ "workload": "b" }, { "workload": "c" }],
        }],
    });
    let config = config::parse("generated".as_ref(), &config.to_string()).unwrap();
    Mesh::new(&config, &Mesh::nothing(0)).unwrap().0
}

/// What the destination's agent says when the connection reaches it, from what it has then: the identity of the client's
/// certificate, the address that it came from, and the one that it came to.
fn live(mesh: &Mesh, client: &Client, to: SocketAddr) -> Judgement {
    let Some(destination) = mesh.workload(to.ip()) else {
        return Judgement::NONE;
    };
    let source_ip = match client {
        Client::Outside(address) => *address,
        Client::Workload(workload) => {
            let own = workload
                .addresses
                .iter()
                .find(|own| own.is_ipv4() == to.is_ipv4());
            *own.unwrap()
        }
    };
    let request = Request {
        source: client.workload().map(|workload| &workload.identity),
        source_ip,
        destination_ip: to.ip(),
        destination_port: to.port(),
    };
    policy::judge(mesh.policies_of(destination), &request)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn explain_says_what_happens_and_the_kernel_remembers_nothing_that_policy_forbids(
        policies in prop::collection::vec(policy(), 0..6),
        peers in prop::collection::vec(peer_authentication(), 0..3),
        same_node in prop::sample::select(&["auto", "direct", "mtls"][..]),
        link in prop::sample::select(&[Link::PointToPoint, Link::Shared][..]),
    ) {
        let mesh = mesh(policies, peers, same_node);
        let pods = Pods([("a", (1, link)), ("b", (2, link))].into());
        let router = Router { mesh: &mesh, enrolled: &pods, can_destroy: true, wanted: usize::MAX };
        let workload = |uid: &str| Client::Workload(mesh.workload_by_uid(uid).unwrap().clone());
        let clients = [
            workload("a"), workload("c"),
            Client::Outside("192.0.2.7".parse().unwrap()), Client::Outside("fd00:9::9".parse().unwrap()),
        ];
        for client in &clients {
            for to in ["10.1.0.2:80", "10.1.0.2:8080", "[fd00:1::2]:9090", "10.2.0.1:8080", "10.96.0.1:80", "[fd96::1]:80"] {
                let to: SocketAddr = to.parse().unwrap();
                let v4 = |address: &std::net::IpAddr| address.is_ipv4() == to.is_ipv4();
                if matches!(client, Client::Outside(address) if !v4(address)) {
                    continue;
                }
                let answer = answer(&router, client, to);
                for candidate in &answer.candidates {
                    let itself = candidate.path == ExplainedPath::Itself;
                    let live = if itself { Judgement::NONE } else { live(&mesh, client, candidate.address) };
                    prop_assert_eq!(&candidate.judgement, &live, "{:?} to {}", client, candidate.address);
                }
                let some = answer.candidates.iter().any(|candidate| candidate.judgement.is_allowed());
                prop_assert_eq!(some, answer.reason == Reason::None);
                if let Client::Workload(source) = client {
                    remembered(&mesh, &router, client, source, to)?;
                }
            }
        }
    }
}

/// What the kernel is told to remember allows exactly what policies allow.
fn remembered(
    mesh: &Mesh,
    router: &Router<'_>,
    client: &Client,
    source: &Workload,
    to: SocketAddr,
) -> Result<(), TestCaseError> {
    let remember = match router.route(source, to, None, 7) {
        Ok(route) => route.remember,
        Err(NoRoute::Denied { remember, .. }) => Some(remember),
        Err(NoRoute::Service(..)) => None,
    };
    match remember {
        Some(Remember::Direct(_)) => prop_assert!(live(mesh, client, to).is_allowed()),
        Some(Remember::Deny(reason)) if mesh.workload(to.ip()).is_some() => {
            prop_assert_eq!(live(mesh, client, to).reason, reason);
        }
        Some(Remember::Service(backends)) => {
            for backend in backends {
                let address = backend.address.socket_addr();
                prop_assert!(live(mesh, client, address).is_allowed(), "{}", address);
                let local = mesh
                    .workload(address.ip())
                    .is_some_and(|workload| workload.uid == "b");
                prop_assert!(backend.dest_pod == 0 || local);
            }
        }
        Some(Remember::Pass) => prop_assert!(mesh.workload(to.ip()).is_none()),
        _ => {}
    }
    Ok(())
}

#[test]
fn a_name_is_found_or_the_error_says_what_to_ask() {
    let mesh = mesh(Vec::new(), Vec::new(), "auto");
    let found = |text: &str| match find(&mesh, text) {
        Ok(Named::Workload(workload)) => Ok(format!("pod {}", workload.uid)),
        Ok(Named::Service(service)) => Ok(format!("service {}", service.name)),
        Ok(Named::Address(address)) => Ok(address.to_string()),
        Err(error) => Err(error.to_string()),
    };
    for (text, expected) in [
        ("a", "pod a"),
        ("shop/a", "pod a"),
        ("pod/shop/a", "pod a"),
        ("api", "service shop/api"),
        ("svc/shop/api", "service shop/api"),
        ("10.9.9.9", "10.9.9.9"),
        ("::ffff:10.9.9.9", "10.9.9.9"),
    ] {
        assert_eq!(found(text).as_deref(), Ok(expected), "{text}");
    }
    for unknown in ["", "nobody", "other/a", "svc/a", "pod/api", "10.9.9"] {
        let error = found(unknown).unwrap_err();
        assert!(error.contains("weir workloads"), "{unknown}: {error}");
    }
}
