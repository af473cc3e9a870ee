//! The relay's certificates from the control plane, as in a pod of the cluster.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::Args;
use jiff::Timestamp;
use tokio::sync::watch;
use weir_control_client::{Address, Connection};
use weir_hubble::certificate::{self, CertificateError, ControlPlane, Credentials, Held, Observer, Usage};
use weir_types::hubble::RELAY;

use crate::several::complain;

/// Where the control plane is.
#[derive(Debug, Args)]
#[command(next_help_heading = "Certificates from the control plane")]
pub(super) struct ControlOptions {
    /// Take the relay's certificates, towards agents and for its own port, from this control plane: HOST:PORT.
    #[arg(
        long,
        value_name = "ADDRESS",
        requires_all = ["control_roots", "token", "peers"],
        conflicts_with_all = ["agent_tls_ca", "tls_cert"]
    )]
    control: Option<Address>,
    /// The PEM file with the roots that its certificate must chain to.
    #[arg(long, value_name = "FILE", requires = "control")]
    control_roots: Option<PathBuf>,
    /// The file with the token by which the relay shows who it is: that of its pod's service account.
    #[arg(long, value_name = "FILE", requires = "control")]
    token: Option<PathBuf>,
}

/// Tells people.
struct Told(&'static str);

// === impl ControlOptions ===

impl ControlOptions {
    /// The connection, if there is to be one.
    pub(super) fn connection(&self) -> Option<Connection> {
        let (address, roots, token) = (
            self.control.clone()?,
            self.control_roots.clone()?,
            self.token.clone()?,
        );
        Some(Connection::new(address, roots, token))
    }
}

/// Keeps a certificate from now on.
pub(super) fn keep(connection: &Connection, usage: Usage) -> Held {
    let (to, held) = watch::channel(None::<Arc<Credentials>>);
    let ask = ControlPlane {
        connection: connection.clone(),
        usage,
        lifetime: Duration::ZERO,
    };
    let told = Told(match usage {
        Usage::Client => "towards agents",
        _ => "for clients",
    });
    tokio::spawn(certificate::keep(ask, RELAY.to_owned(), to, told, Timestamp::now));
    held
}

// === impl Told ===

impl Observer for Told {
    fn renewed(&self, credentials: &Credentials) {
        let end = credentials.not_after;
        anstream::eprintln!("weir: a certificate {}, until {end:.0}", self.0);
    }

    fn failed(&self, error: &CertificateError, before: Option<&Credentials>) {
        let left = before.map_or_else(String::new, |before| {
            format!("; the one before lasts until {:.0}", before.not_after)
        });
        let own = self.0;
        complain(
            None,
            &anyhow::anyhow!("no certificate {own}, tried again: {error}{left}"),
        );
    }
}
