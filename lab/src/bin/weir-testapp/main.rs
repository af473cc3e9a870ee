//! Small clients and servers for the lab's pods: what tests, the demo and the benchmark run as applications.
//!
//! Servers print `{"listening":"<address>"}` when they are ready; clients print one line of JSON when they are done.
#![forbid(unsafe_code)]

mod bulk;
mod capture;
mod connect;
mod echo;
mod find;
mod http;
mod latency;
mod many;
mod net;

use clap::{Parser, Subcommand};

/// Small clients and servers for the lab's pods.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, Subcommand)]
enum Program {
    /// Answers HTTP/1.1 requests with a text that names the client's address; POST is echoed.
    HttpServer(http::Server),
    /// Makes HTTP/1.1 requests on one connection.
    HttpClient(http::Client),
    /// Sends back what it gets.
    EchoServer(echo::Server),
    /// Sends bytes and compares the echo.
    EchoClient(echo::Client),
    /// Takes and gives bytes as its clients ask.
    BulkServer(bulk::Server),
    /// Moves many bytes on some streams.
    BulkClient(bulk::Client),
    /// Answers each 64 byte request with 64 bytes; serves `rr-client`, `crr-client` and `hold-client`.
    RrServer(latency::Server),
    /// Measures request-response latency on one connection.
    RrClient(latency::RrClient),
    /// Counts how often a connection is made, used for one request and closed.
    CrrClient(latency::CrrClient),
    /// Opens connections and holds them until it is killed.
    HoldClient(latency::HoldClient),
    /// Sends its name in a line to whoever connects, and closes; serves `many`.
    NameServer(many::Server),
    /// Makes many connections one after the other and counts who answered and what failed.
    Many(many::Client),
    /// Makes one connection in a particular way and says what it saw.
    Connect(connect::Connect),
    /// Looks at what passes a link for a while, and says what it was.
    Capture(capture::Link),
    /// Prints files and folders below a folder whose name or text holds something.
    Find(find::Find),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().program {
        Program::HttpServer(server) => server.run(),
        Program::HttpClient(client) => client.run(),
        Program::EchoServer(server) => server.run(),
        Program::EchoClient(client) => client.run(),
        Program::BulkServer(server) => server.run(),
        Program::BulkClient(client) => client.run(),
        Program::RrServer(server) => server.run(),
        Program::RrClient(client) => client.run(),
        Program::CrrClient(client) => client.run(),
        Program::HoldClient(client) => client.run(),
        Program::NameServer(server) => server.run(),
        Program::Many(client) => client.run(),
        Program::Connect(connect) => connect.run(),
        Program::Capture(link) => link.run(),
        Program::Find(find) => find.run(),
    }
}
