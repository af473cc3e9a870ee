//! A real ztunnel, which follows our control plane.

use std::{
    fs::{self, File},
    io::{self, IoSlice, Write as _},
    net::TcpStream,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType, accept, bind, listen, recv, sendmsg, socket,
    sockopt::{Timeout, set_socket_timeout},
};
use serde_json::Value;
use weir_lab::{PATIENCE, Pod, Process, Spawn as _, poll};

use crate::cluster::{CONTROL, Cluster, net::http_get};

/// Names the program, which is not built here.
const PROGRAM: &str = "WEIR_TEST_ZTUNNEL";
/// Its own server.
const ADMIN: u16 = 15000;
/// Where it takes connections in a pod that nothing redirects (RFC 1928).
const SOCKS: (&str, u16) = ("127.0.0.1", 15080);
/// Its namespace, and the name of its account and its DaemonSet.
pub const ACCOUNT: (&str, &str) = ("istio-system", "ztunnel");
/// What its tokens are for.
pub const AUDIENCE: &str = "istio-ca";

/// A ztunnel on a node, in the shared mode that it has in a cluster, and what stands in for the CNI's agent beside it.
#[derive(Debug)]
pub struct Ztunnel {
    process: Process,
    node: String,
    cni: Cni,
}

/// The CNI's side of `istio.workload.zds`: tells ztunnel of pods, and passes on their network namespaces.
#[derive(Debug)]
struct Cni {
    /// Kept: where ztunnel connects to.
    _listener: OwnedFd,
    stream: OwnedFd,
}

/// The program; `None` if there is none, which is said.
#[must_use]
pub fn program() -> Option<PathBuf> {
    let program = std::env::var_os(PROGRAM).map(PathBuf::from);
    if program.is_none() {
        // Not by `eprintln`, of which nothing is shown where the test passes.
        let _ = writeln!(io::stderr(), "skipped: {PROGRAM} names no ztunnel");
    }
    program
}

// === impl Ztunnel ===

impl Ztunnel {
    /// Starts it on a node of a cluster that has its account, and waits until it asks for pods. `more` is set in its environment.
    ///
    /// # Panics
    /// When it does not start; with its log.
    #[must_use]
    pub fn start(cluster: &Cluster, program: &Path, node: &str, more: &[(&str, &str)]) -> Self {
        let (namespace, name) = ACCOUNT;
        let folder = cluster.lab.folder();
        let (token, socket) = (folder.join("ztunnel.token"), folder.join("zds"));
        fs::write(&token, cluster.node_token(namespace, name, node, AUDIENCE)).expect("a token");
        let place = cluster.lab.node(node).expect("a node");
        let listener = Cni::listen(&socket);
        let mut command = Command::new(program);
        let address = format!("https://{CONTROL}");
        command
            .arg("proxy")
            .arg("ztunnel")
            .envs([("XDS_ADDRESS", &address), ("CA_ADDRESS", &address)])
            .envs(["XDS_ROOT_CA", "CA_ROOT_CA"].map(|name| (name, cluster.fetch_roots())))
            .envs([("AUTH_TOKEN", &token), ("INPOD_UDS", &socket)])
            .envs([("NODE_NAME", node), ("POD_NAMESPACE", namespace)])
            .envs([("SERVICE_ACCOUNT", name), ("TRUST_DOMAIN", "cluster.local")])
            .env("POD_NAME", format!("{name}-{node}"))
            .env("INSTANCE_IP", place.addresses().0.to_string())
            // The rules that lead answers to another's address back to it are the CNI's.
            .env("ENABLE_ORIG_SRC", "false")
            .env("UNSTABLE_ENABLE_SOCKS5", "true")
            .env("RUST_LOG", "info,ztunnel::xds=debug")
            .envs(more.iter().copied());
        let process = place.spawn(command).expect("ztunnel");
        let cni = Cni::accept(listener).unwrap_or_else(|error| panic!("{error}: {}", process.stderr()));
        Self {
            process,
            node: node.to_owned(),
            cni,
        }
    }

    /// Says that a pod is the one of this service account, in `shop`, and that there are no others.
    ///
    /// # Panics
    /// When it does not take it; with its log.
    pub fn add(&self, pod: &Pod, name: &str) {
        if let Err(error) = self.cni.add(pod, name) {
            panic!("{error}: {}", self.log());
        }
    }

    /// What it knows, as it says itself.
    #[must_use]
    pub fn dump(&self, cluster: &Cluster) -> Value {
        let place = cluster.lab.node(&self.node).expect("a node");
        let text = place
            .inside(|| Ok(http_get(ADMIN, "/config_dump")))
            .expect("the node");
        let text = text.unwrap_or_default();
        let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }

    /// Waits until what it knows is as wanted.
    ///
    /// # Panics
    /// When it does not become so; with what it knows and its log.
    pub fn wait<T>(&self, cluster: &Cluster, what: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        let found = poll(what, PATIENCE, || Ok(wanted(&self.dump(cluster))));
        found.unwrap_or_else(|error| panic!("{error:#}: {:#}\n{}", self.dump(cluster), self.log()))
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.stderr() + &String::from_utf8_lossy(&self.process.stdout())
    }
}

/// Connects from a pod by its ztunnel, sends a byte and gives what comes back.
#[must_use]
pub fn asks(pod: &Pod, to: std::net::SocketAddrV4) -> Vec<u8> {
    use io::Read as _;
    let answer = pod.inside(|| {
        let mut socket = TcpStream::connect(SOCKS)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        // Version 5, one method: none. Then CONNECT to an IPv4 address.
        socket.write_all(&[5, 1, 0])?;
        socket.read_exact(&mut [0; 2])?;
        socket.write_all(&[5, 1, 0, 1])?;
        socket.write_all(&to.ip().octets())?;
        socket.write_all(&to.port().to_be_bytes())?;
        socket.read_exact(&mut [0; 10])?;
        socket.write_all(b"x")?;
        let mut answer = vec![0; 1];
        let length = socket.read(&mut answer).unwrap_or_default();
        answer.truncate(length);
        Ok(answer)
    });
    answer.expect("ztunnel in the pod")
}

// === impl Cni ===

impl Cni {
    fn listen(path: &Path) -> OwnedFd {
        let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).expect("a socket");
        bind(&listener, &SocketAddrUnix::new(path).expect("a short path")).expect("a path for the socket");
        listen(&listener, 1).expect("a listener");
        set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE)).expect("a timeout");
        listener
    }

    /// Takes its connection, and says that there are no pods.
    fn accept(listener: OwnedFd) -> io::Result<Self> {
        let stream = accept(&listener)?;
        set_socket_timeout(&stream, Timeout::Recv, Some(PATIENCE))?;
        let cni = Self {
            _listener: listener,
            stream,
        };
        cni.receive()?;
        // WorkloadRequest.snapshot_sent
        cni.send(&field(3, &[]), None)?;
        Ok(cni)
    }

    fn add(&self, pod: &Pod, name: &str) -> io::Result<()> {
        // WorkloadInfo: name, namespace, service_account
        let info = [
            field(1, name.as_bytes()),
            field(2, b"shop"),
            field(3, name.as_bytes()),
        ]
        .concat();
        // AddWorkload: uid, workload_info
        let add = [field(1, pod.uid().as_bytes()), field(2, &info)].concat();
        let netns = File::open(pod.place().netns_path())?;
        // WorkloadRequest.add
        self.send(&field(1, &add), Some(&netns))
    }

    /// Sends a message, and waits for its acknowledgement.
    fn send(&self, message: &[u8], netns: Option<&File>) -> io::Result<()> {
        let netns = netns.map(|file| [file.as_fd()]);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if let Some(netns) = &netns {
            assert!(
                ancillary.push(SendAncillaryMessage::ScmRights(netns)),
                "room for one"
            );
        }
        let message = [IoSlice::new(message)];
        sendmsg(&self.stream, &message, &mut ancillary, SendFlags::empty())?;
        let answer = self.receive()?;
        // WorkloadResponse.ack, without an error.
        if answer != field(1, &[]) {
            return Err(io::Error::other(String::from_utf8_lossy(&answer)));
        }
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 1024];
        let (length, _) = recv(&self.stream, &mut buffer[..], RecvFlags::empty())?;
        buffer.truncate(length);
        Ok(buffer)
    }
}

/// A field of a protobuf message that has a length.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let length = u8::try_from(content.len()).ok().filter(|length| *length < 128);
    let mut field = vec![number << 3 | 2, length.expect("a short field")];
    field.extend_from_slice(content);
    field
}
