//! Echo over TCP, with the ways in which servers differ: greeting first, answering only at the end.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::net::{self, Listen, Pattern};

const CHUNK: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, Default)]
struct Manners {
    greet: bool,
    reverse: bool,
    print_peer: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Server {
    #[command(flatten)]
    listen: Listen,
    /// Speak first: this line, before anything is read.
    #[arg(long)]
    greeting: Option<String>,
    /// Read to the client's half-close, then answer with one JSON line of the length and SHA-256.
    #[arg(long)]
    reverse: bool,
    /// Print a JSON line for each connection: the addresses that accept, getpeername and getsockname gave.
    #[arg(long)]
    print_peer: bool,
    /// Close each connection with a reset after this many bytes.
    #[arg(long)]
    reset_after: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct Client {
    /// Where to.
    to: SocketAddr,
    /// How much to send.
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// What to send, repeated; a fixed pattern unless set.
    #[arg(long)]
    text: Option<String>,
    /// Connections, one after the other.
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Expect a greeting line first.
    #[arg(long)]
    greeted: bool,
    /// Pause between two connections.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
}

impl Server {
    pub(crate) fn run(self) -> Result<()> {
        let Self {
            listen,
            greeting,
            reverse,
            print_peer,
            reset_after,
        } = self;
        let manners = Manners {
            greet: greeting.is_some(),
            reverse,
            print_peer,
        };
        let greeting = greeting.unwrap_or_default() + "\r\n";
        listen.serve(move |stream, peer| serve(stream, peer, manners, &greeting, reset_after))
    }
}

fn serve(
    mut stream: TcpStream,
    peer: SocketAddr,
    manners: Manners,
    greeting: &str,
    reset_after: Option<usize>,
) -> Result<()> {
    if manners.print_peer {
        net::print(&json!({
            "accept": peer,
            "getpeername": stream.peer_addr().map_err(|error| error.to_string()).ok(),
            "getsockname": stream.local_addr()?,
        }));
    }
    stream.set_nodelay(true)?;
    if manners.greet {
        stream.write_all(greeting.as_bytes())?;
    }
    let mut digest = Sha256::new();
    let mut total = 0;
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = stream.read(&mut buffer)?;
        total += count;
        if reset_after.is_some_and(|limit| total >= limit) {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            return Ok(());
        }
        if count == 0 {
            break;
        }
        if manners.reverse {
            digest.update(&buffer[..count]);
        } else {
            stream.write_all(&buffer[..count])?;
        }
    }
    if manners.reverse {
        let answer = json!({ "bytes": total, "sha256": net::hex(&digest.finalize()) });
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
    stream.shutdown(Shutdown::Write).ok();
    Ok(())
}

impl Client {
    pub(crate) fn run(self) -> Result<()> {
        let mut data = vec![0; self.bytes];
        match &self.text {
            Some(text) => {
                ensure!(!text.is_empty(), "--text is empty");
                data.iter_mut()
                    .zip(text.bytes().cycle())
                    .for_each(|(byte, letter)| *byte = letter);
            }
            None => Pattern::new(1).fill(&mut data),
        }
        for number in 0..self.connections {
            self.once(&data)
                .with_context(|| format!("connection {number} to {}", self.to))?;
            thread::sleep(Duration::from_millis(self.pause_ms));
        }
        net::print(&json!({ "connections": self.connections, "bytes": data.len() }));
        Ok(())
    }

    fn once(&self, data: &[u8]) -> Result<()> {
        let mut stream = TcpStream::connect(self.to)?;
        stream.set_nodelay(true)?;
        if self.greeted {
            let mut byte = [0];
            while byte[0] != b'\n' {
                stream.read_exact(&mut byte).context("the greeting")?;
            }
        }
        let mut writer = stream.try_clone()?;
        thread::scope(|scope| {
            let sent = scope.spawn(move || -> Result<()> {
                writer.write_all(data)?;
                writer.shutdown(Shutdown::Write)?;
                Ok(())
            });
            let mut back = Vec::with_capacity(data.len());
            stream.read_to_end(&mut back)?;
            sent.join()
                .map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            ensure!(
                back.len() == data.len(),
                "{} of {} bytes came back",
                back.len(),
                data.len()
            );
            ensure!(back == data, "other bytes came back");
            Ok(())
        })
    }
}
