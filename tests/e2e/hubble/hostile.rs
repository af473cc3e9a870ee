//! What clients may do wrong, or do too much of.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use weir_e2e::peers::memory;

use super::*;

const MIB: u64 = 1 << 20;

#[test]
fn what_is_not_understood_is_refused_and_others_are_served() {
    let mesh = Mesh::new("hubbad");
    let path = &mesh.agents[0].config().api.socket;
    let say = |bytes: &[u8]| {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = Vec::new();
        // A connection that is reset has ended, too.
        let ended = match stream.read_to_end(&mut answer) {
            Ok(_) => true,
            Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
        };
        (ended, text(&answer))
    };
    let (ended, answer) = say(b"garbage\n");
    assert!(ended && answer.contains("not understood"), "{answer}");
    let noise: Vec<u8> = (0..4096_u32).map(|number| ((number * 7919) >> 3) as u8).collect();
    for bytes in [
        &noise[..],
        b"P\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
    ] {
        assert!(say(bytes).0, "{bytes:?}");
    }
    let began = Instant::now();
    assert!(say(b"PRI * HT").0, "half a preface");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());

    let before = memory(mesh.agents[0].pid(), "VmRSS");
    let answers = ask(
        &mesh,
        &socket(&mesh, 0),
        &[],
        &[
            json!(["large", 2500, 4096]),
            json!(["large", 1_000_000, 0]),
            json!(["large", 1000, 900]),
            // A filter with a field 777 in it.
            json!(["flows", "3203c83001"]),
            json!(["flows", { "whitelist": [{ "experimental": { "cel_expression": ["true"] } }] }]),
            json!(["flows", { "whitelist": [{ "http_path": vec![r"(\w{9}){9}"; 1000] }] }]),
            json!(["flows", { "first": true, "follow": true, "number": "1" }]),
            json!(["flows", { "field_mask": "nothing" }]),
            // No message at all.
            json!(["flows", "ffffffff"]),
            json!(["status"]),
        ],
    );
    let refused: Vec<(&str, &str)> = answers
        .iter()
        .map(|answer| {
            let refused = &answer["refused"];
            (
                refused["code"].as_str().unwrap_or("served"),
                refused["details"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    for ((code, details), (wanted, said)) in refused.into_iter().zip([
        // The refusal and the end of the stream may come in either order.
        ("OUT_OF_RANGE|INTERNAL", ""),
        ("OUT_OF_RANGE|INTERNAL", ""),
        ("served", ""),
        (
            "INVALID_ARGUMENT",
            "filter field 777: this version of Weir does not know it",
        ),
        (
            "INVALID_ARGUMENT",
            "filter cel_expression: CEL is not supported; use the other fields",
        ),
        (
            "INVALID_ARGUMENT",
            "filter http_path: the request has more than 128 patterns",
        ),
        ("INVALID_ARGUMENT", "first cannot be asked with follow"),
        (
            "INVALID_ARGUMENT",
            "field_mask: there is no field 'nothing' of a flow",
        ),
        ("INTERNAL", ""),
        ("served", ""),
    ]) {
        assert!(
            wanted.split('|').any(|wanted| code == wanted) && details.contains(said),
            "{code} {details}, not {wanted} {said}"
        );
    }
    let grown = memory(mesh.agents[0].pid(), "VmRSS").saturating_sub(before);
    assert!(grown < 64 * MIB, "{} MiB more", grown / MIB);
}

#[test]
fn a_thousand_clients_at_once_are_served_in_bounded_memory_and_so_is_one_more() {
    let mesh = Mesh::new("hubcrowd");
    let to = socket(&mesh, 0);
    let before = memory(mesh.agents[0].pid(), "VmRSS");
    let crowd = start(&mesh, &to, &["--hold", "20"], &[json!(["crowd", 1000])]);
    assert_eq!(crowd.wait_json("opened").unwrap(), 1000);
    let answers = ask(&mesh, &to, &[], &[json!(["status"]), json!(["streams", 60])]);
    assert_eq!(answers[0].get("refused"), None, "{answers:?}");
    let ours = weir(&mesh.agents[0].config().api.socket, &["status"]);
    assert!(ours.status.success(), "{}", text(&ours.stderr));
    let grown = memory(mesh.agents[0].pid(), "VmHWM").saturating_sub(before);
    assert!(grown < 200 * MIB, "{} MiB more", grown / MIB);
}

#[test]
fn a_follower_that_never_reads_costs_little_and_loses_only_its_own() {
    let mesh = Mesh::new("hubdeaf");
    let to = socket(&mesh, 0);
    let (_server, _) = serve(&mesh.b, ["echo-server", "--port", "7000"]);
    let deaf = start(&mesh, &to, &["--hold", "600"], &[json!(["unread"])]);
    assert_eq!(deaf.wait_json("opened").unwrap(), 1);
    let before = memory(mesh.agents[0].pid(), "VmRSS");
    let make = |connections: &str| {
        let server = format!("{}:7000", mesh.b.v4());
        let arguments = [
            "echo-client",
            &server,
            "--connections",
            connections,
            "--bytes",
            "1",
        ];
        mesh.a
            .testapp(arguments)
            .unwrap()
            .wait(Duration::from_secs(300))
            .unwrap()
            .success()
            .unwrap();
    };
    // Each leaves four records: it is opened and closed, at either end.
    make("25000");
    let status = ask(&mesh, &to, &[], &[json!(["status"])]);
    let seen = status[0]["answer"]["seen_flows"].as_str().unwrap_or_default();
    assert!(seen.parse::<u64>().unwrap_or(0) >= 50_000, "{status:?}");
    let grown = memory(mesh.agents[0].pid(), "VmRSS").saturating_sub(before);
    assert!(grown < 150 * MIB, "{} MiB more", grown / MIB);
    assert!(!flows(&mesh, &to, json!({ "number": "3" })).is_empty());
}
