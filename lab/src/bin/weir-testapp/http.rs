//! A tiny HTTP/1.1 server and client.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::json;

use crate::net::{self, Listen};

/// Longest body that is held in memory.
const MAX_BODY: usize = 256 << 20;

#[derive(Debug, Args)]
pub(crate) struct Server {
    #[command(flatten)]
    listen: Listen,
    /// Text of the answer.
    #[arg(long, default_value = "hello")]
    text: String,
}

#[derive(Debug, Args)]
pub(crate) struct Client {
    /// `http://address:port/path`, an IPv6 address in brackets.
    url: String,
    /// Requests on the one connection.
    #[arg(long, default_value_t = 1)]
    requests: u32,
    /// Sent as the body, with POST.
    #[arg(long)]
    body: Option<String>,
}

struct Message {
    first_line: String,
    body: Vec<u8>,
}

impl Server {
    pub(crate) fn run(self) -> Result<()> {
        let Self { listen, text } = self;
        listen.serve(move |stream, peer| serve(stream, peer, &text))
    }
}

fn serve(stream: TcpStream, peer: SocketAddr, text: &str) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = read_message(&mut reader)? {
        let body = if request.first_line.starts_with("POST ") {
            request.body
        } else {
            format!("{text}\nyou are {peer}\n").into_bytes()
        };
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        writer.write_all(&[head.as_bytes(), &body].concat())?;
    }
    Ok(())
}

impl Client {
    pub(crate) fn run(self) -> Result<()> {
        let rest = self
            .url
            .strip_prefix("http://")
            .context("a URL begins with http://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let stream = TcpStream::connect(host).with_context(|| format!("connecting to {host}"))?;
        stream.set_nodelay(true)?;
        let mut writer = stream.try_clone()?;
        let mut reader = BufReader::new(stream);
        let (method, body) = self.body.as_deref().map_or(("GET", ""), |body| ("POST", body));
        let mut last = None;
        for _ in 0..self.requests {
            let head = format!(
                "{method} /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            writer.write_all(&[head.as_bytes(), body.as_bytes()].concat())?;
            let answer = read_message(&mut reader)?.context("closed before the answer")?;
            ensure!(
                answer.first_line.contains(" 200 "),
                "answered {}",
                answer.first_line
            );
            last = Some(answer);
        }
        let body = last.map(|answer| String::from_utf8_lossy(&answer.body).into_owned());
        net::print(&json!({ "requests": self.requests, "body": body }));
        Ok(())
    }
}

/// A message with its body, or nothing at the stream's end.
fn read_message(reader: &mut BufReader<TcpStream>) -> Result<Option<Message>> {
    let mut first_line = String::new();
    if reader.read_line(&mut first_line)? == 0 {
        return Ok(None);
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "ended inside of the header");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<usize>().context("content-length")?;
        }
    }
    ensure!(length <= MAX_BODY, "a body of {length} bytes");
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some(Message { first_line, body }))
}
