//! The node agent: captures the connections of this node's pods, tunnels them, records them.

pub mod config;
pub mod datapath;
pub mod flows;
pub mod mesh;
pub mod metrics;
pub mod netns;
pub mod sockets;
