//! Ctrl-C and SIGTERM remove the labs of this process before it ends.

use std::sync::{
    Mutex, OnceLock, PoisonError,
    mpsc::{Receiver, Sender, channel},
};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::run::Run;

/// Exit status after Ctrl-C, as a shell gives it: 128 and the number of SIGINT.
pub const INTERRUPTED: i32 = 130;

static LABS: Mutex<Vec<Run>> = Mutex::new(Vec::new());
static WAITER: Mutex<Option<Sender<()>>> = Mutex::new(None);

/// Registers a run for removal at a signal.
pub(crate) fn watch(run: Run) {
    static STARTED: OnceLock<()> = OnceLock::new();
    LABS.lock().unwrap_or_else(PoisonError::into_inner).push(run);
    STARTED.get_or_init(|| {
        if let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) {
            std::thread::spawn(move || signals.forever().for_each(|_| on_signal()));
        }
    });
}

pub(crate) fn forget(run: &Run) {
    let mut labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
    labs.retain(|other| other.id() != run.id());
}

/// From now on the first signal is not the end: the receiver hears of it instead, and the caller ends as it should.
/// A second signal ends the process as usual.
pub fn interrupts() -> Receiver<()> {
    let (sender, receiver) = channel();
    *WAITER.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
    receiver
}

fn on_signal() {
    if let Some(waiter) = WAITER.lock().unwrap_or_else(PoisonError::into_inner).take()
        && waiter.send(()).is_ok()
    {
        return;
    }
    eprintln!("interrupted: removing the lab");
    let labs = std::mem::take(&mut *LABS.lock().unwrap_or_else(PoisonError::into_inner));
    for run in labs {
        if let Err(error) = run.remove() {
            eprintln!("{error:#}");
        }
    }
    std::process::exit(INTERRUPTED);
}
