//! The root of a mesh with a control plane is rotated under traffic.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use weir_control::ca::{AuthoritySecret, NextAuthority, SecretError, SecretName};
use weir_e2e::{cluster::Cluster, direct::at, serve};
use weir_lab::{PATIENCE, Spawn as _, config::CertificatesConfig, poll};

/// Of leaf certificates here, so that one renews every five seconds.
const LIFETIME: Duration = Duration::from_secs(10);

fn authority(client: kube::Client) -> AuthoritySecret {
    let name = SecretName {
        namespace: "weir-authority".to_owned(),
        name: "weir-authority".to_owned(),
    };
    let domain: weir_types::TrustDomain = "cluster.local".parse().unwrap();
    AuthoritySecret::new(client, name, domain)
}

/// Roots that each agent trusts.
fn roots(cluster: &Cluster) -> Vec<usize> {
    let agents = cluster.agents.iter();
    agents.map(|agent| agent.status().unwrap().roots.len()).collect()
}

fn wait_roots(cluster: &Cluster, wanted: usize) {
    let what = format!("{wanted} roots");
    poll(&what, PATIENCE, || {
        Ok(roots(cluster).iter().all(|count| *count == wanted).then_some(()))
    })
    .unwrap();
}

fn serials(cluster: &Cluster) -> Vec<String> {
    let agents = cluster.agents.iter();
    let all = agents.flat_map(|agent| agent.status().unwrap().certificates);
    all.map(|certificate| certificate.serial).collect()
}

/// Waits until no certificate of before is in use, and then for as long as one may still live.
fn outlive(cluster: &Cluster) {
    let before = serials(cluster);
    poll("other certificates", 2 * LIFETIME, || {
        Ok(serials(cluster)
            .iter()
            .all(|serial| !before.contains(serial))
            .then_some(()))
    })
    .unwrap();
    let renewed = Instant::now();
    poll("a lifetime to pass", 2 * LIFETIME, || {
        Ok((renewed.elapsed() > LIFETIME).then_some(()))
    })
    .unwrap();
}

#[test]
fn the_control_planes_root_rotates_under_traffic_without_one_failed_connection() {
    let mut cluster = Cluster::with("caroot", &[], |config| {
        config.certificates = Some(CertificatesConfig {
            lifetime: format!("{}s", LIFETIME.as_secs()),
        });
    });
    let client = cluster.pod("node1", "shop", "a");
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&client, &server]);
    let _server = serve(&server, ["echo-server", "--port", "7000"]);
    let to = at(server.v4(), 7000);
    // Fails at the first connection that fails.
    let endless = ["echo-client", &to, "--connections", "1000000", "--pause-ms", "5"];
    let mut traffic = client.testapp(endless).unwrap();
    wait_roots(&cluster, 1);
    let now = Timestamp::now;
    let begun = cluster.attempt(async |client| authority(client).begin(NextAuthority::Generate, now()).await);
    begun.unwrap();
    wait_roots(&cluster, 2);
    let activate = |force| cluster.attempt(async |client| authority(client).activate(now(), force).await);
    let early = activate(false);
    assert!(
        matches!(early, Err(SecretError::Rotation(_))),
        "agents may not know the new root yet: {early:?}"
    );
    activate(true).unwrap();
    cluster.fetch_roots();
    outlive(&cluster);
    let retired = cluster.attempt(async |client| authority(client).retire(now(), true).await);
    retired.unwrap();
    cluster.fetch_roots();
    wait_roots(&cluster, 1);
    // The control plane comes back with a certificate of the new root.
    cluster.stop_control();
    cluster.start_control();
    outlive(&cluster);
    assert!(
        traffic.ended().unwrap().is_none(),
        "a connection failed: {}",
        traffic.stderr()
    );
    for agent in &cluster.agents {
        let metrics = agent.metrics().unwrap();
        assert!(!metrics.contains("weir_connections_refused_total{"), "{metrics}");
    }
}

#[test]
fn what_is_revoked_is_cut_off_at_once_and_others_go_on() {
    let mut cluster = Cluster::new("revoke");
    let bad = cluster.pod("node1", "shop", "a");
    let good = cluster.pod("node1", "shop", "b");
    let server = cluster.pod("node2", "shop", "c");
    cluster.wait_enrolled(&[&bad, &good, &server]);
    let _server = serve(&server, ["echo-server", "--port", "7000"]);
    let to = at(server.v4(), 7000);
    let reaches = |pod: &weir_lab::Pod| pod.run_testapp(["echo-client", &to]).unwrap().success().is_ok();
    assert!(reaches(&bad) && reaches(&good));
    let mut open = bad
        .testapp([
            "connect",
            &to,
            "--send",
            "x",
            "--read-all",
            "--timeout-ms",
            "60000",
        ])
        .unwrap();
    let untouched = ["echo-client", &to, "--connections", "1000000", "--pause-ms", "5"];
    let mut untouched = good.testapp(untouched).unwrap();

    // An identity: its certificates count for nothing any more, and it gets no others.
    let identity: weir_types::Identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
    let now = Timestamp::now;
    let revoke = |cluster: &Cluster, on: bool| {
        let changed = cluster.attempt(async |client| {
            let change = |revoked: &mut weir_control::ca::Revoked| {
                if on {
                    return revoked.add_identity(identity.clone(), now());
                }
                revoked.remove_identity(&identity);
                Ok(())
            };
            authority(client).revoke(now(), change).await
        });
        changed.unwrap();
    };
    revoke(&cluster, true);
    poll("the revoked identity's open connection ends", PATIENCE, || {
        Ok(open.ended().unwrap().map(drop))
    })
    .unwrap();
    assert!(!reaches(&bad), "a revoked identity still gets through");
    assert!(reaches(&good));
    let agent = &cluster.agents[1];
    agent
        .wait_flow("refused as revoked", |flow| {
            flow.reason == weir_types::Reason::CertificateRevoked
        })
        .unwrap();
    revoke(&cluster, false);
    poll("the identity is back", PATIENCE, || {
        Ok(reaches(&bad).then_some(()))
    })
    .unwrap();

    // One certificate: the next one of the same identity is trusted.
    let serial = agent_serial(&cluster, "a");
    let revoked = cluster.attempt(async |client| {
        let serial = serial.parse().unwrap();
        authority(client)
            .revoke_serial(serial, weir_control::ca::Reason::KeyCompromise, now())
            .await
    });
    revoked.unwrap();
    poll("the revoked certificate is refused", PATIENCE, || {
        Ok((!reaches(&bad)).then_some(()))
    })
    .unwrap();
    assert!(untouched.ended().unwrap().is_none(), "{}", untouched.stderr());
}

/// The serial number of an identity's certificate at the first node's agent.
fn agent_serial(cluster: &Cluster, account: &str) -> String {
    let status = cluster.agents[0].status().unwrap();
    let mut certificates = status.certificates.into_iter();
    let of = certificates.find(|one| one.identity.service_account() == account);
    of.unwrap().serial
}
