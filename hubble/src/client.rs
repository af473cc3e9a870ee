//! A client of the observer.

use std::{io, sync::Mutex, time::Duration};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use weir_proto::observer::observer_client::ObserverClient;

use crate::serve::Io;

/// Most bytes of one response: a flow with some hundred labels.
const MAX_RESPONSE: usize = 4 << 20;
/// How often a silent server is asked whether it is alive, and how long it may take to say so: half of a minute until one is
/// known to be gone that did not say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(15));

/// A client on a connection that is made already. It is not made again: who needs that, asks anew.
///
/// # Errors
/// When the other side does not speak HTTP/2.
pub async fn over(io: impl Io) -> Result<ObserverClient<Channel>, tonic::transport::Error> {
    Ok(observer(channel(io).await?))
}

/// A client by a channel.
#[must_use]
pub fn observer(channel: Channel) -> ObserverClient<Channel> {
    ObserverClient::new(channel).max_decoding_message_size(MAX_RESPONSE)
}

/// A channel on a connection that is made already.
///
/// # Errors
/// As [`over`].
pub async fn channel(io: impl Io) -> Result<Channel, tonic::transport::Error> {
    let io = Mutex::new(Some(TokioIo::new(io)));
    let connector = service_fn(move |_: Uri| {
        let io = io.lock().ok().and_then(|mut io| io.take());
        async move { io.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
    });
    // Requests say this in `:authority`; the connection leads where it leads.
    let endpoint = Endpoint::from(Uri::from_static("http://weir-agent"))
        .http2_keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1);
    endpoint.connect_with_connector(connector).await
}
