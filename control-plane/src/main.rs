//! `weir-control`: the control plane of Weir.

use std::{net::SocketAddr, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};
use weir_admin::LogOptions;
use weir_control::{
    auth::{AgentAccount, NodeAccount},
    ca::{SecretName, Source},
    command,
    compile::Settings,
    run::{self, Options},
};
use weir_types::TrustDomain;

/// Much is allocated for each change and freed at once, on several threads.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Watches Kubernetes, tells agents what is in the mesh, and signs their workloads' certificates.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Examples:\n  \
        weir-control                                    in a pod, with the defaults of the chart\n  \
        weir-control --trust-domain example.org\n  \
        weir-control --authority given --authority-secret pki/issuing-ca\n\n\
        The API server is found as kubectl finds it: by the pod's service account, or by KUBECONFIG."
)]
struct Arguments {
    /// Where agents connect to: delta ADS, certificates and reports, over TLS.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15012")]
    listen: SocketAddr,
    /// Where metrics and readiness are served.
    #[arg(long, value_name = "ADDRESS", default_value = "[::]:15014")]
    metrics: SocketAddr,
    /// Names and addresses that agents know this port by, in its certificate. Several are given one after the other.
    #[arg(long = "server-name", value_name = "NAME", default_values = ["weir-control.weir-system.svc", "weir-control.weir-system"])]
    server_names: Vec<String>,
    /// Trust domain of the mesh, the first part of every identity.
    #[arg(
        long,
        global = true,
        value_name = "DOMAIN",
        default_value = "cluster.local",
        env = "WEIR_TRUST_DOMAIN"
    )]
    trust_domain: TrustDomain,
    /// The cluster's name in the names of workloads.
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    cluster: String,
    /// The domain of services' names.
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// The namespace whose policies without a selector are the mesh's.
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-system")]
    root_namespace: String,
    /// The agents' namespace, where the roots are published for them.
    #[arg(long, value_name = "NAMESPACE", default_value = "weir-system")]
    agent_namespace: String,
    /// The agents' service account.
    #[arg(long, value_name = "NAME", default_value = "weir-agent")]
    agent_service_account: String,
    /// The agents' DaemonSet.
    #[arg(long, value_name = "NAME", default_value = "weir-agent")]
    agent_daemon_set: String,
    /// Another node proxy that is let in as agents are, as ztunnel: the namespace, and the name of its service account and its
    /// DaemonSet. Several are given one after the other.
    #[arg(long = "trusted-node-account", value_name = "NAMESPACE/NAME")]
    trusted_node_accounts: Vec<NodeAccount>,
    /// Audiences that tokens may be for. Several are given one after the other.
    #[arg(long = "audience", value_name = "AUDIENCE", default_values = ["weir"])]
    audiences: Vec<String>,
    /// Where the authority's key comes from.
    #[arg(long, value_enum, default_value = "own")]
    authority: Authority,
    /// The Secret with the authority's key: namespace/name. The namespace must be one that agents cannot read.
    #[arg(long, global = true, value_name = "NAMESPACE/NAME", default_value = "weir-authority/weir-authority", env = "WEIR_AUTHORITY_SECRET", value_parser = secret)]
    authority_secret: (String, String),
    /// The Secret with the key of the flows' authority, in the same namespace. It is made when the first certificate is asked for.
    #[arg(
        long,
        global = true,
        value_name = "NAME",
        default_value = "weir-flows-authority"
    )]
    flows_authority_secret: String,
    /// The service account of relays of flows, in the agents' namespace.
    #[arg(long, value_name = "NAME", default_value = "weir-relay")]
    relay_service_account: String,
    /// Policies of Istio's security.istio.io count too.
    #[arg(long)]
    istio_policies: bool,
    /// Nodes that are not ready get the taint weir.dev/agent-not-ready, which goes when their agent is ready. For clusters with
    /// an agent on every node; elsewhere have the kubelet register its node with the taint.
    #[arg(long)]
    taint_starting_nodes: bool,
    /// This replica's name, in the events that it writes.
    #[arg(long, value_name = "NAME", default_value = "weir-control", env = "POD_NAME")]
    instance: String,
    #[command(flatten)]
    log: LogOptions,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look after the authority: rotate its root, revoke identities and certificates.
    #[command(
        subcommand,
        after_help = "Examples, with the rights of weir-control itself:\n  \
            kubectl -n weir-system exec deploy/weir-control -- /weir-control authority status\n  \
            kubectl -n weir-system exec deploy/weir-control -- /weir-control authority prepare"
    )]
    Authority(command::Authority),
    /// Print a key and a certificate for a client of flows that runs elsewhere, as Hubble's command line or a dashboard, and the
    /// roots that it is to trust: PEM, all in one.
    #[command(after_help = "Examples, with the rights of weir-control itself:\n  \
            kubectl -n weir-system exec deploy/weir-control -- /weir-control flows-client anna > anna.pem\n  \
            hubble observe --server relay.example.org:4245 --tls --tls-server-name relay.hubble.weir.dev \\\n    \
              --tls-ca-cert-files anna.pem --tls-client-cert-file anna.pem --tls-client-key-file anna.pem")]
    FlowsClient(command::FlowsClient),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Authority {
    /// A root of its own, made at the first start.
    Own,
    /// An intermediate or root given by cert-manager or by hand.
    Given,
}

fn secret(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err("expected a namespace and a name, as weir-authority/weir-authority".to_owned()),
    }
}

impl From<Arguments> for Options {
    fn from(arguments: Arguments) -> Self {
        let (namespace, name) = arguments.authority_secret;
        Self {
            listen: arguments.listen,
            metrics: arguments.metrics,
            server_names: arguments.server_names,
            settings: Settings {
                cluster: arguments.cluster,
                domain: arguments.cluster_domain,
                trust_domain: arguments.trust_domain.clone(),
                root_namespace: arguments.root_namespace,
            },
            account: AgentAccount {
                audiences: arguments.audiences,
                namespace: arguments.agent_namespace,
                service_account: arguments.agent_service_account,
                daemon_set: arguments.agent_daemon_set,
                trusted: arguments.trusted_node_accounts,
                relay_service_account: arguments.relay_service_account,
            },
            authority: SecretName { namespace, name },
            source: match arguments.authority {
                Authority::Own => Source::Own,
                Authority::Given => Source::Given,
            },
            flows_authority: arguments.flows_authority_secret,
            istio_policies: arguments.istio_policies,
            taint_starting_nodes: arguments.taint_starting_nodes,
            instance: arguments.instance,
            trust_domain: arguments.trust_domain,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(command) = &arguments.command {
        let (namespace, name) = arguments.authority_secret;
        let done = match command {
            Command::Authority(command) => {
                command::authority(command, SecretName { namespace, name }, arguments.trust_domain)
            }
            Command::FlowsClient(command) => {
                let name = arguments.flows_authority_secret;
                command::flows_client(command, SecretName { namespace, name })
            }
        };
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("weir-control: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let started = arguments.log.start();
    if let Err(error) = started.and_then(|()| run::run(arguments.into())) {
        eprintln!("weir-control: {error:#}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
