//! As a plugin of kubectl: `kubectl weir` runs what is called `kubectl-weir`.

use std::{ffi::OsString, path::Path};

use clap::Command;

/// What kubectl calls.
const PLUGIN: &str = "kubectl-weir";

/// Whether this process was called as a plugin.
pub(crate) fn is_plugin(program: Option<OsString>) -> bool {
    let program = program.unwrap_or_default();
    Path::new(&program).file_stem().is_some_and(|stem| stem == PLUGIN)
}

/// The command by the name that it was called by, in its examples too.
pub(crate) fn named(command: Command, plugin: bool) -> Command {
    if !plugin {
        return command;
    }
    renamed(command.bin_name("kubectl weir").display_name("kubectl weir"))
}

fn renamed(command: Command) -> Command {
    let help = command.get_after_help().map(ToString::to_string);
    let command = match help {
        Some(help) => command.after_help(help.replace("\n  weir ", "\n  kubectl weir ")),
        None => command,
    };
    command.mut_subcommands(renamed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubectl_knows_its_plugins_by_their_file() {
        for (program, expected) in [
            ("/usr/local/bin/kubectl-weir", true),
            ("kubectl-weir", true),
            ("kubectl-weir.exe", true),
            ("/usr/bin/weir", false),
            ("", false),
        ] {
            assert_eq!(is_plugin(Some(program.into())), expected, "{program}");
        }
        assert!(!is_plugin(None));
    }
}
