//! The service map: one page for a browser that shows who talks to whom, live.

mod access;
mod server;
mod state;

use std::{io, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    time::{MissedTickBehavior, interval, sleep},
};
use tokio_stream::StreamExt as _;
use weir_proto::observer::{GetFlowsRequest, GetFlowsResponse, get_flows_response::ResponseTypes};
use weir_types::{
    Flow,
    explain::{ExplainRequest, Explanation},
};

pub use access::{Access, AccessError};
use state::Shared;

use crate::{
    convert::{from_hubble, timestamp},
    observer::Viewer,
    relay::{Connect, Relay},
};

/// How often pages are told.
const TELL: Duration = Duration::from_secs(1);
/// What is looked back at: what has just been is shown at once.
const BEFORE: Duration = Duration::from_secs(60);
/// Questions to nodes at once.
const EXPLAINING: usize = 8;
/// Wait before the relay is asked again.
const RETRY: Duration = Duration::from_secs(2);

/// The map, its port open.
#[derive(Debug)]
pub struct Map {
    listener: TcpListener,
    access: Arc<Access>,
    shared: Arc<Shared>,
    /// What pages are told, by grant.
    events: Vec<watch::Sender<Arc<str>>>,
}

/// Asks a node what would become of a connection.
type Explain = Box<
    dyn Fn(String, ExplainRequest) -> Pin<Box<dyn Future<Output = Result<Explanation, String>> + Send>>
        + Send
        + Sync,
>;

/// Takes records in.
#[derive(Debug, Clone)]
pub struct Taker(Arc<Shared>);

// === impl Taker ===

impl Taker {
    /// Takes one in.
    pub fn take(&self, flow: Flow) {
        self.0.take(flow);
    }
}

// === impl Map ===

impl Map {
    /// Opens the port.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn open(address: SocketAddr, access: Access) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let now = Timestamp::now();
        let graphs = access
            .viewers()
            .map(|viewer| watch::Sender::new(shared.graph(viewer, now)));
        Ok(Self {
            listener: TcpListener::bind(address).await?,
            events: graphs.collect(),
            access: Arc::new(access),
            shared,
        })
    }

    /// Where it is.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes a record in that did not come by a relay.
    pub fn take(&self, flow: Flow) {
        self.shared.take(flow);
    }

    /// To take records in while it is served.
    #[must_use]
    pub fn taker(&self) -> Taker {
        Taker(self.shared.clone())
    }

    /// Serves pages, and follows the flows of a relay, for ever.
    pub async fn serve<C: Connect>(self, relay: Relay<C>) {
        let shared = self.shared.clone();
        let asked = relay.clone();
        let explain: Explain = Box::new(move |node, request| {
            let relay = asked.clone();
            Box::pin(async move { relay.explain(&node, request).await })
        });
        tokio::select! {
            () = self.serve_with(Some(explain)) => {}
            () = follow(&shared, &relay) => {}
        }
    }

    /// Serves pages, for ever. Without a relay nobody can be asked what would become of a connection.
    pub async fn serve_pages(self) {
        self.serve_with(None).await;
    }

    async fn serve_with(self, explain: Option<Explain>) {
        let pages = server::Pages {
            access: self.access.clone(),
            shared: self.shared.clone(),
            events: self.events.iter().map(watch::Sender::subscribe).collect(),
            explain,
            explaining: Semaphore::new(EXPLAINING),
        };
        tokio::select! {
            () = self.tell() => {}
            () = server::serve(&self.listener, Arc::new(pages)) => {}
        }
    }

    /// Tells pages how the graph is, those of one grant once.
    async fn tell(&self) {
        let mut ticks = interval(TELL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let now = Timestamp::now();
            for (viewer, events) in self.access.viewers().zip(&self.events) {
                events.send_replace(self.shared.graph(viewer, now));
            }
        }
    }
}

async fn follow<C: Connect>(shared: &Shared, relay: &Relay<C>) {
    let mut since = Timestamp::now().checked_sub(BEFORE).unwrap_or(Timestamp::MIN);
    loop {
        let request = GetFlowsRequest {
            follow: true,
            since: Some(timestamp(since)),
            ..GetFlowsRequest::default()
        };
        match relay.flows(request, Viewer::default()) {
            Ok(mut answer) => {
                let ended = loop {
                    match answer.next().await {
                        Some(Ok(response)) => take(shared, response),
                        Some(Err(status)) => break status.message().to_owned(),
                        None => break "nothing more came".to_owned(),
                    }
                };
                tracing::warn!(ended, "the map's stream of flows ended; it is asked for again");
            }
            Err(error) => tracing::warn!(%error, "the map cannot follow flows"),
        }
        since = Timestamp::now();
        sleep(RETRY).await;
    }
}

fn take(shared: &Shared, response: GetFlowsResponse) {
    match response.response_types {
        Some(ResponseTypes::Flow(flow)) => {
            if let Some(flow) = from_hubble(&flow) {
                shared.take(flow);
            }
        }
        Some(ResponseTypes::LostEvents(lost)) => shared.lose(lost.num_events_lost),
        Some(ResponseTypes::NodeStatus(status)) => shared.node(&status),
        None => {}
    }
}
