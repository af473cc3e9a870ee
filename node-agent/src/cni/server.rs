//! Answers the plugin: one request a connection.

use std::{
    io::{self, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::{
    io::{AsyncWriteExt as _, Interest},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    time::{Instant, timeout},
};
use weir_cni::{
    decide::while_away,
    protocol::{self, MAX_REQUEST, Request, Response},
};

use super::{
    Sandbox, state,
    verdict::{Known, Verdict, verdict},
};
use crate::{agent::Agent, mesh::WantedPod, netns::NetNsRef};

/// Requests at once: every pod of a node may start with it, and those of one that are waiting are as many connections.
const CLIENTS: usize = 512;
/// A client must have sent its request in this time, and take the answer.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long ADD waits: below the plugin's own timeout, so that the reason arrives.
const ADD_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether the pod is enrolled: a look goes through all workloads until the pod's is known.
const LOOK: Duration = Duration::from_millis(50);
/// Descriptors that a message is looked through for. More than one is an error.
const DESCRIPTORS: usize = 2;
/// Pause after a failure to accept, as when the agent has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Opens the socket: mode 0600 from its first moment.
///
/// # Errors
/// When another agent serves it, or the folder cannot be written.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    crate::api::bind(path)
}

/// Serves the plugin, for ever.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    let clients = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(permit) = clients.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    // An error here: the client went away.
                    let _ = handle(stream, &agent).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed on the CNI socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn handle(mut stream: UnixStream, agent: &Agent) -> io::Result<()> {
    // The socket's mode says the same; a mode is easily changed.
    let response = if stream.peer_cred()?.uid() == 0 {
        match timeout(TRANSFER_TIMEOUT, receive(&stream)).await {
            Ok(Ok((request, netns))) => answer(agent, request, netns).await,
            Ok(Err(problem)) => refused(&problem.to_string()),
            Err(_) => refused("no request came in time"),
        }
    } else {
        refused("only root may ask")
    };
    let mut line = serde_json::to_vec(&response)?;
    line.push(b'\n');
    timeout(TRANSFER_TIMEOUT, stream.write_all(&line)).await?
}

fn refused(problem: &str) -> Response {
    Response::Error {
        reason: format!("weir-agent refuses the request: {problem}"),
    }
}

/// One line of JSON, and the descriptor beside it.
async fn receive(stream: &UnixStream) -> io::Result<(Request, Option<OwnedFd>)> {
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let mut line = Vec::new();
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    let mut part = vec![0; 16 << 10];
    while !line.ends_with(b"\n") {
        stream.readable().await?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let read = stream.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(&mut part)];
            Ok(recvmsg(stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes)
        });
        let count = match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            result => result?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(own) = message {
                descriptors.extend(own);
            }
        }
        line.extend_from_slice(&part[..count]);
        if count == 0 || line.len() > MAX_REQUEST || descriptors.len() > 1 {
            return Err(invalid(format!(
                "expected one line of JSON of at most {MAX_REQUEST} bytes, and at most one descriptor"
            )));
        }
    }
    let request = serde_json::from_slice(&line).map_err(|error| invalid(error.to_string()))?;
    Ok((request, descriptors.pop()))
}

async fn answer(agent: &Agent, request: Request, netns: Option<OwnedFd>) -> Response {
    let sandboxes = &agent.node.sandboxes;
    match request {
        Request::Add(sandbox) => add(agent, sandbox, netns).await,
        Request::Check(sandbox) => check(agent, &sandbox),
        Request::Del(gone) => {
            sandboxes.forget(&gone);
            Response::Done
        }
        Request::Gc { valid } => {
            sandboxes.forget_all_but(&valid);
            Response::Done
        }
    }
}

async fn add(agent: &Agent, about: protocol::Sandbox, netns: Option<OwnedFd>) -> Response {
    if let Some(problem) = about.problem() {
        return refused(problem);
    }
    let Some(netns) = netns else {
        return refused("expected the descriptor of the pod's network namespace");
    };
    let sandbox = match Sandbox::new(about.clone(), netns) {
        Ok(sandbox) => sandbox,
        Err(error) => return refused(&error.to_string()),
    };
    let cookie = sandbox.cookie();
    if cookie == agent.enrolment.host_cookie() {
        return refused("that is the node's own network namespace");
    }
    if let Err(error) = agent.node.sandboxes.put(sandbox) {
        return Response::Error {
            reason: error.to_string(),
        };
    }
    let deadline = Instant::now() + ADD_TIMEOUT;
    let mut last: Option<(Known, Instant)> = None;
    loop {
        let known = known(agent, &about, Some(cookie));
        let now = Instant::now();
        let since = match &last {
            Some((before, since)) if *before == known => *since,
            _ => now,
        };
        let verdict = verdict(&known, now - since);
        last = Some((known, since));
        match verdict {
            Verdict::Enrolled => return Response::Enrolled,
            Verdict::NotInMesh => {
                // If that changes, its processes lead to it.
                agent.node.sandboxes.forget(&about.reference());
                return Response::NotInMesh;
            }
            Verdict::Wait(reason) if now >= deadline => {
                tracing::warn!(
                    namespace = about.namespace,
                    pod = about.name,
                    uid = about.uid,
                    reason,
                    "a pod that starts waits"
                );
                return Response::Error { reason };
            }
            Verdict::Wait(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// What ADD said some time ago, as it is now.
fn check(agent: &Agent, about: &protocol::Sandbox) -> Response {
    if let Some(problem) = about.problem() {
        return refused(problem);
    }
    match verdict(&known(agent, about, None), ADD_TIMEOUT) {
        Verdict::Enrolled => Response::Enrolled,
        Verdict::NotInMesh => Response::NotInMesh,
        Verdict::Wait(reason) => Response::Error { reason },
    }
}

/// What is known of a pod, which counts as enrolled only in the namespace with this cookie, if one is given.
fn known(agent: &Agent, about: &protocol::Sandbox, cookie: Option<u64>) -> Known {
    let node = &agent.node;
    let mesh = node.mesh.load();
    if let Some(WantedPod { workload, observed }) = mesh.told().get(&about.uid) {
        let source = NetNsRef::Pod(about.uid.as_str().into());
        let local = mesh.local().get(workload).filter(|local| local.netns == source);
        let enrolled = local.is_some_and(|local| {
            node.pod(workload).is_some_and(|pod| {
                // With the addresses of this sandbox, not of one before it.
                let is_this =
                    |cookie| pod.netns.cookie() == cookie && local.workload.addresses == about.addresses;
                pod.is(local) && cookie.is_none_or(is_this)
            })
        });
        return Known::Wanted {
            // What was enrolled before the agent took traffic is not captured by it yet.
            enrolled: enrolled && agent.unready().is_none(),
            problem: agent.enrolment.problems().remove(workload),
            observed: *observed,
        };
    }
    let connected = agent
        .control
        .as_ref()
        .is_some_and(|state| state.status().connected);
    if agent.unready().is_some() || !connected {
        let own = Ok(about.switch);
        let excluded: &[String] = if about.excluded {
            std::slice::from_ref(&about.namespace)
        } else {
            &[]
        };
        let state = agent.unready().is_none().then(|| state::of(&mesh));
        return Known::Nothing {
            away: while_away(&own, &about.namespace, state.as_ref(), excluded),
        };
    }
    let is_it = |workload: &&Arc<crate::mesh::Workload>| {
        mesh.is_here(workload)
            && workload.name == about.name
            && workload.identity.namespace() == about.namespace
    };
    match mesh.workloads().find(is_it) {
        None => Known::Unheard,
        Some(workload) => Known::Outside {
            switch: about.switch,
            may_be_older: !workload.addresses.is_empty()
                || mesh.told().values().any(|own| own.workload == workload.uid),
            is_namespace_enabled: state::is_enabled(&mesh, &about.namespace),
        },
    }
}
