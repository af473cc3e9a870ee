//! The authority's Secret: who makes it, what comes into force, and operations on it.

use jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use rcgen::{KeyUsagePurpose, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, SerialNumber};
use serde_json::json;
use weir_api_server::eventually;
use weir_control::ca::{
    Material, NextAuthority, Phase, Reason, RotationError, SecretError, Serial, Source, WAIT,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    verify::verify,
    world::{DAY, Operators, SECRET, World, certificates, chain, identity, issue},
};

fn now() -> Timestamp {
    Timestamp::now()
}

#[tokio::test]
async fn replicas_that_start_at_once_have_one_root() {
    let world = World::new().await;
    let replicas: Vec<_> = (0..8).map(|_| world.start(Source::Own)).collect();
    let mut roots = Vec::new();
    for replica in &replicas {
        roots.push(replica.in_force().await.roots_pem().to_owned());
        assert_eq!(replica.keys.problem(), None);
    }
    roots.dedup();
    assert_eq!(roots.len(), 1);
    let data = world.data().await;
    assert_eq!(
        String::from_utf8(data["ca.crt"].clone()).unwrap().trim(),
        roots[0].trim()
    );
    // What one issues, the others' agents accept.
    let one = issue(&*replicas[0].in_force().await, "web", DAY, now());
    let other = replicas[7].in_force().await;
    verify(&chain(&one), other.roots(), &[], now()).unwrap();
    // A replica that starts later makes nothing.
    drop(replicas);
    let later = world.start(Source::Own);
    assert_eq!(later.in_force().await.roots_pem(), roots[0]);
}

#[tokio::test]
async fn a_given_authority_is_waited_for_and_a_changed_one_taken() {
    let world = World::new().await;
    let replica = world.start(Source::Given);
    eventually("it says that there is no Secret", || async {
        replica
            .keys
            .problem()
            .filter(|problem| problem.contains("not there yet"))
    })
    .await;
    assert!(
        world.secrets().get_opt(SECRET).await.unwrap().is_none(),
        "nothing is made"
    );
    assert_eq!(replica.metric("weir_ca_problem"), Some(1.0));
    assert_eq!(replica.metric("weir_ca_root_expires_seconds"), None);
    let first = Operators::new();
    world.create(&first.data()).await;
    let in_force = replica.in_force().await;
    let certified = issue(&in_force, "web", DAY, now());
    assert_eq!(certified.intermediates, certificates(&first.intermediate));
    verify(&chain(&certified), &certificates(&first.root), &[], now()).unwrap();
    let answer = in_force.answer(&certified);
    assert_eq!(answer.len(), 3, "leaf, intermediate, roots");
    assert_eq!(certificates(&answer[2]), certificates(&first.root));
    // cert-manager renews, by another root.
    let second = Operators::new();
    world.patch(&second.data()).await;
    let in_force = replica
        .until("the new one", |it| it.roots() == certificates(&second.root))
        .await;
    verify(
        &chain(&issue(&in_force, "web", DAY, now())),
        &certificates(&second.root),
        &[],
        now(),
    )
    .unwrap();
    eventually("no problem", || async {
        replica.keys.problem().is_none().then_some(())
    })
    .await;
    assert!(replica.metric("weir_ca_authority_expires_seconds").unwrap() > 1e9);
}

#[tokio::test]
async fn authorities_with_keys_of_all_kinds_are_taken() {
    let world = World::new().await;
    let replica = world.start(Source::Given);
    let first = Operators::new();
    world.create(&first.data()).await;
    for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519, &PKCS_RSA_SHA256] {
        let next = Operators::with(algorithm, |_| {});
        world.patch(&next.data()).await;
        let in_force = replica
            .until("the next one", |it| it.roots() == certificates(&next.root))
            .await;
        let certified = issue(&in_force, "web", DAY, now());
        let lists = in_force.revocation_lists(now()).unwrap();
        verify(&chain(&certified), in_force.roots(), &lists, now()).unwrap();
    }
}

#[tokio::test]
async fn contents_that_are_not_fit_leave_the_old_authority_in_force_and_are_reported() {
    let world = World::new().await;
    let replica = world.start(Source::Given);
    let good = Operators::new();
    world.create(&good.data()).await;
    let before = replica.in_force().await;
    let other = Operators::new();
    let leaf = Operators::with(&PKCS_ED25519, |params| params.is_ca = rcgen::IsCa::ExplicitNoCa);
    let expired = Operators::with(&PKCS_ED25519, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    });
    let no_signer = Operators::with(&PKCS_ED25519, |params| {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    let constrained = Operators::with(&PKCS_ED25519, |params| {
        params.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.com".to_owned())],
            excluded_subtrees: vec![rcgen::GeneralSubtree::DnsName(String::new())],
        });
    });
    let mut rejected = 0.0;
    for (case, data, words) in [
        (
            "another's key",
            vec![("tls.key", other.key.as_str())],
            "not that of the first certificate",
        ),
        (
            "nonsense",
            vec![("tls.crt", "nonsense"), ("tls.key", good.key.as_str())],
            "no certificate",
        ),
        (
            "another root",
            vec![("tls.crt", &*good.intermediate), ("ca.crt", &*other.root)],
            "does not verify",
        ),
        ("no authority", leaf.data().to_vec(), "not one of an authority"),
        ("expired", expired.data().to_vec(), "has expired"),
        (
            "may not sign",
            no_signer.data().to_vec(),
            "not one of an authority",
        ),
    ] {
        world.patch(&data).await;
        let problem = eventually(case, || async {
            replica.keys.problem().filter(|problem| problem.contains(words))
        })
        .await;
        for key in [&good.key, &other.key] {
            let line = key.lines().nth(1).unwrap();
            assert!(!problem.contains(line), "{case}: a key is in {problem:?}");
        }
        assert!(
            replica.metric("weir_ca_secret_rejected_total").unwrap() > rejected,
            "{case}"
        );
        rejected = replica.metric("weir_ca_secret_rejected_total").unwrap();
        assert_eq!(replica.in_force().await.roots(), before.roots(), "{case}");
        issue(&*replica.in_force().await, "web", DAY, now());
    }
    world
        .secrets()
        .delete(SECRET, &DeleteParams::default())
        .await
        .unwrap();
    eventually("that it is gone", || async {
        replica
            .keys
            .problem()
            .filter(|problem| problem.contains("is gone"))
    })
    .await;
    assert_eq!(replica.in_force().await.roots(), before.roots(), "gone");
    // A constraint on names of another kind does no harm, and all is well again.
    world.create(&constrained.data()).await;
    replica
        .until("a fit one", |it| it.roots() == certificates(&constrained.root))
        .await;
    eventually("no problem", || async {
        replica.keys.problem().is_none().then_some(())
    })
    .await;
    assert_eq!(replica.metric("weir_ca_problem"), Some(0.0));
}

#[tokio::test]
async fn an_authority_by_a_clock_that_is_ahead_comes_into_force_when_its_time_has_come() {
    let world = World::new().await;
    let replica = world.start(Source::Given);
    let starts = now().as_second() + 3;
    let ahead = Operators::with(&PKCS_ED25519, |params| {
        params.not_before = time::OffsetDateTime::from_unix_timestamp(starts).unwrap();
    });
    world.create(&ahead.data()).await;
    eventually("it is not valid yet", || async {
        replica
            .keys
            .problem()
            .filter(|problem| problem.contains("not valid yet"))
    })
    .await;
    let in_force = replica.in_force().await;
    assert!(now().as_second() >= starts);
    verify(
        &chain(&issue(&in_force, "web", DAY, now())),
        in_force.roots(),
        &[],
        now(),
    )
    .unwrap();
    assert_eq!(replica.metric("weir_ca_secret_rejected_total"), Some(1.0));
}

#[tokio::test]
async fn a_rotation_goes_through_its_phases_on_all_replicas() {
    let world = World::new().await;
    let replicas = [world.start(Source::Own), world.start(Source::Own)];
    let operations = world.operations();
    let old = replicas[0].in_force().await;
    let early = |result| {
        let too_early = matches!(result, Err(SecretError::Rotation(RotationError::TooEarly { .. })));
        assert!(too_early, "{result:?}");
    };
    // Kept by others in the same Secret.
    world.patch(&[("note", "of others")]).await;

    operations.begin(NextAuthority::Generate, now()).await.unwrap();
    for replica in &replicas {
        let in_force = replica
            .until("prepared", |it| it.rotation().0 == Phase::Prepared)
            .await;
        assert_eq!(in_force.roots().len(), 2);
        assert_eq!(
            in_force.authority().certificate(),
            old.authority().certificate(),
            "the old one signs"
        );
    }
    let prepared = replicas[0].in_force().await;
    early(operations.activate(now(), false).await);

    let later = now().checked_add(WAIT).unwrap();
    operations.activate(later, false).await.unwrap();
    for replica in &replicas {
        let in_force = replica
            .until("activated", |it| it.rotation().0 == Phase::Activated)
            .await;
        assert_eq!(in_force.roots().len(), 2);
        assert_ne!(
            in_force.authority().certificate(),
            old.authority().certificate(),
            "the new one signs"
        );
    }
    let activated = replicas[1].in_force().await;
    early(operations.retire(later, false).await);
    for issuer in [&prepared, &activated] {
        for roots in [&prepared, &activated] {
            let certified = issue(issuer, "web", DAY, now());
            verify(&chain(&certified), roots.roots(), &[], now()).unwrap();
        }
    }

    operations.retire(later, true).await.unwrap();
    let stable = replicas[0].until("stable", |it| it.roots().len() == 1).await;
    verify(
        &chain(&issue(&activated, "web", DAY, now())),
        stable.roots(),
        &[],
        now(),
    )
    .unwrap();
    assert!(
        verify(
            &chain(&issue(&old, "web", DAY, now())),
            stable.roots(),
            &[],
            now()
        )
        .is_err()
    );
    let status = operations.status(now()).await.unwrap();
    assert_eq!(
        (status.phase, status.roots, status.next_possible),
        (Phase::Stable, 1, None)
    );
    let data = world.data().await;
    let keys: Vec<&str> = data.keys().map(String::as_str).collect();
    assert_eq!(keys, ["ca.crt", "note", "rotation.json", "tls.crt", "tls.key"]);
}

#[tokio::test]
async fn of_several_that_take_a_step_at_once_one_does() {
    let world = World::new().await;
    world.start(Source::Own).in_force().await;
    let steps = (0..6).map(|_| {
        let operations = world.operations();
        tokio::spawn(async move { operations.begin(NextAuthority::Generate, now()).await })
    });
    let mut done = 0;
    for step in steps.collect::<Vec<_>>() {
        match step.await.unwrap() {
            Ok(()) => done += 1,
            Err(SecretError::Rotation(RotationError::Phase { is, .. })) => assert_eq!(is, Phase::Prepared),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(done, 1);
    assert_eq!(world.operations().status(now()).await.unwrap().roots, 2);
}

#[tokio::test]
async fn what_would_not_work_is_not_written() {
    let world = World::new().await;
    world.start(Source::Own).in_force().await;
    let before = world.data().await;
    let (one, other) = (Operators::new(), Operators::new());
    let unfit = Material {
        chain: one.intermediate.clone().into_bytes(),
        key: other.key.clone().into_bytes().into(),
        roots: one.root.clone().into_bytes(),
    };
    let result = world.operations().begin(NextAuthority::Given(unfit), now()).await;
    assert!(matches!(result, Err(SecretError::Contents(_))), "{result:?}");
    // cert-manager's next renewal would undo it.
    let annotation = json!({"metadata": {"annotations": {"cert-manager.io/certificate-name": "weir"}}});
    world
        .secrets()
        .patch(SECRET, &PatchParams::default(), &Patch::Merge(annotation))
        .await
        .unwrap();
    let result = world.operations().begin(NextAuthority::Generate, now()).await;
    assert!(matches!(result, Err(SecretError::Managed(_))), "{result:?}");
    assert_eq!(world.data().await, before);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_by_who_has_the_list_and_others_are_not() {
    let world = World::new().await;
    let replica = world.start(Source::Own);
    let operations = world.operations();
    let old = replica.in_force().await;
    let (bad, good) = (issue(&old, "web", DAY, now()), issue(&old, "web", DAY, now()));
    let lists = old.revocation_lists(now()).unwrap();
    verify(&chain(&bad), old.roots(), &lists, now()).unwrap();
    let mut announced = replica.keys.revocation_lists();
    announced.borrow_and_update();

    let serial: Serial = bad.serial.parse().unwrap();
    operations
        .revoke_serial(serial, Reason::KeyCompromise, now())
        .await
        .unwrap();
    operations
        .revoke(now(), |revoked| revoked.add_identity(identity("api"), now()))
        .await
        .unwrap();
    let in_force = replica
        .until("revoked", |it| it.revoked().names(&identity("api")))
        .await;
    eventually("lists are announced", || async {
        let lists = replica.keys.revocation_lists().borrow().clone();
        let refused = verify(&chain(&bad), in_force.roots(), &lists, now());
        (refused == Err(webpki::Error::CertRevoked)).then_some(())
    })
    .await;
    assert!(announced.has_changed().unwrap());
    // After a rotation, certificates of the old authority can still be revoked.
    operations.begin(NextAuthority::Generate, now()).await.unwrap();
    operations.activate(now(), true).await.unwrap();
    let in_force = replica
        .until("activated", |it| it.rotation().0 == Phase::Activated)
        .await;
    let lists = in_force.revocation_lists(now()).unwrap();
    assert_eq!(lists.len(), 2);
    let verdict = |certified| verify(&chain(certified), in_force.roots(), &lists, now());
    assert_eq!(verdict(&bad), Err(webpki::Error::CertRevoked));
    assert_eq!(verdict(&good), Ok(()));
    assert_eq!(verdict(&issue(&in_force, "web", DAY, now())), Ok(()));
    // A list does not count for ever.
    let soon = now()
        .checked_add(DAY - std::time::Duration::from_secs(60))
        .unwrap();
    let young = issue(&in_force, "web", DAY, soon);
    let late = soon.checked_add(std::time::Duration::from_secs(120)).unwrap();
    let outdated = verify(&chain(&young), in_force.roots(), &lists, late);
    assert!(
        matches!(outdated, Err(webpki::Error::CrlExpired { .. })),
        "{outdated:?}"
    );
}

#[tokio::test]
async fn a_certificate_ends_with_its_authority_and_holds_one_name_only() {
    let world = World::new().await;
    let replica = world.start(Source::Given);
    let soon = now().checked_add(DAY / 4).unwrap().as_second();
    let short = Operators::with(&PKCS_ED25519, |params| {
        params.not_after = time::OffsetDateTime::from_unix_timestamp(soon).unwrap();
        params.serial_number = Some(SerialNumber::from(7));
    });
    world.create(&short.data()).await;
    let in_force = replica.in_force().await;
    let certified = issue(&in_force, "web", DAY, now());
    assert_eq!(certified.not_after.as_second(), soon);
    let (_, leaf) = X509Certificate::from_der(&certified.leaf).unwrap();
    assert_eq!(leaf.validity().not_after.timestamp(), soon);
    let backdated = now().as_second() - leaf.validity().not_before.timestamp();
    assert!((115..=125).contains(&backdated), "{backdated}");
    assert_eq!(leaf.raw_serial_as_string().replace(':', ""), certified.serial);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical && leaf.subject().iter().next().is_none());
    assert_eq!(
        format!("{:?}", names.value.general_names),
        format!("[URI({:?})]", identity("web").to_string())
    );
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert!(issue(&in_force, "web", DAY, now()).serial != certified.serial);
    let minute = issue(&in_force, "web", std::time::Duration::from_secs(60), now());
    assert!(minute.not_after.as_second() - now().as_second() <= 60);
}
