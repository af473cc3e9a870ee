//! Looks at what passes a node's link.

use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use weir_lab::Capture;

/// Looks at what passes a link for a while, and says what it was.
#[derive(Debug, Args)]
pub(crate) struct Link {
    /// The interface; that of the default route unless set.
    #[arg(long)]
    interface: Option<String>,
    /// Count how often this passes in the clear.
    #[arg(long)]
    find: Vec<String>,
    /// For how long.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

impl Link {
    pub(crate) fn run(self) -> Result<()> {
        let interface = match self.interface {
            Some(interface) => interface,
            None => default_route().context("there is no default route: name an interface")?,
        };
        let canaries: Vec<_> = self.find.iter().map(String::as_bytes).collect();
        let capture = Capture::here(&interface, &canaries)?;
        println!("{}", serde_json::json!({"capturing": interface}));
        std::thread::sleep(Duration::from_secs(self.seconds));
        println!("{}", serde_json::to_string(&capture.stop()?)?);
        Ok(())
    }
}

/// The interface of the default route (proc_net_route(5): interface, destination, ...).
fn default_route() -> Option<String> {
    let routes = std::fs::read_to_string("/proc/net/route").ok()?;
    routes.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let (interface, destination) = (fields.next()?, fields.next()?);
        (destination == "00000000").then(|| interface.to_owned())
    })
}
