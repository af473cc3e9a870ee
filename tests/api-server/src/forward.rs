//! `pods/portforward` over a websocket, to ports that tests have registered for their pods.
//!
//! As `k8s.io/kubelet/pkg/cri/streaming/portforward` has it: for each port a channel of bytes and one of errors, each
//! opened by a frame with the port's number. Only the first port that is asked for is forwarded.

use std::{collections::HashMap, net::SocketAddr};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, handshake::derive_accept_key, protocol::Role},
};

use crate::{request::Target, serving::Body, status::Status};

/// The channels of the first port.
const DATA: u8 = 0;
const ERROR: u8 = 1;
const PROTOCOL: &str = "v4.channel.k8s.io";
const BUFFER: usize = 16 * 1024;

/// Where the ports of pods lead: by namespace, name and port.
#[derive(Debug, Default)]
pub(crate) struct Forwards(HashMap<(String, String, u16), SocketAddr>);

impl Forwards {
    pub(crate) fn set(&mut self, namespace: &str, pod: &str, port: u16, to: SocketAddr) {
        let key = (namespace.to_owned(), pod.to_owned(), port);
        self.0.insert(key, to);
    }

    pub(crate) fn find(&self, target: &Target, port: u16) -> Option<SocketAddr> {
        let name = target.name.clone().unwrap_or_default();
        self.0.get(&(target.namespace.clone(), name, port)).copied()
    }
}

/// What a path asks to forward, if that is what it asks.
pub(crate) fn asked(path: &str) -> Option<Target> {
    Target::parse(path).filter(|target| {
        target.group.is_empty()
            && target.plural == "pods"
            && target.subresource.as_deref() == Some("portforward")
    })
}

/// Switches protocols, and forwards until one side ends.
pub(crate) fn switch(
    mut request: Request<Incoming>,
    port: u16,
    to: Option<SocketAddr>,
) -> Result<Response<Body>, Status> {
    let header = |name: header::HeaderName| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default()
    };
    let offered = header(header::SEC_WEBSOCKET_PROTOCOL);
    if !header(header::UPGRADE).eq_ignore_ascii_case("websocket")
        || !offered.split(',').any(|one| one.trim() == PROTOCOL)
    {
        return Err(Status::bad_request(
            "Upgrade request required: a websocket of v4.channel.k8s.io",
        ));
    }
    let accept = derive_accept_key(header(header::SEC_WEBSOCKET_KEY).as_bytes());
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
            // Whoever went away needs no answer.
            let _ = forward(socket, port, to).await;
        }
    });
    let empty = Empty::new().map_err(|never| match never {}).boxed_unsync();
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_ACCEPT, accept)
        .header(header::SEC_WEBSOCKET_PROTOCOL, PROTOCOL)
        .body(empty)
        .map_err(|why| Status::internal(why.to_string()))
}

type Socket = WebSocketStream<TokioIo<Upgraded>>;

async fn forward(
    mut socket: Socket,
    port: u16,
    to: Option<SocketAddr>,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let [low, high] = port.to_le_bytes();
    for channel in [DATA, ERROR] {
        socket.send(frame(channel, &[low, high])).await?;
    }
    let connected = match to {
        Some(to) => TcpStream::connect(to).await.ok(),
        None => None,
    };
    let Some(mut stream) = connected else {
        let why = format!(
            "an error occurred forwarding {port} -> {port}: failed to connect to localhost:{port} inside namespace: \
             connection refused"
        );
        socket.send(frame(ERROR, why.as_bytes())).await?;
        socket.close(None).await?;
        // What the client sent meanwhile would reset the connection, and take the reason with it.
        while let Some(Ok(_)) = socket.next().await {}
        return Ok(());
    };
    let mut buffer = vec![0; BUFFER];
    loop {
        tokio::select! {
            read = stream.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return socket.close(None).await,
                Ok(read) => socket.send(frame(DATA, &buffer[..read])).await?,
            },
            message = socket.next() => match message {
                Some(Ok(Message::Binary(bytes))) if bytes.first() == Some(&DATA) => {
                    stream.write_all(&bytes[1..]).await?;
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(()),
                Some(Ok(_)) => {}
            },
        }
    }
}

fn frame(channel: u8, bytes: &[u8]) -> Message {
    let mut frame = Vec::with_capacity(bytes.len() + 1);
    frame.push(channel);
    frame.extend_from_slice(bytes);
    Message::Binary(Bytes::from(frame))
}
