//! NetworkPolicies that do not let through what the mesh sends: TCP to port 15008.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        networking::v1::{NetworkPolicy, NetworkPolicyPort},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::ResourceExt as _;

use super::finding::{Finding, named};
use crate::mesh::{has_ended, is_host_network, is_wanted};

/// Where agents take connections of the mesh, on each pod's address.
const PORT: i32 = 15008;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Direction {
    Ingress,
    Egress,
}

/// Those that stand in the way of pods that are meant to be in the mesh.
pub(crate) fn network_policies(
    policies: &[NetworkPolicy],
    namespaces: &BTreeMap<String, Namespace>,
    pods: &[Pod],
) -> Vec<Finding> {
    // By what is in the way: the pods that it is in the way of.
    let mut blocked: BTreeMap<(Direction, String), Vec<String>> = BTreeMap::new();
    let mut looked_at = false;
    for pod in pods.iter().filter(|pod| !has_ended(pod) && !is_host_network(pod)) {
        let namespace = pod.namespace().unwrap_or_default();
        if !is_wanted(pod, namespaces.get(&namespace)) {
            continue;
        }
        for direction in [Direction::Ingress, Direction::Egress] {
            let concern: Vec<&NetworkPolicy> = policies
                .iter()
                .filter(|policy| policy.namespace().as_deref() == Some(&namespace))
                .filter(|policy| concerns(policy, pod, direction))
                .collect();
            looked_at |= !concern.is_empty();
            // What one of them allows is allowed.
            if concern.is_empty() || concern.iter().any(|policy| allows(policy, direction)) {
                continue;
            }
            let names: Vec<String> = concern
                .iter()
                .map(|policy| format!("{namespace}/{}", policy.name_any()))
                .collect();
            blocked
                .entry((direction, named(&names)))
                .or_default()
                .push(pod.name_any());
        }
    }
    if blocked.is_empty() {
        let ok = looked_at.then(|| {
            Finding::ok(
                "NetworkPolicies",
                "those of the mesh's pods let TCP 15008 through",
            )
        });
        return ok.into_iter().collect();
    }
    blocked
        .into_iter()
        .map(|((direction, policies), pods)| {
            let (way, rule) = match direction {
                Direction::Ingress => ("into", "ingress"),
                Direction::Egress => ("out of", "egress"),
            };
            Finding::fail(
                "NetworkPolicies",
                format!("{policies}: no connections of the mesh {way} {}", named(&pods)),
                format!(
                    "add to one of them: {rule}: [{{ports: [{{protocol: TCP, port: {PORT}}}]}}]; Weir's own policies say \
                     who may connect"
                ),
            )
        })
        .collect()
}

fn concerns(policy: &NetworkPolicy, pod: &Pod, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let types = match (&spec.policy_types, direction) {
        (Some(types), Direction::Ingress) => types.iter().any(|one| one == "Ingress"),
        (Some(types), Direction::Egress) => types.iter().any(|one| one == "Egress"),
        (None, Direction::Ingress) => true,
        (None, Direction::Egress) => spec.egress.is_some(),
    };
    let selector = spec.pod_selector.as_ref();
    types && selector.is_none_or(|selector| selects(selector, pod.labels()))
}

fn allows(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else { return false };
    let allows = |ports: &Option<Vec<NetworkPolicyPort>>| match ports.as_deref() {
        None | Some([]) => true,
        Some(ports) => ports.iter().any(covers),
    };
    match direction {
        Direction::Ingress => spec.ingress.iter().flatten().any(|rule| allows(&rule.ports)),
        Direction::Egress => spec.egress.iter().flatten().any(|rule| allows(&rule.ports)),
    }
}

fn covers(port: &NetworkPolicyPort) -> bool {
    if port.protocol.as_deref().unwrap_or("TCP") != "TCP" {
        return false;
    }
    match (&port.port, port.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&PORT),
        (Some(IntOrString::Int(only)), None) => *only == PORT,
        // A name is one of the pod's own ports.
        (Some(IntOrString::String(_)), _) => false,
    }
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let exact = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    exact
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|expression| {
            let value = labels.get(&expression.key);
            let listed = value.is_some_and(|value| {
                let mut values = expression.values.iter().flatten();
                values.any(|one| one == value)
            });
            match expression.operator.as_str() {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::finding::{Level, tests::assert_found},
        *,
    };

    fn policy(spec: Value) -> NetworkPolicy {
        serde_json::from_value(json!({"metadata": {"name": "guard", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    fn found(policies: &[NetworkPolicy], mesh: &str) -> Vec<Finding> {
        let namespace = json!({"metadata": {"name": "shop", "labels": {"weir.dev/mesh": mesh}}});
        let namespaces = BTreeMap::from([("shop".to_owned(), serde_json::from_value(namespace).unwrap())]);
        let meta = json!({"name": "web", "namespace": "shop", "labels": {"app": "web"}});
        let pod: Pod = serde_json::from_value(json!({ "metadata": meta })).unwrap();
        network_policies(policies, &namespaces, &[pod])
    }

    #[test]
    fn a_policy_that_does_not_let_the_mesh_in_is_named() {
        let into: &[(Level, &str)] = &[(Level::Fail, "shop/guard: no connections of the mesh into web")];
        let out: &[(Level, &str)] = &[(Level::Fail, "out of web")];
        let ok: &[(Level, &str)] = &[(Level::Ok, "")];
        let port = |port: Value| json!([{ "ports": [port] }]);
        for (spec, expected) in [
            (json!({"podSelector": {}}), into),
            (json!({"podSelector": {}, "ingress": [{}]}), ok),
            (
                json!({"podSelector": {}, "ingress": port(json!({"port": 8080}))}),
                into,
            ),
            (
                json!({"podSelector": {}, "ingress": port(json!({"port": "http"}))}),
                into,
            ),
            (
                json!({"podSelector": {}, "ingress": port(json!({"port": 15008}))}),
                ok,
            ),
            (
                json!({"podSelector": {}, "ingress": port(json!({"port": 15008, "protocol": "UDP"}))}),
                into,
            ),
            (
                json!({"podSelector": {}, "ingress": port(json!({"port": 15000, "endPort": 15010}))}),
                ok,
            ),
            (json!({"podSelector": {"matchLabels": {"app": "other"}}}), &[]),
            (
                json!({"podSelector": {"matchExpressions": [
                    {"key": "app", "operator": "In", "values": ["web"]}, {"key": "x", "operator": "DoesNotExist"},
                ]}}),
                into,
            ),
            (
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": port(json!({"port": 53}))}),
                out,
            ),
            (
                json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]}),
                ok,
            ),
        ] {
            assert_found(&found(&[policy(spec)], "enabled"), expected);
        }
        let closed = policy(json!({"podSelector": {}}));
        let open = policy(json!({"podSelector": {}, "ingress": port(json!({"port": 15008}))}));
        assert_found(&found(&[closed.clone(), open], "enabled"), ok);
        assert!(found(&[closed], "disabled").is_empty(), "not in the mesh");
    }
}
