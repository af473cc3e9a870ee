//! The certificate authority's folder and files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failed assertion is what a test is for"
)]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use rcgen::{CertificateParams, DnType, IsCa, KeyPair};
use support::*;
use weir_tunnel::ca::{CaError, CertificateAuthority, Issuer as _};
use x509_parser::prelude::*;

#[test]
fn agents_that_start_together_share_one_authority() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("ca");
    let fingerprints: Vec<_> = std::thread::scope(|scope| {
        let open = || {
            CertificateAuthority::open_or_create_dir(&dir, &domain())
                .unwrap()
                .fingerprint()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(fingerprints.iter().all(|one| *one == fingerprints[0]));
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("ca.key")), 0o600);
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    CertificateAuthority::open_or_create_dir(folder.path(), &domain()).unwrap();
    let key = folder.path().join("ca.key");
    for mode in [0o640, 0o604, 0o660] {
        fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
        let error = CertificateAuthority::open_or_create_dir(folder.path(), &domain()).unwrap_err();
        assert!(
            matches!(error, CaError::KeyExposed { mode: found, .. } if found == mode),
            "{error}"
        );
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn half_an_authority_is_neither_used_nor_replaced() {
    for (lost, kept) in [("ca.crt", "ca.key"), ("ca.key", "ca.crt")] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        CertificateAuthority::open_or_create_dir(folder.path(), &domain()).unwrap();
        fs::remove_file(path(lost)).unwrap();
        let before = fs::read(path(kept)).unwrap();
        for result in [
            CertificateAuthority::open_or_create_dir(folder.path(), &domain()),
            CertificateAuthority::open_dir(folder.path(), &[]),
        ] {
            let error = result.unwrap_err();
            assert!(
                matches!(&error, CaError::Incomplete { missing, .. } if *missing == path(lost)),
                "{error}"
            );
        }
        assert_eq!(fs::read(path(kept)).unwrap(), before);
        assert!(!path(lost).exists());
    }
}

#[test]
fn opening_a_folder_makes_nothing_and_trusts_more_roots() {
    let folder = tempfile::tempdir().unwrap();
    let error = CertificateAuthority::open_dir(folder.path(), &[]).unwrap_err();
    assert!(matches!(error, CaError::Read { .. }), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    let made = CertificateAuthority::open_or_create_dir(folder.path(), &domain()).unwrap();
    let extra = folder.path().join("extra.crt");
    fs::write(&extra, root("extra").pem()).unwrap();
    let opened = CertificateAuthority::open_dir(folder.path(), &[extra]).unwrap();
    assert_eq!(opened.fingerprint(), made.fingerprint());
    assert_eq!(opened.roots().len(), 2);
}

#[test]
fn a_folder_that_others_may_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    CertificateAuthority::open_or_create_dir(folder.path(), &domain()).unwrap();
    for mode in [0o770, 0o702, 0o1777] {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        for result in [
            CertificateAuthority::open_or_create_dir(folder.path(), &domain()),
            CertificateAuthority::open_dir(folder.path(), &[]),
        ] {
            let error = result.unwrap_err();
            assert!(
                matches!(error, CaError::Writable { mode: found, .. } if found == mode),
                "{error}"
            );
        }
    }
}

#[test]
fn a_folder_or_key_of_another_user_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("ca.key");
    CertificateAuthority::open_or_create_dir(folder.path(), &domain()).unwrap();
    for path in [key.as_path(), folder.path()] {
        if std::os::unix::fs::chown(path, Some(4711), None).is_err() {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        let error = CertificateAuthority::open_dir(folder.path(), &[]).unwrap_err();
        assert!(
            matches!(&error, CaError::Owner { path: found, owner: 4711, .. } if found == path),
            "{error}"
        );
        std::os::unix::fs::chown(path, Some(0), None).unwrap();
    }
}

#[test]
fn a_certificate_has_one_name_and_ends_with_its_authority() {
    let now = SystemTime::now();
    let authority = CertificateAuthority::generate(&domain(), now, Duration::from_secs(1000)).unwrap();
    let issued = authority
        .issue_at(&identity("web"), Duration::from_secs(24 * 3600), now)
        .unwrap();
    assert_eq!(issued.not_after, authority.not_after());
    assert!(issued.not_before < now, "backdated");
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "RFC 5280 section 4.1.2.6: the subject is empty");
    assert_eq!(
        names.value.general_names,
        vec![GeneralName::URI("spiffe://mesh.test/ns/shop/sa/web")]
    );
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any);
    assert_eq!(leaf.raw_serial_as_string().replace(':', ""), *issued.serial);
    let second = authority
        .issue_at(&identity("web"), Duration::from_secs(60), now)
        .unwrap();
    assert_ne!(second.serial, issued.serial);
    let late = now + Duration::from_secs(1001);
    assert!(matches!(
        authority.issue_at(&identity("web"), Duration::from_secs(1), late),
        Err(CaError::Expired)
    ));
}

#[tokio::test]
async fn an_intermediate_authority_sends_its_chain_and_trusts_the_root() {
    let root = root("offline root");
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let pair = KeyPair::generate().unwrap();
    let intermediate = params.signed_by(&pair, &**root).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("ca.crt"), intermediate.pem()).unwrap();
    fs::write(path("root.crt"), root.pem()).unwrap();
    fs::write(path("ca.key"), pair.serialize_pem()).unwrap();
    fs::set_permissions(path("ca.key"), fs::Permissions::from_mode(0o600)).unwrap();

    let error = CertificateAuthority::from_files(&path("ca.crt"), &path("ca.key"), &[]).unwrap_err();
    assert!(matches!(error, CaError::NoRoot { .. }), "{error}");
    let authority =
        CertificateAuthority::from_files(&path("ca.crt"), &path("ca.key"), &[path("root.crt")]).unwrap();
    let store = store(authority);
    let server = TestServer::start(&store).await;
    let (_listener, address) = application().await;
    open(&pool(&store), server.address, address).await.unwrap();
    let other_root_alone = support::store(TestIssuer::new(&root, |_| {}));
    open(&pool(&other_root_alone), server.address, address)
        .await
        .unwrap();
}

#[test]
fn files_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    for dir in [&a, &b] {
        CertificateAuthority::open_or_create_dir(dir, &domain()).unwrap();
    }
    let error = CertificateAuthority::from_files(&a.join("ca.crt"), &b.join("ca.key"), &[]).unwrap_err();
    assert!(matches!(error, CaError::KeyMismatch { .. }), "{error}");
    let error = CertificateAuthority::from_files(&a.join("none"), &b.join("ca.key"), &[]).unwrap_err();
    assert!(
        matches!(error, CaError::Read { .. }) && error.to_string().contains("none"),
        "{error}"
    );
    let error = CertificateAuthority::from_files(&a.join("ca.key"), &b.join("ca.key"), &[]).unwrap_err();
    assert!(matches!(error, CaError::NoCertificate { .. }), "{error}");
    let error = CertificateAuthority::from_files(&a.join("ca.crt"), &a.join("ca.lock"), &[]).unwrap_err();
    assert!(matches!(error, CaError::MalformedKey { .. }), "{error}");
}
