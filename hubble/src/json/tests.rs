use weir_proto::{
    flow::{Flow, LostEvent},
    observer::get_flows_response::ResponseTypes,
    relay::NodeStatusEvent,
};

use super::*;

#[test]
fn lines_are_as_hubbles_tools_write_them() {
    // Written by Hubble's command line with `-o jsonpb`, shortened; a number of 64 bits is a text.
    let line = r#"{"flow":{"time":"2026-01-02T03:04:05.000000006Z","verdict":"DROPPED","drop_reason":133,"IP":{"source":"10.0.0.1","destination":"10.0.0.2","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":1,"destination_port":2,"flags":{"SYN":true}}},"node_name":"n","is_reply":false,"socket_cookie":"12","drop_reason_desc":"POLICY_DENIED","Summary":"TCP Flags: SYN"},"node_name":"n","time":"2026-01-02T03:04:05.000000006Z"}"#;
    let response = of_line(line).unwrap();
    let Some(ResponseTypes::Flow(flow)) = &response.response_types else {
        panic!("{response:?}")
    };
    assert_eq!(
        (flow.verdict, flow.drop_reason_desc, flow.socket_cookie),
        (2, 133, 12)
    );
    let written: serde_json::Value = serde_json::from_str(&to_line(&response).unwrap()).unwrap();
    assert_eq!(written, serde_json::from_str::<serde_json::Value>(line).unwrap());
    // Names of either form are read, and what a newer version says more is left out.
    let newer =
        of_line(r#"{"flow":{"nodeName":"n","verdict":"MAYBE","newer":{"x":[1]}},"nodeName":"n"}"#).unwrap();
    assert_eq!(newer.node_name, "n");
}

#[test]
fn what_is_said_beside_flows_comes_back_too() {
    for said in [
        ResponseTypes::LostEvents(LostEvent {
            source: 3,
            num_events_lost: u64::MAX,
            cpu: Some(0),
        }),
        ResponseTypes::NodeStatus(NodeStatusEvent {
            state_change: 2,
            node_names: vec!["a".to_owned(), "b".to_owned()],
            message: "away\n\u{1b}[31m".to_owned(),
        }),
        ResponseTypes::Flow(Flow::default()),
    ] {
        let response = GetFlowsResponse {
            response_types: Some(said),
            ..GetFlowsResponse::default()
        };
        let line = to_line(&response).unwrap();
        assert!(!line.contains('\n') && !line.contains('\u{1b}'), "{line}");
        assert_eq!(of_line(&line).unwrap(), response);
    }
}

#[test]
fn what_is_no_such_line_is_refused() {
    for line in [
        "",
        "null",
        "[]",
        "{",
        r#"{"flow":1}"#,
        r#"{"flow":{"time":"yesterday"}}"#,
        r#"{"flow":{}} {"flow":{}}"#,
        r#"{"flow":{"extensions":{"@type":"type.googleapis.com/no.such.Type"}}}"#,
    ] {
        assert!(of_line(line).is_err(), "{line}");
    }
}
