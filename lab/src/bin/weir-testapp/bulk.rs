//! Bulk transfer. A client's first line says what the server shall do, then bytes flow to the client's half-close, and
//! the server answers with one line of JSON.
//!
//! `drop` only counts them (for measuring); `take` makes their checksum; `both N SEED` also sends N bytes meanwhile,
//! a pattern of which both sides know the seed.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::net::{self, Listen, Pattern};

/// Large enough that system calls do not count.
const CHUNK: usize = 256 * 1024;
const MAX_LINE: usize = 100;

#[derive(Debug, Args)]
pub(crate) struct Server {
    #[command(flatten)]
    listen: Listen,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Client {
    /// Where to.
    to: SocketAddr,
    /// Streams at once.
    #[arg(long, default_value_t = 1)]
    streams: u32,
    /// For this many seconds, without checksums.
    #[arg(long, conflicts_with = "bytes")]
    seconds: Option<f64>,
    /// This many bytes on each stream.
    #[arg(long, default_value_t = 1 << 20)]
    bytes: u64,
    /// Both directions at once, with checksums; needs --bytes.
    #[arg(long, conflicts_with = "seconds")]
    both: bool,
}

struct Measured {
    bytes: u64,
    digest: String,
}

impl Server {
    pub(crate) fn run(self) -> Result<()> {
        self.listen.serve(|stream, _| serve(stream))
    }
}

fn serve(mut stream: TcpStream) -> Result<()> {
    let line = read_line(&mut stream)?;
    let mut words = line.split(' ');
    let verb = words.next().unwrap_or_default().to_owned();
    let mut number = || -> Result<u64> { Ok(words.next().context("a number is missing")?.parse()?) };
    match verb.as_str() {
        "drop" => {
            let bytes = discard(&mut stream)?;
            answer(&mut stream, bytes, "")
        }
        "both" => {
            let (bytes, seed) = (number()?, number()?);
            let mut writer = stream.try_clone()?;
            let giver = thread::spawn(move || give(&mut writer, bytes, seed));
            let taken = take(&mut stream, Some(bytes))?;
            giver.join().map_err(|_| anyhow!("the giver panicked"))??;
            answer(&mut stream, taken.bytes, &taken.digest)
        }
        "take" => {
            let taken = take(&mut stream, None)?;
            answer(&mut stream, taken.bytes, &taken.digest)
        }
        other => Err(anyhow!("unknown request {other:?}")),
    }
}

impl Client {
    pub(crate) fn run(self) -> Result<()> {
        let start = Instant::now();
        let streams: Vec<_> = (0..self.streams)
            .map(|number| {
                let client = self.clone();
                thread::spawn(move || client.stream(u64::from(number) + 1))
            })
            .collect();
        let mut total = 0;
        for stream in streams {
            total += stream.join().map_err(|_| anyhow!("a stream panicked"))??;
        }
        let seconds = start.elapsed().as_secs_f64();
        let gbps = total as f64 * 8.0 / seconds / 1e9;
        net::print(
            &json!({ "bytes": total, "seconds": seconds, "gbps": gbps, "verified": self.seconds.is_none() }),
        );
        Ok(())
    }

    fn stream(&self, seed: u64) -> Result<u64> {
        let mut stream = TcpStream::connect(self.to).with_context(|| self.to.to_string())?;
        let Some(seconds) = self.seconds else {
            return self.verified(stream, seed);
        };
        stream.write_all(b"drop\n")?;
        let end = Instant::now() + Duration::from_secs_f64(seconds);
        let buffer = vec![0x5a; CHUNK];
        let mut sent = 0;
        while Instant::now() < end {
            stream.write_all(&buffer)?;
            sent += buffer.len() as u64;
        }
        stream.shutdown(Shutdown::Write)?;
        // Counts when it has arrived, not when it was buffered.
        let answer = read_answer(&mut stream)?;
        ensure!(
            answer["bytes"] == sent,
            "{sent} bytes were sent, {answer} arrived"
        );
        Ok(sent)
    }

    fn verified(&self, mut stream: TcpStream, seed: u64) -> Result<u64> {
        let mut writer = stream.try_clone()?;
        let (bytes, both) = (self.bytes, self.both);
        let giver = thread::spawn(move || -> Result<String> {
            let request = if both {
                format!("both {bytes} {}\n", !seed)
            } else {
                "take\n".to_owned()
            };
            writer.write_all(request.as_bytes())?;
            let digest = give(&mut writer, bytes, seed)?;
            writer.shutdown(Shutdown::Write)?;
            Ok(digest)
        });
        let taken = if both {
            take(&mut stream, Some(bytes))?
        } else {
            Measured {
                bytes: 0,
                digest: String::new(),
            }
        };
        let sent = giver.join().map_err(|_| anyhow!("the giver panicked"))??;
        let answer = read_answer(&mut stream)?;
        ensure!(
            answer["bytes"] == bytes,
            "{bytes} bytes were sent, {answer} arrived"
        );
        ensure!(
            answer["sha256"] == sent.as_str(),
            "what arrived differs from what was sent"
        );
        if both {
            ensure!(
                taken.digest == expected(bytes, !seed),
                "what came back differs from what was sent"
            );
        }
        Ok(bytes + taken.bytes)
    }
}

fn expected(bytes: u64, seed: u64) -> String {
    let mut digest = Sha256::new();
    pattern(bytes, seed, |chunk| {
        digest.update(chunk);
        Ok(())
    })
    .ok();
    net::hex(&digest.finalize())
}

fn give(stream: &mut TcpStream, bytes: u64, seed: u64) -> Result<String> {
    let mut digest = Sha256::new();
    pattern(bytes, seed, |chunk| {
        digest.update(chunk);
        Ok(stream.write_all(chunk)?)
    })?;
    Ok(net::hex(&digest.finalize()))
}

fn pattern(mut bytes: u64, seed: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    while bytes > 0 {
        let count = usize::try_from(bytes).map_or(CHUNK, |left| left.min(CHUNK));
        pattern.fill(&mut buffer[..count]);
        each(&buffer[..count])?;
        bytes -= count as u64;
    }
    Ok(())
}

/// Reads this many bytes, or to the end.
fn take(stream: &mut TcpStream, limit: Option<u64>) -> Result<Measured> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        let left = limit.map_or(CHUNK as u64, |limit| limit - bytes);
        let room = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let count = stream.read(&mut buffer[..room])?;
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
        bytes += count as u64;
    }
    Ok(Measured {
        bytes,
        digest: net::hex(&digest.finalize()),
    })
}

fn discard(stream: &mut TcpStream) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut bytes = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(bytes),
            count => bytes += count as u64,
        }
    }
}

fn answer(stream: &mut TcpStream, bytes: u64, digest: &str) -> Result<()> {
    let answer = json!({ "bytes": bytes, "sha256": digest });
    stream.write_all(format!("{answer}\n").as_bytes())?;
    Ok(())
}

fn read_answer(stream: &mut TcpStream) -> Result<Value> {
    let mut text = String::new();
    stream.read_to_string(&mut text).context("the server's answer")?;
    serde_json::from_str(&text).with_context(|| format!("the server's answer: {text:?}"))
}

fn read_line(stream: &mut TcpStream) -> Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while line.len() < MAX_LINE {
        stream.read_exact(&mut byte)?;
        if byte[0] == b'\n' {
            return Ok(String::from_utf8(line)?);
        }
        line.push(byte[0]);
    }
    Err(anyhow!("a request is one short line"))
}
