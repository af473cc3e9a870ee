//! Renewal, by a clock that goes with the runtime's.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, KeyPair,
};

use super::*;

const NAME: &str = "n1.hubble.weir.dev";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Certifies whatever is asked, for these names, unless it is away.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    clock: Clock,
    names: Mutex<Vec<String>>,
    away: watch::Receiver<bool>,
    asked: Arc<AtomicUsize>,
}

#[derive(Clone)]
struct Clock(Instant);

impl Clock {
    fn now(&self) -> Timestamp {
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        start + self.0.elapsed()
    }
}

impl Ask for Arc<Authority> {
    async fn ask(&self, csr: &str) -> Result<CreateResponse, CertificateError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if *self.away.borrow() {
            return Err(CertificateError::Slow);
        }
        let asked = CertificateSigningRequestParams::from_pem(csr).unwrap();
        let mut params = CertificateParams::new(self.names.lock().unwrap().clone()).unwrap();
        let end = self.clock.now() + DAY;
        params.not_after = time::OffsetDateTime::from_unix_timestamp(end.as_second()).unwrap();
        let leaf = params.signed_by(&asked.public_key, &self.issuer).unwrap();
        Ok(CreateResponse {
            chain: vec![leaf.pem()],
            roots: self.issuer.pem(),
        })
    }
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Observer for Seen {
    fn renewed(&self, _: &Credentials) {
        self.0.lock().unwrap().push("renewed".to_owned());
    }

    fn failed(&self, error: &CertificateError, before: Option<&Credentials>) {
        let has = before.is_some();
        self.0.lock().unwrap().push(format!("{error}, has one: {has}"));
    }
}

struct Stage {
    clock: Clock,
    away: watch::Sender<bool>,
    asked: Arc<AtomicUsize>,
    held: Held,
    seen: Seen,
    names: Arc<Authority>,
}

fn stage(away: bool) -> Stage {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    let (away, is_away) = watch::channel(away);
    let clock = Clock(Instant::now());
    let authority = Arc::new(Authority {
        issuer,
        clock: clock.clone(),
        names: Mutex::new(vec![NAME.to_owned()]),
        away: is_away,
        asked: Arc::default(),
    });
    let (to, held) = watch::channel(None);
    let (asked, seen) = (authority.asked.clone(), Seen::default());
    let own = clock.clone();
    tokio::spawn(keep(
        authority.clone(),
        NAME.to_owned(),
        to,
        seen.clone(),
        move || own.now(),
    ));
    Stage {
        clock,
        away,
        asked,
        held,
        seen,
        names: authority,
    }
}

impl Stage {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    async fn first(&mut self) -> Arc<Credentials> {
        let found = self.held.wait_for(Option::is_some).await.unwrap();
        found.clone().unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_renewed_at_about_half_of_its_life() {
    let mut stage = stage(false);
    let first = stage.first().await;
    assert_eq!((first.chain.len(), first.roots.len()), (1, 1));
    sleep(DAY.mul_f64(0.44)).await;
    assert_eq!(stage.asked(), 1);
    sleep(DAY.mul_f64(0.12)).await;
    assert_eq!(stage.asked(), 2);
    let second = stage.held.borrow().clone().unwrap();
    assert!(second.not_after > first.not_after);
    assert_ne!(second.chain, first.chain);
    assert_eq!(*stage.seen.0.lock().unwrap(), ["renewed", "renewed"]);
}

#[tokio::test(start_paused = true)]
async fn while_the_control_plane_is_away_the_one_before_stays_and_it_is_asked_ever_more_seldom() {
    let mut stage = stage(false);
    let first = stage.first().await;
    stage.away.send_replace(true);
    sleep(DAY.mul_f64(0.56)).await;
    let failed = stage.asked();
    assert!(failed > 5);
    sleep(Duration::from_secs(3600)).await;
    let rate = stage.asked() - failed;
    assert!((60..=125).contains(&rate), "{rate} in an hour");
    assert_eq!(stage.held.borrow().clone().unwrap().chain, first.chain);
    assert!(
        stage
            .seen
            .0
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .ends_with("has one: true")
    );
    // It is back: within a minute there is a new one.
    stage.away.send_replace(false);
    stage.held.mark_unchanged();
    let back = stage.clock.now();
    stage.held.changed().await.unwrap();
    assert!(stage.clock.now().duration_since(back) <= jiff::SignedDuration::from_secs(61));
}

#[tokio::test(start_paused = true)]
async fn there_is_none_before_the_first_answer() {
    let mut stage = stage(true);
    sleep(Duration::from_secs(30)).await;
    assert!(stage.held.borrow().is_none());
    assert!(
        stage
            .seen
            .0
            .lock()
            .unwrap()
            .iter()
            .all(|said| said.ends_with("has one: false"))
    );
    stage.away.send_replace(false);
    stage.first().await;
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_another_name_or_several_or_none_is_not_taken() {
    for names in [&["n2.hubble.weir.dev"][..], &[NAME, "n2.hubble.weir.dev"], &[]] {
        let stage = stage(true);
        *stage.names.names.lock().unwrap() = names.iter().map(|name| (*name).to_owned()).collect();
        stage.away.send_replace(false);
        sleep(Duration::from_secs(60)).await;
        assert!(stage.held.borrow().is_none(), "{names:?}");
        let said = stage.seen.0.lock().unwrap().last().cloned().unwrap();
        assert!(said.contains("and not for n1.hubble.weir.dev"), "{said}");
    }
}

#[test]
fn back_off_grows_and_is_bounded() {
    for (failures, least, most) in [(1, 0.5, 1.0), (2, 1.0, 2.0), (7, 30.0, 60.0), (99, 30.0, 60.0)] {
        let wait = back_off(failures).as_secs_f64();
        assert!((least..=most).contains(&wait), "{failures}: {wait}");
    }
}
