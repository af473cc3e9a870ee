//! `cargo xtask test`: what CI runs, in the order in which failures are cheapest.

use anyhow::Result;

use crate::{
    dependencies, setup,
    steps::{self, SELECTION, cargo, run, step, tools},
};

/// All of it, or only the tests whose name contains the filter.
pub(crate) fn run_all(filter: Option<&str>) -> Result<()> {
    setup::require_root()?;
    setup::require_test_programs()?;
    setup::for_building()?;
    if filter.is_none() {
        step(
            "formatting",
            || run(cargo("fmt").args(["--all", "--", "--check"])),
        )?;
        step("dependencies", dependencies::check)?;
        step("clippy", || {
            run(cargo("clippy")
                .args(SELECTION)
                .args(["--all-targets", "--", "-D", "warnings"]))
        })?;
        step("clippy of the kernel programs", kernel_clippy)?;
    }
    // End-to-end tests run the binaries of other packages, which `cargo test` does not build.
    step("building", || run(cargo("build").args(SELECTION)))?;
    step("building tests", || {
        run(cargo("test").args(SELECTION).arg("--no-run"))
    })?;
    step("unit tests", || test(&["--lib", "--bins"], filter))?;
    if filter.is_none() {
        step("examples in the documentation", || test(&["--doc"], None))?;
    }
    step("eBPF and end-to-end tests", || test(&["--test", "*"], filter))?;
    Ok(())
}

fn test(kind: &[&str], filter: Option<&str>) -> Result<()> {
    let mut command = cargo("test");
    // One broken test binary must not hide what the next would say.
    command
        .args(SELECTION)
        .arg("--no-fail-fast")
        .args(kind)
        .args(filter);
    run(command.env("WEIR_TEST_VENV", tools().join("venv")))
}

/// The agent's build script compiles them; this looks at their style, in the same folder and with the same flags.
fn kernel_clippy() -> Result<()> {
    let mut command = cargo("clippy");
    command.args(["--package", "weir-ebpf", "--release", "-Z", "build-std=core"]);
    command
        .args(["--target", "bpfel-unknown-none", "--target-dir"])
        .arg(steps::root().join("target/ebpf"));
    command.args(["--", "-D", "warnings"]).env("RUSTC_BOOTSTRAP", "1");
    let arch = std::env::consts::ARCH;
    let flags = [
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ];
    run(command.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")))
}
