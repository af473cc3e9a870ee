//! The map that a relay serves, if it is asked to.

use std::{fs, future, net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use clap::Args;
use weir_hubble::{
    map::{Access, Map},
    relay::{Connect, Relay},
    tls::Tls,
};

use crate::target::Usage;

/// Where the map is, and who may see it.
#[derive(Debug, Args)]
pub(super) struct MapOptions {
    /// Serve a map of who talks to whom for browsers there. Without --map-mtls or --map-token-file it must be on loopback.
    #[arg(long = "map", value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:4246")]
    address: Option<SocketAddr>,
    /// The file with the tokens that show the map: one a line, after a blank the namespaces that it is limited to, with
    /// commas between them.
    #[arg(long = "map-token-file", value_name = "FILE", requires = "address")]
    tokens: Option<PathBuf>,
    /// Speak mutual TLS there: with the certificate that clients of flows are shown, for the same clients (--client).
    #[arg(long = "map-mtls", requires_all = ["address", "clients"], conflicts_with = "tokens")]
    is_mutual: bool,
}

// === impl MapOptions ===

impl MapOptions {
    /// Whether it needs a certificate.
    pub(super) fn is_mutual(&self) -> bool {
        self.is_mutual
    }

    /// Opens its port, if there is to be one; with the certificate, if it needs one.
    pub(super) async fn open(&self, tls: Option<Tls>) -> anyhow::Result<Option<Map>> {
        let Some(address) = self.address else {
            return Ok(None);
        };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let access = match &self.tokens {
            _ if let Some(tls) = tls => Access::certificates(tls),
            Some(file) => {
                let text = fs::read_to_string(file);
                let text = text.with_context(|| format!("{} cannot be read", file.display()))?;
                Access::tokens(&text)
                    .map_err(|error| Usage(format!("--map-token-file {}: {error}", file.display())))?
            }
            None if address.ip().is_loopback() => Access::open(),
            None => {
                return Err(Usage(format!(
                    "--map {address}: without mutual TLS or tokens the map is on loopback only; give --map-mtls or --map-token-file"
                ))
                .into());
            }
        };
        let map = Map::open(address, access).await;
        let map = map.with_context(|| format!("{address} cannot be opened"))?;
        anstream::eprintln!("weir: the map is at {scheme}://{}/", map.address()?);
        Ok(Some(map))
    }
}

/// Serves it for ever, if there is one.
pub(super) async fn serve<C: Connect>(map: Option<Map>, relay: Relay<C>) {
    match map {
        Some(map) => map.serve(relay).await,
        None => future::pending().await,
    }
}
