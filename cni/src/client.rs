//! Asking the agent.

use std::{
    fs::File,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
        SocketFlags, SocketType, connect, recv, sendmsg, socket_with, sockopt,
    },
};

use crate::{
    decide::State,
    protocol::{MAX_RESPONSE, MAX_STATE, Request, Response},
};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody serves the socket, or who did went away before answering. Nothing is known of the request.
    #[error("weir-agent does not answer: {0}")]
    Away(io::Error),
    /// The agent is there and took too long.
    #[error("weir-agent gave no answer in time")]
    Timeout,
    /// Something is wrong with what came back.
    #[error("weir-agent's answer is not understood: {0}")]
    Answer(String),
}

impl From<Errno> for AskError {
    fn from(error: Errno) -> Self {
        // Timeouts of sockets end calls with the first, those of connect with the second.
        if matches!(error, Errno::AGAIN | Errno::INPROGRESS | Errno::TIMEDOUT) {
            Self::Timeout
        } else {
            Self::Away(error.into())
        }
    }
}

/// Asks the agent, with the namespace's descriptor beside the request if there is one, and waits for its answer.
///
/// # Errors
/// When there is none.
pub fn ask(
    socket: &Path,
    request: &Request,
    netns: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> Result<Response, AskError> {
    let deadline = Instant::now() + patience;
    let stream = open(socket, deadline)?;
    let mut line = serde_json::to_vec(request).map_err(|error| AskError::Answer(error.to_string()))?;
    line.push(b'\n');
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut sent = 0;
    while sent < line.len() {
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors: Vec<BorrowedFd<'_>> = netns.filter(|_| sent == 0).into_iter().collect();
        if !descriptors.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        limit(&stream, sockopt::Timeout::Send, deadline)?;
        sent += match sendmsg(
            &stream,
            &[IoSlice::new(&line[sent..])],
            &mut control,
            SendFlags::NOSIGNAL,
        ) {
            Err(Errno::INTR) => 0,
            // Who refuses without reading has said why before it closed.
            Err(Errno::PIPE) => break,
            result => result?,
        };
    }
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while !answer.ends_with(b"\n") {
        limit(&stream, sockopt::Timeout::Recv, deadline)?;
        let count = match recv(&stream, &mut part, RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            result => result?.0,
        };
        if count == 0 {
            return Err(AskError::Away(io::ErrorKind::UnexpectedEof.into()));
        }
        answer.extend_from_slice(&part[..count]);
        if answer.len() > MAX_RESPONSE {
            return Err(AskError::Answer(format!("expected at most {MAX_RESPONSE} bytes")));
        }
    }
    serde_json::from_slice(&answer).map_err(|error| AskError::Answer(error.to_string()))
}

/// Connects. Who serves the socket must be root: whoever could answer for the agent could let pods go unprotected.
fn open(path: &Path, deadline: Instant) -> Result<OwnedFd, AskError> {
    let stream = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // An agent that hangs with a full backlog would keep `connect` for ever otherwise.
    limit(&stream, sockopt::Timeout::Send, deadline)?;
    connect(&stream, &SocketAddrUnix::new(path)?)?;
    if !sockopt::socket_peercred(&stream)?.uid.is_root() {
        let problem = format!("{} is not served by root", path.display());
        return Err(AskError::Away(io::Error::new(
            io::ErrorKind::PermissionDenied,
            problem,
        )));
    }
    Ok(stream)
}

fn limit(stream: &OwnedFd, which: sockopt::Timeout, deadline: Instant) -> Result<(), AskError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(AskError::Timeout);
    }
    Ok(sockopt::set_socket_timeout(stream.as_fd(), which, Some(left))?)
}

/// What the agent left for when it is away; nothing if it cannot be trusted.
#[must_use]
pub fn state(path: &Path) -> Option<State> {
    use io::Read as _;
    use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).ok()?;
    let file = File::options()
        .read(true)
        .custom_flags(no_follow)
        .open(path)
        .ok()?;
    let meta = file.metadata().ok()?;
    let is_private = meta.is_file() && meta.uid() == 0 && meta.mode() & 0o022 == 0;
    if !is_private || meta.len() > MAX_STATE {
        return None;
    }
    let mut text = Vec::new();
    file.take(MAX_STATE).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn a_state_file_that_others_may_write_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        fs::write(&path, r#"{ "enabled": ["shop"], "disabled": [] }"#).unwrap();
        let is_root = rustix::process::geteuid().is_root();
        let with = |mode: u32| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            state(&path).is_some()
        };
        assert_eq!(with(0o600), is_root);
        assert!(!with(0o620));
        assert!(!with(0o602));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(state(&link), None);
        fs::write(&path, "{").unwrap();
        assert_eq!(state(&path), None);
    }

    #[test]
    fn an_agent_that_does_not_answer_is_told_from_one_that_is_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sock");
        let request = Request::Gc { valid: Vec::new() };
        let patience = Duration::from_millis(50);
        let away = ask(&path, &request, None, patience);
        assert!(matches!(away, Err(AskError::Away(_))), "{away:?}");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        if rustix::process::geteuid().is_root() {
            let late = ask(&path, &request, None, patience);
            assert!(matches!(late, Err(AskError::Timeout)), "{late:?}");
        }
    }
}
