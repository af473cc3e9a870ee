//! Request and response of 64 bytes: latency, connections a second, many held connections.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use hdrhistogram::Histogram;
use rustix::{buffer::spare_capacity, event::epoll, io::retry_on_intr};
use serde_json::json;

use crate::net::{self, Listen};

/// Size of a request and of a response.
const MESSAGE: usize = 64;
/// Events taken from the kernel at once.
const EVENTS: usize = 256;
/// Longest latency that is told apart: a minute, in nanoseconds.
const MAX_LATENCY: u64 = 60_000_000_000;

#[derive(Debug, Args)]
pub(crate) struct Server {
    #[command(flatten)]
    listen: Listen,
}

#[derive(Debug, Args)]
pub(crate) struct RrClient {
    /// Where to.
    to: SocketAddr,
    /// For how long.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Before that, unmeasured.
    #[arg(long, default_value_t = 0.1)]
    warm_up: f64,
}

#[derive(Debug, Args)]
pub(crate) struct CrrClient {
    /// Where to.
    to: SocketAddr,
    /// For how long.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Clients at once.
    #[arg(long, default_value_t = 1)]
    clients: usize,
}

#[derive(Debug, Args)]
pub(crate) struct HoldClient {
    /// Where to.
    to: SocketAddr,
    /// Connections.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Opened at once.
    #[arg(long, default_value_t = 16)]
    concurrency: usize,
}

impl Server {
    /// One thread for all connections: starting threads would cost as much as the connections that are measured.
    pub(crate) fn run(self) -> Result<()> {
        let listener = self.listen.announce()?;
        listener.set_nonblocking(true)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let key = |fd: &dyn AsRawFd| epoll::EventData::new_u64(u64::from(fd.as_raw_fd().unsigned_abs()));
        epoll::add(&epoll, &listener, key(&listener), epoll::EventFlags::IN)?;
        let mut streams = HashMap::new();
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            retry_on_intr(|| epoll::wait(&epoll, spare_capacity(&mut events), None))?;
            for event in &events {
                let data = event.data;
                if data == key(&listener) {
                    while let Ok((stream, _)) = listener.accept() {
                        stream.set_nonblocking(true)?;
                        stream.set_nodelay(true)?;
                        epoll::add(&epoll, &stream, key(&stream), epoll::EventFlags::IN)?;
                        streams.insert(key(&stream).u64(), stream);
                    }
                } else if !streams.get_mut(&data.u64()).is_some_and(answer) {
                    // Closing takes it out of the epoll set.
                    streams.remove(&data.u64());
                }
            }
        }
    }
}

/// Sends back what has come; whether the connection goes on.
fn answer(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 64 * MESSAGE];
    match stream.read(&mut buffer) {
        Ok(0) => false,
        // A client has one message under way: it always fits into the socket's buffer.
        Ok(count) => stream.write_all(&buffer[..count]).is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
    }
}

impl RrClient {
    pub(crate) fn run(self) -> Result<()> {
        let mut stream = connect(self.to)?;
        let warm = Instant::now() + Duration::from_secs_f64(self.warm_up);
        while Instant::now() < warm {
            exchange(&mut stream)?;
        }
        let mut histogram = Histogram::<u64>::new_with_bounds(1, MAX_LATENCY, 3)?;
        let start = Instant::now();
        let end = start + Duration::from_secs_f64(self.seconds);
        let mut before = start;
        while before < end {
            exchange(&mut stream)?;
            let after = Instant::now();
            histogram.saturating_record(u64::try_from((after - before).as_nanos()).unwrap_or(MAX_LATENCY));
            before = after;
        }
        let micros = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        net::print(&json!({
            "count": histogram.len(),
            "seconds": start.elapsed().as_secs_f64(),
            "p50_us": micros(0.50),
            "p99_us": micros(0.99),
            "p999_us": micros(0.999),
            "max_us": histogram.max() as f64 / 1000.0,
        }));
        Ok(())
    }
}

impl CrrClient {
    pub(crate) fn run(self) -> Result<()> {
        // One before the clock runs: the first pays for handshakes and caches.
        exchange(&mut connect(self.to)?)?;
        let barrier = Arc::new(Barrier::new(self.clients));
        let (to, seconds) = (self.to, self.seconds);
        let clients: Vec<_> = (0..self.clients)
            .map(|_| {
                let barrier = barrier.clone();
                thread::spawn(move || -> Result<(u64, f64)> {
                    barrier.wait();
                    let start = Instant::now();
                    let end = start + Duration::from_secs_f64(seconds);
                    let mut count = 0;
                    while Instant::now() < end {
                        exchange(&mut connect(to)?)?;
                        count += 1;
                    }
                    Ok((count, start.elapsed().as_secs_f64()))
                })
            })
            .collect();
        let (mut count, mut longest) = (0, 0.0_f64);
        for client in clients {
            let (done, took) = client.join().map_err(|_| anyhow!("a client panicked"))??;
            count += done;
            longest = longest.max(took);
        }
        net::print(
            &json!({ "connections": count, "seconds": longest, "per_second": count as f64 / longest }),
        );
        Ok(())
    }
}

impl HoldClient {
    pub(crate) fn run(self) -> Result<()> {
        let (to, share) = (self.to, self.connections.div_ceil(self.concurrency.max(1)));
        let openers: Vec<_> = (0..self.connections)
            .step_by(share.max(1))
            .map(|begun| {
                let count = share.min(self.connections - begun);
                thread::spawn(move || -> Result<Vec<TcpStream>> {
                    (0..count)
                        .map(|_| {
                            let mut stream = connect(to)?;
                            exchange(&mut stream)?;
                            Ok(stream)
                        })
                        .collect()
                })
            })
            .collect();
        let mut held = Vec::with_capacity(self.connections);
        for opener in openers {
            held.extend(opener.join().map_err(|_| anyhow!("an opener panicked"))??);
        }
        net::print(&json!({ "held": held.len() }));
        loop {
            thread::park();
        }
    }
}

fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut message = [b'x'; MESSAGE];
    stream.write_all(&message)?;
    stream.read_exact(&mut message).context("the response")
}
