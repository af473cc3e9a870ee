//! The lab itself, without a mesh: that its network carries, its test programs work, and nothing of it stays.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::{collections::BTreeSet, fs, process::Command, time::Duration};

use weir_lab::{Lab, PodSpec, Spawn as _, cgroup, netns, run};

/// Everything that bears a run's id.
fn traces(id: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let cgroups = fs::read_dir(cgroup::mount_point().unwrap()).unwrap();
    let cgroups = cgroups.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let folders = fs::read_dir(run::FOLDER).into_iter().flatten();
    let folders = folders.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    let all: BTreeSet<_> = netns::names()
        .unwrap()
        .into_iter()
        .chain(cgroups)
        .chain(folders)
        .chain(mounts.lines().map(str::to_owned))
        .collect();
    all.into_iter().filter(|name| name.contains(id)).collect()
}

fn pair(lab: &Lab) -> (weir_lab::Pod, weir_lab::Pod) {
    let client = lab.add_pod(PodSpec::new("node1", "shop", "client")).unwrap();
    let server = lab.add_pod(PodSpec::new("node2", "shop", "server")).unwrap();
    (client, server)
}

#[test]
fn pods_reach_pods_nodes_and_the_host_outside_over_both_families() {
    let lab = Lab::builder("reach").nodes(3).outside().build().unwrap();
    let (client, server) = pair(&lab);
    let near = lab.add_pod(PodSpec::new("node1", "shop", "near")).unwrap();
    let far = lab.add_pod(PodSpec::new("node3", "shop", "far")).unwrap();
    let (outside_v4, outside_v6) = lab.outside_addresses();
    let (node_v4, node_v6) = lab.node("node3").unwrap().addresses();
    let mut targets = vec![
        (lab.outside().unwrap().clone(), outside_v4, outside_v6),
        (lab.node("node3").unwrap().place().clone(), node_v4, node_v6),
    ];
    targets.extend([&server, &near, &far].map(|pod| (pod.place().clone(), pod.v4(), pod.v6())));
    for (place, v4, v6) in targets {
        let echo = place
            .testapp(["echo-server", "--port", "7", "--dual-stack"])
            .unwrap();
        echo.wait_listening().unwrap();
        for to in [format!("{v4}:7"), format!("[{v6}]:7")] {
            let done = client
                .run_testapp(["echo-client", &to, "--bytes", "100000"])
                .unwrap();
            done.success()
                .unwrap_or_else(|error| panic!("{to} in {}: {error:#}", place.name()));
        }
    }
}

#[test]
fn nothing_of_a_lab_stays_after_its_drop() {
    let lab = Lab::new("drop").unwrap();
    let id = lab.id().to_owned();
    let (client, server) = pair(&lab);
    let _echo = server.testapp(["echo-server", "--port", "7"]).unwrap();
    let mut shell = Command::new("sh");
    // A grandchild in a session of its own: not in any group that the lab knows.
    shell.args(["-c", "setsid sleep 1000 & echo $!; wait"]);
    let shell = client.spawn(shell).unwrap();
    let orphan = shell
        .wait_line(Duration::from_secs(5), |line| line.trim().parse::<u32>().ok())
        .unwrap();
    assert!(traces(&id).len() >= 6, "{:?}", traces(&id));
    drop(lab);
    assert_eq!(traces(&id), Vec::<String>::new());
    let state = fs::read_to_string(format!("/proc/{orphan}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
}

#[test]
fn what_a_killed_run_left_is_swept_by_the_next() {
    // This test again, in a process that is killed in the middle of it.
    if std::env::var_os("WEIR_LAB_VICTIM").is_some() {
        let lab = Lab::new("victim").unwrap();
        let (client, _) = pair(&lab);
        let _sleeper = client.spawn({
            let mut sleep = Command::new("sleep");
            sleep.arg("1000");
            sleep
        });
        println!("\nvictim {}", lab.id());
        std::thread::sleep(Duration::from_secs(1000));
    }
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim.args([
        "--exact",
        "what_a_killed_run_left_is_swept_by_the_next",
        "--nocapture",
    ]);
    victim
        .env("WEIR_LAB_VICTIM", "1")
        .stdout(std::process::Stdio::piped());
    let mut victim = victim.spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(victim.stdout.take().unwrap()));
    let id = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("victim ").map(str::to_owned))
        .unwrap();
    run::sweep().unwrap();
    assert!(!traces(&id).is_empty(), "a live run was swept");
    victim.kill().unwrap();
    victim.wait().unwrap();
    run::sweep().unwrap();
    assert_eq!(traces(&id), Vec::<String>::new());
}

#[test]
fn a_pod_can_be_removed_and_its_address_given_to_another() {
    let lab = Lab::new("again").unwrap();
    let (client, server) = pair(&lab);
    for name in ["first", "second", "third"] {
        let pod = lab.add_pod(PodSpec::new("node2", "shop", name).host(77)).unwrap();
        let echo = pod.testapp(["echo-server", "--port", "7"]).unwrap();
        echo.wait_listening().unwrap();
        client
            .run_testapp(["echo-client", &format!("{}:7", pod.v4())])
            .unwrap()
            .success()
            .unwrap();
        lab.remove_pod(&pod).unwrap();
    }
    assert_eq!(lab.pods().len(), 2);
    assert!(
        lab.add_pod(PodSpec::new("node2", "shop", "x").host(server.v4().octets()[3]))
            .is_err()
    );
}

#[test]
fn the_capture_sees_every_byte_and_the_canary_in_it() {
    let lab = Lab::new("capture").unwrap();
    let (client, server) = pair(&lab);
    let echo = server.testapp(["echo-server", "--port", "7"]).unwrap();
    echo.wait_listening().unwrap();
    let capture = lab
        .capture("node1", &[b"never-on-the-wire", b"never-sent"])
        .unwrap();
    let to = format!("{}:7", server.v4());
    let sent = [
        "echo-client",
        &to,
        "--bytes",
        "170000",
        "--text",
        "never-on-the-wire",
    ];
    client.run_testapp(sent).unwrap().success().unwrap();
    let findings = capture.stop().unwrap();
    // A segment that was sent twice is seen twice.
    let seen = findings.tcp_bytes[&7];
    assert!((340_000..400_000).contains(&seen), "{seen}");
    assert_eq!(findings.canaries, [20_000, 0]);
    assert_eq!(findings.tls_bytes, 0);
}

#[test]
fn the_test_programs_do_what_they_say() {
    let lab = Lab::new("apps").unwrap();
    let (client, server) = pair(&lab);
    let at = |port: u16| format!("{}:{port}", server.v4());
    let start = |arguments: &[&str]| {
        let process = server.testapp(arguments).unwrap();
        process.wait_listening().unwrap();
        process
    };
    let ask = |arguments: &[&str]| {
        client
            .run_testapp(arguments)
            .unwrap()
            .success()
            .unwrap()
            .json()
            .unwrap()
    };

    let _http = start(&["http-server", "--port", "80"]);
    let answer = ask(&["http-client", &format!("http://{}/", at(80)), "--requests", "3"]);
    assert!(
        answer["body"]
            .as_str()
            .unwrap()
            .contains(&client.v4().to_string()),
        "{answer}"
    );

    let _reverse = start(&[
        "echo-server",
        "--port",
        "81",
        "--reverse",
        "--greeting",
        "220 hello",
    ]);
    let seen = ask(&["connect", &at(81), "--send", "abc", "--half-close", "--read-all"]);
    assert!(
        seen["text"].as_str().unwrap().starts_with("220 hello\r\n"),
        "{seen}"
    );
    assert!(
        seen["text"].as_str().unwrap().contains("ba7816bf8f01cfea"),
        "{seen}"
    );
    assert_eq!(seen["getpeername"], at(81));

    let peers = start(&["echo-server", "--port", "82", "--dual-stack", "--print-peer"]);
    for extra in [
        &["--mptcp"][..],
        &["--mapped", "--non-blocking"],
        &["--device", "eth0"],
        &["--reset"],
    ] {
        let to = at(82);
        let seen = ask(&[&["connect", to.as_str(), "--send", "x", "--read", "1"], extra].concat());
        assert_eq!(seen["text"], "x", "{extra:?}: {seen}");
    }
    let accept = peers.wait_json("accept").unwrap();
    assert!(
        accept
            .as_str()
            .unwrap()
            .starts_with(&format!("[::ffff:{}]:", client.v4())),
        "{accept}"
    );

    let seen = ask(&[
        "connect",
        &at(82),
        "--then",
        &at(80),
        "--send",
        "GET / HTTP/1.1\r\n\r\n",
        "--read",
        "10",
    ]);
    assert_eq!(seen["then"]["text"], "HTTP/1.1 2", "{seen}");
    let refused = ask(&["connect", &at(9)]);
    assert_eq!(refused["connect"], "ECONNREFUSED", "{refused}");

    let _bulk = start(&["bulk-server", "--port", "83"]);
    let both = ask(&[
        "bulk-client",
        &at(83),
        "--streams",
        "2",
        "--bytes",
        "3000000",
        "--both",
    ]);
    assert_eq!(both["bytes"], 12_000_000);
    assert!(
        ask(&["bulk-client", &at(83), "--seconds", "0.2"])["gbps"]
            .as_f64()
            .unwrap()
            > 0.0
    );

    let _rr = start(&["rr-server", "--port", "84"]);
    assert!(
        ask(&["rr-client", &at(84), "--seconds", "0.2"])["p50_us"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert!(
        ask(&["crr-client", &at(84), "--seconds", "0.2", "--clients", "4"])["connections"]
            .as_u64()
            .unwrap()
            > 0
    );
    let hold = client
        .testapp(["hold-client", &at(84), "--connections", "100"])
        .unwrap();
    assert_eq!(hold.wait_json("held").unwrap(), 100);
}

#[test]
fn many_connections_are_counted_by_who_answered_and_what_failed() {
    let lab = Lab::new("many").unwrap();
    let (client, server) = pair(&lab);
    let to = format!("{}:7", server.v4());
    let named = |name: &str| {
        let process = server
            .testapp(["name-server", "--name", name, "--port", "7"])
            .unwrap();
        process.wait_listening().unwrap();
        process
    };
    let ask = |extra: &[&str]| {
        client
            .run_testapp([&["many", to.as_str()], extra].concat())
            .unwrap()
            .success()
            .unwrap()
            .json()
            .unwrap()
    };

    let mut b = named("b");
    // More than a client has ephemeral ports: none of them may be left in TIME_WAIT.
    let seen = ask(&["--connections", "40000", "--threads", "2"]);
    assert_eq!(seen["counts"], serde_json::json!({ "b": 40_000 }), "{seen}");
    assert_eq!(seen["errors"], serde_json::json!({}), "{seen}");
    let seen = ask(&["--seconds", "0.2", "--threads", "1"]);
    assert_eq!(seen["counts"]["b"], seen["connections"], "{seen}");

    let lasting = ["many", &to, "--seconds", "1000", "--pause-ms", "5", "--log"];
    let log = client.testapp(lasting).unwrap();
    let change = |outcome: &str, field: &str, value: &str| {
        log.wait_line(Duration::from_secs(10), |line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            (line["outcome"] == outcome && line[field] == value).then(|| {
                (
                    line["began_ms"].as_u64().unwrap(),
                    line["ended_ms"].as_u64().unwrap(),
                )
            })
        })
        .unwrap()
    };
    let first = change("success", "name", "b");
    b.kill().unwrap();
    // The first to fail may have been connected already.
    let failed = change("failure", "outcome", "failure");
    let _c = named("c");
    let back = change("success", "name", "c");
    assert!(first.0 <= first.1 && first.1 <= failed.1 && failed.1 <= back.1);
    assert!(back.1 - first.0 < 60_000, "milliseconds: {first:?} {back:?}");
    assert_eq!(
        log.stdout().split(|byte| *byte == b'\n').count(),
        4,
        "three changes, and nothing after the last"
    );
    assert_eq!(ask(&["--connections", "3"])["counts"]["c"], 3);
}
