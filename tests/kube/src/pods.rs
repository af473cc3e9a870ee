//! The tests' own pods, and commands in them.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{AttachParams, AttachedProcess, LogParams},
};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::cluster::Cluster;

/// A pod of the tests.
#[derive(Debug, Clone)]
pub(crate) struct TestPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) address: String,
}

/// What a pod is to be.
#[derive(Debug, Clone)]
pub(crate) struct Spec<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) node: &'a str,
    /// Of the test application.
    pub(crate) command: &'a [&'a str],
    /// Merged over the pod.
    pub(crate) more: Value,
}

impl Spec<'_> {
    fn object(&self, cluster: &Cluster) -> Value {
        let arguments = &cluster.arguments;
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": self.namespace, "name": self.name, "labels": {"app": self.name}},
            "spec": {
                "nodeName": self.node, "serviceAccountName": self.name, "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": false,
                "containers": [{
                    "name": "app", "image": format!("{}/weir-testapp:{}", arguments.registry, arguments.tag),
                    "imagePullPolicy": arguments.pull_policy, "args": self.command,
                }],
            },
        });
        merge(&mut pod, self.more.clone());
        pod
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        // The first item of a list is merged: there is one container.
        (Value::Array(into), Value::Array(mut from)) if into.len() == 1 && from.len() == 1 => {
            merge(&mut into[0], from.remove(0));
        }
        (into, from) => *into = from,
    }
}

impl Cluster {
    /// Makes a pod, with a service account of its name, and does not wait for it.
    pub(crate) async fn create_pod(&self, spec: &Spec<'_>) -> anyhow::Result<()> {
        let meta = json!({"namespace": spec.namespace, "name": spec.name});
        self.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta}))
            .await?;
        self.apply(spec.object(self)).await?;
        Ok(())
    }

    /// Makes a pod and waits until it is ready.
    pub(crate) async fn pod(&self, spec: &Spec<'_>) -> anyhow::Result<TestPod> {
        self.create_pod(spec).await?;
        self.ready(spec.namespace, spec.name).await
    }

    /// Waits until a pod is ready.
    pub(crate) async fn ready(&self, namespace: &str, name: &str) -> anyhow::Result<TestPod> {
        let api = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let mut address = None;
        let what = format!("pod {namespace}/{name} is ready");
        self.until(&what, async || {
            let pod = api.get(name).await?;
            let status = pod.status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let ready = conditions
                .iter()
                .any(|one| one.type_ == "Ready" && one.status == "True");
            address = status.pod_ip;
            Ok(ready
                .then_some(())
                .ok_or_else(|| format!("{:?} {:?}", status.phase, conditions.last())))
        })
        .await?;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let address = address.with_context(|| format!("pod {name} has no address"))?;
        Ok(TestPod {
            namespace,
            name,
            address,
        })
    }

    /// Waits until pods say that they are enrolled, or not any more.
    pub(crate) async fn enrolled(&self, pods: &[&TestPod], expected: bool) -> anyhow::Result<Duration> {
        let what = format!(
            "{} pods are {}enrolled",
            pods.len(),
            if expected { "" } else { "not " }
        );
        self.until(&what, async || {
            for pod in pods {
                let meta = self.meta(pod).await?;
                let enrolled = meta["annotations"]["weir.dev/enrolled"] == "true";
                if enrolled != expected {
                    return Ok(Err(format!("{}: {}", pod.name, meta["annotations"])));
                }
            }
            Ok(Ok(()))
        })
        .await
    }

    /// A pod's metadata.
    pub(crate) async fn meta(&self, pod: &TestPod) -> anyhow::Result<Value> {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": pod.namespace, "name": pod.name},
        });
        let found = self
            .get(&object)
            .await?
            .with_context(|| format!("pod {} is gone", pod.name))?;
        Ok(found["metadata"].clone())
    }

    /// Runs the test application in a pod; what it printed, and whether it succeeded.
    pub(crate) async fn try_exec(&self, pod: &TestPod, command: &[&str]) -> anyhow::Result<(bool, String)> {
        let mut running = self.start(pod, command).await?;
        let mut output = String::new();
        if let Some(mut stdout) = running.stdout() {
            stdout.read_to_string(&mut output).await?;
        }
        if let Some(mut stderr) = running.stderr() {
            stderr.read_to_string(&mut output).await?;
        }
        Ok((succeeded(running).await?, output))
    }

    /// Runs the test application in a pod; what it printed.
    pub(crate) async fn exec(&self, pod: &TestPod, command: &[&str]) -> anyhow::Result<String> {
        let (success, output) = self.try_exec(pod, command).await?;
        ensure!(success, "{} in pod {}: {output}", command.join(" "), pod.name);
        Ok(output)
    }

    /// Starts the test application in a pod.
    pub(crate) async fn start(&self, pod: &TestPod, command: &[&str]) -> anyhow::Result<AttachedProcess> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let all = ["/weir-testapp"].into_iter().chain(command.iter().copied());
        let params = AttachParams::default().container("app").stdout(true).stderr(true);
        let params = params.max_stdout_buf_size(1 << 20).max_stderr_buf_size(1 << 20);
        api.exec(&pod.name, all, &params)
            .await
            .with_context(|| format!("exec in pod {}", pod.name))
    }

    /// Whether a pod reaches an address: connects and gets its own words back.
    pub(crate) async fn reaches(&self, pod: &TestPod, to: &str) -> anyhow::Result<bool> {
        Ok(self.try_exec(pod, &["echo-client", to]).await?.0)
    }

    /// What one connection of a pod came to: `ok`, or the error's name.
    pub(crate) async fn connect(&self, pod: &TestPod, to: &str) -> anyhow::Result<Value> {
        let command = [
            "connect",
            to,
            "--send",
            "x",
            "--read",
            "1",
            "--timeout-ms",
            "4000",
        ];
        let (_, output) = self.try_exec(pod, &command).await?;
        let line = output.lines().next().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("connect {to} in pod {}: {output}", pod.name))
    }

    /// What a server said of itself, in so many bytes, to one connection of a pod.
    pub(crate) async fn read(&self, pod: &TestPod, to: &str, bytes: usize) -> anyhow::Result<Value> {
        let bytes = bytes.to_string();
        let command = ["connect", to, "--read", &bytes, "--timeout-ms", "4000"];
        let (_, output) = self.try_exec(pod, &command).await?;
        let line = output.lines().next().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("connect {to} in pod {}: {output}", pod.name))
    }

    /// A pod's output so far.
    pub(crate) async fn logs(&self, pod: &TestPod) -> anyhow::Result<String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        Ok(api.logs(&pod.name, &LogParams::default()).await?)
    }

    /// A line through a port-forward to a pod's port, and what came back.
    pub(crate) async fn forwarded(&self, pod: &TestPod, port: u16) -> anyhow::Result<String> {
        use tokio::io::AsyncWriteExt as _;
        let api = Api::<Pod>::namespaced(self.client.clone(), &pod.namespace);
        let mut forward = api.portforward(&pod.name, &[port]).await?;
        let mut stream = forward.take_stream(port).context("no stream")?;
        stream.write_all(b"through").await?;
        let mut answer = [0; 7];
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_exact(&mut answer)).await;
        read.context("nothing came back")??;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Whether a command that was started has succeeded.
pub(crate) async fn succeeded(mut running: AttachedProcess) -> anyhow::Result<bool> {
    let status = running.take_status().context("no status")?.await;
    match status.and_then(|status| status.status) {
        Some(text) => Ok(text == "Success"),
        None => bail!("the command's end is not known"),
    }
}

/// Connections that a pod opens one after the other until it is asked how they went.
pub(crate) struct Traffic {
    running: AttachedProcess,
    pod: String,
}

impl Traffic {
    /// Starts: 64 bytes and back, a hundred times a second. Ends at the first connection that fails.
    pub(crate) async fn start(cluster: &Cluster, pod: &TestPod, to: &str) -> anyhow::Result<Self> {
        let command = ["echo-client", to, "--connections", "10000000", "--pause-ms", "10"];
        let running = cluster.start(pod, &command).await?;
        Ok(Self {
            running,
            pod: pod.name.clone(),
        })
    }

    /// Fails if a connection has failed meanwhile.
    pub(crate) async fn unharmed(&mut self) -> anyhow::Result<()> {
        let mut stderr = self.running.stderr().context("asked once")?;
        let mut said = String::new();
        // It says something only when it ends.
        let ended = tokio::time::timeout(Duration::from_millis(500), stderr.read_to_string(&mut said)).await;
        ensure!(ended.is_err(), "a connection of pod {} failed: {said}", self.pod);
        self.running.abort();
        Ok(())
    }
}

/// An address and a port.
pub(crate) fn at(address: &str, port: u16) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}
