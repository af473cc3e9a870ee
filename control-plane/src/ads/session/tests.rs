//! The protocol, case by case.

use weir_proto::{
    envoy::service::discovery::v3::Resource as WireResource,
    istio::workload::{Address, Workload, address},
    weir::node::v1::Pod,
};

use prost::Message as _;

use super::*;
use crate::ads::resource::{Change, Resource};

/// Names of what a response brings and takes.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    resources: Vec<String>,
    removed: Vec<String>,
}

struct Fixture {
    state: State,
    session: Session,
    nonce: String,
}

fn workload(name: &str, content: &str, aliases: &[&str]) -> Change {
    let workload = Workload {
        uid: name.to_owned(),
        name: content.to_owned(),
        ..Workload::default()
    };
    let message = Address {
        r#type: Some(address::Type::Workload(workload)),
    };
    Change::Set(Resource::new(
        name,
        aliases.iter().map(|&alias| alias.to_owned()),
        &message,
    ))
}

fn gone(name: &str) -> Change {
    Change::Remove(ResourceType::Address, name.into())
}

fn pod(node: &str, name: &str) -> Change {
    Change::Set(Resource::of_node(
        node,
        name,
        &Pod {
            uid: name.to_owned(),
            ..Pod::default()
        },
    ))
}

fn request() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ResourceType::Address.url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    let resource_names_subscribe = names.iter().map(|&name| name.to_owned()).collect();
    DeltaDiscoveryRequest {
        resource_names_subscribe,
        ..request()
    }
}

fn said(resources: &[&str], removed: &[&str]) -> Option<Said> {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Some(Said {
        resources: owned(resources),
        removed: owned(removed),
    })
}

impl Fixture {
    fn new(content: impl IntoIterator<Item = Change>) -> Self {
        let mut state = State::new(64);
        state.apply(content);
        Self {
            state,
            session: Session::new("node1".into(), &Limits::default()),
            nonce: String::new(),
        }
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> &mut Self {
        self.session.receive(request).unwrap();
        self
    }

    fn apply(&mut self, change: Change) -> &mut Self {
        self.state.apply([change]);
        self
    }

    /// The next response.
    fn next(&mut self) -> Option<Said> {
        let push = self.session.next(&self.state).unwrap()?;
        self.nonce = push.response.nonce;
        let name = |bytes| WireResource::decode(bytes).unwrap().name;
        let mut resources: Vec<_> = push.response.resources.into_iter().map(name).collect();
        resources.sort();
        Some(Said {
            resources,
            removed: push.response.removed_resources,
        })
    }

    fn ack(&mut self) -> &mut Self {
        let response_nonce = self.nonce.clone();
        self.receive(DeltaDiscoveryRequest {
            response_nonce,
            ..request()
        })
    }

    /// Answers the response before, and gives the next.
    fn then(&mut self) -> Option<Said> {
        self.ack().next()
    }
}

fn version(change: &Change) -> String {
    match change {
        Change::Set(resource) => resource.version().to_owned(),
        Change::Remove(..) => String::new(),
    }
}

#[test]
fn a_wildcard_is_answered_with_everything_and_then_with_changes() {
    let mut fixture = Fixture::new([workload("a", "1", &[]), workload("b", "1", &[])]);
    assert_eq!(fixture.receive(request()).next(), said(&["a", "b"], &[]));
    assert_eq!(fixture.then(), None);
    fixture
        .apply(workload("b", "2", &[]))
        .apply(workload("c", "1", &[]))
        .apply(gone("a"));
    assert_eq!(fixture.next(), said(&["b", "c"], &["a"]));
    assert_eq!(
        fixture.apply(workload("b", "2", &[])).then(),
        None,
        "the same again is no change"
    );
    assert_eq!(
        Fixture::new([workload("a", "1", &[])])
            .receive(subscribe(&["*"]))
            .next(),
        said(&["a"], &[])
    );
}

#[test]
fn the_first_response_is_sent_even_if_it_is_empty() {
    assert_eq!(Fixture::new([]).receive(request()).next(), said(&[], &[]));
    let mut fixture = Fixture::new([workload("a", "1", &["/10.0.0.1"])]);
    let none = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["*".to_owned()],
        ..subscribe(&["*"])
    };
    assert_eq!(fixture.receive(none).next(), said(&[], &[]));
    assert_eq!(
        fixture.apply(workload("a", "2", &[])).then(),
        None,
        "subscribed to nothing"
    );
}

#[test]
fn an_alias_is_answered_under_the_resources_own_name() {
    let mut fixture = Fixture::new([
        workload("a", "1", &["/10.0.0.1"]),
        workload("b", "1", &["/10.0.0.2"]),
    ]);
    assert_eq!(
        fixture.receive(subscribe(&["/10.0.0.1"])).next(),
        said(&["a"], &[])
    );
    fixture.apply(workload("b", "2", &["/10.0.0.2"]));
    assert_eq!(fixture.then(), None, "nobody asked for b");
    fixture.apply(workload("a", "2", &["/10.0.0.1"]));
    assert_eq!(fixture.next(), said(&["a"], &[]));
    fixture.apply(gone("a"));
    assert_eq!(fixture.then(), said(&[], &["/10.0.0.1", "a"]));
}

#[test]
fn an_unknown_name_is_answered_as_removed_and_later_as_what_appears() {
    let mut fixture = Fixture::new([]);
    assert_eq!(
        fixture.receive(subscribe(&["/10.0.0.1", "a"])).next(),
        said(&[], &["/10.0.0.1", "a"])
    );
    fixture.apply(workload("b", "1", &["/10.0.0.1"]));
    assert_eq!(fixture.then(), said(&["b"], &[]));
}

#[test]
fn an_address_that_moves_takes_its_subscriber_along() {
    let mut fixture = Fixture::new([workload("a", "1", &["/10.0.0.1"])]);
    assert_eq!(
        fixture.receive(subscribe(&["/10.0.0.1"])).next(),
        said(&["a"], &[])
    );
    fixture.state.apply([
        workload("a", "1", &["/10.0.0.9"]),
        workload("b", "1", &["/10.0.0.1"]),
    ]);
    assert_eq!(fixture.then(), said(&["b"], &["a"]));
    fixture.apply(workload("a", "2", &["/10.0.0.9"]));
    assert_eq!(fixture.then(), None);
}

#[test]
fn what_is_unsubscribed_is_silent() {
    let mut fixture = Fixture::new([workload("a", "1", &[]), workload("b", "1", &[])]);
    assert_eq!(
        fixture.receive(subscribe(&["a", "b"])).next(),
        said(&["a", "b"], &[])
    );
    let unsubscribe = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["a".to_owned()],
        ..request()
    };
    fixture
        .receive(unsubscribe)
        .apply(workload("a", "2", &[]))
        .apply(workload("b", "2", &[]));
    assert_eq!(fixture.then(), said(&["b"], &[]));
}

#[test]
fn a_name_beside_a_wildcard_is_answered_and_stays_when_the_wildcard_goes() {
    let mut fixture = Fixture::new([workload("a", "1", &[]), workload("b", "1", &[])]);
    assert_eq!(fixture.receive(request()).next(), said(&["a", "b"], &[]));
    assert_eq!(
        fixture.receive(subscribe(&["a", "x"])).then(),
        said(&["a"], &["x"])
    );
    let unsubscribe = |name: &str| DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec![name.to_owned()],
        ..request()
    };
    assert_eq!(
        fixture.receive(unsubscribe("x")).then(),
        said(&[], &["x"]),
        "the wildcard still means it"
    );
    fixture
        .receive(unsubscribe("*"))
        .apply(workload("a", "2", &[]))
        .apply(workload("b", "2", &[]));
    assert_eq!(fixture.then(), said(&["a"], &[]));
    assert_eq!(fixture.receive(subscribe(&["*"])).then(), said(&["a", "b"], &[]));
}

#[test]
fn a_reconnecting_client_is_told_what_changed_and_what_is_gone() {
    let a = workload("a", "1", &[]);
    let known = |names: &[&str]| DeltaDiscoveryRequest {
        initial_resource_versions: [
            ("a", version(&a)),
            ("b", "old".to_owned()),
            ("gone", "1".to_owned()),
        ]
        .map(|(name, version)| (name.to_owned(), version))
        .into(),
        ..subscribe(names)
    };
    let content = || {
        [
            workload("a", "1", &[]),
            workload("b", "2", &[]),
            workload("c", "1", &[]),
        ]
    };
    let mut fixture = Fixture::new(content());
    assert_eq!(fixture.receive(known(&[])).next(), said(&["b", "c"], &["gone"]));

    let mut fixture = Fixture::new(content());
    let none = DeltaDiscoveryRequest {
        resource_names_unsubscribe: vec!["*".to_owned()],
        ..known(&["*"])
    };
    assert_eq!(fixture.receive(none).next(), said(&["b"], &["gone"]));
    fixture
        .apply(workload("gone", "2", &[]))
        .apply(workload("c", "2", &[]))
        .apply(workload("a", "2", &[]));
    assert_eq!(
        fixture.then(),
        said(&["a", "gone"], &[]),
        "what the client knew, it is subscribed to"
    );
}

#[test]
fn changes_wait_for_the_ack_and_come_at_once_after_it() {
    let mut fixture = Fixture::new([workload("a", "1", &[])]);
    assert_eq!(fixture.receive(request()).next(), said(&["a"], &[]));
    for content in 0..50 {
        fixture.apply(workload("a", &content.to_string(), &[]));
        assert_eq!(fixture.next(), None);
    }
    let stale = DeltaDiscoveryRequest {
        response_nonce: "stale".to_owned(),
        ..request()
    };
    assert_eq!(fixture.receive(stale).next(), None);
    assert_eq!(fixture.then(), said(&["a"], &[]));
}

#[test]
fn what_is_rejected_is_not_sent_again_but_later_changes_are() {
    let mut fixture = Fixture::new([workload("a", "1", &[])]);
    assert_eq!(fixture.receive(request()).next(), said(&["a"], &[]));
    let message = format!("bad\n{}", "x".repeat(1_000));
    let nack = DeltaDiscoveryRequest {
        response_nonce: fixture.nonce.clone(),
        error_detail: Some(Status {
            message,
            ..Status::default()
        }),
        ..request()
    };
    let received = fixture.session.receive(nack.clone()).unwrap();
    let text = format!("bad{}", "x".repeat(ERROR_LENGTH - 3));
    assert_eq!(received, Received::Nack(ResourceType::Address, text));
    assert_eq!(fixture.next(), None);
    assert_eq!(
        fixture.session.receive(nack).unwrap(),
        Received::Request,
        "the nonce is stale now"
    );
    fixture.apply(workload("b", "1", &[]));
    assert_eq!(fixture.next(), said(&["b"], &[]));
}

#[test]
fn a_stream_that_fell_behind_ends() {
    let mut fixture = Fixture::new([workload("a", "1", &[])]);
    fixture.receive(request()).next();
    for content in 0..=64 {
        fixture.apply(workload("a", &format!("new {content}"), &[]));
    }
    fixture.ack();
    assert_eq!(fixture.session.next(&fixture.state).unwrap_err(), Close::Behind);
}

#[test]
fn pods_are_seen_by_their_own_node_alone() {
    let mut fixture = Fixture::new([pod("node1", "mine"), pod("node2", "other")]);
    let of_pods = |request: DeltaDiscoveryRequest| DeltaDiscoveryRequest {
        type_url: ResourceType::Pod.url().to_owned(),
        ..request
    };
    let acked = |fixture: &mut Fixture| {
        let response_nonce = fixture.nonce.clone();
        fixture
            .receive(of_pods(DeltaDiscoveryRequest {
                response_nonce,
                ..request()
            }))
            .next()
    };
    assert_eq!(fixture.receive(of_pods(request())).next(), said(&["mine"], &[]));
    assert_eq!(fixture.receive(of_pods(subscribe(&["other"]))).next(), None);
    assert_eq!(
        acked(&mut fixture),
        said(&[], &["other"]),
        "as if it did not exist"
    );
    fixture
        .apply(pod("node2", "third"))
        .apply(Change::Remove(ResourceType::Pod, "third".into()));
    assert_eq!(acked(&mut fixture), None, "not even that it went");
    fixture.apply(pod("node2", "mine"));
    assert_eq!(acked(&mut fixture), said(&[], &["mine"]), "it moved away");
    fixture.apply(pod("node1", "other"));
    assert_eq!(acked(&mut fixture), said(&["other"], &[]), "it came");
}

#[test]
fn a_stream_has_bounds() {
    let limits = Limits {
        names: 3,
        name_length: 4,
        unknown_types: 2,
        ..Limits::default()
    };
    let session = || Session::new("node1".into(), &limits);
    assert_eq!(
        session().receive(subscribe(&["a", "b", "c"])),
        Ok(Received::Request)
    );
    assert_eq!(
        session().receive(subscribe(&["a", "b", "c", "d"])),
        Err(Close::Names)
    );
    assert_eq!(session().receive(subscribe(&["abcde"])), Err(Close::Name));
    let initial_resource_versions = [("abcde".to_owned(), String::new())].into();
    let long = DeltaDiscoveryRequest {
        initial_resource_versions,
        ..request()
    };
    assert_eq!(session().receive(long), Err(Close::Name));

    let unknown = |url: &str| DeltaDiscoveryRequest {
        type_url: url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    };
    let mut session = session();
    assert_eq!(
        session.receive(unknown("x")),
        Ok(Received::UnknownType("x".to_owned()))
    );
    assert_eq!(session.receive(unknown("x")), Ok(Received::Request), "told once");
    assert!(
        session.next(&State::new(1)).unwrap().is_none(),
        "answered with nothing"
    );
    assert_eq!(
        session.receive(unknown("y")),
        Ok(Received::UnknownType("y".to_owned()))
    );
    assert_eq!(session.receive(unknown("z")), Err(Close::Types));
}

#[test]
fn names_that_come_and_go_beside_a_wildcard_without_an_ack_are_bounded() {
    let limits = Limits {
        names: 8,
        ..Limits::default()
    };
    let mut session = Session::new("node1".into(), &limits);
    session.receive(request()).unwrap();
    session.next(&State::new(1)).unwrap();
    let both = |name: String| DeltaDiscoveryRequest {
        resource_names_subscribe: vec![name.clone()],
        resource_names_unsubscribe: vec![name],
        ..request()
    };
    let outcome = (0..100).try_for_each(|number| session.receive(both(number.to_string())).map(drop));
    assert_eq!(outcome, Err(Close::Names));
}
