use std::{io::Write as _, path::PathBuf, process::Stdio};

use serde_json::Value;

use crate::world::{Ran, weir};

/// Set to rewrite what is checked in.
const UPDATE: &str = "UPDATE_FLOWS";
const FORMS: [&str; 5] = ["compact", "table", "json", "jsonpb", "dict"];

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/cli/flows")
        .join(name)
}

/// The flows of a file, by a clock whose offset is no whole hour.
fn flows(input: &str, arguments: &[&str]) -> Ran {
    let mut command = weir();
    command.args(["flows", "--input-file"]).arg(file(input));
    command.args(arguments).env("TZ", "Asia/Kathmandu");
    Ran::of(command.output().unwrap())
}

#[test]
fn each_form_of_flows_is_what_is_checked_in() {
    for form in FORMS {
        let name = format!("flows.{form}");
        let ran = flows("flows.jsonl", &["-o", form]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{name}");
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(file(&name), &ran.out).unwrap();
        }
        let found = std::fs::read_to_string(file(&name)).unwrap_or_default();
        // Fields of what Hubble has no field for come in no order.
        let is_same = match form {
            "jsonpb" => values(&ran.out) == values(&found),
            _ => ran.out == found,
        };
        assert!(
            is_same,
            "{name} is not what is checked in: {UPDATE}=1 writes it\n{}",
            ran.out
        );
        let is_control = |char: char| char.is_control() && char != '\n';
        assert!(!ran.out.contains(is_control), "{name}");
        assert!(!ran.out.contains('\u{202e}'), "{name}");
    }
}

#[test]
fn both_forms_for_programs_are_read_back_as_what_they_were_written_from() {
    for (from, form, to) in [
        ("flows.json", "json", "flows.json"),
        ("flows.jsonpb", "json", "flows.json"),
        ("flows.json", "jsonpb", "flows.jsonpb"),
        ("flows.jsonpb", "jsonpb", "flows.jsonpb"),
        ("flows.jsonpb", "dict", "flows.dict"),
    ] {
        let ran = flows(from, &["-o", form]);
        assert_eq!(ran.code, 0, "{from}: {}", ran.err);
        let expected = std::fs::read_to_string(file(to)).unwrap();
        if form == "dict" {
            assert_eq!(ran.out, expected, "{from} as {form}");
            continue;
        }
        for (found, wanted) in values(&ran.out).into_iter().zip(values(&expected)) {
            assert_eq!(without_run(found), without_run(wanted), "{from} as {form}");
        }
    }
}

fn values(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Without what tells one run of an agent, which Weir's own form does not have, from another.
fn without_run(mut value: Value) -> Value {
    if let Some(flow) = value.get_mut("flow").and_then(Value::as_object_mut) {
        flow.remove("uuid");
        flow.remove("emitter");
    }
    value
}

#[test]
fn filters_choose_among_saved_flows_as_they_do_among_live_ones() {
    let cases: [(&[&str], &[u64]); 16] = [
        (&["--from-pod", "shop/web"], &[0, 1, 3, 4]),
        (&["--from-pod", "shop/web", "--to-pod", "shop/api-5f4-y"], &[0, 1]),
        (&["--namespace", "batch"], &[2]),
        (&["--verdict", "DROPPED"], &[2]),
        (&["--verdict", "denied", "--verdict", "ERROR"], &[2, 3]),
        (&["--to-label", "app=db"], &[4]),
        (&["--to-port", "443"], &[3]),
        (&["--not", "--namespace", "shop"], &[5]),
        (&["--encrypted"], &[0, 1]),
        (&["--unencrypted", "--from-pod", "shop/web"], &[3, 4]),
        (&["--not", "--encrypted", "--namespace", "shop"], &[2, 3, 4]),
        (&["--fqdn", "*.example.com"], &[]),
        (&["--last", "2"], &[4, 5]),
        (&["--first", "2"], &[0, 1]),
        (&["--since", "2026-03-01T08:00:04Z"], &[3, 4, 5]),
        (&["--until", "2026-03-01T08:00:02Z"], &[0]),
    ];
    for (arguments, expected) in cases {
        let ran = flows("flows.jsonl", &[arguments, &["-o", "json"]].concat());
        assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.err);
        let found: Vec<u64> = ran
            .out
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).unwrap()["sequence"]
                    .as_u64()
                    .unwrap()
            })
            .collect();
        assert_eq!(found, expected, "{arguments:?}");
    }
}

#[test]
fn what_is_no_filter_no_time_and_no_flow_is_one_line_and_exit_code_2() {
    let cases: [(&[&str], &str); 7] = [
        (&["--from-ip", "10.0.0.0/33"], "10.0.0.0/33"),
        (&["--since", "yesterday-ish"], "yesterday-ish"),
        (&["--verdict", "MAYBE"], "MAYBE"),
        (&["--to-port", "70000"], "70000"),
        (&["--from-label", "app in (x"], "a parenthesis is not closed"),
        (&["--last", "many"], "many"),
        (&["-o", "xml"], "xml"),
    ];
    for (arguments, named) in cases {
        let ran = flows("flows.jsonl", arguments);
        assert_eq!(
            (ran.code, ran.out.as_str()),
            (2, ""),
            "{arguments:?}: {}",
            ran.err
        );
        let first = ran.err.lines().next().unwrap_or_default();
        assert!(first.contains(named), "{arguments:?}: {}", ran.err);
    }
    let mut child = weir()
        .args(["flows", "--input-file", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"\n{\"flow\":").unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.lines().count()), (2, 1), "{}", ran.err);
    assert!(ran.err.contains("-: line 2 is no saved flow"), "{}", ran.err);
}
