mod pace;

use std::collections::HashMap;

use jiff::Timestamp;
use kube::api::DynamicObject;
use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::{Event, Node, Pod, PolicyApi, parse::name_of},
    compile::{Compiler, PolicyKind, Settings},
    crd,
    reports::NodeState,
};

/// A cluster as one replica sees it.
struct World {
    compiler: Compiler,
    present: Present,
    reports: HashMap<Arc<str>, NodeState>,
    /// Kept up with each step.
    wanted: Wanted,
}

impl World {
    fn new() -> Self {
        let mut compiler = Compiler::new(Settings::default());
        compiler.apply([Event::Node("n1".into(), Some(Node::default()))]);
        Self {
            compiler,
            present: Present::default(),
            reports: HashMap::new(),
            wanted: Wanted::default(),
        }
    }

    fn look(&mut self, more: &[ObjectName]) {
        let names = self.compiler.touched().iter().chain(more);
        self.wanted
            .look(&self.compiler, &self.reports, &self.present, names);
    }

    fn pod(&mut self, name: &str, uid: &str, meta: &Value, spec: &Value) {
        let mut pod = json!({
            "metadata": {
                "namespace": "shop", "name": name, "uid": uid, "labels": {"app": name},
                "annotations": {"weir.dev/mesh": "enabled"}, "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        });
        for (part, with) in [("metadata", meta), ("spec", spec)] {
            let with = with.as_object().unwrap().clone();
            pod[part].as_object_mut().unwrap().extend(with);
        }
        let status = ["addresses", "conditions"].map(|part| pod["spec"][part].take());
        pod["status"] = json!({"podIPs": status[0], "conditions": status[1]});
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod).unwrap();
        let name = name_of(&pod.metadata).unwrap();
        self.present.set_pod(name.clone(), PresentPod::of(&pod));
        let event = Event::Pod(name.clone(), Some(Box::new(Pod::parse(&pod).unwrap())));
        self.compiler.apply([event]);
        self.look(&[name]);
    }

    fn policy(&mut self, namespace: &str, generation: i64, spec: &Value, status: &Value) {
        let object: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "weir.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {
                "namespace": namespace, "name": "p", "uid": "u", "resourceVersion": "7", "generation": generation,
            },
            "spec": spec, "status": status,
        }))
        .unwrap();
        self.present
            .set_policy(PolicyKind::Authorization, PolicyApi::Weir, &object);
        let event = crd::authorization_event(PolicyApi::Weir, &object).unwrap();
        self.compiler.apply([event]);
        self.look(&[]);
    }

    fn report(&mut self, node: &str, pods: &[(&str, Result<(), &str>)]) {
        let pods = pods
            .iter()
            .map(|(uid, result)| (Arc::from(*uid), result.map_err(str::to_owned)));
        let (ready, pods) = (true, pods.collect());
        self.reports.insert(node.into(), NodeState { ready, pods });
        let pods: Vec<_> = self.compiler.pods_of_node(node).cloned().collect();
        self.look(&pods);
    }

    fn plan(&self) -> Vec<Write> {
        let (compiler, reports, present) = (&self.compiler, &self.reports, &self.present);
        let desired = desired(compiler, reports, present, "weir-system", true);
        assert_eq!(
            self.wanted
                .desired(compiler, reports, present, "weir-system", true),
            desired,
            "what is kept up pod by pod is what looking at all of them gives"
        );
        plan(&desired, &self.present, Timestamp::UNIX_EPOCH)
    }

    fn notices(&self) -> Vec<String> {
        let writes = self.plan().into_iter();
        let notices = writes.filter_map(|write| match write {
            Write::Notice(notice) => Some(format!("{} {}", notice.reason, notice.about.name)),
            _ => None,
        });
        notices.collect()
    }

    fn annotations(&self) -> Option<Value> {
        self.plan().into_iter().find_map(|write| match write {
            Write::Pod(write) => Some(json!(write.annotations)),
            _ => None,
        })
    }

    /// What is written of pods' condition.
    fn addresses(&self) -> Vec<(String, AddressWrite)> {
        let writes = self.plan().into_iter().filter_map(|write| match write {
            Write::Pod(write) => Some((write.name.name.to_string(), write.address?)),
            _ => None,
        });
        writes.collect()
    }

    fn status(&self) -> Option<crd::PolicyStatus> {
        self.plan().into_iter().find_map(|write| match write {
            Write::Policy(write) => Some(write.status),
            _ => None,
        })
    }
}

const NOTHING: fn() -> Value = || json!({});

#[test]
fn a_pod_is_said_to_be_enrolled_where_the_agent_of_its_own_node_says_so() {
    let enrolled = json!({"weir.dev/enrolled": "true"});
    let marked = json!({"annotations": {"weir.dev/mesh": "enabled", "weir.dev/enrolled": "true"}});
    let off = json!({"annotations": {"weir.dev/enrolled": "true", "weir.dev/not-enrolled": "x"}});
    let reason = json!({"annotations": {"weir.dev/mesh": "enabled", "weir.dev/not-enrolled": "x"}});
    let removed = json!({"weir.dev/enrolled": null});
    let host = json!({"hostNetwork": true});
    type Report = Option<(&'static str, Option<Result<(), &'static str>>)>;
    let table: [(&str, Value, Value, Report, Option<Value>); 12] = [
        ("nobody says anything", NOTHING(), NOTHING(), None, None),
        (
            "its agent",
            NOTHING(),
            NOTHING(),
            Some(("n1", Some(Ok(())))),
            Some(enrolled),
        ),
        (
            "the agent of another node",
            NOTHING(),
            NOTHING(),
            Some(("n2", Some(Ok(())))),
            None,
        ),
        (
            "it stands there",
            marked.clone(),
            NOTHING(),
            Some(("n1", Some(Ok(())))),
            None,
        ),
        (
            "no longer",
            marked.clone(),
            NOTHING(),
            Some(("n1", None)),
            Some(removed.clone()),
        ),
        ("another replica knows", marked.clone(), NOTHING(), None, None),
        (
            "the agent says why not",
            marked.clone(),
            NOTHING(),
            Some(("n1", Some(Err("no room")))),
            Some(json!({"weir.dev/enrolled": null, "weir.dev/not-enrolled": "no room"})),
        ),
        (
            "better now",
            reason.clone(),
            NOTHING(),
            Some(("n1", None)),
            Some(json!({"weir.dev/not-enrolled": null})),
        ),
        ("better elsewhere", reason, NOTHING(), None, None),
        (
            "switched off",
            off,
            NOTHING(),
            None,
            Some(json!({"weir.dev/enrolled": null, "weir.dev/not-enrolled": null})),
        ),
        (
            "not enrolled and not meant to be",
            json!({"annotations": {}}),
            host.clone(),
            None,
            None,
        ),
        (
            "cannot be",
            marked,
            host,
            Some(("n1", Some(Ok(())))),
            Some(json!({
                "weir.dev/enrolled": null,
                "weir.dev/not-enrolled": crate::cluster::NotEnrolled::HostNetwork.to_string(),
            })),
        ),
    ];
    for (what, meta, spec, report, expected) in table {
        let mut world = World::new();
        world.pod("web", "u1", &meta, &spec);
        if let Some((node, result)) = report {
            let pods: Vec<_> = result.map(|result| ("u1", result)).into_iter().collect();
            world.report(node, &pods);
        }
        assert_eq!(world.annotations(), expected, "{what}");
    }
}

#[test]
fn annotations_of_an_earlier_pod_of_the_name_are_not_the_pods() {
    let mut world = World::new();
    let marked = json!({"annotations": {"weir.dev/mesh": "enabled", "weir.dev/enrolled": "true"}});
    world.pod("web", "u1", &marked, &NOTHING());
    world.report("n1", &[("u1", Ok(())), ("u2", Ok(()))]);
    assert_eq!(world.plan(), []);
    // The compiler has heard of the new one, and the watch of annotations has not.
    let old = std::mem::take(&mut world.present);
    world.pod("web", "u2", &NOTHING(), &NOTHING());
    world.present = old;
    world.look(&[ObjectName::new("shop", "web")]);
    assert!(matches!(&world.plan()[..], [Write::Pod(write)] if &*write.uid == "u2"));
}

#[test]
fn whoever_is_refused_an_address_is_told_who_has_it_also_where_that_changes() {
    let mut world = World::new();
    for (name, day) in [("first", 2), ("second", 3), ("eldest", 1)] {
        let made = json!({"creationTimestamp": format!("2026-01-0{day}T00:00:00Z")});
        let claims = json!({"addresses": [{"ip": "10.0.0.9"}]});
        world.pod(name, name, &made, &claims);
        // Which compares with what looking at all of them gives.
        world.plan();
    }
    let expected = ["AddressRefused shop/first", "AddressRefused shop/second"];
    assert_eq!(world.notices(), expected);
}

#[test]
fn a_pod_that_is_refused_an_address_says_so_until_that_is_settled() {
    let mut world = World::new();
    let claims = json!({"addresses": [{"ip": "10.0.0.9"}, {"ip": "10.0.0.8"}]});
    let later = json!({"creationTimestamp": "2026-01-02T00:00:00Z"});
    world.pod("web", "u1", &NOTHING(), &claims);
    world.pod("thief", "u2", &later, &claims);
    let [(name, AddressWrite::Refused(condition))] = &world.addresses()[..] else {
        panic!("{:?}", world.plan());
    };
    assert_eq!(
        (&**name, &*condition.type_, &*condition.status),
        ("thief", ADDRESS, "False")
    );
    assert_eq!(condition.reason.as_deref(), Some("AddressRefused"));
    let message = condition.message.as_deref().unwrap();
    for part in ["10.0.0.9", "10.0.0.8", "the older pod shop/web has it"] {
        assert!(message.contains(part), "{message}");
    }
    // Once it stands there, nothing is written; another reason is, and since when it is so stays.
    let mut standing = json!([condition]);
    let with = |conditions: &Value, claims: &Value| {
        let mut spec = claims.clone();
        spec["conditions"] = conditions.clone();
        spec
    };
    world.pod("thief", "u2", &later, &with(&standing, &claims));
    assert_eq!(world.addresses(), []);
    standing[0]["message"] = json!("another");
    standing[0]["lastTransitionTime"] = json!("2026-01-03T00:00:00Z");
    world.pod("thief", "u2", &later, &with(&standing, &claims));
    let [(_, AddressWrite::Refused(again))] = &world.addresses()[..] else {
        panic!("{:?}", world.plan());
    };
    assert_eq!(
        again.last_transition_time.as_ref().unwrap().0.to_string(),
        "2026-01-03T00:00:00Z"
    );
    // An earlier pod's of the name is not the pod's own.
    let own = json!({"addresses": [{"ip": "10.0.0.7"}]});
    world.pod("thief", "u2", &later, &with(&standing, &own));
    assert_eq!(world.addresses(), [("thief".to_owned(), AddressWrite::Settled)]);
    world.pod("thief", "u3", &later, &own);
    assert_eq!(world.addresses(), []);
}

#[test]
fn a_policy_says_whether_it_is_accepted_and_to_how_many_pods_it_applies() {
    let marked = json!({"annotations": {"weir.dev/mesh": "enabled", "weir.dev/enrolled": "true"}});
    let app = |app: &str| json!({"selector": {"matchLabels": {"app": app}}});
    let rehearsed = json!({"action": "AUDIT", "dryRun": true});
    let bad = json!({"rules": [{"when": [{"key": "source.ip"}]}]});
    let l7 = json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]});
    for (namespace, spec, holds, said, bound) in [
        ("shop", NOTHING(), "True", "", 2),
        ("shop", app("web"), "True", "", 1),
        ("shop", app("other"), "True", "", 0),
        ("other", NOTHING(), "True", "", 0),
        ("weir-system", NOTHING(), "True", "", 2),
        ("weir-system", app("db"), "True", "", 1),
        ("shop", bad, "False", "rules[0].when[0]: expected", 2),
        ("shop", l7, "True", "shop/p: rules[0].to[0].operation.methods", 2),
        ("shop", json!({"action": "AUDIT"}), "False", "action: expected", 2),
        ("shop", rehearsed, "False", "action: expected", 2),
    ] {
        let mut world = World::new();
        for (name, meta) in [("web", &marked), ("db", &marked), ("off", &NOTHING())] {
            world.pod(name, name, meta, &NOTHING());
        }
        world.policy(namespace, 3, &spec, &Value::Null);
        let status = world.status().unwrap();
        assert_eq!(
            (status.observed_generation, status.bound),
            (Some(3), Some(bound)),
            "{spec}"
        );
        let condition = &status.conditions[0];
        assert_eq!(
            (&*condition.type_, &*condition.status),
            ("Accepted", holds),
            "{spec}"
        );
        assert!(
            condition.message.starts_with(said),
            "{spec}: {}",
            condition.message
        );
        assert_eq!(condition.message.is_empty(), said.is_empty(), "{spec}");
        let rehearsed = condition
            .message
            .ends_with("(as it is a dry run, nothing is denied)");
        assert_eq!(rehearsed, spec["dryRun"] == true, "{}", condition.message);
        // Once it stands there, nothing is written.
        let mut standing = json!(status);
        let others = json!({"type": "Other", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        standing["conditions"].as_array_mut().unwrap().insert(0, others);
        world.policy(namespace, 3, &spec, &standing);
        assert_eq!(world.status(), None, "{spec}");
        // Nor by a replica that has seen less.
        world.policy(namespace, 2, &spec, &standing);
        assert_eq!(world.status(), None, "{spec}");
        // The next generation is said to have been seen; since when it holds stays.
        standing["conditions"][1]["lastTransitionTime"] = json!("2026-01-02T00:00:00Z");
        world.policy(namespace, 4, &spec, &standing);
        let next = world.status().unwrap();
        assert_eq!(next.observed_generation, Some(4), "{spec}");
        assert_eq!(
            next.conditions[0].last_transition_time.0.to_string(),
            "2026-01-02T00:00:00Z"
        );
    }
}

#[test]
fn what_is_wrong_is_told_about_the_object_that_it_is_wrong_with() {
    let mut world = World::new();
    let address = json!({"addresses": [{"ip": "10.0.0.1"}]});
    world.pod("web", "u1", &NOTHING(), &address);
    assert_eq!(world.notices(), [""; 0]);
    let later = json!({"creationTimestamp": "2026-01-02T00:00:00Z"});
    world.pod("thief", "u2", &later, &address);
    world.pod("host", "u3", &NOTHING(), &json!({"hostNetwork": true}));
    world.policy("shop", 1, &json!({"action": "AUDIT"}), &Value::Null);
    let told = [
        "NotEnrolled shop/host",
        "AddressRefused shop/thief",
        "PolicyRefused shop/p",
    ];
    assert_eq!(world.notices(), told);
}

fn pod_of(uid: &str) -> Pod {
    let pod = json!({"metadata": {"uid": uid}, "spec": {"nodeName": "n1", "containers": []}});
    Pod::parse(&serde_json::from_value(pod).unwrap()).unwrap()
}

#[test]
fn an_event_is_named_by_what_it_tells() {
    let name = ObjectName::new("shop", &"a".repeat(253));
    let notice = Notice::not_enrolled(&name, &pod_of("u1"), &"ä".repeat(2000));
    assert!(notice.name().len() <= 253);
    let event = notice.event("one", Timestamp::UNIX_EPOCH);
    assert!(event.note.unwrap().len() <= 1024);
    assert_eq!(notice.name(), notice.clone().name());
    let other = Notice::not_enrolled(&name, &pod_of("u2"), &"ä".repeat(2000));
    assert_ne!(notice.name(), other.name());
}

#[test]
fn a_node_is_tainted_while_it_starts_and_freed_when_it_and_its_agent_are_ready() {
    let mut world = World::new();
    let state = |tainted, ready| PresentNode { tainted, ready };
    let mut planned = |node, agent: bool| {
        world.present.set_node("n1".into(), node);
        world.reports.clear();
        if agent {
            world.report("n1", &[]);
        }
        let writes = world.plan().into_iter().filter_map(|write| match write {
            Write::Node { tainted, .. } => Some(tainted),
            _ => None,
        });
        writes.collect::<Vec<_>>()
    };
    let none: [bool; 0] = [];
    assert_eq!(planned(state(false, false), false), [true]);
    assert_eq!(planned(state(true, false), false), none);
    assert_eq!(
        planned(state(true, true), false),
        none,
        "its agent is not there yet"
    );
    assert_eq!(planned(state(true, true), true), [false]);
    assert_eq!(
        planned(state(false, true), false),
        none,
        "the agent may speak to another replica"
    );
    assert_eq!(planned(state(false, true), true), none);
}
