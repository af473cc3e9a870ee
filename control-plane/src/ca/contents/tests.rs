//! Rotations, under the check that peers accept each other at every moment of one.

use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::UnixTime;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use weir_types::Identity;

use super::*;
use crate::ca::{Authority, Certified, InForce, Scope, VerifiedRequest};

fn start() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn scope() -> Scope {
    Scope::Workloads("cluster.local".parse().unwrap())
}

fn web() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

fn material(now: Timestamp) -> Material {
    let root = Authority::new_root(&scope(), now).unwrap();
    let certificate = root.certificate.into_bytes();
    Material {
        chain: certificate.clone(),
        key: Zeroizing::new(root.key.as_bytes().to_vec()),
        roots: certificate,
    }
}

fn in_force(contents: &Contents, now: Timestamp) -> InForce {
    InForce::load(contents, &scope(), now).unwrap()
}

fn issue(contents: &Contents, now: Timestamp) -> Certified {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default()
        .serialize_request(&key)
        .unwrap()
        .pem()
        .unwrap();
    let request = VerifiedRequest::parse(&request, &web()).unwrap();
    in_force(contents, now)
        .issue(&request, &web(), LONGEST_LIFETIME, now)
        .unwrap()
}

/// Whether a peer with these roots accepts a certificate.
fn accepts(roots: &[CertificateDer<'static>], certified: &Certified, now: Timestamp) -> bool {
    let anchors: Vec<_> = roots
        .iter()
        .map(|root| anchor_from_trusted_cert(root).unwrap())
        .collect();
    let leaf = EndEntityCert::try_from(&certified.leaf).unwrap();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.as_second()).unwrap()));
    [KeyUsage::server_auth(), KeyUsage::client_auth()]
        .into_iter()
        .all(|usage| {
            leaf.verify_for_usage(
                ALL_VERIFICATION_ALGS,
                &anchors,
                &certified.intermediates,
                time,
                usage,
                None,
                None,
            )
            .is_ok()
        })
}

/// What an agent got with a certificate, at a moment.
struct Held {
    certified: Certified,
    roots: Vec<CertificateDer<'static>>,
}

fn renew(contents: &Contents, now: Timestamp) -> Held {
    Held {
        certified: issue(contents, now),
        roots: in_force(contents, now).roots().to_vec(),
    }
}

#[test]
fn at_every_hour_of_a_rotation_all_agents_accept_each_other() {
    let mut contents = Contents::new(material(start()));
    // Agents that renew as late as can be, just before their certificate ends, each at an hour of its own.
    let mut agents: Vec<Held> = (0..24).map(|_| renew(&contents, start())).collect();
    let mut phases = Vec::new();
    for hour in 1..=110_u64 {
        let now = after(start(), Duration::from_secs(hour * 3600));
        match contents.phase() {
            Phase::Stable if hour == 10 => contents.begin(material(now), now).unwrap(),
            Phase::Prepared => drop(contents.activate(now, false)),
            Phase::Activated => drop(contents.retire(now, false)),
            Phase::Stable => {}
        }
        if phases.last() != Some(&contents.phase()) {
            phases.push(contents.phase());
        }
        let agent = usize::try_from(hour % 24).unwrap();
        agents[agent] = renew(&contents, now);
        for (i, one) in agents.iter().enumerate() {
            for (j, other) in agents.iter().enumerate() {
                if one.certified.not_after > now {
                    assert!(
                        accepts(&other.roots, &one.certified, now),
                        "hour {hour}, {:?}: {j} refuses {i}",
                        contents.phase()
                    );
                }
            }
        }
    }
    assert_eq!(
        phases,
        [Phase::Stable, Phase::Prepared, Phase::Activated, Phase::Stable]
    );
    let end = after(start(), Duration::from_secs(110 * 3600));
    let roots = in_force(&contents, end).roots().to_vec();
    assert_eq!(roots.len(), 1, "the old root is gone");
}

#[test]
fn what_is_issued_in_a_phase_verifies_under_the_roots_of_the_phases_beside_it() {
    let day = |n: u64| after(start(), WAIT * u32::try_from(n).unwrap());
    let mut contents = Contents::new(material(start()));
    let mut steps = vec![(contents.clone(), day(0))];
    contents.begin(material(day(1)), day(1)).unwrap();
    steps.push((contents.clone(), day(1)));
    contents.activate(day(2), false).unwrap();
    steps.push((contents.clone(), day(2)));
    contents.retire(day(3), false).unwrap();
    steps.push((contents, day(3)));
    for (i, (contents, now)) in steps.iter().enumerate() {
        let certified = issue(contents, *now);
        for (j, (other, _)) in steps.iter().enumerate() {
            let accepted = accepts(&other.roots().unwrap(), &certified, *now);
            // The old authority's last certificates are from step 1, and the last step comes when none lives.
            let expected = i.abs_diff(j) <= 1 || (i < 2 && j < 3) || (i >= 2 && j >= 1);
            assert_eq!(accepted, expected, "issued in step {i}, roots of step {j}");
        }
    }
}

#[test]
fn steps_come_in_their_order_and_not_too_early_unless_forced() {
    let now = start();
    let soon = after(now, WAIT - Duration::from_secs(1));
    let later = after(now, WAIT);
    let wrong = |is, needs| Err(RotationError::Phase { is, needs });
    let early = Err(RotationError::TooEarly { until: later });
    let fresh = Contents::new(material(now));

    let mut contents = fresh.clone();
    assert_eq!(
        contents.activate(later, true),
        wrong(Phase::Stable, Phase::Prepared)
    );
    assert_eq!(
        contents.retire(later, true),
        wrong(Phase::Stable, Phase::Activated)
    );
    assert_eq!(contents.abandon(later), wrong(Phase::Stable, Phase::Prepared));
    assert_eq!(
        contents.begin(contents.current.clone(), now),
        Err(RotationError::Same)
    );
    assert_eq!(contents.next_possible(), None);

    contents.begin(material(now), now).unwrap();
    assert_eq!(
        contents.begin(material(now), later),
        wrong(Phase::Prepared, Phase::Stable)
    );
    assert_eq!(
        contents.retire(later, true),
        wrong(Phase::Prepared, Phase::Activated)
    );
    assert_eq!(contents.activate(soon, false), early);
    // A replica whose clock is far behind is not in a hurry either.
    assert_eq!(contents.activate(before_all(), false), early);
    assert_eq!(contents.clone().activate(soon, true), Ok(()));
    assert_eq!(contents.activate(later, false), Ok(()));

    assert_eq!(contents.abandon(later), wrong(Phase::Activated, Phase::Prepared));
    let until = after(later, WAIT);
    assert_eq!(
        contents.retire(later, false),
        Err(RotationError::TooEarly { until })
    );
    assert_eq!(contents.clone().retire(later, true), Ok(()));
    assert_eq!(contents.retire(until, false), Ok(()));
    assert_eq!(contents.phase(), Phase::Stable);
}

fn before_all() -> Timestamp {
    Timestamp::UNIX_EPOCH
}

#[test]
fn a_rotation_that_is_abandoned_leaves_everything_as_it_was() {
    let fresh = Contents::new(material(start()));
    let mut contents = fresh.clone();
    contents.begin(material(start()), start()).unwrap();
    assert_eq!(contents.roots().unwrap().len(), 2);
    contents.abandon(start()).unwrap();
    assert_eq!(contents.roots().unwrap(), fresh.roots().unwrap());
    assert!(contents.current == fresh.current);
}

/// As the Secret would hold it.
fn data(contents: &Contents) -> BTreeMap<&'static str, Vec<u8>> {
    let written = contents.write().unwrap();
    let there = written
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?.to_vec())));
    there.collect()
}

fn read(data: &BTreeMap<&'static str, Vec<u8>>) -> Result<Contents, ContentsError> {
    Contents::read(|key| data.get(key).map(Vec::as_slice))
}

#[test]
fn what_is_written_is_read_again_in_every_phase() {
    let mut contents = Contents::new(material(start()));
    let serial = "01".parse().unwrap();
    contents
        .revoked_mut()
        .add_serial(serial, crate::ca::Reason::KeyCompromise, start())
        .unwrap();
    contents.trusted = material(start()).roots;
    assert!(read(&data(&contents)).unwrap() == contents);
    contents.begin(material(start()), start()).unwrap();
    assert!(read(&data(&contents)).unwrap() == contents);
    contents.activate(start(), true).unwrap();
    assert!(read(&data(&contents)).unwrap() == contents);
    contents.retire(start(), true).unwrap();
    assert!(read(&data(&contents)).unwrap() == contents);
}

#[test]
fn contents_that_do_not_go_together_are_refused() {
    let good = data(&Contents::new(material(start())));
    let mut prepared = Contents::new(material(start()));
    prepared.begin(material(start()), start()).unwrap();
    let prepared = data(&prepared);
    let changed = |data: &BTreeMap<&'static str, Vec<u8>>, key: &'static str, value: Option<&str>| {
        let mut data = data.clone();
        match value {
            Some(value) => data.insert(key, value.into()),
            None => data.remove(key),
        };
        let read = read(&data);
        read.and_then(|contents| InForce::load(&contents, &scope(), start()))
            .map(|_| ())
    };
    changed(&good, "unknown", Some("kept by others")).unwrap();
    let other = String::from_utf8(material(start()).key.to_vec()).unwrap();
    let foreign = String::from_utf8(material(start()).roots).unwrap();
    for (case, of, key, value) in [
        ("no certificate", &good, "tls.crt", None),
        ("no key", &good, "tls.key", None),
        ("no roots", &good, "ca.crt", None),
        ("an empty certificate", &good, "tls.crt", Some("")),
        ("no PEM", &good, "tls.crt", Some("nonsense")),
        ("no key in it", &good, "tls.key", Some("nonsense")),
        ("another's key", &good, "tls.key", Some(&*other)),
        ("roots that do not lead to it", &good, "ca.crt", Some(&*foreign)),
        ("a rotation that is no JSON", &good, "rotation.json", Some("{")),
        (
            "an unknown phase",
            &good,
            "rotation.json",
            Some(r#"{"phase":"x","since":"2026-01-01T00:00:00Z"}"#),
        ),
        ("half of the next", &prepared, "next.key", None),
        (
            "no next in its phase",
            &good,
            "rotation.json",
            Some(r#"{"phase":"prepared","since":"2026-01-01T00:00:00Z"}"#),
        ),
        ("a next out of phase", &prepared, "rotation.json", None),
        ("another's key for the next", &prepared, "next.key", Some(&*other)),
        (
            "revocations that cannot be read",
            &good,
            "revoked.json",
            Some(r#"{"serials":[{"serial":"x"}]}"#),
        ),
        ("nonsense to trust", &good, "trusted.crt", Some("nonsense")),
    ] {
        assert!(changed(of, key, value).is_err(), "{case}");
    }
}
