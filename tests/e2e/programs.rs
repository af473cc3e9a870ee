//! Real programs that nobody here wrote, unmodified, through the mesh.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use weir_e2e::{Mesh, identity};
use weir_lab::{Finished, Pod, Process, Spawn as _};
use weir_types::{FlowEvent, FlowPath, TrafficDirection};

/// A database's first start on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

fn run(pod: &Pod, words: &[&str]) -> Finished {
    pod.run_for(command(words), LONG)
        .unwrap_or_else(|error| panic!("{words:?}: {error:#}"))
        .success()
        .unwrap()
}

/// Waits until somebody listens on a port of a pod.
fn listening(pod: &Pod, port: u16) {
    let hex = format!(":{port:04X} ");
    weir_lab::poll(&format!("a listener on port {port}"), LONG, || {
        let read = |family: &str| fs::read_to_string(format!("/proc/thread-self/net/{family}"));
        let table = pod.inside(|| Ok(read("tcp")? + &read("tcp6")?))?;
        // The fourth column is the state; 0A is LISTEN.
        let listens = |line: &str| line.contains(&hex) && line.split_whitespace().nth(3) == Some("0A");
        Ok(table.lines().any(listens).then_some(()))
    })
    .unwrap();
}

/// Every connection to the port went through the tunnel, with both identities.
fn all_tunnelled(mesh: &Mesh, client: &Pod, server: &Pod, port: u16) {
    let _ = mesh.flow(client, TrafficDirection::Egress, FlowEvent::Close, port);
    let flows = mesh.agent(client).flows().unwrap();
    for flow in flows
        .iter()
        .filter(|flow| flow.destination.address.port() == port)
    {
        assert_eq!(flow.path, FlowPath::Tunnel, "{flow:?}");
        assert_eq!(flow.source.identity, identity(&client.spec().name), "{flow:?}");
        assert_eq!(
            flow.destination.identity,
            identity(&server.spec().name),
            "{flow:?}"
        );
    }
}

fn nginx(pod: &Pod, folder: &Path) -> Process {
    let file = folder.join("nginx.conf");
    fs::write(folder.join("hello.txt"), "hello from nginx\n").unwrap();
    fs::write(folder.join("large.bin"), vec![b'w'; 3_000_000]).unwrap();
    let text = format!(
        "daemon off; worker_processes 1; error_log stderr; pid {0}/pid;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
           access_log {0}/access.log; client_body_temp_path {0}/b; proxy_temp_path {0}/p; fastcgi_temp_path {0}/f;\n\
           uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
           server {{ listen 8080; listen [::]:8080; root {0}; }}\n\
           server {{ listen 8081 http2; root {0}; }}\n\
         }}\n",
        folder.display()
    );
    fs::write(&file, text).unwrap();
    // Its worker runs as another user and must read the folder.
    run_here(&["chmod", "-R", "a+rX", folder.to_str().unwrap()]);
    let server = pod
        .spawn(command(&[
            "nginx",
            "-p",
            folder.to_str().unwrap(),
            "-c",
            file.to_str().unwrap(),
        ]))
        .unwrap();
    listening(pod, 8080);
    server
}

fn run_here(words: &[&str]) {
    assert!(command(words).status().unwrap().success(), "{words:?}");
}

#[test]
fn nginx_serves_curl_over_http_1_and_2_and_wrk() {
    let mesh = Mesh::new("nginx");
    let folder = tempfile::tempdir().unwrap();
    let _server = nginx(&mesh.c, folder.path());
    let url = |host: IpAddr, port, path: &str| format!("http://{}/{path}", SocketAddr::new(host, port));
    let (v4, v6) = (IpAddr::from(mesh.c.v4()), IpAddr::from(mesh.c.v6()));
    for (option, url, version) in [
        ("--http1.1", url(v4, 8080, "hello.txt"), "1.1"),
        ("--http1.1", url(v6, 8080, "hello.txt"), "1.1"),
        ("--http2-prior-knowledge", url(v4, 8081, "hello.txt"), "2"),
    ] {
        let answer = run(
            &mesh.a,
            &["curl", "-sS", "--fail", option, "-w", "%{http_version}", &url],
        )
        .text();
        assert_eq!(answer, format!("hello from nginx\n{version}"));
    }
    let size = run(
        &mesh.a,
        &[
            "curl",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            &url(v4, 8080, "large.bin"),
        ],
    );
    assert_eq!(size.text(), "3000000");
    let report = run(
        &mesh.a,
        &[
            "wrk",
            "-t",
            "1",
            "-c",
            "16",
            "-d",
            "2s",
            &url(v4, 8080, "hello.txt"),
        ],
    )
    .text();
    assert!(report.contains("Requests/sec"), "{report}");
    assert!(
        !report.contains("Socket errors") && !report.contains("Non-2xx"),
        "{report}"
    );
    all_tunnelled(&mesh, &mesh.a, &mesh.c, 8080);
    let log = fs::read_to_string(folder.path().join("access.log")).unwrap();
    let clients = [mesh.a.v4().to_string(), mesh.a.v6().to_string()];
    assert!(
        log.lines()
            .all(|line| clients.iter().any(|client| line.starts_with(client))),
        "the pod's own address"
    );
}

#[test]
fn redis_serves_redis_benchmark() {
    let mesh = Mesh::new("redis");
    let words = [
        "redis-server",
        "--port",
        "6379",
        "--bind",
        "0.0.0.0",
        "--save",
        "",
        "--protected-mode",
        "no",
    ];
    let _server = mesh.c.spawn(command(&words)).unwrap();
    listening(&mesh.c, 6379);
    let host = mesh.c.v4().to_string();
    let report = run(
        &mesh.a,
        &[
            "redis-benchmark",
            "-h",
            &host,
            "-n",
            "5000",
            "-c",
            "20",
            "-t",
            "set,get,lpush",
            "--csv",
        ],
    );
    for test in ["\"SET\"", "\"GET\"", "\"LPUSH\""] {
        assert!(report.text().contains(test), "{test} in {}", report.text());
    }
    all_tunnelled(&mesh, &mesh.a, &mesh.c, 6379);
}

/// The folder of PostgreSQL's own programs, which Debian keeps out of the path.
fn postgres_programs() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    versions
        .map(|entry| entry.unwrap().path().join("bin"))
        .max()
        .expect("a version of PostgreSQL")
}

#[test]
fn postgresql_serves_pgbench() {
    let mesh = Mesh::new("postgres");
    let programs = postgres_programs();
    let program = |name: &str| programs.join(name).to_str().unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data").to_str().unwrap().to_owned();
    run_here(&["chmod", "755", folder.path().to_str().unwrap()]);
    run_here(&[
        "install", "-d", "-o", "postgres", "-g", "postgres", "-m", "700", &data,
    ]);
    let user = [
        "setpriv",
        "--reuid=postgres",
        "--regid=postgres",
        "--clear-groups",
        "--",
    ];
    let initdb = program("initdb");
    let made = command(
        &[
            &user[..],
            &[&initdb, "-D", &data, "-A", "trust", "-N", "--no-locale"],
        ]
        .concat(),
    )
    .current_dir("/")
    .output()
    .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let access = format!("{data}/pg_hba.conf");
    fs::write(&access, "host all all 0.0.0.0/0 trust\n").unwrap();
    let server = program("postgres");
    let words = [
        &user[..],
        &[&server, "-D", &data, "-k", "", "-h", "0.0.0.0", "-F"],
    ]
    .concat();
    let mut start = command(&words);
    start.current_dir("/");
    let _server = mesh.c.spawn(start).unwrap();
    listening(&mesh.c, 5432);
    let host = mesh.c.v4().to_string();
    let bench = program("pgbench");
    let common = ["-h", &host, "-U", "postgres", "postgres"];
    weir_lab::poll("the database to take connections", LONG, || {
        let words = [&[bench.as_str(), "-i", "-q", "-s", "1"], &common[..]].concat();
        Ok(mesh
            .a
            .run_for(command(&words), LONG)?
            .status
            .success()
            .then_some(()))
    })
    .unwrap();
    let report = run(
        &mesh.a,
        &[&[bench.as_str(), "-c", "4", "-t", "50"], &common[..]].concat(),
    )
    .text();
    assert!(
        report.contains("number of transactions actually processed: 200/200"),
        "{report}"
    );
    all_tunnelled(&mesh, &mesh.a, &mesh.c, 5432);
}

#[test]
fn iperf3_measures_both_directions_and_both_at_once() {
    let mesh = Mesh::new("iperf");
    let _server = mesh.c.spawn(command(&["iperf3", "-s", "-p", "5201"])).unwrap();
    listening(&mesh.c, 5201);
    for option in ["-4", "-R", "--bidir"] {
        let host = mesh.c.v4().to_string();
        let report = run(
            &mesh.a,
            &["iperf3", "-c", &host, "-p", "5201", "-t", "1", "-J", option],
        )
        .text();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert!(report.get("error").is_none(), "{option}: {report}");
        let bytes = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(bytes > 1_000_000, "{option}: {bytes} bytes");
    }
    all_tunnelled(&mesh, &mesh.a, &mesh.c, 5201);
}
