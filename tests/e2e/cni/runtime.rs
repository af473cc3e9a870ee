//! A node's container runtime, as far as CNI goes.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use weir_e2e::cluster::Cluster;
use weir_lab::{Pod, Spawn as _, program};

/// The code of "try again later".
pub(super) const LATER: u64 = 11;

/// The plugin, a node's runtime, and the agent's files.
pub(super) struct Runtime {
    folder: tempfile::TempDir,
}

/// What the runtime says of a pod.
pub(super) struct Starting {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) container: String,
    pub(super) netns: PathBuf,
    pub(super) addresses: Vec<String>,
    pub(super) annotations: Value,
}

/// Where a pod's first process runs.
pub(super) struct In(pub(super) weir_lab::Place);

impl weir_lab::Spawn for In {
    fn place(&self) -> &weir_lab::Place {
        &self.0
    }
}

// === impl Runtime ===

impl Runtime {
    /// Gives the agent of the cluster's first node the plugin's section, with `more` in it, and starts it again.
    pub(super) fn new(cluster: &Cluster, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Others than root get to the socket's own mode.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(program("weir-cni").unwrap(), folder.path().join("weir-cni")).unwrap();
        let runtime = Self { folder };
        let agent = &cluster.agents[0];
        agent.stop().unwrap();
        let mut file = File::options().append(true).open(agent.config_file()).unwrap();
        let (socket, state) = (runtime.socket(), runtime.state());
        writeln!(
            file,
            "\ncni:\n  socket: {}\n  stateFile: {}\n{more}",
            socket.display(),
            state.display()
        )
        .unwrap();
        agent.restart().unwrap();
        runtime
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("cni.sock")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.folder.path().join("cni-state.json")
    }

    pub(super) fn command(&self, command: &str, pod: &Starting) -> Command {
        let mut plugin = Command::new(self.folder.path().join("weir-cni"));
        plugin
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &pod.container)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_NETNS", &pod.netns)
            .env("CNI_PATH", self.folder.path())
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_UID={}",
                    pod.namespace, pod.name, pod.uid
                ),
            );
        plugin
    }

    pub(super) fn input(&self, pod: &Starting) -> Value {
        let ips = pod.addresses.iter();
        let ips: Vec<Value> = ips
            .map(|address| json!({ "address": address, "interface": 0 }))
            .collect();
        json!({
            "cniVersion": "1.0.0", "name": "net", "type": "weir-cni",
            "socket": self.socket(), "stateFile": self.state(),
            "runtimeConfig": { "io.kubernetes.cri.pod-annotations": pod.annotations },
            "prevResult": {
                "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0", "sandbox": pod.netns }], "ips": ips,
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        })
    }

    pub(super) fn call(&self, mut command: Command, input: &Value) -> Result<Value, Value> {
        let mut plugin = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = plugin.stdin.take().unwrap();
        stdin.write_all(input.to_string().as_bytes()).unwrap();
        drop(stdin);
        let output = plugin.wait_with_output().unwrap();
        let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
        if output.status.success() {
            Ok(value)
        } else {
            assert_eq!(output.status.code(), Some(1));
            Err(value)
        }
    }

    pub(super) fn run(&self, command: &str, pod: &Starting) -> Result<Value, Value> {
        self.call(self.command(command, pod), &self.input(pod))
    }

    /// An ADD that fails with "try again later" and this in its text.
    pub(super) fn refuses(&self, pod: &Starting, reason: &str) {
        let error = self.run("ADD", pod).unwrap_err();
        assert_eq!(error["code"], LATER, "{error}");
        assert!(error["msg"].as_str().unwrap().contains(reason), "{error}");
    }
}

// === impl Starting ===

impl Starting {
    pub(super) fn new(pod: &Pod, uid: &str) -> Self {
        Self {
            namespace: pod.spec().namespace.clone(),
            name: pod.spec().name.clone(),
            uid: uid.to_owned(),
            container: format!("sandbox-{}", pod.spec().name),
            netns: pod.place().netns_path(),
            addresses: vec![format!("{}/24", pod.v4()), format!("{}/64", pod.v6())],
            annotations: json!({}),
        }
    }

    /// One that the API server has never heard of.
    pub(super) fn unheard(pod: &Pod, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: "unheard".to_owned(),
            ..Self::new(pod, "0b2f5c1e-1111-2222-3333-444455556666")
        }
    }

    pub(super) fn annotated(self, key: &str, value: &str) -> Self {
        Self {
            annotations: json!({ key: value }),
            ..self
        }
    }
}
