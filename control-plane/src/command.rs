//! `weir-control authority`, `weir-control flows-client`: operations on the authorities' Secrets, for their operator.

use std::{io::Write as _, time::Duration};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::Timestamp;
use kube::Client;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use weir_types::{Identity, TrustDomain};
use zeroize::Zeroizing;

use crate::ca::{
    AuthoritySecret, AuthorityStatus, InForce, NextAuthority, Phase, Reason, Scope, SecretError, SecretName,
    Serial, Usage, pem,
};

/// Seconds.
const DAY: u64 = 24 * 3600;

/// What is done with the authority.
#[derive(Debug, Subcommand)]
pub enum Authority {
    /// Say where a rotation stands, when roots and authority end, and what is revoked.
    Status,
    /// First step of a rotation: make a new root, and have agents trust it besides the old one.
    Prepare,
    /// Second step, a day later: the new root signs.
    Activate(Force),
    /// Third step, a day later: the old root is not trusted any more.
    Retire(Force),
    /// Take the first step back.
    Abandon,
    /// Revoke an identity, or one certificate.
    Revoke(Revoke),
    /// Issue to an identity again.
    Restore {
        /// The identity: spiffe://...
        identity: Identity,
    },
}

/// Whether to wait.
#[derive(Debug, Clone, Copy, Args)]
pub struct Force {
    /// Also where certificates of the root that goes may still be in use: their connections end.
    #[arg(long)]
    force: bool,
}

/// What to revoke.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Revoke {
    /// No certificate is issued for this identity any more: spiffe://...
    #[arg(long)]
    identity: Option<Identity>,
    /// The certificate with this serial number, in hexadecimal, as `weir status` shows it.
    #[arg(long)]
    serial: Option<Serial>,
}

/// For whom, and for how long.
#[derive(Debug, Args)]
pub struct FlowsClient {
    /// The client's name: it is known as NAME.client.hubble.weir.dev.
    name: String,
    /// Days that it is valid. Nothing but its end takes it back.
    #[arg(long, value_name = "DAYS", default_value = "90", value_parser = clap::value_parser!(u16).range(1..=365))]
    days: u16,
}

/// Does it, and says what came of it.
///
/// # Errors
/// When the Secret or the API server do not allow it: what, and what to do.
pub fn authority(command: &Authority, name: SecretName, trust_domain: TrustDomain) -> anyhow::Result<()> {
    with_client(async |client| {
        let secret = AuthoritySecret::new(client, name, trust_domain);
        change(command, &secret, Timestamp::now()).await?;
        show(&secret.status(Timestamp::now()).await?);
        Ok(())
    })
}

/// Prints a client's key, certificate and roots.
///
/// # Errors
/// When there is no authority yet, the name cannot be had, or the API server does not allow it.
pub fn flows_client(command: &FlowsClient, name: SecretName) -> anyhow::Result<()> {
    let full = weir_types::hubble::client(&command.name)?;
    let days = u64::from(command.days) * DAY;
    let secret_name = format!("{}/{}", name.namespace, name.name);
    let now = Timestamp::now();
    let contents = with_client(async |client| {
        let secret = AuthoritySecret::new(client, name, Scope::Flows);
        match secret.contents().await {
            Err(SecretError::Absent(_)) => anyhow::bail!(
                "there is no authority for clients of flows yet: the Secret {secret_name} is made when the first agent asks for \
                 a certificate of its port (Helm: flows.port.enabled)"
            ),
            other => Ok(other?),
        }
    })?;
    let in_force = InForce::load(&contents, &Scope::Flows, now)?;
    let key = Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?);
    let lifetime = Duration::from_secs(days);
    let authority = in_force.authority();
    let certified = authority.issue_host(&*key, &full, Usage::Client, lifetime, now)?;
    let mut out = Zeroizing::new(key.serialize_pem());
    for certificate in std::iter::once(&certified.leaf).chain(&certified.intermediates) {
        out.push_str(&pem::certificate(certificate));
    }
    out.push_str(in_force.roots_pem());
    std::io::stdout().write_all(out.as_bytes())?;
    eprintln!("weir-control: {full}, valid until {:.0}", certified.not_after);
    Ok(())
}

fn with_client<T>(ask: impl AsyncFnOnce(Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let client = Client::try_default()
            .await
            .context("the API server cannot be found: no service account, and no KUBECONFIG")?;
        ask(client).await
    })
}

async fn change(command: &Authority, secret: &AuthoritySecret, now: Timestamp) -> anyhow::Result<()> {
    match command {
        Authority::Status => {}
        Authority::Prepare => secret.begin(NextAuthority::Generate, now).await?,
        Authority::Activate(how) => secret.activate(now, how.force).await?,
        Authority::Retire(how) => secret.retire(now, how.force).await?,
        Authority::Abandon => secret.abandon(now).await?,
        Authority::Revoke(Revoke {
            identity: Some(identity),
            ..
        }) => {
            secret
                .revoke(now, |revoked| revoked.add_identity(identity.clone(), now))
                .await?;
        }
        Authority::Revoke(Revoke {
            serial: Some(serial), ..
        }) => {
            // Before: what nobody is told of must not look done.
            if let Some(why) = secret.status(now).await?.no_lists {
                anyhow::bail!(
                    "the authority cannot sign revocation lists ({why}): its certificate needs the key usage cRLSign. Revoke the identity"
                );
            }
            secret
                .revoke_serial(serial.clone(), Reason::Unspecified, now)
                .await?;
        }
        // Excluded by the group.
        Authority::Revoke(_) => {}
        Authority::Restore { identity } => {
            secret
                .revoke(now, |revoked| {
                    revoked.remove_identity(identity);
                    Ok(())
                })
                .await?;
        }
    }
    Ok(())
}

fn show(status: &AuthorityStatus) {
    let phase = match status.phase {
        Phase::Stable => "no rotation",
        Phase::Prepared => "a new root is prepared: agents trust both, the old one signs",
        Phase::Activated => "the new root signs: agents still trust the old one",
    };
    println!("rotation     {phase}");
    if let Some(next) = status.next_possible {
        let step = if status.phase == Phase::Prepared {
            "activate"
        } else {
            "retire"
        };
        println!("next step    {step}, from {next:.0} on");
    }
    println!(
        "roots        {}, the first ends {:.0}",
        status.roots, status.roots_end
    );
    println!("authority    ends {:.0}", status.authority_end);
    println!(
        "revoked      {} identities, {} certificates",
        status.revoked_identities, status.revoked_serials
    );
}
