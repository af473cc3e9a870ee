//! Leaves and roots are replaced while traffic flows.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use weir_e2e::{Mesh, serve};
use weir_lab::{
    AgentConfig, Spawn as _,
    config::{CaConfig, CertificatesConfig},
};
use weir_tunnel::ca::CertificateAuthority;

/// The shortest lifetime that the agent takes; leaves are renewed at half of it.
const LIFETIME: Duration = Duration::from_secs(10);
/// Longer than the renewal of every leaf takes, on a busy machine.
const RENEWAL: Duration = Duration::from_secs(30);

struct Ca(PathBuf);

impl Ca {
    fn new(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        CertificateAuthority::open_or_create_dir(&folder, &"cluster.local".parse().unwrap()).unwrap();
        Self(folder)
    }

    fn certificate(&self) -> PathBuf {
        self.0.join("ca.crt")
    }

    /// Signs, and trusts another besides.
    fn signs(&self, also: Option<&Self>) -> CaConfig {
        CaConfig::Files {
            certificate: self.certificate(),
            key: self.0.join("ca.key"),
            roots: also.map(Self::certificate).into_iter().collect(),
        }
    }
}

fn serials(mesh: &Mesh) -> Vec<String> {
    let certificates = mesh
        .agents
        .iter()
        .flat_map(|agent| agent.status().unwrap().certificates);
    certificates.map(|certificate| certificate.serial).collect()
}

/// Waits until no certificate is one of these.
fn renewed(mesh: &Mesh, old: &[String]) {
    weir_lab::poll("every certificate renewed", RENEWAL, || {
        let now = serials(mesh);
        Ok((now.len() == 4 && now.iter().all(|serial| !old.contains(serial))).then_some(()))
    })
    .unwrap();
}

#[test]
fn leaves_and_roots_rotate_under_traffic_without_one_failed_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Ca::new(folder.path(), "old"), Ca::new(folder.path(), "new"));
    let mut mesh = Mesh::with("rotate", |config| {
        config.certificates = Some(CertificatesConfig {
            lifetime: format!("{}s", LIFETIME.as_secs()),
        });
        config.ca = Some(old.signs(None));
    });
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    // Fails at the first connection that fails.
    let endless = ["echo-client", &to, "--connections", "1000000", "--pause-ms", "5"];
    let mut traffic = mesh.a.testapp(endless).unwrap();

    // Leaves: by time.
    let first = serials(&mesh);
    renewed(&mesh, &first);

    // Roots: both trusted, then the new one signs, then the old one goes.
    let reload = |mesh: &mut Mesh, ca: CaConfig| {
        let change = |config: &mut AgentConfig| config.ca = Some(ca.clone());
        for agent in &mut mesh.agents {
            assert_eq!(agent.reload(change).unwrap().config.rejected, None);
        }
    };
    reload(&mut mesh, old.signs(Some(&new)));
    let roots = |mesh: &Mesh| {
        mesh.agents
            .iter()
            .map(|agent| agent.status().unwrap().roots.len())
            .collect::<Vec<_>>()
    };
    assert_eq!(roots(&mesh), [2, 2]);
    let before = serials(&mesh);
    reload(&mut mesh, new.signs(Some(&old)));
    renewed(&mesh, &before);
    // As long as the documentation says: a tunnel may still be that of a leaf of the old root.
    let switched = std::time::Instant::now();
    weir_lab::poll("a lifetime to pass", 2 * LIFETIME, || {
        Ok((switched.elapsed() > LIFETIME).then_some(()))
    })
    .unwrap();
    reload(&mut mesh, new.signs(None));
    assert_eq!(roots(&mesh), [1, 1]);
    let before = serials(&mesh);
    renewed(&mesh, &before);

    let wrong: Vec<_> = mesh
        .agents
        .iter()
        .flat_map(|agent| agent.flows().unwrap())
        .filter(|flow| flow.reason != weir_types::Reason::None)
        .collect();
    assert!(
        traffic.ended().unwrap().is_none(),
        "a connection failed: {}; {wrong:?}",
        traffic.stderr()
    );
    let made = mesh.agent(&mesh.a).metrics().unwrap();
    assert!(!made.contains("weir_connections_refused_total{"), "{made}");
}

#[test]
fn a_peer_whose_root_is_no_longer_trusted_is_cut_off_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (Ca::new(folder.path(), "old"), Ca::new(folder.path(), "new"));
    let mut mesh = Mesh::with("cutoff", |config| config.ca = Some(old.signs(None)));
    let (_server, _) = serve(&mesh.c, ["echo-server", "--port", "7000"]);
    let to = format!("{}:7000", mesh.c.v4());
    let held = mesh
        .a
        .testapp([
            "connect",
            &to,
            "--send",
            "x",
            "--read",
            "2",
            "--timeout-ms",
            "20000",
        ])
        .unwrap();
    let _ = mesh.flow(
        &mesh.c,
        weir_types::TrafficDirection::Ingress,
        weir_types::FlowEvent::Open,
        7000,
    );
    let agent = mesh
        .agents
        .iter_mut()
        .find(|agent| agent.node() == "node2")
        .unwrap();
    agent.reload(|config| config.ca = Some(new.signs(None))).unwrap();
    let line = held.wait(weir_lab::PATIENCE).unwrap().json().unwrap();
    assert_eq!(line["end"], "ECONNRESET", "{line}");
    let flow = mesh.flow(
        &mesh.c,
        weir_types::TrafficDirection::Ingress,
        weir_types::FlowEvent::Close,
        7000,
    );
    assert_eq!(flow.reason, weir_types::Reason::TrustEnded, "{flow:?}");
}
