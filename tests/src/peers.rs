//! HBONE peers that share no code with ours: Python programs of `tests/peers`, and Envoy.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use weir_lab::{Finished, Lab, Pod, Process, Spawn as _};

/// The folder of Python packages that the peers need.
///
/// # Panics
/// When it is not there.
fn venv() -> PathBuf {
    let built = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/venv");
    let venv = std::env::var_os("WEIR_TEST_VENV").map_or_else(built, PathBuf::from);
    assert!(
        venv.join("bin/python").exists(),
        "the Python packages of .ci/requirements.txt are not in {}: .ci/install-test-programs installs them, and \
         'cargo xtask test' names the folder in WEIR_TEST_VENV",
        venv.display()
    );
    venv
}

/// A Python program of `tests/peers`.
#[must_use]
pub fn python(program: &str) -> Command {
    let mut command = Command::new(venv().join("bin/python"));
    command
        .arg("-B")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers").join(program));
    command
}

/// As [`python`], for one that makes certificates: with the folder of the lab's authority.
#[must_use]
pub fn python_with_ca(lab: &Lab, program: &str) -> Command {
    let mut command = python(program);
    command.arg("--ca").arg(lab.folder().join("ca"));
    command
}

/// Envoy with this configuration.
///
/// # Panics
/// When the configuration cannot be written.
#[must_use]
pub fn envoy(lab: &Lab, name: &str, config: &str) -> Command {
    let file = lab.folder().join(format!("{name}.yaml"));
    std::fs::write(&file, config).expect("a configuration");
    let mut command = Command::new(venv().join("bin/envoy"));
    // Several run at once, and by default they share memory for a restart.
    command.arg("--config-path").arg(file).args([
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "warning",
        // Its record of requests, at once.
        "--file-flush-interval-msec",
        "50",
    ]);
    command
}

/// Runs a client of `tests/peers/client.py` in a pod to its end; gives its lines of JSON.
///
/// # Panics
/// When it fails.
#[must_use]
pub fn client(lab: &Lab, pod: &Pod, arguments: &[&str]) -> Vec<Value> {
    let mut command = python_with_ca(lab, "client.py");
    command.args(arguments);
    json_lines(&pod.run(command).expect("a client").success().expect("a good end"))
}

/// Starts the server of `tests/peers/server.py` in a pod and waits until it listens.
///
/// # Panics
/// When it does not.
#[must_use]
pub fn server(lab: &Lab, pod: &Pod, arguments: &[&str]) -> Process {
    let mut command = python_with_ca(lab, "server.py");
    command.args(arguments);
    let server = pod.spawn(command).expect("a server");
    server.wait_json("listening").expect("a listening server");
    server
}

/// The lines of JSON that a program printed.
///
/// # Panics
/// When one is not JSON.
#[must_use]
pub fn json_lines(finished: &Finished) -> Vec<Value> {
    let text = finished.text();
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

/// Memory of a process in bytes: `VmRSS` for what it has now, `VmHWM` for the most that it had.
///
/// # Panics
/// When there is no such process.
#[must_use]
pub fn memory(pid: u32, what: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(what)?.strip_prefix(':'));
    let kib = line.and_then(|text| text.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.expect("a number of KiB") * 1024
}
