//! What is measured: cases, paths, systems.

use clap::ValueEnum;
use serde::Serialize;
use weir_lab::config::SameNodeMode;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Case {
    /// Throughput of one stream.
    #[value(name = "bulk-1")]
    #[serde(rename = "bulk-1")]
    Bulk1,
    /// Throughput of four streams.
    #[value(name = "bulk-4")]
    #[serde(rename = "bulk-4")]
    Bulk4,
    /// Latency of 64 bytes there and back.
    #[value(name = "rr-64")]
    #[serde(rename = "rr-64")]
    Rr64,
    /// New connections of one client.
    #[value(name = "crr-1")]
    #[serde(rename = "crr-1")]
    Crr1,
    /// New connections of sixteen clients.
    #[value(name = "crr-16")]
    #[serde(rename = "crr-16")]
    Crr16,
    /// CPU seconds of the whole machine for a gigabit.
    Cpu,
    /// Time that the kernel programs take for a connection of one node, in a table of its own.
    Programs,
    /// Resident memory idle and with 5,000 held connections.
    Memory,
    /// What weir-control takes in a cluster of 20,000 pods and 200 agents: only when asked for, and alone.
    Control,
    /// What recording flows takes, and what it loses: only when asked for, and alone.
    Flows,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Path {
    /// Between pods of two nodes.
    CrossNode,
    /// Between pods of one node.
    SameNode,
}

/// In the order of the table's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SystemKind {
    /// No mesh.
    None,
    /// Weir, with mutual TLS also between pods of one node.
    Mtls,
    /// As `mtls`, under load.
    #[value(skip)]
    MtlsLoaded,
    /// As `mtls`, with no flow recorded.
    #[value(skip)]
    MtlsUnrecorded,
    /// Weir, with pods of one node connected straight.
    Direct,
    /// As `direct`, under load.
    #[value(skip)]
    DirectLoaded,
    /// As `direct`, with no flow recorded.
    #[value(skip)]
    DirectUnrecorded,
    /// Weir, as it is unless configured; only when asked for.
    Auto,
    /// The command of `--peer-cmd`.
    Peer,
}

/// A figure: the name and the unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
}

/// What a figure is of.
pub(crate) type Key = (Path, Case, Metric, SystemKind);

// === impl Case ===

impl Case {
    /// Whether it is measured in each round; the others are once, at the end.
    pub(crate) const fn in_rounds(self) -> bool {
        !matches!(self, Self::Programs | Self::Memory) && !self.is_alone()
    }

    /// Whether nothing else is measured in the same run.
    pub(crate) const fn is_alone(self) -> bool {
        matches!(self, Self::Control | Self::Flows)
    }
}

// === impl Path ===

impl Path {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::CrossNode => "cross-node",
            Self::SameNode => "same-node",
        }
    }
}

// === impl SystemKind ===

impl SystemKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mtls => "mtls",
            Self::MtlsLoaded => "mtls-loaded",
            Self::MtlsUnrecorded => "mtls-unrecorded",
            Self::Direct => "direct",
            Self::DirectLoaded => "direct-loaded",
            Self::DirectUnrecorded => "direct-unrecorded",
            Self::Auto => "auto",
            Self::Peer => "peer",
        }
    }

    /// Whether it differs from the others on this path: between nodes there is mutual TLS only.
    pub(crate) const fn has(self, path: Path) -> bool {
        !(self.is_direct() && matches!(path, Path::CrossNode))
    }

    /// Whether pods of one node shall be connected straight.
    pub(crate) const fn is_direct(self) -> bool {
        matches!(self, Self::Direct | Self::DirectLoaded | Self::DirectUnrecorded)
    }

    pub(crate) const fn is_loaded(self) -> bool {
        matches!(self, Self::MtlsLoaded | Self::DirectLoaded)
    }

    /// Whether its agents record flows.
    pub(crate) const fn records(self) -> bool {
        !matches!(self, Self::MtlsUnrecorded | Self::DirectUnrecorded)
    }

    /// The same without records.
    pub(crate) const fn unrecorded(self) -> Option<Self> {
        match self {
            Self::Mtls => Some(Self::MtlsUnrecorded),
            Self::Direct => Some(Self::DirectUnrecorded),
            _ => None,
        }
    }

    pub(crate) const fn is_weir(self) -> bool {
        !matches!(self, Self::None | Self::Peer)
    }

    /// The same under load.
    pub(crate) const fn loaded(self) -> Option<Self> {
        match self {
            Self::Mtls => Some(Self::MtlsLoaded),
            Self::Direct => Some(Self::DirectLoaded),
            _ => None,
        }
    }

    /// What the agents are told about pods of one node.
    pub(crate) const fn same_node(self) -> Option<SameNodeMode> {
        match self {
            Self::Mtls | Self::MtlsLoaded | Self::MtlsUnrecorded => Some(SameNodeMode::Mtls),
            Self::Direct | Self::DirectLoaded | Self::DirectUnrecorded => Some(SameNodeMode::Direct),
            Self::None | Self::Auto | Self::Peer => None,
        }
    }
}
