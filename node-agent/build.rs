//! Builds the kernel programs, so that the agent's binary carries them.
//!
//! One toolchain for everything: stable, with unstable features switched on for the kernel crate alone. It needs the
//! component `rust-src` and `bpf-linker`; `cargo xtask setup` brings both. All profiles share one build of it, which
//! `aya-build` (a target folder for each, and every line of its output a warning) does not give.

use std::{env, ffi::OsString, path::PathBuf, process::Command};

use anyhow::{Context as _, bail};

/// Unit separator, between the flags of `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";
const BINARY: &str = "weir-datapath";

fn main() -> anyhow::Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR")?);
    let root = manifest.parent().context("the crate has a parent folder")?;
    for path in [
        "ebpf-programs",
        "abi",
        "Cargo.lock",
        "target/tools/bin/bpf-linker",
    ] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }
    let tools = root.join("target/tools/bin");
    let path = env::var_os("PATH").unwrap_or_default();
    let with_tools = env::join_paths(std::iter::once(tools).chain(env::split_paths(&path)))?;
    if !env::split_paths(&with_tools).any(|folder| folder.join("bpf-linker").is_file()) {
        bail!("bpf-linker is missing: run 'cargo xtask setup' first (one to two minutes)");
    }

    let arch = env::var("CARGO_CFG_TARGET_ARCH")?;
    let endian = if env::var("CARGO_CFG_TARGET_ENDIAN")? == "big" {
        "bpfeb"
    } else {
        "bpfel"
    };
    let target = format!("{endian}-unknown-none");
    let flags = [
        &format!("--cfg=bpf_target_arch=\"{arch}\""),
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
    ]
    .join(SEPARATOR);
    let folder = root.join("target/ebpf");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let output = Command::new(cargo)
        .args([
            "build",
            "--package",
            "weir-ebpf",
            "--release",
            "-Z",
            "build-std=core",
            "--target",
            &target,
        ])
        .arg("--target-dir")
        .arg(&folder)
        .current_dir(root)
        .env("PATH", with_tools)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // The flags of the outer build are not for the kernel.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .output()
        .context("cargo cannot be run")?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("the kernel programs did not build (is rust-src there? 'cargo xtask setup' adds it):\n{text}");
    }
    for line in text.lines().filter(|line| line.starts_with("warning")) {
        println!("cargo:warning={line}");
    }
    let built = folder.join(target).join("release").join(BINARY);
    std::fs::copy(&built, out.join(BINARY)).with_context(|| format!("copying {}", built.display()))?;
    Ok(())
}
