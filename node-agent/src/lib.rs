//! The node agent: captures the connections of this node's pods, tunnels them, records them.
//!
//! A connection's way: the kernel programs ([`datapath`]) hand it to a listener that [`enrol`] opened in the pod's
//! namespace; [`serve`] accepts it; [`outbound`], [`inbound`] or [`plaintext`] carries it; [`flows`] records it.

pub mod agent;
pub mod api;
pub mod cni;
pub mod config;
pub mod control;
pub mod datapath;
pub mod enrol;
pub mod explain;
pub mod export;
pub mod flows;
pub mod hubble;
pub mod inbound;
pub mod kubelet;
pub mod mesh;
pub mod metrics;
pub mod netns;
pub mod node;
pub mod observe;
pub mod open;
pub mod outbound;
pub mod plaintext;
pub mod policy;
pub mod reload;
pub mod revalidate;
pub mod route;
pub mod same_node;
pub mod serve;
pub mod sockets;
mod status;
pub mod takeover;
