//! The shop's servers and clients: the lab's own, and nginx, curl and redis where they are installed.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};
use weir_lab::{Finished, Lab, PATIENCE, Pod, Process, Spawn as _, poll};

use super::{CART_V4, CART_V6, Shop};
use crate::narrator::Narrator;

/// Ports of the servers.
pub(super) const HTTP: u16 = 8080;
const NGINX: u16 = 8081;
const ECHO: u16 = 7000;
const BULK: u16 = 7001;
const REDIS: u16 = 6379;

/// Starts the servers and waits until they listen.
pub(super) fn start_servers(lab: &Lab, shop: &Shop, canary: &str) -> Result<Vec<Process>> {
    let mut servers = Vec::new();
    for (pod, program, port) in [
        (&shop.cart, "http-server", HTTP),
        (&shop.checkout, "http-server", HTTP),
        (&shop.store, "echo-server", ECHO),
        (&shop.store, "bulk-server", BULK),
    ] {
        let port = port.to_string();
        let mut arguments = vec![program, "--port", &port, "--dual-stack"];
        if program == "http-server" {
            arguments.extend(["--text", canary]);
        }
        let server = pod.testapp(arguments)?;
        server.wait_listening()?;
        servers.push(server);
    }
    if installed("nginx") && installed("curl") {
        servers.push(nginx(lab, &shop.cart, canary)?);
    }
    if installed("redis-server") && installed("redis-cli") {
        servers.push(redis(lab, &shop.store)?);
    }
    Ok(servers)
}

/// Runs every client. Gives what failed.
pub(super) fn run(shop: &Shop, canary: &str, tell: Narrator) -> Vec<String> {
    let (cart, store) = (&shop.cart, &shop.store);
    let post = |url: String| {
        [
            "http-client".to_owned(),
            url,
            "--requests=3".to_owned(),
            format!("--body={canary}"),
        ]
    };
    let v4 = std::net::Ipv4Addr::from(CART_V4);
    let v6 = std::net::Ipv6Addr::from(CART_V6);
    let bulk = |to: String| {
        [
            "bulk-client".to_owned(),
            to,
            "--bytes=20000000".to_owned(),
            "--both".to_owned(),
        ]
    };
    let echo = |to: String| {
        [
            "echo-client".to_owned(),
            to,
            "--bytes=100000".to_owned(),
            format!("--text={canary}"),
        ]
    };
    let own = [
        (
            "HTTP to a service address",
            &shop.frontend,
            post(format!("http://{v4}:80/")),
        ),
        (
            "HTTP to the service's IPv6 address",
            &shop.frontend,
            post(format!("http://[{v6}]:80/")),
        ),
        (
            "HTTP to a pod's address",
            &shop.checkout,
            post(format!("http://{}:{HTTP}/", cart.v4())),
        ),
        (
            "HTTP to a pod of the same node",
            &shop.frontend,
            post(format!("http://{}:{HTTP}/", shop.checkout.v4())),
        ),
        ("TCP echo", &shop.checkout, echo(format!("{}:{ECHO}", store.v4()))),
        (
            "TCP echo over IPv6",
            &shop.checkout,
            echo(format!("[{}]:{ECHO}", store.v6())),
        ),
        (
            "20 MB both ways at once",
            &shop.checkout,
            bulk(format!("{}:{BULK}", store.v4())),
        ),
        (
            "20 MB from the store's neighbour",
            cart,
            bulk(format!("{}:{BULK}", store.v4())),
        ),
    ];
    let mut failures = Vec::new();
    let mut note = |what: &str, done: Result<Finished>| {
        if let Err(error) = done.and_then(Finished::success) {
            failures.push(format!("{what}: {error:#}"));
        }
    };
    for (what, pod, arguments) in own {
        tell.say(format!("# {what}"));
        note(what, pod.run_testapp(arguments));
    }
    if installed("nginx") && installed("curl") {
        tell.say("# curl to nginx");
        let url = format!("http://{}:{NGINX}/", cart.v4());
        let got = shop.frontend.run(command(
            "curl",
            &["--silent", "--show-error", "--max-time", "10", &url],
        ));
        note("curl to nginx", got.and_then(|done| holds(done, canary)));
    } else {
        tell.say("# nginx and curl are not installed: left out");
    }
    if installed("redis-server") && installed("redis-cli") {
        tell.say("# redis-cli and redis-benchmark");
        let host = store.v4().to_string();
        note(
            "redis SET",
            shop.frontend
                .run(command("redis-cli", &["-h", &host, "SET", "demo", canary])),
        );
        let got = shop
            .frontend
            .run(command("redis-cli", &["-h", &host, "GET", "demo"]));
        note("redis GET", got.and_then(|done| holds(done, canary)));
        if installed("redis-benchmark") {
            let many = ["-h", &host, "-c", "8", "-n", "2000", "-t", "set,get", "-q"];
            note(
                "redis-benchmark",
                shop.checkout.run(command("redis-benchmark", &many)),
            );
        }
    } else {
        tell.say("# redis is not installed: left out");
    }
    failures
}

fn nginx(lab: &Lab, pod: &Pod, canary: &str) -> Result<Process> {
    let folder = lab.folder().join("nginx");
    fs::create_dir(&folder)?;
    fs::write(folder.join("index.html"), format!("{canary}\n"))?;
    let at = folder.display();
    let config = format!(
        "daemon off; user root; worker_processes 1; pid {at}/pid; error_log stderr;
         events {{ worker_connections 512; }}
         http {{
           access_log off;
           client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;
           uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;
           server {{ listen {NGINX}; listen [::]:{NGINX}; root {at}; }}
         }}"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, config)?;
    let server = pod.spawn(command(
        "nginx",
        &["-c", &file.display().to_string(), "-e", "stderr"],
    ))?;
    wait_port(pod, NGINX).context("nginx")?;
    Ok(server)
}

fn redis(lab: &Lab, pod: &Pod) -> Result<Process> {
    let port = REDIS.to_string();
    let folder = lab.folder().display().to_string();
    let options = [
        "--port",
        &port,
        "--bind",
        "*",
        "-::*",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        &folder,
    ];
    let server = pod.spawn(command("redis-server", &options))?;
    wait_port(pod, REDIS).context("redis")?;
    Ok(server)
}

/// Waits until something listens in the pod. Looks instead of connecting, which would be a flow.
fn wait_port(pod: &Pod, port: u16) -> Result<()> {
    poll(&format!("something to listen on port {port}"), PATIENCE, || {
        let table = pod.inside(|| Ok(fs::read_to_string("/proc/thread-self/net/tcp")?))?;
        // Local address and port in hexadecimal; state 0A is LISTEN.
        let listening = format!(":{port:04X} 00000000:0000 0A ");
        Ok(table.contains(&listening).then_some(()))
    })
}

fn holds(done: Finished, text: &str) -> Result<Finished> {
    let done = done.success()?;
    ensure!(done.text().contains(text), "other contents: {:?}", done.text());
    Ok(done)
}

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}
