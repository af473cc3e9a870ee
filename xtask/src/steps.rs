//! Steps with a heading and the time that they took, all on standard error: standard output is for results.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

/// Every package but the kernel's, which the agent's build script builds. Always the same selection: another one
/// gives dependencies other features, and so compiles them again.
pub(crate) const SELECTION: [&str; 3] = ["--workspace", "--exclude", "weir-ebpf"];

/// Prints a heading, does the work, prints how long it took.
pub(crate) fn step<T>(heading: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("== {heading}");
    let start = Instant::now();
    let done = work().with_context(|| format!("step failed: {heading}"))?;
    eprintln!("   {heading}: {:.1} s", start.elapsed().as_secs_f64());
    Ok(done)
}

/// Runs a command with this process's output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    // Its standard output goes where ours does not: that belongs to results.
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{status}: {command:?}");
    Ok(())
}

/// A command's standard output, if it can be run and succeeds.
pub(crate) fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The cargo that runs this.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).arg(subcommand);
    command
}

/// The repository.
pub(crate) fn root() -> &'static Path {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}

/// Where cargo puts what it builds.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

/// Where tools are kept that are not the machine's.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}
