//! Half-closes and resets: a tunnelled connection ends as a plain TCP connection does.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener},
    process::Command,
};

use weir_e2e::Mesh;
use weir_lab::Spawn as _;
use weir_types::{FlowEvent, Reason, TrafficDirection};

#[test]
fn a_server_that_closed_its_write_side_still_gets_what_the_client_sends_afterwards() {
    let mesh = Mesh::new("server");
    let listener = mesh.c.inside(|| Ok(TcpListener::bind("0.0.0.0:7000")?)).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"goodbye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut late = String::new();
        stream.read_to_string(&mut late).unwrap();
        late
    });
    // Reads to the server's end first, and only then sends.
    let script = format!(
        "exec 3<>/dev/tcp/{}/7000; cat <&3; sleep 0.2; printf late >&3",
        mesh.c.v4()
    );
    let mut client = Command::new("bash");
    client.args(["-c", &script]);
    let seen = mesh.a.run(client).unwrap().success().unwrap().text();
    assert_eq!(seen, "goodbye");
    assert_eq!(server.join().unwrap(), "late");
    for (pod, direction) in [
        (&mesh.a, TrafficDirection::Egress),
        (&mesh.c, TrafficDirection::Ingress),
    ] {
        let flow = mesh.flow(pod, direction, FlowEvent::Close, 7000);
        assert_eq!(
            (flow.bytes_sent, flow.bytes_received, flow.reason),
            (4, 7, Reason::None),
            "{flow:?}"
        );
    }
}

#[test]
fn a_client_that_died_resets_the_server() {
    let mesh = Mesh::new("died");
    let listener = mesh.c.inside(|| Ok(TcpListener::bind("0.0.0.0:7000")?)).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 16];
        assert_eq!(stream.read(&mut buffer).unwrap(), 1);
        stream.read(&mut buffer).map_err(|error| error.kind())
    });
    let client = mesh
        .a
        .testapp([
            "connect",
            &format!("{}:7000", mesh.c.v4()),
            "--send",
            "x",
            "--hold-ms",
            "300",
            "--reset",
        ])
        .unwrap();
    client.wait(weir_lab::PATIENCE).unwrap().success().unwrap();
    assert_eq!(server.join().unwrap(), Err(std::io::ErrorKind::ConnectionReset));
}

#[test]
fn what_a_client_sent_before_it_closed_at_once_arrives() {
    const CLIENTS: usize = 100;
    let mesh = Mesh::new("hasty");
    let listener = mesh.c.inside(|| Ok(TcpListener::bind("0.0.0.0:7000")?)).unwrap();
    let server = std::thread::spawn(move || {
        let take = |_| {
            let mut text = String::new();
            listener
                .accept()
                .unwrap()
                .0
                .read_to_string(&mut text)
                .map(|_| text)
        };
        (0..CLIENTS).map(take).collect::<Vec<_>>()
    });
    // Closes without waiting for anything; and the agent is held up, so that the kernel is done with the clients'
    // sockets before it accepts.
    let agent = mesh.agent(&mesh.a).pid().to_string();
    let signal = |name: &str| {
        assert!(
            Command::new("kill")
                .args([name, &agent])
                .status()
                .unwrap()
                .success()
        );
    };
    signal("-STOP");
    let script = format!(
        "for i in {{1..{CLIENTS}}}; do printf hasty >/dev/tcp/{}/7000; done",
        mesh.c.v4()
    );
    let mut client = Command::new("bash");
    client.args(["-c", &script]);
    mesh.a.run(client).unwrap().success().unwrap();
    signal("-CONT");
    weir_lab::poll("every client's record", weir_lab::PATIENCE, || {
        let metrics = mesh.agent(&mesh.a).metrics()?;
        let opened =
            format!("weir_connections_opened_total{{direction=\"egress\",path=\"tunnel\"}} {CLIENTS}");
        Ok((metrics.contains(&opened) && !metrics.contains("refused_total{")).then_some(()))
    })
    .unwrap();
    for got in server.join().unwrap() {
        assert_eq!(got.unwrap(), "hasty");
    }
    let open = || {
        mesh.agents
            .iter()
            .map(|agent| agent.status().unwrap().kernel_connections)
            .sum::<u64>()
    };
    weir_lab::poll("no entry left behind", weir_lab::PATIENCE, || {
        Ok((open() == 0).then_some(()))
    })
    .unwrap();
}

#[test]
fn connections_reach_the_server_in_the_order_in_which_a_client_opened_them() {
    const ROUNDS: usize = 60;
    const EACH: usize = 8;
    let mesh = Mesh::new("order");
    let listener = mesh.c.inside(|| Ok(TcpListener::bind("0.0.0.0:7000")?)).unwrap();
    let server = std::thread::spawn(move || {
        let number = |_| {
            let mut byte = [0];
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut byte).unwrap();
            stream.write_all(b"\n").unwrap();
            byte[0]
        };
        (0..ROUNDS * EACH).map(number).collect::<Vec<_>>()
    });
    // Opens them at once, and says only then which is which; the first round makes the tunnel.
    let script = format!(
        "for r in {{1..{ROUNDS}}}; do for i in {{1..{EACH}}}; do exec {{fd[$i]}}<>/dev/tcp/{}/7000; done; \
         for i in {{1..{EACH}}}; do printf $i >&${{fd[$i]}}; done; \
         for i in {{1..{EACH}}}; do read -u ${{fd[$i]}} _; exec {{fd[$i]}}>&-; done; done",
        mesh.c.v4()
    );
    let mut client = Command::new("bash");
    client.args(["-c", &script]);
    mesh.a.run(client).unwrap().success().unwrap();
    let seen = server.join().unwrap();
    for (round, numbers) in seen.chunks(EACH).enumerate().skip(1) {
        assert_eq!(numbers, b"12345678", "round {round}");
    }
}

#[test]
fn a_client_that_resets_before_the_agent_accepts_is_recorded() {
    let mesh = Mesh::new("early");
    let _listener = mesh.c.inside(|| Ok(TcpListener::bind("0.0.0.0:7000")?)).unwrap();
    let agent = mesh.agent(&mesh.a).pid().to_string();
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, &agent]).status().unwrap();
        assert!(sent.success());
    };
    signal("-STOP");
    mesh.a
        .run_testapp(["connect", &format!("{}:7000", mesh.c.v4()), "--reset"])
        .unwrap()
        .success()
        .unwrap();
    signal("-CONT");
    let flow = mesh.flow_where(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000, |_| {
        true
    });
    assert_eq!(flow.reason, Reason::ApplicationReset, "{flow:?}");
}
