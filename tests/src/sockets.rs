//! The kernel's list of a pod's TCP sockets, which also has those of the agent.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use weir_lab::{Pod, Spawn as _};

/// A state of `net/tcp_states.h`.
pub const ESTABLISHED: u8 = 1;
/// As above.
pub const LISTEN: u8 = 10;

/// A line of the list.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its own end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Its state.
    pub state: u8,
}

/// Every TCP socket in a pod's network namespace.
///
/// # Panics
/// When the list is not as it has been for twenty years.
#[must_use]
pub fn sockets(pod: &Pod) -> Vec<Entry> {
    let read = || {
        let tables = ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/thread-self/net/{name}")));
        let mut entries = Vec::new();
        for table in tables {
            entries.extend(table?.lines().skip(1).map(entry));
        }
        Ok(entries)
    };
    pod.inside(read).expect("the kernel's list of sockets")
}

fn entry(line: &str) -> Entry {
    let fields: Vec<&str> = line.split_whitespace().collect();
    Entry {
        local: address(fields[1]),
        remote: address(fields[2]),
        state: u8::from_str_radix(fields[3], 16).expect("a state"),
    }
}

/// An address as /proc has it: words of the network's bytes as this machine's numbers, in hexadecimal.
fn address(text: &str) -> SocketAddr {
    let (host, port) = text.split_once(':').expect("address and port");
    let words = (0..host.len() / 8).map(|index| u32::from_str_radix(&host[index * 8..][..8], 16));
    let bytes: Vec<u8> = words
        .flat_map(|word| word.expect("a word").to_ne_bytes())
        .collect();
    let ip = match <[u8; 16]>::try_from(bytes.as_slice()) {
        Ok(v6) => IpAddr::from(v6).to_canonical(),
        Err(_) => IpAddr::from(<[u8; 4]>::try_from(bytes.as_slice()).expect("four bytes")),
    };
    SocketAddr::new(ip, u16::from_str_radix(port, 16).expect("a port"))
}
