//! What OpenSSL, which shares no line with us, says of our certificates, lists and chains.

use std::{
    path::Path,
    process::{Command, Output},
};

use jiff::Timestamp;
use rustls_pki_types::CertificateRevocationListDer;
use tempfile::TempDir;
use weir_control::ca::{InForce, NextAuthority, Phase, Reason, Source};

use crate::world::{DAY, Operators, World, issue};

pub(crate) fn is_there() -> bool {
    let there = Command::new("openssl").arg("version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: there is no openssl, so nobody but webpki has looked at the certificates");
    }
    there
}

pub(crate) fn openssl(dir: &Path, arguments: &[&str]) -> Output {
    Command::new("openssl")
        .current_dir(dir)
        .args(arguments)
        .output()
        .unwrap()
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// A leaf, its intermediates and its roots as files, by the answer that an agent would get.
fn write(dir: &Path, in_force: &InForce) -> weir_control::ca::Certified {
    let certified = issue(in_force, "web", DAY, Timestamp::now());
    let answer = in_force.answer(&certified);
    let [leaf, intermediates @ .., roots] = answer.as_slice() else {
        panic!("{answer:?}");
    };
    std::fs::write(dir.join("leaf.pem"), leaf).unwrap();
    std::fs::write(dir.join("chain.pem"), format!("{leaf}{}", intermediates.concat())).unwrap();
    std::fs::write(dir.join("roots.pem"), roots).unwrap();
    certified
}

fn write_list(dir: &Path, list: &CertificateRevocationListDer<'_>) {
    std::fs::write(dir.join("list.der"), list).unwrap();
    let to_pem = ["crl", "-inform", "DER", "-in", "list.der", "-out", "list.pem"];
    assert!(openssl(dir, &to_pem).status.success());
}

fn verify(dir: &Path, more: &[&str]) -> Output {
    let mut arguments = vec![
        "verify",
        "-x509_strict",
        "-CAfile",
        "roots.pem",
        "-untrusted",
        "chain.pem",
    ];
    arguments.extend(more);
    arguments.push("leaf.pem");
    openssl(dir, &arguments)
}

#[tokio::test]
async fn openssl_accepts_what_we_issue_and_refuses_what_is_revoked() {
    if !is_there() {
        return;
    }
    for (source, purposes) in [
        (Source::Own, ["sslserver", "sslclient"]),
        (Source::Given, ["sslserver", "sslclient"]),
    ] {
        let world = World::new().await;
        if source == Source::Given {
            world.create(&Operators::new().data()).await;
        }
        let replica = world.start(source);
        let in_force = replica.in_force().await;
        let dir = TempDir::new().unwrap();
        let certified = write(dir.path(), &in_force);
        write_list(
            dir.path(),
            &in_force.revocation_lists(Timestamp::now()).unwrap()[0],
        );
        for purpose in purposes {
            let output = verify(dir.path(), &["-purpose", purpose]);
            assert!(output.status.success(), "{source:?} {purpose}: {}", text(&output));
        }
        let with_list = ["-crl_check", "-CRLfile", "list.pem"];
        let output = verify(dir.path(), &with_list);
        assert!(output.status.success(), "{source:?}: {}", text(&output));
        let printed = text(&openssl(
            dir.path(),
            &["x509", "-in", "leaf.pem", "-noout", "-text"],
        ));
        assert!(
            printed.contains("Subject Alternative Name: critical"),
            "{printed}"
        );
        assert!(
            printed.contains("URI:spiffe://cluster.local/ns/shop/sa/web\n"),
            "{printed}"
        );
        assert!(printed.contains("CA:FALSE"), "{printed}");

        let serial = certified.serial.parse().unwrap();
        let now = Timestamp::now();
        world
            .operations()
            .revoke_serial(serial, Reason::KeyCompromise, now)
            .await
            .unwrap();
        let in_force = replica
            .until("revoked", |it| !it.revoked().serials.is_empty())
            .await;
        write_list(dir.path(), &in_force.revocation_lists(now).unwrap()[0]);
        let output = verify(dir.path(), &with_list);
        assert!(
            !output.status.success() && text(&output).contains("revoked"),
            "{source:?}: {}",
            text(&output)
        );
        let printed = text(&openssl(
            dir.path(),
            &["crl", "-in", "list.pem", "-noout", "-text"],
        ));
        assert!(
            printed.contains("Key Compromise") && printed.contains("CRL Number"),
            "{printed}"
        );
    }
}

#[tokio::test]
async fn openssl_finds_its_way_between_two_roots() {
    if !is_there() {
        return;
    }
    let world = World::new().await;
    let replica = world.start(Source::Own);
    let old = replica.in_force().await;
    let operations = world.operations();
    operations
        .begin(NextAuthority::Generate, Timestamp::now())
        .await
        .unwrap();
    operations.activate(Timestamp::now(), true).await.unwrap();
    let new = replica
        .until("activated", |it| it.rotation().0 == Phase::Activated)
        .await;
    let dir = TempDir::new().unwrap();
    write(dir.path(), &old);
    std::fs::write(dir.path().join("roots.pem"), new.roots_pem()).unwrap();
    let output = verify(dir.path(), &[]);
    assert!(output.status.success(), "the old one's: {}", text(&output));
    write(dir.path(), &new);
    let output = verify(dir.path(), &[]);
    assert!(output.status.success(), "the new one's: {}", text(&output));
    std::fs::write(dir.path().join("roots.pem"), old.roots_pem()).unwrap();
    assert!(
        !verify(dir.path(), &[]).status.success(),
        "the new one's under the old root"
    );
}
