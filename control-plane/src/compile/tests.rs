use std::collections::BTreeMap as Map;

use proptest::{collection::vec, option, prelude::*, sample::select};
use weir_policy::{
    AuthorizationPolicy, PeerAuthentication,
    istio::{Mtls, PeerMode, PolicyAction},
};

use super::*;
use crate::cluster::{Endpoint, NotEnrolled, PolicyApi, Preference, Read, ServicePort};

const NAMESPACES: [&str; 3] = ["a", "b", "weir-system"];
const NODES: [&str; 2] = ["n1", "n2"];
const PODS: [&str; 3] = ["p", "q", "r"];
const SERVICES: [&str; 2] = ["s", "t"];
const ADDRESSES: [&str; 5] = ["10.1.0.1", "10.1.0.2", "10.2.0.1", "10.2.0.2", "10.96.0.1"];

/// What an agent has after these changes: the version of each resource, by type and name.
#[derive(Default, Debug, PartialEq)]
struct Agent(Map<(ResourceType, String), String>);

impl Agent {
    fn take(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Set(resource) => {
                    let name = (resource.kind(), resource.name().to_owned());
                    self.0.insert(name, resource.version().to_owned());
                }
                Change::Remove(kind, name) => {
                    self.0.remove(&(kind, name.to_string()));
                }
            }
        }
    }
}

fn addresses() -> impl Strategy<Value = Vec<IpAddr>> {
    vec(select(&ADDRESSES[..]), 0..=2)
        .prop_map(|texts| texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn name(names: &'static [&'static str]) -> impl Strategy<Value = ObjectName> {
    (select(&NAMESPACES[..]), select(names)).prop_map(|(namespace, name)| ObjectName::new(namespace, name))
}

fn switch() -> impl Strategy<Value = Option<Switch>> {
    option::of(select(&[Switch::Enabled, Switch::Observe, Switch::Disabled][..]))
}

fn pod() -> impl Strategy<Value = Box<Pod>> {
    let parts = (
        0..4i64,
        select(&NODES[..]),
        addresses(),
        switch(),
        option::weighted(0.1, Just(())),
    );
    (parts, any::<bool>(), option::of(select(&["web", "db"][..]))).prop_map(
        |((created, node, addresses, switch, unfit), enrolled, app)| {
            Box::new(Pod {
                uid: format!("uid-{created}").into(),
                created,
                node: node.into(),
                service_account: "x".into(),
                addresses,
                labels: app
                    .into_iter()
                    .map(|app| ("app".to_owned(), app.to_owned()))
                    .collect(),
                switch,
                host_network: unfit.is_some(),
                unfit: unfit.map(|()| NotEnrolled::HostNetwork),
                enrolled,
                probe_ports: Vec::new(),
                owner: None,
            })
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    (addresses(), 1..=2u16).prop_map(|(addresses, ports)| Service {
        addresses,
        ports: (0..ports)
            .map(|number| ServicePort {
                name: format!("port{number}").into(),
                port: 80 + number,
                target: None,
                protocol: None,
            })
            .collect(),
        preference: Preference::None,
    })
}

fn slice() -> impl Strategy<Value = EndpointSlice> {
    let endpoint = (
        option::weighted(0.8, select(&PODS[..])),
        addresses(),
        any::<bool>(),
        any::<bool>(),
    );
    let endpoint = endpoint.prop_map(|(pod, addresses, ready, serving)| Endpoint {
        pod: pod.map(Into::into),
        addresses,
        ready,
        serving,
    });
    (select(&SERVICES[..]), vec(endpoint, 0..=3), 8080..=8081u16).prop_map(|(service, endpoints, port)| {
        EndpointSlice {
            service: service.into(),
            ports: vec![("port0".into(), port)],
            endpoints,
        }
    })
}

fn authorization() -> impl Strategy<Value = Read<AuthorizationPolicy>> {
    let selector = || weir_policy::Selector {
        match_labels: [("app".to_owned(), "web".to_owned())].into(),
    };
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(move |(selects, allow, understood)| {
        let selector = selects.then(selector);
        if understood {
            Read::Understood(AuthorizationPolicy {
                name: "w".to_owned(),
                namespace: String::new(),
                dry_run: false,
                selector,
                action: if allow {
                    PolicyAction::Allow
                } else {
                    PolicyAction::Deny
                },
                rules: Vec::new(),
            })
        } else {
            let problem = "it is not understood".to_owned();
            Read::Malformed {
                selector,
                dry_run: allow,
                problem,
            }
        }
    })
}

fn peer() -> impl Strategy<Value = Read<PeerAuthentication>> {
    select(&[PeerMode::Strict, PeerMode::Permissive, PeerMode::Unset][..]).prop_map(|mode| {
        Read::Understood(PeerAuthentication {
            name: "m".to_owned(),
            namespace: String::new(),
            selector: None,
            mtls: Some(Mtls { mode }),
            port_level_mtls: Map::new(),
        })
    })
}

fn event() -> impl Strategy<Value = Event> {
    let node = any::<bool>().prop_map(|ranges| Node {
        region: "r".into(),
        zone: "z".into(),
        ranges: if ranges {
            vec!["10.1.0.0/16".parse().unwrap()]
        } else {
            Vec::new()
        },
    });
    let api = || select(&[PolicyApi::Weir, PolicyApi::Istio][..]);
    prop_oneof![
        6 => (name(&PODS), option::weighted(0.8, pod())).prop_map(|(name, pod)| {
            let pod = pod.map(|pod| Box::new(Pod { uid: format!("{name} of {}", pod.created).into(), ..*pod }));
            Event::Pod(name, pod)
        }),
        2 => (name(&SERVICES), option::weighted(0.8, service())).prop_map(|(name, s)| Event::Service(name, s)),
        4 => (name(&["e1", "e2"]), option::weighted(0.8, slice())).prop_map(|(name, s)| Event::EndpointSlice(name, s)),
        2 => (select(&NAMESPACES[..]), switch(), option::of(Just(Switch::Observe))).prop_map(
            |(name, switch, mesh_default)| Event::Namespace(name.into(), Some(Namespace { switch, mesh_default })),
        ),
        1 => (select(&NODES[..]), option::weighted(0.9, node)).prop_map(|(name, node)| Event::Node(name.into(), node)),
        1 => (name(&["x"]), any::<bool>()).prop_map(|(name, there)| Event::ServiceAccount(name, there)),
        1 => (api(), name(&["w"]), option::weighted(0.8, authorization())).prop_map(|(api, name, read)| {
            let read = read.map(|read| match read {
                Read::Understood(policy) => Read::Understood(AuthorizationPolicy {
                    namespace: name.namespace.to_string(),
                    ..policy
                }),
                malformed => malformed,
            });
            Event::AuthorizationPolicy(api, name, read.map(Box::new))
        }),
        1 => (api(), name(&["m"]), option::weighted(0.8, peer())).prop_map(|(api, name, read)| {
            let read = read.map(|read| match read {
                Read::Understood(policy) => Read::Understood(PeerAuthentication {
                    namespace: name.namespace.to_string(),
                    ..policy
                }),
                malformed => malformed,
            });
            // Of all ages: the oldest of a scope counts.
            let age = i64::from(name.namespace.len() as u8 % 2);
            Event::PeerAuthentication(api, name, read.map(|read| (age, read)))
        }),
    ]
}

/// What an event is about.
fn subject(event: &Event) -> String {
    match event {
        Event::Pod(name, _) => format!("pod {name}"),
        Event::Service(name, _) => format!("service {name}"),
        Event::EndpointSlice(name, _) => format!("slice {name}"),
        Event::Namespace(name, _) => format!("namespace {name}"),
        Event::Node(name, _) => format!("node {name}"),
        Event::ServiceAccount(name, _) => format!("account {name}"),
        Event::AuthorizationPolicy(api, name, _) => format!("authorization {api:?} {name}"),
        Event::PeerAuthentication(api, name, _) => format!("peer {api:?} {name}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_way_to_a_state_agents_are_told_the_same(events in vec(event(), 1..40), batch in 1..5usize) {
        let (mut agent, mut whole) = (Agent::default(), Agent::default());
        let mut compiler = Compiler::new(Settings::default());
        for events in events.chunks(batch) {
            agent.take(compiler.apply(events.to_vec()));
        }
        // Only the last of each object, in another order.
        let last: Map<String, Event> = events.into_iter().map(|event| (subject(&event), event)).collect();
        whole.take(Compiler::new(Settings::default()).apply(last.into_values().rev()));
        prop_assert_eq!(agent, whole);
    }
}

#[test]
fn where_a_node_has_ranges_an_address_of_none_is_no_pods_whatever_its_family() {
    let (four, six) = (&["10.1.0.0/16"][..], &["fd00:1::/64"][..]);
    let both = [four, six].concat();
    for (ranges, refused) in [
        (&[][..], &[][..]),
        (four, &["10.2.0.1", "fd00:1::1", "fd00:2::1"]),
        (six, &["10.1.0.1", "10.2.0.1", "fd00:2::1"]),
        (&both, &["10.2.0.1", "fd00:2::1"]),
    ] {
        let mut compiler = Compiler::new(Settings::default());
        let ranges = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let node = Node {
            ranges,
            ..Node::default()
        };
        let claimed = ["10.1.0.1", "10.2.0.1", "fd00:1::1", "fd00:2::1"];
        let pod = Pod {
            addresses: claimed.map(|address| address.parse().unwrap()).into(),
            ..plain_pod()
        };
        let name = ObjectName::new("a", "p");
        compiler.apply([
            Event::Node("n1".into(), Some(node)),
            Event::Pod(name.clone(), Some(Box::new(pod))),
        ]);
        let view = compiler.pod_view(&name).unwrap();
        let found: Vec<String> = view
            .refused
            .iter()
            .map(|(address, _)| address.to_string())
            .collect();
        assert_eq!(found, refused, "{:?}", compiler.nodes);
        assert!(view.refused.iter().all(|(_, why)| *why == Refused::OutOfRange));
    }
}

fn plain_pod() -> Pod {
    Pod {
        uid: "u".into(),
        created: 0,
        node: "n1".into(),
        service_account: "x".into(),
        addresses: Vec::new(),
        labels: Map::new(),
        switch: None,
        host_network: false,
        unfit: None,
        enrolled: false,
        probe_ports: Vec::new(),
        owner: None,
    }
}

#[test]
fn what_could_not_be_compiled_is_in_force_once_it_can_be() {
    let there = [
        Event::Node("n1".into(), Some(Node::default())),
        Event::Pod(ObjectName::new("b", "p"), Some(Box::new(plain_pod()))),
    ];
    let nameless = |there: bool| {
        let malformed = Read::Malformed {
            selector: None,
            dry_run: false,
            problem: "it has no name".to_owned(),
        };
        let name = ObjectName::new("a", "");
        Event::PeerAuthentication(PolicyApi::Weir, name, there.then_some((0, malformed)))
    };
    let name = ObjectName::new("b", "w");
    let policy = AuthorizationPolicy {
        name: "w".to_owned(),
        namespace: "b".to_owned(),
        dry_run: false,
        selector: Some(weir_policy::Selector::default()),
        action: PolicyAction::Allow,
        rules: Vec::new(),
    };
    let policy = Event::AuthorizationPolicy(PolicyApi::Weir, name, Some(Box::new(Read::Understood(policy))));
    let (mut agent, mut whole) = (Agent::default(), Agent::default());
    let mut compiler = Compiler::new(Settings::default());
    agent.take(compiler.apply(there.clone()));
    let failed = compiler.apply([nameless(true), policy.clone()]);
    assert!(
        failed.is_empty(),
        "a policy without a name cannot be compiled: {failed:?}"
    );
    agent.take(compiler.apply([nameless(false)]));
    let events = there.into_iter().chain([policy]);
    whole.take(Compiler::new(Settings::default()).apply(events));
    assert_eq!(agent, whole, "the pod lists the policy");
}

#[test]
fn what_is_not_understood_denies_unless_it_is_a_dry_run() {
    let malformed = |dry_run| Read::Malformed {
        selector: None,
        dry_run,
        problem: "it is not understood".to_owned(),
    };
    for namespace in ["a", "weir-system"] {
        for (dry_run, denies) in [(true, false), (false, true)] {
            let mut compiler = Compiler::new(Settings::default());
            let name = ObjectName::new(namespace, "w");
            let policy = Some(Box::new(malformed(dry_run)));
            compiler.apply([Event::AuthorizationPolicy(PolicyApi::Weir, name, policy)]);
            let outcome = compiler.policies().values().next().unwrap();
            assert_eq!((outcome.problem.is_some(), outcome.dry_run), (true, dry_run));
            let policies = compiler.policies.compiled().for_workload("a", &Map::new());
            let decision = policies.decide(&weir_policy::Request {
                source: None,
                source_ip: "10.1.0.1".parse().unwrap(),
                destination_ip: "10.1.0.2".parse().unwrap(),
                destination_port: 80,
            });
            let denied = matches!(decision.verdict, weir_policy::Verdict::Denied(_));
            assert_eq!(denied, denies, "{namespace}: {decision:?}");
            // It says what it would do.
            assert_eq!(decision.dry_run.is_some(), dry_run, "{namespace}: {decision:?}");
        }
    }
}

#[test]
fn of_several_peer_authentications_of_a_scope_the_oldest_counts() {
    let peer = |name: &str, created: i64, mode: PeerMode| {
        let policy = PeerAuthentication {
            name: name.to_owned(),
            namespace: "a".to_owned(),
            selector: None,
            mtls: Some(Mtls { mode }),
            port_level_mtls: Map::new(),
        };
        let read = Some((created, Read::Understood(policy)));
        Event::PeerAuthentication(PolicyApi::Weir, ObjectName::new("a", name), read)
    };
    let mut compiler = Compiler::new(Settings::default());
    compiler.apply([
        peer("zzz", 1, PeerMode::Strict),
        peer("aaa", 2, PeerMode::Permissive),
    ]);
    let listed = compiler.policies.compiled().listed("a", &Map::new());
    assert_eq!(
        listed.len(),
        1,
        "the STRICT one is older, whatever the other is called: {listed:?}"
    );
    assert!(listed[0].ends_with("zzz"), "{listed:?}");
}
