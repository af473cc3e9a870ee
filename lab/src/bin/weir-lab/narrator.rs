//! What a person reads while something runs. On standard error when standard output is for a program.

use std::io::Write as _;

use weir::line::compact;
use weir_types::Flow;

/// Writes lines for a person.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Narrator {
    /// Standard output is for JSON alone.
    pub(crate) json: bool,
}

impl Narrator {
    pub(crate) fn say(self, line: impl AsRef<str>) {
        let line = line.as_ref();
        // A reader that has gone is no reason to stop before the cleanup.
        let _ = if self.json {
            writeln!(anstream::stderr(), "{line}")
        } else {
            writeln!(anstream::stdout(), "{line}")
        };
    }

    pub(crate) fn flow(self, flow: &Flow) {
        self.say(format!("{} {}", flow.node, compact(flow)));
    }
}
