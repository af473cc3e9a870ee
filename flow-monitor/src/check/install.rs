//! Whether what makes up Weir is there, and of one version.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::{
        apps::v1::{DaemonSet, Deployment},
        core::v1::{Node, Pod, Taint, Toleration},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::ResourceExt as _;

use super::finding::{Finding, count, named};
use crate::{
    cluster::{one_a_node, problem, waiting},
    mesh::VERSION,
};

/// The definitions that there are to be.
const DEFINITIONS: [&str; 2] = ["authorizationpolicies.weir.dev", "peerauthentications.weir.dev"];
/// Taints that every DaemonSet's pods tolerate.
const TOLERATED: &str = "node.kubernetes.io/";

/// Our definitions, and whether their version is served.
pub(crate) fn definitions(definitions: &[CustomResourceDefinition]) -> Vec<Finding> {
    const ABOUT: &str = "Definitions";
    let mut findings = Vec::new();
    for name in DEFINITIONS {
        let Some(definition) = definitions.iter().find(|one| one.name_any() == name) else {
            let what = format!("{name} is missing: there can be no such policies");
            findings.push(Finding::fail(
                ABOUT,
                what,
                "weir install brings them; so does helm upgrade",
            ));
            continue;
        };
        let versions = &definition.spec.versions;
        if !versions
            .iter()
            .any(|version| version.name == VERSION && version.served)
        {
            let served: Vec<&String> = versions
                .iter()
                .filter(|version| version.served)
                .map(|version| &version.name)
                .collect();
            findings.push(Finding::fail(
                ABOUT,
                format!("{name} serves {}, not {VERSION}", named(&served)),
                "install the definitions of the version of Weir that runs",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            ABOUT,
            format!("{} at {VERSION}", named(&DEFINITIONS)),
        ));
    }
    findings
}

/// The control plane.
pub(crate) fn control_plane(deployment: Option<&Deployment>, pods: &[&Pod]) -> Vec<Finding> {
    const ABOUT: &str = "Control plane";
    let Some(deployment) = deployment else {
        return vec![Finding::fail(
            ABOUT,
            "there is no Deployment weir-control",
            "install Weir; agents go on with what they know, and certificates last a day at most",
        )];
    };
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let available = status.available_replicas.unwrap_or(0);
    let mut findings = Vec::new();
    let why = pods.iter().filter_map(|pod| problem(pod)).next();
    let why = why.map_or_else(String::new, |why| {
        format!(": {}", why.replace("the agent's pod", "pod"))
    });
    let todo = "kubectl describe its pods, and read their log";
    if available == 0 {
        findings.push(Finding::fail(
            ABOUT,
            format!("no replica of {wanted} is available{why}"),
            todo,
        ));
    } else if available < wanted {
        findings.push(Finding::warn(
            ABOUT,
            format!(
                "{available} of {} available{why}",
                count(usize::try_from(wanted).unwrap_or(0), "replica")
            ),
            todo,
        ));
    } else {
        findings.push(Finding::ok(ABOUT, format!("{available} of {wanted} available")));
    }
    let images: BTreeSet<&str> = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .filter_map(|pod| pod.spec.as_ref()?.containers.first()?.image.as_deref())
        .collect();
    if images.len() > 1 {
        let images: Vec<&str> = images.into_iter().collect();
        findings.push(Finding::warn(
            ABOUT,
            format!("replicas of several versions: {}", named(&images)),
            "wait for the rollout to end: kubectl rollout status deployment weir-control",
        ));
    }
    findings
}

/// The agents' DaemonSet, and the nodes that have none of it.
pub(crate) fn daemon_set(set: Option<&DaemonSet>, pods: &[Pod], nodes: &[Node]) -> Vec<Finding> {
    const ABOUT: &str = "Agents";
    let Some(set) = set else {
        return vec![Finding::fail(
            ABOUT,
            "there is no DaemonSet weir-agent",
            "install Weir",
        )];
    };
    let status = set.status.clone().unwrap_or_default();
    let (ready, desired) = (status.number_ready, status.desired_number_scheduled);
    let mut findings = Vec::new();
    if ready == desired && desired > 0 {
        findings.push(Finding::ok(ABOUT, format!("{ready} of {desired} ready")));
    } else {
        findings.push(Finding::fail(
            ABOUT,
            format!("{ready} of {desired} ready"),
            "the nodes below say why; else: kubectl rollout status daemonset weir-agent",
        ));
    }
    let there = one_a_node(pods);
    // By what is wrong: the nodes.
    let mut broken: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut kept_off: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for node in nodes {
        let name = node.name_any();
        let system = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        if system.is_some_and(|info| info.operating_system != "linux") {
            continue;
        }
        match there.get(&name) {
            Some(pod) => {
                if let Some(why) = problem(pod) {
                    broken.entry(why).or_default().push(name);
                }
            }
            None => match kept_off_by(set, node) {
                Some(why) => kept_off.entry(why).or_default().push(name),
                None => {
                    let pending = pods.iter().find(|pod| meant_for(pod) == Some(&name));
                    let why = pending.and_then(waiting);
                    let why = why.unwrap_or_else(|| "the DaemonSet has no pod there".to_owned());
                    broken.entry(why).or_default().push(name);
                }
            },
        }
    }
    findings.extend(broken.into_iter().map(|(why, nodes)| {
        Finding::fail(
            ABOUT,
            format!("no agent on {}: {why}", named(&nodes)),
            "pods of the mesh that are there are cut off, or do not start: kubectl describe the agent's pod",
        )
    }));
    findings.extend(kept_off.into_iter().map(|(why, nodes)| {
        Finding::warn(
            ABOUT,
            format!("no agent on {}: {why}", named(&nodes)),
            "pods of the mesh cannot run there: change the DaemonSet's tolerations or nodeSelector if they are to",
        )
    }));
    findings
}

/// The node that a DaemonSet's pod is for which no scheduler has put there yet.
fn meant_for(pod: &Pod) -> Option<&String> {
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?
        .node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let field = fields.find(|field| field.key == "metadata.name")?;
    field.values.as_ref()?.first()
}

/// What of the DaemonSet keeps it off a node.
fn kept_off_by(set: &DaemonSet, node: &Node) -> Option<String> {
    let template = set.spec.as_ref()?.template.spec.as_ref()?;
    for (key, value) in template.node_selector.iter().flatten() {
        if node.labels().get(key) != Some(value) {
            return Some(format!(
                "it lacks the label {key}={value} of the DaemonSet's nodeSelector"
            ));
        }
    }
    let tolerations = template.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
    let taint = taints.unwrap_or_default().iter().find(|taint| {
        taint.effect != "PreferNoSchedule"
            && !taint.key.starts_with(TOLERATED)
            && !tolerations.iter().any(|one| tolerates(one, taint))
    })?;
    let value = taint
        .value
        .as_ref()
        .map_or_else(String::new, |value| format!("={value}"));
    Some(format!(
        "its taint {}{value}:{} is not tolerated",
        taint.key, taint.effect
    ))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect {
        return false;
    }
    let key = toleration.key.as_deref().unwrap_or_default();
    match toleration.operator.as_deref() {
        Some("Exists") => key.is_empty() || key == taint.key,
        _ => {
            key == taint.key
                && toleration.value.as_deref().unwrap_or_default()
                    == taint.value.as_deref().unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::finding::{Level, tests::assert_found},
        *,
    };

    fn parsed<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn definitions_that_are_missing_or_of_another_version_are_named() {
        let definition = |name: &str, version: &str| -> CustomResourceDefinition {
            let names = json!({"kind": "X", "plural": "x"});
            let versions = json!([{"name": version, "served": true, "storage": true}]);
            let spec =
                json!({"group": "weir.dev", "names": names, "scope": "Namespaced", "versions": versions});
            parsed(json!({"metadata": {"name": name}, "spec": spec}))
        };
        let both = DEFINITIONS.map(|name| definition(name, "v1alpha1"));
        assert_found(&definitions(&both), &[(Level::Ok, "v1alpha1")]);
        let old = [definition(DEFINITIONS[0], "v1alpha0")];
        let expected = [
            (Level::Fail, "serves v1alpha0, not v1alpha1"),
            (Level::Fail, "peerauthentications.weir.dev is missing"),
        ];
        assert_found(&definitions(&old), &expected);
    }

    #[test]
    fn a_control_plane_without_replicas_or_of_several_versions_is_told() {
        let deployment = |available: i32| -> Deployment {
            let selector = json!({"matchLabels": {}});
            let spec = json!({"replicas": 2, "selector": selector, "template": {}});
            parsed(json!({"metadata": {}, "spec": spec, "status": {"availableReplicas": available}}))
        };
        let pod = |image: &str| -> Pod {
            let containers = json!([{"name": "x", "image": image}]);
            parsed(
                json!({"metadata": {}, "spec": {"containers": containers}, "status": {"phase": "Running"}}),
            )
        };
        let (one, other) = (pod("weir:1"), pod("weir:2"));
        assert_found(
            &control_plane(Some(&deployment(2)), &[&one, &one]),
            &[(Level::Ok, "2 of 2")],
        );
        assert_found(
            &control_plane(Some(&deployment(1)), &[&one]),
            &[(Level::Warn, "1 of 2 replicas")],
        );
        assert_found(
            &control_plane(Some(&deployment(0)), &[]),
            &[(Level::Fail, "no replica")],
        );
        assert_found(&control_plane(None, &[]), &[(Level::Fail, "no Deployment")]);
        let found = control_plane(Some(&deployment(2)), &[&one, &other]);
        assert_found(&found, &[(Level::Ok, ""), (Level::Warn, "weir:1, weir:2")]);
    }

    #[test]
    fn a_node_without_an_agent_is_named_with_the_reason() {
        let set: DaemonSet = parsed(json!({
            "metadata": {"name": "weir-agent"},
            "spec": {"selector": {}, "template": {"spec": {
                "containers": [], "nodeSelector": {"kubernetes.io/os": "linux"},
                "tolerations": [{"key": "ok", "operator": "Exists"}],
            }}},
            "status": {"currentNumberScheduled": 1, "desiredNumberScheduled": 4, "numberMisscheduled": 0, "numberReady": 1},
        }));
        let node = |name: &str, taint: &str, system: &str| -> Node {
            let taints = json!([{"key": taint, "value": "v", "effect": "NoSchedule"}]);
            parsed(json!({
                "metadata": {"name": name, "labels": {"kubernetes.io/os": system}}, "spec": {"taints": taints},
            }))
        };
        let nodes = [
            node("good", "ok", "linux"),
            node("tainted", "gpu", "linux"),
            node("pending", "node.kubernetes.io/disk-pressure", "linux"),
            node("pulling", "ok", "linux"),
            node("bare", "ok", "linux"),
            node("unlabelled", "ok", "other"),
        ];
        let fields =
            json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["pending"]}]}]);
        let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": fields}}});
        let waiting = json!([{
            "name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff"}},
        }]);
        let pods: [Pod; 3] = [
            parsed(json!({
                "metadata": {"name": "a"}, "spec": {"containers": [], "nodeName": "good"}, "status": {"phase": "Running"},
            })),
            parsed(json!({
                "metadata": {"name": "b"}, "spec": {"containers": [], "affinity": affinity},
                "status": {"phase": "Pending", "conditions": [
                    {"type": "PodScheduled", "status": "False", "message": "Insufficient memory"},
                ]},
            })),
            parsed(json!({
                "metadata": {"name": "c"}, "spec": {"containers": [], "nodeName": "pulling"},
                "status": {"phase": "Pending", "containerStatuses": waiting},
            })),
        ];
        let found = daemon_set(Some(&set), &pods, &nodes);
        let expected = [
            (Level::Fail, "1 of 4 ready"),
            (Level::Fail, "pending: Insufficient memory"),
            (Level::Fail, "bare: the DaemonSet has no pod there"),
            (
                Level::Fail,
                "pulling: the agent's pod c is Pending: ImagePullBackOff",
            ),
            (
                Level::Warn,
                "unlabelled: it lacks the label kubernetes.io/os=linux",
            ),
            (
                Level::Warn,
                "tainted: its taint gpu=v:NoSchedule is not tolerated",
            ),
        ];
        assert_found(&found, &expected);
        assert_found(&daemon_set(None, &[], &[]), &[(Level::Fail, "no DaemonSet")]);
    }
}
