use k8s_openapi::api::core::v1 as core;
use serde_json::json;

use super::*;
use crate::cluster::Namespace;

fn watch() -> Watch<core::Namespace, std::sync::Arc<str>> {
    let failing = IntGauge::new("failing", "1 while it fails").unwrap();
    let convert = Convert {
        kind: "Namespace",
        name: |namespace: &core::Namespace| namespace.metadata.name.as_deref().map(Into::into),
        // One that ends concerns nobody.
        there: Box::new(|namespace, name| {
            let ends = namespace.metadata.deletion_timestamp.is_some();
            (!ends).then(|| Event::Namespace(name, Some(Namespace::parse(&namespace.metadata))))
        }),
        see: |_| None,
        may_be_absent: true,
        gone: Box::new(|name| Event::Namespace(name, None)),
    };
    Watch::new(convert, failing)
}

fn namespace(name: &str, ends: bool) -> core::Namespace {
    let ends = ends.then_some("2026-01-01T00:00:00Z");
    let object = json!({ "metadata": { "name": name, "deletionTimestamp": ends } });
    serde_json::from_value(object).unwrap()
}

/// Names, with a minus for what is gone.
fn told(batch: Option<Batch>) -> (Vec<String>, bool) {
    let Some(batch) = batch else {
        return (Vec::new(), false);
    };
    let events = batch.events.into_iter().map(|event| match event {
        Event::Namespace(name, Some(_)) => name.to_string(),
        Event::Namespace(name, None) => format!("-{name}"),
        other => panic!("{other:?}"),
    });
    (events.collect(), batch.synced)
}

#[test]
fn a_list_is_told_as_a_whole_and_says_what_went_away_meanwhile() {
    let mut watch = watch();
    let list = |watch: &mut Watch<_, _>, names: &[&str]| {
        assert!(watch.take(watcher::Event::Init).is_none());
        for name in names {
            assert!(
                watch
                    .take(watcher::Event::InitApply(namespace(name, false)))
                    .is_none()
            );
        }
        told(watch.take(watcher::Event::InitDone))
    };
    assert_eq!(
        list(&mut watch, &["a", "b"]),
        (vec!["a".to_owned(), "b".to_owned()], true)
    );
    let (mut again, synced) = list(&mut watch, &["b", "c"]);
    again.sort();
    assert_eq!(
        (again, synced),
        (vec!["-a".to_owned(), "b".to_owned(), "c".to_owned()], true)
    );
    // A list that broke off says nothing.
    watch.take(watcher::Event::Init);
    watch.take(watcher::Event::InitApply(namespace("b", false)));
    assert_eq!(
        list(&mut watch, &["c"]),
        (vec!["c".to_owned(), "-b".to_owned()], true)
    );
}

#[test]
fn what_happens_is_told_at_once_and_what_was_never_known_is_not_gone() {
    let mut watch = watch();
    watch.take(watcher::Event::Init);
    watch.take(watcher::Event::InitDone);
    let mut apply = |name, ends| told(watch.take(watcher::Event::Apply(namespace(name, ends)))).0;
    assert_eq!(apply("a", false), ["a"]);
    assert_eq!(apply("a", true), ["-a"], "it concerns nobody any more");
    assert_eq!(apply("b", true), [""; 0]);
    let mut delete = |name| told(watch.take(watcher::Event::Delete(namespace(name, false)))).0;
    assert_eq!(delete("a"), [""; 0]);
    assert_eq!(delete("z"), [""; 0]);
}

#[test]
fn a_kind_that_nobody_defines_has_no_objects_and_one_that_was_there_keeps_them() {
    let error = |code: u16| {
        let status = kube::core::Status::failure("no", "no").with_code(code);
        watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
    };
    let mut absent = watch();
    assert!(absent.failed(&error(500)).is_none(), "it may be back in a moment");
    assert_eq!(absent.failing.get(), 1);
    assert_eq!(told(absent.failed(&error(404))), (Vec::new(), true));
    assert_eq!(absent.failing.get(), 0, "nothing is missed");
    let mut known = watch();
    known.take(watcher::Event::Init);
    known.take(watcher::Event::InitApply(namespace("a", false)));
    known.take(watcher::Event::InitDone);
    assert!(known.failed(&error(404)).is_none());
    assert_eq!(known.failing.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_fails_again_and_again_is_asked_for_ever_more_rarely() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let asked = std::sync::Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    // As a watcher does: each try begins with a list.
    let events = futures_util::stream::iter(0..).map(move |number| {
        if number % 2 == 0 {
            count.fetch_add(1, Ordering::Relaxed);
            return Ok(watcher::Event::Init);
        }
        let status = kube::core::Status::failure("no", "no").with_code(403);
        Err(watcher::Error::InitialListFailed(kube::Error::Api(Box::new(
            status,
        ))))
    });
    let mut watch = watch();
    let (batches, _kept) = mpsc::channel(QUEUE);
    let following = watch.follow(events, batches, DefaultBackoff::default());
    let hour = tokio::time::timeout(Duration::from_secs(3600), following).await;
    assert!(hour.is_err(), "it never ends");
    let tries = asked.load(Ordering::Relaxed);
    assert!((60..=300).contains(&tries), "{tries} tries in an hour");
    assert_eq!(watch.failing.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_taken_up_again_fails_no_more_though_nothing_changes() {
    let lost = || watcher::Error::WatchStartFailed(kube::Error::LinesCodecMaxLineLengthExceeded);
    let events = vec![
        Ok(watcher::Event::Init),
        Ok(watcher::Event::InitDone),
        Err(lost()),
        Err(lost()),
    ];
    let events = futures_util::stream::iter(events).chain(futures_util::stream::pending());
    let mut watch = watch();
    let failing = watch.failing.clone();
    let (batches, _kept) = mpsc::channel(QUEUE);
    let following = watch.follow(events, batches, DefaultBackoff::default());
    let mut following = std::pin::pin!(following);
    for (seconds, expected) in [(50, 1), (50, 0)] {
        let part = tokio::time::timeout(Duration::from_secs(seconds), &mut following);
        assert!(part.await.is_err());
        assert_eq!(failing.get(), expected);
    }
}
