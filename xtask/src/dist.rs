//! Static binaries, as the images hold them.

use std::{env, fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    setup,
    steps::{cargo, output, root, run, step, target},
};

/// What the images hold, and the package that each comes from.
const PROGRAMS: [(&str, &str); 5] = [
    ("weir-agent", "weir-agent"),
    ("weir-cni", "weir-cni"),
    ("weir-control", "weir-control"),
    ("weir", "weir"),
    ("weir-testapp", "weir-lab"),
];

/// Builds the programs for musl, and puts them into `target/dist`.
pub(crate) fn build() -> Result<()> {
    setup::for_building()?;
    let triple = format!("{}-unknown-linux-musl", env::consts::ARCH);
    ensure!(
        output(Command::new("musl-gcc").arg("--version")).is_some(),
        "no compiler for musl: `musl-gcc` cannot be run. Debian and Ubuntu: apt-get install musl-tools"
    );
    step(&format!("adding the target {triple}"), || {
        run(Command::new("rustup")
            .args(["target", "add", &triple])
            .current_dir(root()))
    })?;
    step("building static binaries", || {
        let mut command = cargo("build");
        command.args(["--release", "--target", &triple]);
        for (_, package) in PROGRAMS {
            command.args(["--package", package]);
        }
        // For dependencies written in C.
        command.env(format!("CC_{}", triple.replace('-', "_")), "musl-gcc");
        run(&mut command)
    })?;
    let folder = target().join("dist");
    fs::create_dir_all(&folder)?;
    for (program, _) in PROGRAMS {
        let built = target().join(&triple).join("release").join(program);
        let stripped = folder.join(program);
        // The debug information is four fifths of it; what panics say needs none.
        let copied = Command::new("strip")
            .arg("-o")
            .arg(&stripped)
            .arg(&built)
            .status();
        ensure!(
            copied
                .context("`strip` cannot be run; it comes with the C compiler")?
                .success(),
            "{} cannot be stripped",
            built.display()
        );
        println!("{}", stripped.display());
    }
    Ok(())
}
