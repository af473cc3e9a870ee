use prost_types::FieldMask;
use weir_proto::{flow::KnownFlowFilter, observer::get_flows_request::Experimental};

use super::*;

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn second(seconds: i64) -> jiff::Timestamp {
    jiff::Timestamp::from_second(seconds).unwrap()
}

#[test]
fn what_is_asked_for_is_understood_in_all_combinations() {
    use Number::{First, Last};
    // Number, first, follow, since: which, and whether what is kept already is wanted.
    type Row = (u64, bool, bool, Option<i64>, Option<Number>, bool);
    let table: [Row; 10] = [
        (0, false, false, None, None, true),
        (5, false, false, None, Some(Last(5)), true),
        (5, true, false, None, Some(First(5)), true),
        (0, true, false, None, None, true),
        (u64::MAX, false, false, None, Some(Last(usize::MAX)), true),
        (0, false, true, None, None, false),
        (5, false, true, None, Some(Last(5)), true),
        (0, false, true, Some(1), None, true),
        (5, false, true, Some(1), Some(Last(5)), true),
        (5, true, false, Some(1), Some(First(5)), true),
    ];
    for (number, first, follow, since, wanted, recorded) in table {
        let request = GetFlowsRequest {
            number,
            first,
            follow,
            since: since.and_then(at),
            ..GetFlowsRequest::default()
        };
        let query = Query::new(&request).unwrap();
        assert_eq!(
            (query.number, query.follow, query.wants_recorded()),
            (wanted, follow, recorded),
            "{request:?}"
        );
    }
}

#[test]
fn the_ends_of_a_window_are_in_it() {
    let query = |since: Option<i64>, until: Option<i64>| {
        Query::new(&GetFlowsRequest {
            since: since.and_then(at),
            until: until.and_then(at),
            ..GetFlowsRequest::default()
        })
        .unwrap()
    };
    for (since, until, within) in [
        (None, None, [true, true, true, true]),
        (Some(2), None, [false, true, true, true]),
        (None, Some(3), [true, true, true, false]),
        (Some(2), Some(3), [false, true, true, false]),
        (Some(2), Some(2), [false, true, false, false]),
    ] {
        let query = query(since, until);
        assert_eq!(
            [1, 2, 3, 4].map(|time| query.is_within(second(time))),
            within,
            "{since:?} {until:?}"
        );
    }
    let remaining = |until| query(None, until).remaining(second(10));
    assert_eq!(remaining(None), None);
    assert_eq!(remaining(Some(12)), Some(Duration::from_secs(2)));
    assert_eq!(remaining(Some(3)), Some(Duration::ZERO), "it is over");
}

#[test]
fn contradictions_and_nonsense_are_refused_and_said() {
    let mask = |path: &str| {
        Some(FieldMask {
            paths: vec![path.to_owned()],
        })
    };
    let request = GetFlowsRequest::default;
    #[allow(deprecated, reason = "older clients still set it")]
    let older = Experimental {
        field_mask: mask("nothing"),
    };
    let table = [
        (
            GetFlowsRequest {
                since: at(2),
                until: at(1),
                ..request()
            },
            "until is before since",
        ),
        (
            GetFlowsRequest {
                first: true,
                follow: true,
                number: 3,
                ..request()
            },
            "first cannot be asked with follow",
        ),
        (
            GetFlowsRequest {
                since: at(i64::MAX),
                ..request()
            },
            "since: not a time",
        ),
        (
            GetFlowsRequest {
                until: Some(Timestamp {
                    seconds: 1,
                    nanos: -2_000_000_000,
                }),
                ..request()
            },
            "until: not a time",
        ),
        (
            GetFlowsRequest {
                field_mask: mask("source.nothing"),
                ..request()
            },
            "field_mask: there is no field 'source.nothing' of a flow",
        ),
        (
            GetFlowsRequest {
                experimental: Some(older),
                ..request()
            },
            "field_mask: there is no field 'nothing' of a flow",
        ),
        (
            GetFlowsRequest {
                blacklist: vec![
                    KnownFlowFilter {
                        verdict: vec![99],
                        ..Default::default()
                    }
                    .into(),
                ],
                ..request()
            },
            "filter verdict: there is no value 99",
        ),
    ];
    for (request, said) in table {
        assert_eq!(Query::new(&request).unwrap_err().to_string(), said);
    }
    // A mask without a path is none.
    let none = GetFlowsRequest {
        field_mask: Some(FieldMask::default()),
        ..request()
    };
    assert!(Query::new(&none).unwrap().mask.is_none());
}
