//! The plugin's configuration, which the runtime gives on standard input.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    decide::{Switch, UnknownSwitch},
    error::CniError,
    protocol::{DEFAULT_SOCKET, DEFAULT_STATE_FILE, MAX_ADDRESSES},
};

/// Versions of the specification, the newest last. Those of 0.3 have the results of 0.4.0, and are what Calico, Cilium, flannel
/// and kindnet still write.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// Largest configuration, with the result of the plugins before and all annotations of the pod, of which Kubernetes allows
/// 256 KiB.
pub const MAX_CONFIG: u64 = 1 << 20;
/// The runtime's own limit for making a sandbox is the kubelet's `runtimeRequestTimeout`, two minutes unless set.
const TIMEOUT_SECONDS: u64 = 30;
/// Bounds of the timeout.
const TIMEOUTS: std::ops::RangeInclusive<u64> = 1..=110;

/// The configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    /// The version that results are wanted in.
    #[serde(default)]
    pub cni_version: String,
    /// What the plugins before this one did.
    #[serde(default)]
    pub prev_result: Option<Value>,
    /// The agent's socket.
    #[serde(default = "socket")]
    pub socket: PathBuf,
    /// What the agent left for when it is away.
    #[serde(default = "state_file")]
    pub state_file: PathBuf,
    /// How long ADD and CHECK may take.
    #[serde(default = "timeout_seconds")]
    timeout_seconds: u64,
    /// Namespaces whose pods start also when nothing is known of them.
    #[serde(default = "exclude")]
    pub exclude: Vec<String>,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    /// Attachments that GC is to leave.
    #[serde(rename = "cni.dev/valid-attachments", default)]
    pub valid_attachments: Vec<ValidAttachment>,
}

/// What capabilities bring.
#[derive(Debug, Clone, Default, Deserialize)]
struct RuntimeConfig {
    #[serde(rename = "io.kubernetes.cri.pod-annotations", default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// An attachment that is in use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct ValidAttachment {
    /// The sandbox's container.
    #[serde(rename = "containerID")]
    pub container_id: String,
    /// The interface in it.
    pub ifname: String,
}

fn socket() -> PathBuf {
    DEFAULT_SOCKET.into()
}

fn state_file() -> PathBuf {
    DEFAULT_STATE_FILE.into()
}

fn timeout_seconds() -> u64 {
    TIMEOUT_SECONDS
}

fn exclude() -> Vec<String> {
    ["kube-system", "weir-system"].map(str::to_owned).to_vec()
}

fn wrong(field: &'static str, problem: impl Into<String>) -> CniError {
    CniError::Config {
        field,
        problem: problem.into(),
    }
}

impl NetConf {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// When it is too large, not JSON, of a version that is not ours, or a field is wrong.
    pub fn parse(text: &[u8]) -> Result<Self, CniError> {
        if text.len() as u64 > MAX_CONFIG {
            return Err(CniError::Decode(format!("expected at most {MAX_CONFIG} bytes")));
        }
        let config: Self =
            serde_json::from_slice(text).map_err(|error| CniError::Decode(error.to_string()))?;
        if !VERSIONS.contains(&config.cni_version.as_str()) {
            return Err(CniError::Version(config.cni_version));
        }
        if !TIMEOUTS.contains(&config.timeout_seconds) {
            let problem = format!("expected {} to {} seconds", TIMEOUTS.start(), TIMEOUTS.end());
            return Err(wrong("timeoutSeconds", problem));
        }
        for (field, path) in [("socket", &config.socket), ("stateFile", &config.state_file)] {
            if !path.is_absolute() {
                return Err(wrong(field, "expected an absolute path"));
            }
        }
        Ok(config)
    }

    /// How long ADD and CHECK may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds)
    }

    /// The pod's own switch, if the runtime passed its annotations on and one of them is a switch.
    ///
    /// # Errors
    /// When it is one that nobody knows: it may be a mistyped `enabled`.
    pub fn switch(&self) -> Result<Option<Switch>, UnknownSwitch> {
        let annotations = self.runtime_config.annotations.as_ref();
        annotations.map_or(Ok(None), Switch::of)
    }

    /// The result to hand on: that of the plugins before, in the version asked for.
    ///
    /// # Errors
    /// When there is none: then this plugin does not stand in a chain.
    pub fn result(&self) -> Result<Value, CniError> {
        let Some(Value::Object(result)) = &self.prev_result else {
            let problem = "expected the result of the plugins before: weir-cni gives a pod no interface, and stands behind one that does";
            return Err(wrong("prevResult", problem));
        };
        let mut result = result.clone();
        result.insert("cniVersion".to_owned(), self.cni_version.clone().into());
        Ok(Value::Object(result))
    }

    /// The pod's addresses, as the plugins before gave them.
    ///
    /// # Errors
    /// When one is none, there are too many, or there is none.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        const FIELD: &str = "prevResult.ips";
        let result = self.prev_result.as_ref();
        let list = |name: &str| {
            let list = result.and_then(|result| result.get(name)?.as_array());
            list.map(Vec::as_slice).unwrap_or_default()
        };
        let interfaces = list("interfaces");
        // An address without an interface is the pod's; one on an interface of the node, as a bridge's, is not.
        let is_pods = |ip: &&Value| {
            let index = ip.get("interface").and_then(Value::as_u64);
            let interface = index.and_then(|index| interfaces.get(usize::try_from(index).ok()?));
            interface.is_none_or(|own| {
                own.get("sandbox")
                    .and_then(Value::as_str)
                    .is_some_and(|own| !own.is_empty())
            })
        };
        let mut addresses = Vec::new();
        for ip in list("ips").iter().filter(is_pods) {
            let text = ip.get("address").and_then(Value::as_str).unwrap_or_default();
            let address = text.split_once('/').map_or(text, |(address, _)| address);
            let address: IpAddr = address
                .parse()
                .map_err(|_| wrong(FIELD, format!("expected addresses, not '{text}'")))?;
            addresses.push(address.to_canonical());
        }
        if addresses.is_empty() || addresses.len() > MAX_ADDRESSES {
            return Err(wrong(FIELD, format!("expected 1 to {MAX_ADDRESSES} addresses")));
        }
        Ok(addresses)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<NetConf, CniError> {
        NetConf::parse(value.to_string().as_bytes())
    }

    #[test]
    fn the_result_before_is_handed_on_as_it_is() {
        for version in VERSIONS {
            let previous = json!({
                "cniVersion": version,
                "interfaces": [{ "name": "cni0" }, { "name": "eth0", "sandbox": "/run/netns/a", "mtu": 1450 }],
                "ips": [
                    { "address": "10.1.0.2/24", "gateway": "10.1.0.1", "interface": 1 },
                    { "address": "fd00::2/64", "interface": 1 },
                    { "address": "10.1.0.1/24", "interface": 0 },
                ],
                "routes": [{ "dst": "0.0.0.0/0" }], "dns": {}, "own.example/extension": [1, 2],
            });
            let config = parse(
                &json!({ "cniVersion": version, "name": "n", "type": "weir-cni", "prevResult": previous }),
            );
            let config = config.unwrap();
            assert_eq!(config.result().unwrap(), previous);
            let wanted: Vec<IpAddr> = ["10.1.0.2", "fd00::2"].map(|a| a.parse().unwrap()).to_vec();
            assert_eq!(config.addresses().unwrap(), wanted);
        }
    }

    #[test]
    fn a_configuration_that_is_wrong_is_refused_with_the_code_of_the_specification() {
        let cases = [
            (json!({ "cniVersion": "0.2.0" }), 1),
            (json!({}), 1),
            (json!("x"), 6),
            (json!({ "cniVersion": "1.0.0", "timeoutSeconds": 0 }), 7),
            (json!({ "cniVersion": "1.0.0", "timeoutSeconds": 600 }), 7),
            (json!({ "cniVersion": "1.0.0", "socket": "agent.sock" }), 7),
        ];
        for (config, code) in cases {
            assert_eq!(parse(&config).unwrap_err().code(), code, "{config}");
        }
        let first = parse(&json!({ "cniVersion": "1.0.0" })).unwrap();
        assert_eq!(first.result().unwrap_err().code(), 7);
        assert_eq!(first.addresses().unwrap_err().code(), 7);
        let ips = json!({ "cniVersion": "1.0.0", "prevResult": { "ips": [{ "address": "x" }] } });
        assert_eq!(parse(&ips).unwrap().addresses().unwrap_err().code(), 7);
    }

    #[test]
    fn the_pods_switch_is_among_the_annotations_that_the_runtime_passes_on() {
        let with = |annotations: Value| {
            let runtime = json!({ "io.kubernetes.cri.pod-annotations": annotations });
            parse(&json!({ "cniVersion": "1.0.0", "runtimeConfig": runtime }))
                .unwrap()
                .switch()
        };
        assert_eq!(
            with(json!({ "weir.dev/mesh": "enabled" })),
            Ok(Some(Switch::Enabled))
        );
        assert_eq!(with(json!({ "a": "b" })), Ok(None));
        assert_eq!(with(Value::Null), Ok(None));
        assert!(with(json!({ "weir.dev/mesh": "Enabled" })).is_err());
    }
}
