//! Whether agents can run on the nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSystemInfo};
use kube::ResourceExt as _;

use super::finding::{Finding, count, named};

/// The oldest kernel: that of `bpf_set_retval` in `connect`, and of what the datapath uses otherwise.
pub(crate) const OLDEST_KERNEL: (u32, u32) = (6, 1);
/// Architectures that there are builds for.
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
/// Container runtimes that are known to hand to CNI plugins what the plugin needs.
const RUNTIMES: [&str; 2] = ["containerd", "cri-o"];

/// Kernels, systems, runtimes, architectures.
pub(crate) fn nodes(nodes: &[Node]) -> Vec<Finding> {
    let infos: Vec<(String, NodeSystemInfo)> = nodes
        .iter()
        .filter_map(|node| Some((node.name_any(), node.status.as_ref()?.node_info.clone()?)))
        .collect();
    let (linux, other): (Vec<_>, Vec<_>) = infos
        .into_iter()
        .partition(|(_, info)| info.operating_system == "linux");
    let mut findings = Vec::new();
    if !other.is_empty() {
        let names: Vec<&String> = other.iter().map(|(name, _)| name).collect();
        findings.push(Finding::warn(
            "Nodes",
            format!("not Linux: {}", named(&names)),
            "no agent runs there, and none of their pods can be in the mesh",
        ));
    }
    if linux.is_empty() {
        findings.push(Finding::warn(
            "Nodes",
            "no Linux node says what it is",
            "add nodes, or wait until their kubelets have said what they are",
        ));
        return findings;
    }
    let (major, minor) = OLDEST_KERNEL;
    let old = |kernel: &str| kernel_version(kernel).is_none_or(|version| version < OLDEST_KERNEL);
    findings.push(judged(
        "Kernel",
        &linux,
        |info| &info.kernel_version,
        old,
        |bad| {
            Finding::fail(
                "Kernel",
                format!("older than {major}.{minor}: {bad}"),
                format!(
                    "upgrade these nodes to Linux {major}.{minor} or newer, or keep the DaemonSet off them"
                ),
            )
        },
    ));
    findings.push(judged(
        "Architecture",
        &linux,
        |info| &info.architecture,
        |architecture| !ARCHITECTURES.contains(&architecture),
        |bad| {
            Finding::fail(
                "Architecture",
                format!("there is no agent for: {bad}"),
                "keep the DaemonSet off these nodes",
            )
        },
    ));
    let foreign = |runtime: &str| {
        let name = runtime.split_once("://").map_or(runtime, |(name, _)| name);
        !RUNTIMES.contains(&name)
    };
    findings.push(judged(
        "Runtime",
        &linux,
        |info| &info.container_runtime_version,
        foreign,
        |bad| {
            Finding::warn(
                "Runtime",
                format!("not tried with Weir: {bad}"),
                "containerd and CRI-O are; see that pods there start, and are enrolled",
            )
        },
    ));
    findings.push(judged(
        "System",
        &linux,
        |info| &info.os_image,
        |_| false,
        |bad| Finding::ok("System", bad),
    ));
    findings
}

/// One finding: what there is, or which nodes have what they should not.
fn judged(
    about: &str,
    nodes: &[(String, NodeSystemInfo)],
    value: impl Fn(&NodeSystemInfo) -> &String,
    is_bad: impl Fn(&str) -> bool,
    finding: impl Fn(String) -> Finding,
) -> Finding {
    let mut found: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, info) in nodes {
        found.entry(value(info)).or_default().push(name);
    }
    let bad: Vec<String> = found
        .iter()
        .filter(|(value, _)| is_bad(value))
        .map(|(value, names)| format!("{value} on {}", named(names)))
        .collect();
    if !bad.is_empty() {
        return finding(named(&bad));
    }
    let all: Vec<String> = found
        .iter()
        .map(|(value, names)| format!("{value} ({})", count(names.len(), "node")))
        .collect();
    Finding::ok(about, named(&all))
}

/// `6.1` of `6.1.0-13-cloud-amd64`.
pub(crate) fn kernel_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::finding::{Level, tests::assert_found},
        *,
    };

    fn node(name: &str, system: &str, kernel: &str, runtime: &str, architecture: &str) -> Node {
        let info = json!({
            "architecture": architecture, "bootID": "", "containerRuntimeVersion": runtime, "kernelVersion": kernel,
            "kubeProxyVersion": "", "kubeletVersion": "v1.34.0", "machineID": "", "operatingSystem": system,
            "osImage": "Debian GNU/Linux 12", "systemUUID": "",
        });
        serde_json::from_value(json!({"metadata": {"name": name}, "status": {"nodeInfo": info}})).unwrap()
    }

    #[test]
    fn nodes_that_cannot_have_an_agent_are_named_with_what_is_wrong() {
        let good = node(
            "good",
            "linux",
            "6.1.0-13-cloud-amd64",
            "containerd://1.7.2",
            "amd64",
        );
        let ok = [
            (Level::Ok, "6.1.0"),
            (Level::Ok, "amd64 (1 node)"),
            (Level::Ok, "containerd"),
            (Level::Ok, "Debian"),
        ];
        assert_found(&nodes(std::slice::from_ref(&good)), &ok);
        let found = nodes(&[
            good,
            node("old", "linux", "5.15.0-1", "cri-o://1.30", "arm64"),
            node("odd", "linux", "6.12.1", "docker://20", "riscv64"),
            node("other", "windows", "10.0.20348", "containerd://1.7", "amd64"),
        ]);
        let expected = [
            (Level::Warn, "not Linux: other"),
            (Level::Fail, "older than 6.1: 5.15.0-1 on old"),
            (Level::Fail, "riscv64 on odd"),
            (Level::Warn, "docker://20 on odd"),
            (Level::Ok, "3 nodes"),
        ];
        assert_found(&found, &expected);
        assert_found(&nodes(&[]), &[(Level::Warn, "no Linux node")]);
    }

    #[test]
    fn a_kernels_version_is_its_first_two_numbers() {
        assert_eq!(kernel_version("6.18.5-talos"), Some((6, 18)));
        assert_eq!(kernel_version("6.6.87.2-microsoft-standard-WSL2\n"), Some((6, 6)));
        assert_eq!(kernel_version("unknown"), None);
    }
}
