//! A port at which clients ask for flows.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    time::timeout,
};

use crate::{
    observer::Viewer,
    serve::Connections,
    tls::{Tls, TlsError},
};

/// How long a client may take for TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES: usize = 64;
/// Pause after a failure to accept, as when the agent has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// The port, at which nobody listens when it is opened; whoever does in the meantime makes [`Port::listen`] fail.
#[derive(Debug)]
pub struct Port {
    socket: TcpSocket,
    /// None: whoever reaches the port may see everything.
    tls: Option<Tls>,
}

// === impl Port ===

impl Port {
    /// Takes it. Without TLS whoever reaches it may ask: that is for loopback.
    ///
    /// # Errors
    /// When it cannot be had.
    pub async fn open(address: SocketAddr, tls: Option<Tls>) -> io::Result<Self> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // What is left of connections of an earlier process must not keep this one from it.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(Self { socket, tls })
    }

    /// Where it is.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Listens as soon as there is a certificate: until then connections are refused by the kernel.
    ///
    /// # Errors
    /// When another process was faster.
    pub async fn listen(self) -> io::Result<Listening> {
        if let Some(tls) = &self.tls {
            tls.ready().await;
        }
        Ok(Listening {
            listener: self.socket.listen(BACKLOG)?,
            tls: self.tls,
        })
    }
}

/// The port, with clients that may come.
#[derive(Debug)]
pub struct Listening {
    listener: TcpListener,
    tls: Option<Tls>,
}

// === impl Listening ===

impl Listening {
    /// Serves clients, for ever.
    pub async fn serve(self, connections: Connections) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
        let tls = self.tls.map(Arc::new);
        loop {
            let (stream, peer) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the port for flows");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connections = connections.clone();
            let Some(tls) = tls.clone() else {
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    let taken = connections.take(stream, Viewer::default()).await;
                    told(peer, taken);
                });
                continue;
            };
            let Ok(permit) = handshakes.clone().try_acquire_owned() else {
                // Whoever comes now is sent away at once: nobody waits because of strangers.
                continue;
            };
            tokio::spawn(async move {
                let result = timeout(HANDSHAKE_TIMEOUT, handshake(&tls, stream)).await;
                drop(permit);
                match result {
                    Ok(Ok((stream, viewer))) => told(peer, connections.take(stream, viewer).await),
                    Ok(Err(error)) => refused(peer, &error.to_string()),
                    Err(_) => refused(peer, "the TLS handshake did not finish in time"),
                }
            });
        }
    }
}

fn told(peer: SocketAddr, taken: bool) {
    if !taken {
        tracing::warn!(%peer, "a client for flows is sent away: there are too many");
    }
}

fn refused(peer: SocketAddr, problem: &str) {
    tracing::info!(%peer, problem, "a client for flows is refused");
}

type Accepted = (tokio_rustls::server::TlsStream<TcpStream>, Viewer);

async fn handshake(tls: &Tls, stream: TcpStream) -> Result<Accepted, TlsError> {
    stream.set_nodelay(true)?;
    let accepted = tls.acceptor()?.accept(stream).await?;
    let viewer = tls.viewer(accepted.get_ref().1)?;
    Ok((accepted, viewer))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;

    use super::*;
    use crate::certificate::Credentials;

    #[tokio::test]
    async fn without_a_certificate_connections_are_refused_and_from_the_first_on_they_are_not() {
        let (to, held) = watch::channel(None);
        let tls = Tls::held(held, &Vec::new());
        let port = Port::open(([127, 0, 0, 1], 0).into(), Some(tls)).await.unwrap();
        let address = port.address().unwrap();
        let listening = tokio::spawn(port.listen());
        for _ in 0..10 {
            tokio::task::yield_now().await;
            let refused = TcpStream::connect(address).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        to.send_replace(Some(Arc::new(Credentials::example())));
        let _listening = listening.await.unwrap().unwrap();
        TcpStream::connect(address).await.unwrap();
        let same = Port::open(address, None).await.unwrap_err();
        assert_eq!(same.kind(), io::ErrorKind::AddrInUse);
    }
}
