//! What `weir status` shows.

use std::sync::{PoisonError, atomic::Ordering};

use weir_policy::{EffectiveMtls, MtlsMode};
use weir_types::api::{PodStatus, ProcessStatus, Status};

use crate::{
    agent::Agent,
    hubble::OwnCertificate,
    mesh::Mesh,
    node::{Node, Pod},
};

impl Agent {
    /// What `weir status` shows.
    #[must_use]
    pub fn status(&self) -> Status {
        let node = &self.node;
        let config = self.config().clone();
        let problems = self.enrolment.problems();
        let mesh = node.mesh.load();
        let pods: Vec<PodStatus> = mesh
            .local()
            .values()
            .map(|local| {
                let pod = node.pod(&local.workload.uid);
                let policies = mesh.policies_of(&local.workload);
                PodStatus {
                    uid: local.workload.uid.clone(),
                    namespace: local.workload.identity.namespace().to_owned(),
                    name: local.workload.name.clone(),
                    identity: local.workload.identity.clone(),
                    addresses: local.workload.addresses.clone(),
                    enrolled: pod.as_ref().is_some_and(|pod| pod.is(local)),
                    mode: if local.observed {
                        "observe".to_owned()
                    } else {
                        mode(policies.mtls())
                    },
                    same_node: pod.as_ref().map(|pod| same_node(node, &mesh, pod)),
                    policies: policies.names().count() as u64,
                    problem: problems.get(&local.workload.uid).cloned(),
                    connections: pod.map_or(0, |pod| pod.connections.load(Ordering::Relaxed)),
                }
            })
            .collect();
        let uid = |key: weir_tunnel::PodKey| {
            let pod = node.pod_by_handle(crate::datapath::PodHandle(key.0));
            pod.map_or_else(|| format!("handle {}", key.0), |pod| pod.workload.uid.clone())
        };
        let mut errors: Vec<String> = problems
            .iter()
            .map(|(uid, problem)| format!("pod {uid}: {problem}"))
            .collect();
        errors.extend(
            config
                .rejected
                .clone()
                .map(|problem| format!("configuration rejected: {problem}")),
        );
        let faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
        errors.extend(
            faults
                .into_iter()
                .map(|(part, problem)| format!("{part}: {problem}")),
        );
        let failing = node.certificates.problems();
        errors.extend(
            failing
                .into_iter()
                .map(|(identity, problem)| format!("certificate of {identity}: {problem}")),
        );
        let flows_port = self.flows_certificate.as_ref();
        let unserved = flows_port.and_then(OwnCertificate::problem);
        errors.extend(unserved.map(|problem| format!("port for flows: {problem}")));
        let control_plane = self.control.as_ref().map(|state| state.status());
        let certificates = node.certificates.status();
        if let Some(away) = control_plane.as_ref().filter(|status| !status.connected) {
            let problem = away.problem.as_deref().unwrap_or("no answer yet");
            let mut text = format!("control plane {} is not connected: {problem}", away.address);
            if let Some(first) = certificates.iter().map(|one| one.not_after).min() {
                text.push_str(&format!(
                    "; what was known is in force, and certificates last until {first:.0}"
                ));
            }
            errors.push(text);
        }
        Status {
            node: node.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            trust_domain: self.trust_domain.clone(),
            started: self.started,
            ready: self.unready().is_none(),
            config,
            control_plane,
            pods,
            programs: node.datapath.programs(),
            certificates,
            roots: node.certificates.roots(),
            flows_certificate: flows_port.map(OwnCertificate::status),
            tunnels: node.tunnels.status(uid),
            flows_recorded: node.flows.recorded(),
            flows_lost: node.flows.lost(),
            refusals: node.metrics.refusals(),
            kernel_connections: node.datapath.connection_count(),
            warnings: mesh.warnings().iter().map(ToString::to_string).collect(),
            errors,
            process: Some(process(&node.metrics.render())),
        }
    }
}

/// What this process takes, with what its metrics count.
fn process(metrics: &[u8]) -> ProcessStatus {
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let cpu = u64::try_from(cpu.tv_sec * 1000 + cpu.tv_nsec / 1_000_000);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let metrics = String::from_utf8_lossy(metrics);
    ProcessStatus {
        cpu_ms: cpu.unwrap_or_default(),
        resident_bytes: resident(&status),
        bytes: sum(&metrics, "weir_bytes_total"),
        connections: sum(&metrics, "weir_connections_opened_total"),
    }
}

/// The line `VmRSS:  1234 kB` (proc(5)), in bytes.
fn resident(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

/// All series of a counter, of Prometheus's text format.
fn sum(metrics: &str, name: &str) -> u64 {
    let series = metrics.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (_, value) = rest.rsplit_once(' ').filter(|_| rest.starts_with(['{', ' ']))?;
        value.parse::<u64>().ok()
    });
    series.sum()
}

/// `PERMISSIVE`, or `STRICT, port 8080 PERMISSIVE`.
fn mode(mtls: &EffectiveMtls) -> String {
    let name = |mode| match mode {
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Strict => "STRICT",
    };
    let mut text = name(mtls.default_mode()).to_owned();
    for (port, mode) in mtls
        .ports()
        .iter()
        .filter(|(_, mode)| **mode != mtls.default_mode())
    {
        text.push_str(&format!(", port {port} {}", name(*mode)));
    }
    text
}

/// How another pod of this node that hangs on the network as this one does reaches it.
fn same_node(node: &Node, mesh: &Mesh, pod: &Pod) -> String {
    let uid = &pod.workload.uid;
    let Some(address) = pod.workload.addresses.first() else {
        return String::new();
    };
    // A port that has no mode of its own.
    let known = node
        .router(mesh)
        .same_node(uid, uid, (*address, 0).into(), *address);
    known.map_or_else(String::new, |same_node| {
        let how = if same_node.direct { "direct" } else { "mtls" };
        format!("{how} ({})", same_node.why)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_process_takes_is_read_from_what_says_so() {
        assert_eq!(
            resident("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t2\n"),
            1234 << 10
        );
        let metrics =
            "# TYPE a_total counter\na_total{x=\"1\"} 3\na_total{x=\"2 b\"} 4\na_total_more 5\nb 6\n";
        assert_eq!(
            [sum(metrics, "a_total"), sum(metrics, "b"), sum(metrics, "c")],
            [7, 6, 0]
        );
        let process =
            process(b"weir_bytes_total{direction=\"egress\"} 9\nweir_connections_opened_total{} 2\n");
        assert_eq!((process.bytes, process.connections), (9, 2));
        assert!(process.resident_bytes > 0, "a process has memory");
    }
}
