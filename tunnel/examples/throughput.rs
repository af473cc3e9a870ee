//! Measures a tunnel on loopback: `cargo run --release -p weir-tunnel --example throughput [SECONDS [CASE]]`.
//!
//! A case is `bulk-1`, `bulk-4`, `rr` or `crr`, and then only the tunnel is measured, as a profiler wants it.
//! Client application, client's agent, server's agent and server application each have threads of their own, as
//! four processes would. Printed beside it: the same applications without a tunnel.
#![allow(missing_docs, reason = "a program")]

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    sync::Arc,
    thread,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Runtime,
};
use tokio_util::sync::CancellationToken;
use weir_tunnel::{
    ConnectionState, PodKey, Registry,
    ca::CertificateAuthority,
    certs::{CertificateStore, Settings},
    copy::{CopyOutcome, Counters, copy_bidirectional},
    hbone::{
        Accepted, Authority, ConnectHeaders, ConnectRequest, Handler, Observer, Refusal, Refused, Server,
        ServerSettings,
    },
    pool::{Connector, Pool, Target},
};
use weir_types::{Identity, Reason};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

struct Local;

#[async_trait]
impl Connector for Local {
    async fn connect(&self, _source: PodKey, address: SocketAddr) -> io::Result<TcpStream> {
        TcpStream::connect(address).await
    }
}

struct Forward;
struct Ignore;

impl Observer for Ignore {
    fn opened(&mut self, _connection: &Arc<ConnectionState>) {}
    fn closed(&mut self, _outcome: CopyOutcome) {}
}

impl Handler for Forward {
    async fn connect(
        &self,
        _pod: PodKey,
        request: &ConnectRequest,
        _connection: &Arc<ConnectionState>,
    ) -> Result<Accepted, Refusal> {
        let unreachable = Refusal::unavailable(Reason::Unreachable);
        let Authority::Address(address) = request.authority else {
            return Err(unreachable);
        };
        let application = TcpStream::connect(address).await.map_err(|_| unreachable)?;
        let counters = Arc::new(Counters::default());
        Ok(Accepted {
            application,
            counters,
            observer: Box::new(Ignore),
            stop: CancellationToken::new(),
        })
    }

    fn refused(&self, refused: Refused) {
        eprintln!("refused: {refused:?}");
    }
}

fn runtime(threads: usize) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(3.0), |text| text.parse())?;
    let duration = Duration::from_secs_f64(seconds);
    let threads = 2;

    let (sink, echo) = (spawn_application(sink)?, spawn_application(echo)?);
    let domain: weir_types::TrustDomain = "bench.test".parse()?;
    let authority = CertificateAuthority::generate(&domain, SystemTime::now(), Duration::from_secs(3600))?;
    let store = CertificateStore::new(Arc::new(authority), Settings::new(domain.clone()));
    let server_identity = Identity::new(&domain, "bench", "server")?;

    let server = runtime(threads)?;
    let (hbone, store2, identity) = (
        StdListener::bind("127.0.0.1:0")?,
        store.clone(),
        server_identity.clone(),
    );
    let address = hbone.local_addr()?;
    hbone.set_nonblocking(true)?;
    server.spawn(async move {
        let Ok(listener) = TcpListener::from_std(hbone) else {
            return;
        };
        let server = Arc::new(Server::new(store2, Arc::new(Forward), ServerSettings::default()));
        while let Ok((socket, peer)) = listener.accept().await {
            let (server, identity) = (server.clone(), identity.clone());
            tokio::spawn(async move { server.serve(socket, address, peer, PodKey(1), &identity).await });
        }
    });

    let client = runtime(threads)?;
    let target = Target {
        source: PodKey(2),
        source_identity: Identity::new(&domain, "bench", "client")?,
        expected: [server_identity].into(),
        address,
    };
    let pool = {
        let _guard = client.enter();
        Pool::new(store, Arc::new(Local), Registry::default())
    };
    let capture = |application: SocketAddr| -> io::Result<SocketAddr> {
        let listener = StdListener::bind("127.0.0.1:0")?;
        let captured = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let (pool, target) = (pool.clone(), target.clone());
        client.spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else {
                return;
            };
            while let Ok((socket, _)) = listener.accept().await {
                let (pool, target) = (pool.clone(), target.clone());
                tokio::spawn(async move {
                    let authority = Authority::Address(application);
                    match pool.open(&target, &authority, &ConnectHeaders::default()).await {
                        Ok(tunnel) => {
                            copy_bidirectional(socket, tunnel, &Counters::default()).await;
                        }
                        Err(error) => eprintln!("{error}"),
                    }
                });
            }
        });
        Ok(captured)
    };
    let (tunnel_sink, tunnel_echo) = (capture(sink)?, capture(echo)?);

    if let Some(case) = std::env::args().nth(2) {
        match case.as_str() {
            "bulk-1" => println!("{:.2} Gb/s", bulk(tunnel_sink, 1, duration)?),
            "bulk-4" => println!("{:.2} Gb/s", bulk(tunnel_sink, 4, duration)?),
            "rr" => println!("p50, p99 us: {:.1?}", round_trips(tunnel_echo, duration)?),
            "crr" => println!("{:.0} connections a second", connections(tunnel_echo, duration)?),
            _ => return Err("the cases are bulk-1, bulk-4, rr and crr".into()),
        }
        return Ok(());
    }
    println!("{:<34}{:>12}{:>12}{:>8}", "", "direct", "tunnel", "ratio");
    for streams in [1, 4] {
        let (direct, tunnel) = (
            bulk(sink, streams, duration)?,
            bulk(tunnel_sink, streams, duration)?,
        );
        println!(
            "{:<34}{direct:>12.2}{tunnel:>12.2}{:>8.2}",
            format!("bulk, {streams} streams, Gb/s"),
            tunnel / direct
        );
    }
    let (direct, tunnel) = (round_trips(echo, duration)?, round_trips(tunnel_echo, duration)?);
    for (name, index) in [("p50", 0), ("p99", 1)] {
        let (direct, tunnel) = (direct[index], tunnel[index]);
        println!(
            "{:<34}{direct:>12.1}{tunnel:>12.1}{:>8.2}",
            format!("64 B round trip {name}, us"),
            tunnel / direct
        );
    }
    let (direct, tunnel) = (connections(echo, duration)?, connections(tunnel_echo, duration)?);
    println!(
        "{:<34}{direct:>12.0}{tunnel:>12.0}{:>8.2}",
        "new connections a second",
        tunnel / direct
    );
    client.shutdown_background();
    server.shutdown_background();
    Ok(())
}

fn spawn_application(serve: fn(StdStream) -> io::Result<()>) -> io::Result<SocketAddr> {
    let listener = StdListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            thread::spawn(move || serve(socket));
        }
    });
    Ok(address)
}

fn sink(mut socket: StdStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    while socket.read(&mut buffer)? > 0 {}
    socket.write_all(b"done")
}

fn echo(mut socket: StdStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer)? {
            0 => return Ok(()),
            read => socket.write_all(&buffer[..read])?,
        }
    }
}

fn bulk(address: SocketAddr, streams: usize, duration: Duration) -> io::Result<f64> {
    let start = Instant::now();
    let send = move || -> io::Result<u64> {
        let mut socket = StdStream::connect(address)?;
        let buffer = vec![7; 128 * 1024];
        let mut sent = 0;
        while start.elapsed() < duration {
            socket.write_all(&buffer)?;
            sent += buffer.len() as u64;
        }
        socket.shutdown(std::net::Shutdown::Write)?;
        socket.read_exact(&mut [0; 4])?;
        Ok(sent)
    };
    let threads: Vec<_> = (0..streams).map(|_| thread::spawn(send)).collect();
    let mut total = 0;
    for thread in threads {
        total += thread
            .join()
            .map_err(|_| io::Error::other("a sender panicked"))??;
    }
    Ok(total as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9)
}

fn round_trips(address: SocketAddr, duration: Duration) -> io::Result<[f64; 2]> {
    let mut socket = StdStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut times = Vec::new();
    let start = Instant::now();
    let mut buffer = [0; 64];
    while start.elapsed() < duration {
        let one = Instant::now();
        socket.write_all(&buffer)?;
        socket.read_exact(&mut buffer)?;
        times.push(one.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_by(f64::total_cmp);
    Ok([times[times.len() / 2], times[times.len() * 99 / 100]])
}

fn connections(address: SocketAddr, duration: Duration) -> io::Result<f64> {
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < duration {
        let mut socket = StdStream::connect(address)?;
        socket.write_all(&[1])?;
        socket.read_exact(&mut [0])?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}
