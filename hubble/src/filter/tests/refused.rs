//! What is not understood is refused, and the message says what and where.

use weir_proto::flow::known_flow_filter::Experimental;

use super::*;

fn refusal(filter: FlowFilter) -> String {
    Filters::new(&[], &[filter]).unwrap_err().to_string()
}

#[test]
fn values_that_are_none_are_refused_with_the_field_and_the_value() {
    macro_rules! rows {
        ($($field:ident: $value:expr, $said:literal;)*) => {
            [$((
                stringify!($field),
                filter(|own| own.$field = vec![$value.into()]),
                $said,
            )),*]
        };
    }
    let nobody = Workload::default;
    for (field, filter, said) in rows! {
        source_ip: "10.0.0", "'10.0.0' is neither an address nor a range";
        source_ip: "10.0.0.0/33", "'10.0.0.0/33' is neither";
        destination_ip: "", "'' is neither";
        destination_ip: "api", "'api' is neither";
        source_ip_xlated: "x", "'x' is neither";
        source_pod: "", "expected a name";
        source_pod: "/", "expected a name";
        destination_pod: "a/b/c", "expected one slash at most";
        source_service: "", "expected a name";
        destination_service: "/", "expected a name";
        source_fqdn: "", "'' is no DNS name";
        destination_fqdn: "a b", "'a b' is no DNS name";
        source_label: "a in", "is no key";
        destination_label: "(", "not closed";
        node_labels: "", "is no key";
        source_port: "http", "'http' is neither a port";
        source_port: "65536", "'65536' is neither a port";
        destination_port: "9-8", "'9-8' is neither a port";
        destination_port: "-1", "'-1' is neither a port";
        destination_port: "1-2-3", "'1-2-3' is neither a port";
        source_workload: nobody(), "expected a name, a kind, or both";
        destination_workload: nobody(), "expected a name, a kind, or both";
        traffic_direction: 3, "there is no value 3";
        verdict: 8, "there is no value 8";
        verdict: -1, "there is no value -1";
        ip_version: 3, "there is no value 3";
        protocol: "tpc", "'tpc' is no protocol";
        protocol: "", "'' is no protocol";
        node_name: "", "expected a node's name";
        node_name: "/", "expected a node's name";
        node_name: "a/b/c", "'/' can be in no node's name";
        node_name: "a b", "' ' can be in no node's name";
        http_status_code: "", "'' is no status";
        http_status_code: "+", "'+' is no status";
        http_status_code: "40", "'40' is no status";
        http_status_code: "4xx", "'4xx' is no status";
        http_status_code: "4040", "'4040' is no status";
        http_path: "(", "'(' is no regular expression";
        http_url: "[", "'[' is no regular expression";
        dns_query: "*", "'*' is no regular expression";
        http_path: "(a{1000}){1000}", "is no regular expression";
    } {
        let said_of = refusal(filter);
        assert!(
            said_of.starts_with(&format!("filter {field}: ")) && said_of.contains(said),
            "{field}: {said_of}"
        );
    }
}

#[test]
fn what_this_version_does_not_know_is_refused_and_what_it_does_not_do() {
    let unknown = FlowFilter {
        unknown: vec![777],
        ..filter(|_| {})
    };
    assert_eq!(
        refusal(unknown),
        "filter field 777: this version of Weir does not know it"
    );
    let cel = filter(|own| {
        own.experimental = Some(Experimental {
            cel_expression: texts(&["true"]),
        });
    });
    assert_eq!(
        refusal(cel),
        "filter cel_expression: CEL is not supported; use the other fields"
    );
    // Without an expression nothing is asked.
    assert!(lets(
        &filter(|own| own.experimental = Some(Experimental::default())),
        &flow()
    ));
}

#[test]
fn what_is_too_large_is_refused_before_it_takes_memory() {
    let nobody = "nobody".to_owned();
    let many = |count: usize| filter(|own| own.uuid = vec![nobody.clone(); count]);
    assert!(!lets(&many(MAX_VALUES), &flow()));
    assert_eq!(
        refusal(many(MAX_VALUES + 1)),
        "filter uuid: it has more than 1024 values"
    );
    let long = |bytes: usize| filter(|own| own.uuid = vec!["x".repeat(bytes)]);
    assert!(!lets(&long(MAX_VALUE), &flow()));
    assert_eq!(
        refusal(long(MAX_VALUE + 1)),
        "filter uuid: a value has more than 4096 bytes"
    );
    let all = |allow: usize, deny: usize| {
        Filters::new(&vec![many(1); allow], &vec![many(1); deny])
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert_eq!(all(MAX_FILTERS, MAX_FILTERS), Ok(()));
    assert_eq!(
        all(MAX_FILTERS + 1, 0),
        Err("filter whitelist: there are more than 256".to_owned())
    );
    assert_eq!(
        all(0, MAX_FILTERS + 1),
        Err("filter blacklist: there are more than 256".to_owned())
    );

    // Of all filters together.
    let full = vec![many(MAX_VALUES); MAX_ALL_VALUES / MAX_VALUES];
    assert!(Filters::new(&full[1..], &full[..1]).is_ok());
    let error = Filters::new(&full, &[many(1)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "filter uuid: the request has more than 8192 values"
    );
    for (name, patterns) in [
        (
            "http_path",
            filter(|own| own.http_path = vec!["x".to_owned(); 100]),
        ),
        ("http_url", filter(|own| own.http_url = vec!["x".to_owned(); 100])),
        (
            "dns_query",
            filter(|own| own.dns_query = vec!["x".to_owned(); 100]),
        ),
        (
            "node_name",
            filter(|own| own.node_name = vec!["x".to_owned(); 100]),
        ),
        (
            "source_fqdn",
            filter(|own| own.source_fqdn = vec!["x".to_owned(); 100]),
        ),
        (
            "destination_fqdn",
            filter(|own| own.destination_fqdn = vec!["x".to_owned(); 100]),
        ),
    ] {
        assert!(
            Filters::new(std::slice::from_ref(&patterns), &[]).is_ok(),
            "{name}"
        );
        let error = Filters::new(std::slice::from_ref(&patterns), std::slice::from_ref(&patterns));
        assert_eq!(
            error.unwrap_err().to_string(),
            format!("filter {name}: the request has more than 128 patterns")
        );
    }
}
