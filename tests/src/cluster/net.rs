//! How the lab's nodes reach what runs beside the lab.

use std::{
    io,
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use weir_lab::{Lab, Spawn as _};

use super::CONTROL;

pub(super) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.local_addr().expect("an address").port()
}

pub(crate) fn http_get(port: u16, path: &str) -> Option<String> {
    use io::{Read as _, Write as _};
    let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: control\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut text = String::new();
    socket.read_to_string(&mut text).ok()?;
    Some(text)
}

/// Carries connections from a node's loopback to the control plane, which runs beside the lab.
pub(crate) fn relay(lab: &Lab, node: &str, port: u16) {
    let node = lab.node(node).expect("a node");
    let listener = node
        .inside(|| Ok(TcpListener::bind(CONTROL)?))
        .expect("a listener on the node");
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else {
                // The control plane is away.
                continue;
            };
            let pairs = [
                (client.try_clone(), server.try_clone()),
                (server.try_clone(), client.try_clone()),
            ];
            for (from, to) in pairs {
                let (Ok(mut from), Ok(mut to)) = (from, to) else {
                    continue;
                };
                thread::spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                    let _ = from.shutdown(Shutdown::Read);
                });
            }
        }
    });
}
