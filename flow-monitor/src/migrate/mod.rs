//! `weir migrate`: policies of Istio and Linkerd as Weir's.

mod addresses;
mod input;
mod istio;
mod linkerd;
pub(crate) mod output;
mod report;
#[cfg(test)]
mod tests;

use std::{io::Write as _, path::PathBuf};

use clap::Args;
use weir::style::{clean, clean_json};

use self::{
    addresses::Addresses,
    input::{Item, LINKERD, NETWORKING, SECURITY},
    report::Report,
};
use crate::{cluster::Cluster, target::Options};

/// Where Linkerd takes the cluster's addresses to be unless it was told.
const CLUSTER_NETWORKS: &str = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8";

/// Translates the policies of Istio and Linkerd into Weir's.
///
/// Reads files, or the cluster of the kubeconfig, and writes YAML to the standard output. Nothing is applied. What became of
/// each object stands on the error stream: what is written never allows a connection that was refused; where something has no
/// counterpart it refuses more, or says what is lost.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    weir migrate > weir.yaml                  what the cluster has; the report is shown\n  \
    weir migrate -f policies/ more.yaml       files, and folders with all that is in them\n  \
    helm template shop | weir migrate -f -    standard input\n\n\
    Then: kubectl apply --dry-run=server -f weir.yaml")]
pub(crate) struct Migrate {
    /// Files with YAML or JSON, folders of them, or '-' for the standard input [else: the cluster].
    #[arg(long, short, value_name = "FILE", num_args = 1..)]
    file: Vec<PathBuf>,
    /// The namespace of objects in files that name none.
    #[arg(long, short, value_name = "NAMESPACE", default_value = "default")]
    namespace: String,
    #[command(flatten)]
    settings: Settings,
}

/// What the objects themselves do not say.
#[derive(Debug, Clone, Args)]
pub(crate) struct Settings {
    /// Weir's trust domain.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) trust_domain: String,
    /// Istio's root namespace.
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    pub(crate) istio_root: String,
    /// Linkerd's trust domain.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub(crate) linkerd_trust_domain: String,
    /// What Linkerd takes for the cluster's networks (its clusterNetworks).
    #[arg(long, value_name = "BLOCKS", value_delimiter = ',', default_value = CLUSTER_NETWORKS)]
    pub(crate) linkerd_cluster_networks: Vec<String>,
    /// Weir's root namespace, where it is installed.
    #[arg(skip)]
    pub(crate) root: String,
}

// === impl Settings ===

impl Settings {
    /// The cluster's addresses. What is no block is none.
    fn cluster_addresses(&self) -> Addresses {
        let blocks = self.linkerd_cluster_networks.iter();
        blocks
            .filter_map(|block| Addresses::block(block))
            .fold(Addresses::default(), |all, block| all.or(&block))
    }
}

// === impl Migrate ===

impl Migrate {
    pub(crate) async fn run(mut self, options: &Options) -> anyhow::Result<()> {
        options.only_cluster()?;
        self.settings.root.clone_from(&options.weir_namespace);
        let items = if self.file.is_empty() {
            input::cluster(&Cluster::new(options).await?).await?
        } else {
            input::files(&self.file, &self.namespace)?
        };
        let report = translate(&items, &self.settings);
        let mut out = anstream::stdout();
        for made in &report.made {
            writeln!(out, "---\n# {}", clean(&made.from))?;
            let yaml = serde_saphyr::to_string(&made.object)?;
            writeln!(out, "{}", clean_json(yaml.trim_end()))?;
        }
        out.flush()?;
        report.print(&mut anstream::stderr())?;
        Ok(())
    }
}

/// Translates everything.
fn translate(items: &[Item], settings: &Settings) -> Report {
    let mut report = Report::default();
    let mut peers = Vec::new();
    for item in items {
        let (group, kind) = (item.group(), item.kind());
        match (group, kind) {
            ("", "Namespace") => {
                if let Some(entry) = istio::others::namespace(item) {
                    report.add(entry);
                }
            }
            (SECURITY, "AuthorizationPolicy") => {
                istio::authorization::translate(item, settings, &mut report);
            }
            (SECURITY, "PeerAuthentication") => peers.push(item),
            (SECURITY, "RequestAuthentication") => report.add(istio::authorization::request(item)),
            (
                LINKERD,
                "Server"
                | "AuthorizationPolicy"
                | "MeshTLSAuthentication"
                | "NetworkAuthentication"
                | "ServerAuthorization",
            ) => {}
            (SECURITY | NETWORKING | LINKERD | "extensions.istio.io" | "telemetry.istio.io", _) => {
                report.add(istio::others::other(item));
            }
            _ => {}
        }
    }
    istio::peer::translate(&peers, settings, &mut report);
    linkerd::translate(items, settings, &mut report);
    report
}
