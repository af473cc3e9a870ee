//! When what is written, and for whom first.

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::status::{
    fair::Turns,
    ledger::{Attempt, Ledger},
};

fn told(name: &str) -> Write {
    Write::Notice(Notice::not_enrolled(
        &ObjectName::new("shop", name),
        &pod_of(name),
        "x",
    ))
}

fn annotated(uid: &str) -> Write {
    Write::Pod(Box::new(PodWrite {
        name: ObjectName::new("shop", uid),
        uid: uid.into(),
        node: "n1".into(),
        annotations: BTreeMap::from([(ENROLLED, None)]),
        address: None,
    }))
}

#[test]
fn what_was_written_rests_and_what_failed_waits_longer_each_time() {
    let (pace, start) = (Pace::default(), Instant::now());
    let at = |milliseconds| start + Duration::from_millis(milliseconds);
    let mut ledger = Ledger::new(pace);
    let (write, target) = (annotated("a"), annotated("a").target());
    let due = |ledger: &mut Ledger, now| ledger.due(vec![write.clone()], now).0.len();
    assert_eq!(due(&mut ledger, at(0)), 1);
    ledger.tried(target.clone(), Attempt::Done, at(0), 1.0);
    assert_eq!(due(&mut ledger, at(2999)), 0);
    assert_eq!(due(&mut ledger, at(3000)), 1);
    let mut now = 3000;
    for wait in [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
        ledger.tried(target.clone(), Attempt::Failed, at(now), 1.0);
        assert_eq!(due(&mut ledger, at(now + wait - 1)), 0, "{wait}");
        now += wait;
        assert_eq!(due(&mut ledger, at(now)), 1, "{wait}");
    }
    // By chance it is half.
    ledger.tried(target.clone(), Attempt::Outdated, at(now), 0.0);
    let next = ledger.due(vec![write.clone()], at(now)).1;
    assert_eq!(next, Some(at(now + 30_000)));
    // What was written, and then not wanted for a while, begins anew.
    ledger.tried(target, Attempt::Done, at(now), 1.0);
    assert_eq!(ledger.due(Vec::new(), at(now + 3000)).0, []);
    assert_eq!(due(&mut ledger, at(now + 3000)), 1);
}

#[test]
fn an_overloaded_api_server_is_left_alone_with_everything() {
    let (pace, start) = (Pace::default(), Instant::now());
    let mut ledger = Ledger::new(pace);
    ledger.tried(annotated("a").target(), Attempt::Overloaded, start, 1.0);
    let both = || vec![annotated("a"), annotated("b"), told("c")];
    let (due, next) = ledger.due(both(), start);
    assert_eq!((due.len(), next), (0, Some(start + pace.retry)));
    let later = start + pace.retry;
    assert_eq!(ledger.due(both(), later).0.len(), 3);
    ledger.tried(annotated("b").target(), Attempt::Overloaded, later, 1.0);
    assert_eq!(ledger.due(both(), later + pace.retry).0.len(), 0);
    assert_eq!(ledger.due(both(), later + pace.retry * 2).0.len(), 3);
}

#[test]
fn an_event_is_told_once_for_as_long_as_it_is_so() {
    let start = Instant::now();
    let mut ledger = Ledger::new(Pace::default());
    ledger.tried(told("a").target(), Attempt::Done, start, 1.0);
    let day = start + Duration::from_secs(86_400);
    assert_eq!(ledger.due(vec![told("a")], day).0, []);
    assert_eq!(ledger.due(vec![told("a")], day).1, None);
    ledger.tried(told("b").target(), Attempt::Failed, start, 1.0);
    assert_eq!(ledger.due(vec![told("a"), told("b")], day).0, [told("b")]);
}

fn of(node: &str, number: usize) -> Write {
    let mut write = annotated(&format!("{node}-{number}"));
    if let Write::Pod(write) = &mut write {
        write.node = node.into();
    }
    write
}

fn on_policy(name: &str) -> Write {
    Write::Policy(Box::new(PolicyWrite {
        key: PolicyKey {
            kind: PolicyKind::Authorization,
            api: PolicyApi::Weir,
            name: ObjectName::new("shop", name),
        },
        uid: String::new(),
        version: String::new(),
        status: crd::PolicyStatus::default(),
    }))
}

/// For whom the writes of some seconds are, of which each begins with all of these.
fn written(writes: &[Write], most: usize, seconds: usize) -> Vec<String> {
    let mut turns = Turns::default();
    let mut written = Vec::new();
    for _ in 0..seconds {
        for write in turns.first(writes.to_vec(), most) {
            turns.had(&write);
            written.push(match write {
                Write::Pod(write) => write.node.to_string(),
                Write::Policy(write) => write.key.name.name.to_string(),
                Write::Node { name, .. } => format!("the taint of {name}"),
                Write::Notice(notice) => format!("an event of {}", notice.about.name.name),
            });
        }
    }
    written
}

#[test]
fn a_node_of_which_there_is_much_to_say_does_not_keep_others_waiting() {
    let mut writes: Vec<Write> = (0..100).map(|number| of("a", number)).collect();
    writes.extend([of("b", 0), of("c", 0)]);
    assert_eq!(written(&writes, 5, 1), ["a", "b", "c", "a", "a"]);
    // Where there are more nodes than writes, the next second goes on with those that had none.
    assert_eq!(written(&writes, 2, 3), ["a", "b", "c", "a", "b", "c"]);
    // What is told of a node's pods is among what is written for the node.
    let mut events: Vec<Write> = (0..9).map(|number| told(&format!("n1-{number}"))).collect();
    events.push(of("z", 0));
    assert!(written(&events, 2, 1).contains(&"z".to_owned()));
}

#[test]
fn policies_and_nodes_do_not_keep_each_other_waiting() {
    let mut writes: Vec<Write> = ["p", "q", "r"].map(on_policy).into();
    writes.extend((0..9).map(|number| of("a", number)));
    assert_eq!(written(&writes, 8, 1), ["p", "a", "q", "a", "r", "a", "a", "a"]);
    // One write a second, and none of each is left out.
    assert_eq!(written(&writes, 1, 6), ["p", "a", "q", "a", "r", "a"]);
    writes.push(Write::Node {
        name: "n".into(),
        tainted: false,
    });
    assert_eq!(written(&writes, 1, 1), ["the taint of n"], "pods wait for it");
}
