//! What building and testing need beyond cargo, and how to get it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::steps::{cargo, output, root, run, step, tools};

/// The version that the kernel programs were verified with; it loads rustc's own LLVM.
const BPF_LINKER: &str = "0.10.3";

/// Programs that tests run; `.ci/install-test-programs` knows the packages.
const PROGRAMS: [&str; 13] = [
    "chromium",
    "curl",
    "ip",
    "iperf3",
    "nft",
    "nginx",
    "pgbench",
    "promtool",
    "tmux",
    "python3",
    "redis-benchmark",
    "redis-server",
    "wrk",
];

/// Installs what building needs, unless it is there.
pub(crate) fn for_building() -> Result<()> {
    ensure!(
        output(Command::new("cc").arg("--version")).is_some(),
        "no C compiler: `cc` cannot be run. Debian and Ubuntu: apt-get install gcc libc6-dev"
    );
    let sysroot = output(
        Command::new("rustc")
            .args(["--print", "sysroot"])
            .current_dir(root()),
    );
    let sysroot = PathBuf::from(sysroot.context("`rustc` cannot be run: install Rust with rustup")?);
    if !sysroot
        .join("lib/rustlib/src/rust/library/core/Cargo.toml")
        .exists()
    {
        step(
            "adding the component rust-src (the kernel programs' core library; some seconds)",
            || {
                let mut rustup = Command::new("rustup");
                run(rustup.args(["component", "add", "rust-src"]).current_dir(root()))
            },
        )?;
    }
    let linker = tools().join("bin/bpf-linker");
    if output(Command::new(&linker).arg("--version")) != Some(format!("bpf-linker {BPF_LINKER}")) {
        let heading =
            format!("installing bpf-linker {BPF_LINKER} into target/tools (once; one to two minutes)");
        step(&heading, || {
            let mut install = cargo("install");
            install
                .args([
                    "bpf-linker",
                    "--version",
                    BPF_LINKER,
                    "--locked",
                    "--force",
                    "--root",
                ])
                .arg(tools());
            // A target folder of the caller's choice is for this workspace only.
            run(install.env_remove("CARGO_TARGET_DIR"))
        })?;
    }
    Ok(())
}

/// Fails unless run by root.
pub(crate) fn require_root() -> Result<()> {
    let root = output(Command::new("id").arg("-u")).is_some_and(|uid| uid == "0");
    ensure!(
        root,
        "this needs root: it makes network namespaces and cgroups and loads eBPF programs.\n\
         Run it again as root, with cargo in the path: sudo --preserve-env=HOME,PATH cargo xtask ..."
    );
    Ok(())
}

/// Fails unless all programs that tests run are there; names what is missing, with the one command that installs it.
pub(crate) fn require_test_programs() -> Result<()> {
    let mut missing = PROGRAMS.to_vec();
    missing.retain(|program| !installed(program));
    let venv = tools().join("venv");
    let requirements = root().join(".ci/requirements.txt");
    let packages = fs::read(&requirements).with_context(|| requirements.display().to_string())?;
    // A copy of the list lies beside what was installed from it.
    let python = fs::read(venv.join("installed.txt")).is_ok_and(|installed| installed == packages);
    if missing.is_empty() && python {
        return Ok(());
    }
    if !python {
        missing.push("the Python packages of .ci/requirements.txt in target/tools/venv");
    }
    bail!(
        "the tests run programs that this machine misses: {}.\n\
         On Debian and Ubuntu this command installs them, and starts no daemon:\n\n    .ci/install-test-programs\n",
        missing.join(", ")
    )
}

fn installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // Daemons are not in every user's path.
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from));
    let in_path = folders
        .map(|folder| folder.join(program))
        .any(|path| path.is_file());
    in_path || (program == "pgbench" && postgres_has(program))
}

/// Debian keeps PostgreSQL's programs by version.
fn postgres_has(program: &str) -> bool {
    let versions = fs::read_dir(Path::new("/usr/lib/postgresql"))
        .into_iter()
        .flatten()
        .flatten();
    versions
        .map(|version| version.path().join("bin").join(program))
        .any(|path| path.is_file())
}
