//! Many short connections: who answered them, what failed, and when that changed.
//!
//! The server closes first and the client last, so it is the server that remembers the connections (TIME_WAIT), where
//! that takes no port; the client has all of its ephemeral ports again at once.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, anyhow, ensure};
use clap::Args;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};

use crate::net::{self, Listen};

/// Connections unless told otherwise.
const CONNECTIONS: u64 = 1000;
/// Longest name, with its newline.
const NAME: usize = 256;
/// How a connection without a line ends, besides the errors of the kernel.
const NO_LINE: &str = "EOF";

#[derive(Debug, Args)]
pub(crate) struct Server {
    #[command(flatten)]
    listen: Listen,
    /// What it answers.
    #[arg(long)]
    name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Client {
    /// Where to.
    to: SocketAddr,
    /// Connections, of all threads together; 1000 unless set.
    #[arg(long, conflicts_with = "seconds")]
    connections: Option<u64>,
    /// For how long, instead of a number.
    #[arg(long)]
    seconds: Option<f64>,
    /// Threads, each with one connection after the other.
    #[arg(long, default_value_t = 4)]
    threads: usize,
    /// Pause of each thread between two connections.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// How long to wait for the connection and for its line.
    #[arg(long, default_value_t = 10_000)]
    timeout_ms: u64,
    /// Print a JSON line at the first connection and whenever success turns into failure or back: the clock in
    /// milliseconds since 1970 at the connection's begin and end, the outcome, and the name or the error.
    #[arg(long)]
    log: bool,
    /// Print that line for every connection.
    #[arg(long)]
    log_all: bool,
}

/// A server's name, or an error's.
type Outcome = std::result::Result<String, String>;
type Counts = BTreeMap<Outcome, u64>;

/// What all threads share.
struct Shared {
    client: Client,
    /// Connections begun.
    begun: AtomicU64,
    limit: u64,
    end: Option<Instant>,
    /// Whether the last connection that ended was a success.
    last: Mutex<Option<bool>>,
}

// === impl Server ===

impl Server {
    /// One thread, one connection after the other: a line fits into the socket's buffer, so that nobody makes it wait.
    pub(crate) fn run(self) -> Result<()> {
        let line = self.name + "\n";
        ensure!(line.len() <= NAME, "a name has at most {} bytes", NAME - 1);
        let listener = self.listen.announce()?;
        loop {
            match listener.accept() {
                // Who went away before its answer knows that.
                Ok((mut stream, _)) => drop(stream.write_all(line.as_bytes())),
                Err(error) => eprintln!("accept: {error}"),
            }
        }
    }
}

// === impl Client ===

impl Client {
    /// Ends well whatever the connections' fate: that is counted.
    pub(crate) fn run(self) -> Result<()> {
        let start = Instant::now();
        let shared = Shared {
            begun: AtomicU64::new(0),
            limit: match self.seconds {
                Some(_) => u64::MAX,
                None => self.connections.unwrap_or(CONNECTIONS),
            },
            end: self
                .seconds
                .map(|seconds| start + Duration::from_secs_f64(seconds)),
            last: Mutex::default(),
            client: self,
        };
        let counts = thread::scope(|scope| -> Result<Counts> {
            let threads: Vec<_> = (0..shared.client.threads.max(1))
                .map(|_| scope.spawn(|| shared.work()))
                .collect();
            let mut all = Counts::new();
            for thread in threads {
                let counts = thread.join().map_err(|_| anyhow!("a thread panicked"))?;
                for (outcome, count) in counts {
                    *all.entry(outcome).or_default() += count;
                }
            }
            Ok(all)
        })?;
        let (mut names, mut errors) = (BTreeMap::new(), BTreeMap::new());
        for (outcome, count) in &counts {
            match outcome {
                Ok(name) => names.insert(name, count),
                Err(error) => errors.insert(error, count),
            };
        }
        net::print(&json!({
            "counts": names,
            "errors": errors,
            "connections": counts.values().sum::<u64>(),
            "seconds": start.elapsed().as_secs_f64(),
        }));
        Ok(())
    }

    fn once(&self) -> Outcome {
        self.answer()
            .map_err(|error| net::error_name(&error))?
            .ok_or_else(|| NO_LINE.to_owned())
    }

    /// The server's line, or nothing when it closed without one.
    fn answer(&self) -> std::io::Result<Option<String>> {
        let timeout = Some(Duration::from_millis(self.timeout_ms.max(1)));
        let socket = Socket::new(Domain::for_address(self.to), Type::STREAM, Some(Protocol::TCP))?;
        // The kernel takes this one for connecting too.
        socket.set_write_timeout(timeout)?;
        socket.set_read_timeout(timeout)?;
        socket.connect(&self.to.into())?;
        let mut stream = TcpStream::from(socket);
        let mut line = [0; NAME + 1];
        let mut length = 0;
        // To the end, beyond the newline: the server has to close first.
        while length < line.len() {
            match stream.read(&mut line[length..])? {
                0 => break,
                count => length += count,
            }
        }
        let line = line[..length].strip_suffix(b"\n");
        Ok(line.map(|name| String::from_utf8_lossy(name).into_owned()))
    }
}

// === impl Shared ===

impl Shared {
    fn work(&self) -> Counts {
        let pause = Duration::from_millis(self.client.pause_ms);
        let mut counts = Counts::new();
        while self.begun.fetch_add(1, Ordering::Relaxed) < self.limit
            && self.end.is_none_or(|end| Instant::now() < end)
        {
            let began = (self.client.log || self.client.log_all).then(now_ms);
            let outcome = self.client.once();
            if let Some(began) = began {
                self.log(began, &outcome);
            }
            *counts.entry(outcome).or_default() += 1;
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
        counts
    }

    fn log(&self, began: u64, outcome: &Outcome) {
        // Held while printing, so that the lines stand in the order of what they tell.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.replace(outcome.is_ok()) == Some(outcome.is_ok()) && !self.client.log_all {
            return;
        }
        let (what, name) = match outcome {
            Ok(name) => ("success", name),
            Err(error) => ("failure", error),
        };
        let field = if outcome.is_ok() { "name" } else { "error" };
        net::print(&json!({ "began_ms": began, "ended_ms": now_ms(), "outcome": what, field: name }));
    }
}

/// CLOCK_REALTIME, which all processes of a machine share.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
