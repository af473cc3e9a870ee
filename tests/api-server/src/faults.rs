//! Faults between a client and an API server: the stand-in, or a real one.

mod forward;

use std::{
    collections::VecDeque,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::serving::{self, Serving};
use forward::Forward;

/// How many requests are remembered: more than a test makes, few enough to hold.
const MAX_SEEN: usize = 10_000;

/// An HTTP server that hands requests on to an API server, as the user of its own configuration, unless a fault
/// says otherwise. Its clients need no credentials; a bearer token that they send is handed on.
#[derive(Debug)]
pub struct Faults {
    state: Arc<State>,
    behind: kube::Config,
    address: SocketAddr,
    /// Nothing while it is away.
    serving: Mutex<Option<Serving>>,
}

/// What happens to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is handed on later.
    Delay(Duration),
    /// It is answered with this HTTP status (429, 500, 503 …) and never handed on. With 429 and 503 comes
    /// `Retry-After: 1`; kube's client tries again after 429, 503 and 504 unless `Config::default_retry` is off.
    Refuse(u16),
    /// The watch's connection breaks after so many events, bookmarks included.
    CutAfter(usize),
    /// The watch is answered with HTTP status 410.
    GoneStatus,
    /// The watch is answered with an ERROR event that carries a Status of 410, and ends.
    GoneEvent,
    /// The watch's bookmarks are not handed on for as long as the fault is there, nor later.
    HoldBookmarks,
    /// It is carried out, and its connection breaks in place of an answer.
    LoseResponse,
}

/// Which requests are meant. The default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requests {
    method: Option<http::Method>,
    segment: Option<String>,
    watch: Option<bool>,
}

impl Requests {
    /// Every request.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Watches of a resource, by its plural.
    #[must_use]
    pub fn watches(plural: &str) -> Self {
        Self::all().of(plural).watching(true)
    }

    /// Those of this method.
    #[must_use]
    pub fn method(mut self, method: http::Method) -> Self {
        self.method = Some(method);
        self
    }

    /// Those with this segment in their path: a plural, a namespace, a name, a subresource.
    #[must_use]
    pub fn of(mut self, segment: &str) -> Self {
        self.segment = Some(segment.to_owned());
        self
    }

    /// Only watches, or all but watches.
    #[must_use]
    pub fn watching(mut self, watch: bool) -> Self {
        self.watch = Some(watch);
        self
    }

    fn matches(&self, seen: &Seen) -> bool {
        self.method.as_ref().is_none_or(|method| *method == seen.method)
            && self
                .segment
                .as_ref()
                .is_none_or(|segment| seen.path.split('/').any(|one| one == segment))
            && self.watch.is_none_or(|watch| watch == seen.watch)
    }
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its method.
    pub method: http::Method,
    /// Its path, without the query.
    pub path: String,
    /// Its query; empty where there was none.
    pub query: String,
    /// Whether it is a watch.
    pub watch: bool,
    /// What it takes for an answer; empty where it does not say.
    pub accept: String,
}

/// A fault that was injected.
#[derive(Debug)]
struct Fault {
    id: u64,
    effect: Effect,
    requests: Requests,
    /// How many requests it is for; nothing for all to come.
    left: Option<usize>,
}

/// Names a fault, so that it can be lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultId(u64);

#[derive(Debug)]
struct State {
    faults: Mutex<Vec<Fault>>,
    seen: Mutex<VecDeque<Seen>>,
    next: Mutex<u64>,
    /// Changes when all watches that are open are to break.
    cut: watch::Sender<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faults {
    /// Stands before an API server. There are no faults yet.
    ///
    /// # Errors
    /// When there is no port or thread to be had.
    pub fn before(mut server: kube::Config) -> io::Result<Self> {
        // A refusal of the server's own is the client's to try again.
        server.default_retry = false;
        let state = Arc::new(State {
            faults: Mutex::default(),
            seen: Mutex::default(),
            next: Mutex::default(),
            cut: watch::Sender::new(()),
        });
        let mut faults = Self {
            state,
            behind: server,
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            serving: Mutex::new(None),
        };
        faults.come_back()?;
        faults.address = lock(&faults.serving)
            .as_ref()
            .map_or(faults.address, Serving::address);
        Ok(faults)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How to reach it.
    #[must_use]
    pub fn config(&self) -> kube::Config {
        serving::config(self.address)
    }

    /// A client, of the runtime that this is called on.
    ///
    /// # Errors
    /// When kube cannot make one.
    pub fn client(&self) -> kube::Result<kube::Client> {
        kube::Client::try_from(self.config())
    }

    /// A kubeconfig for subprocesses, as YAML.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        serving::kubeconfig(self.address)
    }

    /// Does this to all such requests from now on.
    pub fn inject(&self, effect: Effect, requests: Requests) -> FaultId {
        self.add(effect, requests, None)
    }

    /// Does this to the next so many such requests.
    pub fn inject_times(&self, times: usize, effect: Effect, requests: Requests) -> FaultId {
        self.add(effect, requests, Some(times))
    }

    fn add(&self, effect: Effect, requests: Requests, left: Option<usize>) -> FaultId {
        let id = {
            let mut next = lock(&self.state.next);
            *next += 1;
            *next
        };
        lock(&self.state.faults).push(Fault {
            id,
            effect,
            requests,
            left,
        });
        FaultId(id)
    }

    /// Lifts a fault.
    pub fn lift(&self, fault: FaultId) {
        lock(&self.state.faults).retain(|one| one.id != fault.0);
    }

    /// Lifts all faults.
    pub fn lift_all(&self) {
        lock(&self.state.faults).clear();
    }

    /// Breaks the connections of all watches that are open.
    pub fn cut_watches(&self) {
        self.state.cut.send_replace(());
    }

    /// Goes away altogether: connections break, and new ones are refused.
    pub fn go_away(&self) {
        let serving = lock(&self.serving).take();
        drop(serving);
    }

    /// Comes back at the same address.
    ///
    /// # Errors
    /// When another has taken its port meanwhile.
    pub fn come_back(&self) -> io::Result<()> {
        let mut serving = lock(&self.serving);
        if serving.is_none() {
            let (state, behind) = (Arc::clone(&self.state), self.behind.clone());
            *serving = Some(Serving::start(self.address, move || Forward::new(state, behind))?);
        }
        Ok(())
    }

    /// How many such requests have come, those that met with faults included.
    #[must_use]
    pub fn count(&self, requests: &Requests) -> usize {
        let seen = lock(&self.state.seen);
        seen.iter().filter(|one| requests.matches(one)).count()
    }

    /// Such requests, in the order in which they came.
    #[must_use]
    pub fn seen(&self, requests: &Requests) -> Vec<Seen> {
        let seen = lock(&self.state.seen);
        seen.iter().filter(|one| requests.matches(one)).cloned().collect()
    }
}

impl State {
    /// Remembers a request; what is to happen to it.
    fn meets(&self, seen: &Seen) -> Vec<Effect> {
        {
            let mut remembered = lock(&self.seen);
            remembered.push_back(seen.clone());
            if remembered.len() > MAX_SEEN {
                remembered.pop_front();
            }
        }
        let mut faults = lock(&self.faults);
        let mut effects = Vec::new();
        for fault in faults.iter_mut().filter(|fault| fault.requests.matches(seen)) {
            effects.push(fault.effect);
            if let Some(left) = &mut fault.left {
                *left = left.saturating_sub(1);
            }
        }
        faults.retain(|fault| fault.left != Some(0));
        effects
    }

    fn holds_bookmarks(&self, seen: &Seen) -> bool {
        let faults = lock(&self.faults);
        faults
            .iter()
            .any(|fault| fault.effect == Effect::HoldBookmarks && fault.requests.matches(seen))
    }
}
