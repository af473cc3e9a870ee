//! Whom to ask: the agent of this node, or those of a cluster.

use std::path::PathBuf;

use clap::Args;
use weir_types::api::DEFAULT_SOCKET;

/// Names the agent's socket where `--socket` does not.
const SOCKET_VARIABLE: &str = "WEIR_SOCKET";
/// Where Weir is installed unless said otherwise.
pub(crate) const NAMESPACE: &str = "weir-system";

/// Whom to ask, as the user says it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Whom to ask")]
pub(crate) struct Options {
    /// Ask this node's agent, at this socket [env: WEIR_SOCKET; else /run/weir/agent.sock if there is one].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Ask the agent of this node of the cluster.
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "all_nodes")]
    pub(crate) node: Option<String>,
    /// Ask the agents of all nodes of the cluster; what is done where this node has no agent.
    #[arg(long, global = true)]
    pub(crate) all_nodes: bool,
    /// The context of the kubeconfig.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// The kubeconfig [else: KUBECONFIG, then ~/.kube/config].
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The namespace that Weir is installed in.
    #[arg(long, global = true, value_name = "NAMESPACE", env = "WEIR_NAMESPACE", default_value = NAMESPACE)]
    pub(crate) weir_namespace: String,
}

/// What else decides.
#[derive(Debug, Clone, Default)]
pub(crate) struct Surroundings {
    /// `WEIR_SOCKET`.
    pub(crate) socket: Option<PathBuf>,
    /// Whether this node has an agent, at the usual place.
    pub(crate) has_agent: bool,
    /// Called as `kubectl weir`: whoever speaks to kubectl means the cluster.
    pub(crate) plugin: bool,
}

/// Whom to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// This node's agent.
    Socket(PathBuf),
    /// The cluster's agents, or one of them.
    Cluster(Option<String>),
}

/// The command line contradicts itself, or lacks something.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

impl Options {
    /// Whether the cluster is meant, by the command line itself.
    fn cluster(&self) -> Option<&'static str> {
        [
            (self.node.is_some(), "--node"),
            (self.all_nodes, "--all-nodes"),
            (self.context.is_some(), "--context"),
            (self.kubeconfig.is_some(), "--kubeconfig"),
        ]
        .into_iter()
        .find_map(|(given, name)| given.then_some(name))
    }

    /// Whom these mean. What stands on the command line counts before what stands in the environment.
    pub(crate) fn target(&self, surroundings: &Surroundings) -> Result<Target, Usage> {
        match (&self.socket, self.cluster()) {
            (Some(_), Some(other)) => Err(Usage(format!(
                "--socket asks the agent of this node, and {other} those of a cluster: give one of them"
            ))),
            (Some(socket), None) => Ok(Target::Socket(socket.clone())),
            (None, Some(_)) => Ok(Target::Cluster(self.node.clone())),
            (None, None) => Ok(match &surroundings.socket {
                Some(socket) => Target::Socket(socket.clone()),
                None if surroundings.has_agent && !surroundings.plugin => {
                    Target::Socket(PathBuf::from(DEFAULT_SOCKET))
                }
                None => Target::Cluster(None),
            }),
        }
    }

    /// For what only a cluster can be asked.
    pub(crate) fn only_cluster(&self) -> Result<(), Usage> {
        if self.socket.is_some() {
            return Err(Usage(
                "this asks the cluster: --socket says nothing here".to_owned(),
            ));
        }
        if self.node.is_some() {
            return Err(Usage(
                "this asks the whole cluster: --node says nothing here".to_owned(),
            ));
        }
        Ok(())
    }
}

impl Surroundings {
    /// Those of this process.
    pub(crate) fn look(plugin: bool) -> Self {
        Self {
            socket: std::env::var_os(SOCKET_VARIABLE)
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            has_agent: std::path::Path::new(DEFAULT_SOCKET).exists(),
            plugin,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(given: &[&str]) -> Options {
        let mut options = Options::default();
        for one in given {
            match *one {
                "socket" => options.socket = Some("/s".into()),
                "node" => options.node = Some("n".to_owned()),
                "all" => options.all_nodes = true,
                "context" => options.context = Some("c".to_owned()),
                _ => options.kubeconfig = Some("/k".into()),
            }
        }
        options
    }

    #[test]
    fn the_command_line_counts_before_the_environment_and_that_before_what_is_there() {
        let socket = |path: &str| Ok(Target::Socket(path.into()));
        let all = || Ok(Target::Cluster(None));
        let default = DEFAULT_SOCKET;
        // Given, WEIR_SOCKET, this node has an agent, as kubectl's plugin.
        type Row = (&'static [&'static str], bool, bool, bool, Result<Target, Usage>);
        let table: [Row; 13] = [
            (&[], false, false, false, all()),
            (&[], false, true, false, socket(default)),
            (&[], false, true, true, all()),
            (&[], true, true, false, socket("/e")),
            (&[], true, false, true, socket("/e")),
            (&["socket"], true, true, true, socket("/s")),
            (&["all"], false, true, false, all()),
            (&["all"], true, true, false, all()),
            (&["context"], false, true, false, all()),
            (&["kubeconfig"], false, true, false, all()),
            (
                &["node"],
                false,
                true,
                false,
                Ok(Target::Cluster(Some("n".to_owned()))),
            ),
            (
                &["node", "context"],
                true,
                true,
                false,
                Ok(Target::Cluster(Some("n".to_owned()))),
            ),
            (&["kubeconfig"], true, false, true, all()),
        ];
        for (given, environment, has_agent, plugin, expected) in table {
            let surroundings = Surroundings {
                socket: environment.then(|| "/e".into()),
                has_agent,
                plugin,
            };
            assert_eq!(
                options(given).target(&surroundings),
                expected,
                "{given:?} {surroundings:?}"
            );
        }
    }

    #[test]
    fn a_node_and_a_cluster_at_once_are_refused() {
        for other in ["node", "all", "context", "kubeconfig"] {
            let refused = options(&["socket", other]).target(&Surroundings::default());
            assert!(refused.is_err(), "{other}");
        }
    }
}
