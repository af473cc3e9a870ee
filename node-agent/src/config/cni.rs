//! The section of the CNI plugin.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use weir_cni::protocol::{DEFAULT_SOCKET, DEFAULT_STATE_FILE};

/// The CNI plugin, and where it is installed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CniConfig {
    /// The Unix socket by which the plugin speaks to the agent, made with mode 0600.
    pub socket: PathBuf,
    /// The file by which the plugin decides while the agent is away, written with mode 0600.
    pub state_file: PathBuf,
    /// The folder of the node's CNI plugins, as `/opt/cni/bin`: the plugin is copied there from beside the agent's executable.
    /// Only with `confDir`.
    pub bin_dir: Option<PathBuf>,
    /// The folder of the node's CNI configuration, as `/etc/cni/net.d`: the plugin is kept in its first list. Only with
    /// `binDir`.
    pub conf_dir: Option<PathBuf>,
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            state_file: DEFAULT_STATE_FILE.into(),
            bin_dir: None,
            conf_dir: None,
        }
    }
}

impl CniConfig {
    /// What is wrong with it: the field, and what was expected.
    pub(super) fn check(&self, with_control_plane: bool) -> Result<(), (&'static str, &'static str)> {
        if !with_control_plane {
            return Err((
                "cni",
                "expected none without 'controlPlane': it says which pods are enrolled",
            ));
        }
        let paths = [
            ("cni.socket", Some(&self.socket)),
            ("cni.stateFile", Some(&self.state_file)),
            ("cni.binDir", self.bin_dir.as_ref()),
            ("cni.confDir", self.conf_dir.as_ref()),
        ];
        for (field, path) in paths {
            if path.is_some_and(|path| !path.is_absolute()) {
                return Err((field, "expected an absolute path"));
            }
        }
        if self.bin_dir.is_some() != self.conf_dir.is_some() {
            return Err(("cni", "expected both 'binDir' and 'confDir', or neither"));
        }
        Ok(())
    }
}
