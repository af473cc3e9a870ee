//! A mesh in one machine, for tests, the demo and the benchmark: nodes and pods as network namespaces and cgroups
//! of the real kernel, an agent a node, and a capture of the link between them.
//!
//! ```no_run
//! use weir_lab::{Lab, PodSpec, Spawn as _};
//!
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new("example")?;
//! let web = lab.add_pod(PodSpec::new("node2", "shop", "web"))?;
//! let user = lab.add_pod(PodSpec::new("node1", "shop", "user"))?;
//! let agents = lab.start_agents()?;
//! let server = web.testapp(["http-server", "--port", "8080"])?;
//! server.wait_listening()?;
//! let answer = user.run_testapp(["http-client", &format!("http://{}:8080/", web.v4())])?;
//! assert!(answer.status.success());
//! println!("{:?}", agents[0].flows()?);
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod agent;
pub mod capture;
pub mod cgroup;
pub mod config;
pub mod netns;
pub mod place;
pub mod places;
pub mod process;
pub mod run;
pub mod signal;

mod lab;
mod pod;
mod topology;

pub use agent::Agent;
pub use capture::{Capture, Findings};
pub use config::AgentConfig;
pub use lab::{Builder, Lab, Node, replace_file};
pub use place::{Place, Spawn};
pub use pod::{Pod, PodSpec};
pub use process::{Finished, Process};

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

/// How long the lab waits for something that should happen at once. Generous: two busy cores in CI.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Fails with what to do about it unless the caller may make a lab.
///
/// # Errors
/// When the caller is not root.
pub fn require_root() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "this needs root: it makes network namespaces and cgroups and loads eBPF programs; run it again with sudo"
    );
    Ok(())
}

/// Path of a program of this workspace: from the environment (`WEIR_AGENT` for `weir-agent`), or beside the
/// running executable, as cargo puts them.
///
/// # Errors
/// When it is in neither place.
pub fn program(name: &str) -> Result<PathBuf> {
    let variable = name.to_uppercase().replace('-', "_");
    if let Some(path) = std::env::var_os(&variable) {
        return Ok(path.into());
    }
    let exe = std::env::current_exe().context("path of the running executable")?;
    // Test executables are one folder further down, in `deps`.
    for folder in exe.ancestors().skip(1).take(2) {
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
    }
    bail!(
        "{name} is not beside {}: build it (cargo xtask build), or name it in {variable}",
        exe.display()
    )
}

/// Asks until the answer is there.
///
/// # Errors
/// When it is not within `patience`; the error says `what` was awaited.
pub fn poll<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    /// Short against anything that is awaited here, long against the cost of asking.
    const PAUSE: Duration = Duration::from_millis(10);
    let end = Instant::now() + patience;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        ensure!(Instant::now() < end, "not within {patience:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}
