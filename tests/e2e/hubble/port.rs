//! The port with mutual TLS.

use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

/// Where the first agent serves, in its node's network namespace.
const ADDRESS: &str = "127.0.0.1:4244";
/// The name in its certificate.
const SERVER: &str = "node1.hubble.weir.dev";

/// An authority of the test, and what it issues, in files.
pub(super) struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap();
        std::fs::write(folder.join("ca.pem"), root.pem()).unwrap();
        Self {
            folder,
            issuer: Issuer::new(params, key),
        }
    }

    pub(super) fn path(&self, file: &str) -> String {
        self.folder.join(file).display().to_string()
    }

    /// A certificate with these names in `FILE.pem`, and its key in `FILE.key`.
    pub(super) fn issue(&self, file: &str, names: &[&str], is_expired: bool) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now - time::Duration::days(2);
        params.not_after = now + time::Duration::days(if is_expired { -1 } else { 1 });
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        weir_lab::replace_file(
            self.path(&format!("{file}.key")).as_ref(),
            key.serialize_pem().as_bytes(),
        )
        .unwrap();
        weir_lab::replace_file(
            self.path(&format!("{file}.pem")).as_ref(),
            certificate.pem().as_bytes(),
        )
        .unwrap();
    }
}

/// An authority that has issued the server's certificate.
pub(super) fn authority(folder: &Path) -> Authority {
    let own = Authority::new(folder, "own");
    own.issue(
        "server",
        &["node1.hubble.weir.dev", "node2.hubble.weir.dev"],
        false,
    );
    own
}

pub(super) fn section(own: &Authority) -> Value {
    json!({
        "address": "0.0.0.0:4244",
        "certificate": own.path("server.pem"), "key": own.path("server.key"), "roots": own.path("ca.pem"),
        "clients": [
            { "name": "ui.weir.dev" },
            { "name": "shop.weir.dev", "namespaces": ["shop"] },
            { "name": "cart.weir.dev", "namespaces": ["cart"] },
        ],
    })
}

/// What a client is answered that shows this certificate.
fn answers(mesh: &Mesh, trusted: &Authority, own: Option<(&Authority, &str)>, asked: &[Value]) -> Vec<Value> {
    let roots = trusted.path("ca.pem");
    let mut options = vec![
        "--roots".to_owned(),
        roots,
        "--name".to_owned(),
        SERVER.to_owned(),
    ];
    if let Some((own, file)) = own {
        let files = [own.path(&format!("{file}.pem")), own.path(&format!("{file}.key"))];
        let [certificate, key] = files;
        options.extend(["--certificate".to_owned(), certificate, "--key".to_owned(), key]);
    }
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    ask(mesh, ADDRESS, &options, asked)
}

#[test]
fn the_port_asks_for_a_certificate_of_somebody_who_may_ask() {
    let folder = tempfile::tempdir().unwrap();
    let own = authority(folder.path());
    let other = Authority::new(folder.path(), "other");
    for (file, name) in [
        ("ui", "ui.weir.dev"),
        ("shop", "shop.weir.dev"),
        ("cart", "cart.weir.dev"),
    ] {
        own.issue(file, &[name], false);
    }
    own.issue("nobody", &["nobody.weir.dev"], false);
    own.issue("unnamed", &[], false);
    own.issue("expired", &["ui.weir.dev"], true);
    other.issue("ui", &["ui.weir.dev"], false);
    let mesh = Mesh::with("hubport", |config| {
        if config.node == "node1" {
            config.hubble = Some(section(&own));
        }
    });
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    connect(&mesh.a, &mesh.c, 7000);
    let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);

    let status = [json!(["status"])];
    for stranger in [
        None,
        Some((&own, "nobody")),
        Some((&own, "unnamed")),
        Some((&own, "expired")),
        Some((&other, "ui")),
    ] {
        let answer = answers(&mesh, &own, stranger, &status);
        let name = stranger.map(|(_, file)| file);
        assert_eq!(
            answer[0]["refused"]["code"], "UNAVAILABLE",
            "{name:?}: {answer:?}"
        );
    }
    // Without TLS there is nothing.
    assert_eq!(
        ask(&mesh, ADDRESS, &[], &status)[0]["refused"]["code"],
        "UNAVAILABLE"
    );
}

/// What `weir flows` prints with a client's certificate, as JSON; its exit code if that is not 0.
fn flows(mesh: &Mesh, trusted: &Authority, own: (&Authority, &str)) -> Result<Vec<Value>, Option<i32>> {
    let (own, file) = own;
    let mut command = std::process::Command::new(weir_lab::program("weir").unwrap());
    command.args([
        "flows",
        "-o",
        "json",
        "--server",
        ADDRESS,
        "--tls-server-name",
        SERVER,
    ]);
    command.args(["--tls-ca", &trusted.path("ca.pem")]);
    command.args(["--tls-cert", &own.path(&format!("{file}.pem"))]);
    command.args(["--tls-key", &own.path(&format!("{file}.key"))]);
    let finished = mesh.lab.node("node1").unwrap().run(command).unwrap();
    if !finished.status.success() {
        return Err(finished.status.code());
    }
    Ok(weir_e2e::peers::json_lines(&finished))
}

#[test]
fn a_client_sees_its_namespaces_alone_and_certificates_are_replaced_under_way() {
    let folder = tempfile::tempdir().unwrap();
    let own = authority(folder.path());
    for (file, name) in [
        ("ui", "ui.weir.dev"),
        ("shop", "shop.weir.dev"),
        ("cart", "cart.weir.dev"),
    ] {
        own.issue(file, &[name], false);
    }
    let mesh = Mesh::with("hubsees", |config| {
        if config.node == "node1" {
            config.hubble = Some(section(&own));
        }
    });
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    connect(&mesh.a, &mesh.c, 7000);
    let _ = mesh.flow(&mesh.a, TrafficDirection::Egress, FlowEvent::Close, 7000);
    for (file, count) in [("ui", 2), ("shop", 2), ("cart", 0)] {
        assert_eq!(
            flows(&mesh, &own, (&own, file)).map(|all| all.len()),
            Ok(count),
            "{file}"
        );
    }

    // A new authority: what it issued is taken, and what the one before did not any more.
    let new = Authority::new(folder.path(), "new");
    new.issue("server", &[SERVER], false);
    new.issue("ui", &["ui.weir.dev"], false);
    for file in ["server.key", "server.pem", "ca.pem"] {
        let bytes = std::fs::read(new.path(file)).unwrap();
        weir_lab::replace_file(own.path(file).as_ref(), &bytes).unwrap();
    }
    assert_eq!(flows(&mesh, &new, (&new, "ui")).map(|all| all.len()), Ok(2));
    assert_eq!(flows(&mesh, &new, (&own, "ui")), Err(Some(1)));
    // What is no certificate is not taken; the one before stays.
    weir_lab::replace_file(own.path("server.pem").as_ref(), b"nonsense").unwrap();
    assert_eq!(flows(&mesh, &new, (&new, "ui")).map(|all| all.len()), Ok(2));
    let log = mesh.agents[0].log();
    assert!(log.contains("the one before stays"), "{log}");
}
