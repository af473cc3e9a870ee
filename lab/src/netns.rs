//! Network namespaces, made with iproute2 so that `ip netns` shows them and their deletion is its business.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where iproute2 keeps named namespaces.
pub const FOLDER: &str = "/run/netns";

/// Path of a named namespace.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Names of all named namespaces of the machine.
///
/// # Errors
/// When the folder is there and cannot be read.
pub fn names() -> Result<Vec<String>> {
    match fs::read_dir(FOLDER) {
        Ok(entries) => entries
            .map(|e| Ok(e?.file_name().to_string_lossy().into_owned()))
            .collect(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).context(FOLDER),
    }
}

/// Runs iproute2 commands, one a line without the leading `ip`, in a named namespace or in the caller's.
///
/// # Errors
/// When one of them fails.
pub fn ip(netns: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(name) = netns {
        command.args(["-n", name]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("`ip` cannot be run: install iproute2")?;
    let batch = lines.join("\n") + "\n";
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(batch.as_bytes()).context("writing to `ip`")?;
    }
    let output = child.wait_with_output().context("waiting for `ip`")?;
    ensure!(
        output.status.success(),
        "ip -n {} failed: {}\n{batch}",
        netns.unwrap_or("-"),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Runs `work` on a thread of its own inside a namespace.
///
/// The thread stays in this process's cgroup: sockets that it makes are *not* seen by the hooks of a lab's agent.
/// That is right for raw traffic and for looking around; a client that is to be captured is a process of the pod.
///
/// # Errors
/// When the namespace cannot be entered, or `work` fails.
pub fn inside<T: Send>(netns: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("network namespace {}", netns.display()))?;
    thread::scope(|scope| {
        scope
            .spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("entering {}", netns.display()))?;
                work()
            })
            .join()
            .map_err(|_| anyhow!("panicked inside {}", netns.display()))?
    })
}

/// Sets sysctls (`net/ipv4/ip_forward`) of a namespace.
///
/// # Errors
/// When one cannot be set.
pub fn sysctl(netns: &Path, settings: &[(&str, &str)]) -> Result<()> {
    inside(netns, || {
        for (key, value) in settings {
            fs::write(Path::new("/proc/sys").join(key), value)
                .with_context(|| format!("sysctl {key}={value}"))?;
        }
        Ok(())
    })
}
