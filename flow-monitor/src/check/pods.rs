//! Pods that are meant to be in the mesh, and whether they are.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt as _;

use super::finding::{Finding, count, named};
use crate::mesh::{
    DEFAULT_SWITCH, NOT_ENROLLED, SWITCH, Switch, annotation, foreign_runtime, has_ended, is_enrolled,
    is_host_network, is_wanted, unknown_value, useless_default,
};

const ABOUT: &str = "Pods";

/// Pods that are in the mesh, and those that are not though they are meant to be. Before Weir is installed: how many
/// would be.
pub(crate) fn pods(
    namespaces: &BTreeMap<String, Namespace>,
    root: &str,
    pods: &[Pod],
    installed: bool,
) -> Vec<Finding> {
    let mut findings = mistyped(namespaces, pods);
    findings.extend(misplaced(namespaces, root));
    let mut enrolled = 0;
    let mut wanted = 0;
    let mut missing: Vec<String> = Vec::new();
    // By the reason that the pod bears.
    let mut refused: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let live = pods.iter().filter(|pod| !has_ended(pod));
    for pod in live {
        let namespace = pod.namespace().unwrap_or_default();
        if !is_wanted(pod, namespaces.get(&namespace)) {
            continue;
        }
        let name = format!("{namespace}/{}", pod.name_any());
        wanted += 1;
        if let Some(why) = annotation(&pod.metadata, NOT_ENROLLED) {
            refused.entry(why.to_owned()).or_default().push(name);
        } else if is_host_network(pod) {
            let why = "they use the network of their node (hostNetwork)";
            refused.entry(why.to_owned()).or_default().push(name);
        } else if let Some(class) = foreign_runtime(pod) {
            let why = format!("their runtime class {class} does not use the node's kernel for connections");
            refused.entry(why).or_default().push(name);
        } else if is_enrolled(pod) {
            enrolled += 1;
        } else if started(pod) {
            missing.push(name);
        }
    }
    for (why, names) in refused {
        findings.push(Finding::warn(
            ABOUT,
            format!("not in the mesh: {}: {why}", named(&names)),
            format!("they talk plaintext; {SWITCH}: disabled on them says that this is meant"),
        ));
    }
    if !installed {
        let on = namespaces
            .iter()
            .filter(|(_, namespace)| Switch::of_namespace(namespace) == Some(Switch::Enabled));
        let on: Vec<&String> = on.map(|(name, _)| name).collect();
        if wanted > 0 || !on.is_empty() {
            let what = format!(
                "{} marked for the mesh; namespaces: {}",
                count(wanted, "pod"),
                none_if_empty(&named(&on))
            );
            findings.push(Finding::ok(ABOUT, what));
        }
        return findings;
    }
    if missing.is_empty() {
        findings.push(Finding::ok(
            ABOUT,
            format!("{} in the mesh", count(enrolled, "pod")),
        ));
    } else {
        findings.push(Finding::fail(
            ABOUT,
            format!(
                "{enrolled} of {wanted} in the mesh; meant to be and not: {}",
                named(&missing)
            ),
            "weir status --node NODE of their nodes; a pod that has just started takes a moment",
        ));
    }
    findings
}

fn none_if_empty(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}

/// Whether the pod has a network: before that it cannot be in the mesh.
fn started(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    status.is_some_and(|status| status.pod_ip.is_some()) && pod.metadata.deletion_timestamp.is_none()
}

/// Values of the switch that nobody knows.
fn mistyped(namespaces: &BTreeMap<String, Namespace>, pods: &[Pod]) -> Vec<Finding> {
    let mut found: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, namespace) in namespaces {
        if let Some(value) = unknown_value(&namespace.metadata) {
            found.entry(value).or_default().push(format!("namespace {name}"));
        }
    }
    for pod in pods {
        if let Some(value) = unknown_value(&pod.metadata) {
            let name = format!("pod {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
            found.entry(value).or_default().push(name);
        }
    }
    found
        .into_iter()
        .map(|(value, names)| {
            Finding::warn(
                ABOUT,
                format!(
                    "{SWITCH}: {value} is not understood, and says nothing: {}",
                    named(&names)
                ),
                "it is enabled, observe or disabled",
            )
        })
        .collect()
}

/// Values of the mesh's switch that say nothing.
fn misplaced(namespaces: &BTreeMap<String, Namespace>, root: &str) -> Option<Finding> {
    let useless = namespaces.iter().filter_map(|(name, namespace)| {
        let value = useless_default(&namespace.metadata, name == root)?;
        Some(format!("{value} of namespace {name}"))
    });
    let useless: Vec<String> = useless.collect();
    (!useless.is_empty()).then(|| {
        Finding::warn(
            ABOUT,
            format!("{DEFAULT_SWITCH} says nothing: {}", named(&useless)),
            format!("it is observe, on namespace {root} only; {SWITCH} is for single namespaces"),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::finding::{Level, tests::assert_found},
        *,
    };

    fn pod(name: &str, annotations: Value, labels: Value, spec: Value) -> Pod {
        let meta = json!({"name": name, "namespace": "shop", "annotations": annotations, "labels": labels});
        let mut pod = json!({"metadata": meta, "spec": {"containers": []}, "status": {"phase": "Running", "podIP": "10.0.0.1"}});
        for (name, value) in spec.as_object().unwrap() {
            pod["spec"][name] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    fn shop(mesh: &str) -> BTreeMap<String, Namespace> {
        let namespace = json!({"metadata": {"name": "shop", "labels": {"weir.dev/mesh": mesh}}});
        BTreeMap::from([("shop".to_owned(), serde_json::from_value(namespace).unwrap())])
    }

    #[test]
    fn pods_that_are_meant_to_be_in_the_mesh_and_are_not_are_named() {
        let (none, on) = (|| json!({}), |key: &str, value: &str| json!({key: value}));
        let all = [
            pod("in", on("weir.dev/enrolled", "true"), none(), none()),
            pod("lost", none(), none(), none()),
            pod("off", on("weir.dev/mesh", "disabled"), none(), none()),
            pod("istio-off", none(), on("istio.io/dataplane-mode", "none"), none()),
            pod("full", on("weir.dev/not-enrolled", "no room"), none(), none()),
            pod("host", none(), none(), json!({"hostNetwork": true})),
            pod(
                "sandboxed",
                none(),
                none(),
                json!({"runtimeClassName": "kata-qemu"}),
            ),
        ];
        let expected = [
            (Level::Warn, "shop/full: no room"),
            (Level::Warn, "shop/sandboxed: their runtime class kata-qemu"),
            (Level::Warn, "shop/host: they use the network of their node"),
            (Level::Fail, "1 of 5 in the mesh; meant to be and not: shop/lost"),
        ];
        assert_found(&pods(&shop("enabled"), "weir-system", &all, true), &expected);
        assert_found(
            &pods(&shop("enabled"), "weir-system", &all[..1], true),
            &[(Level::Ok, "1 pod in the mesh")],
        );
        assert_found(
            &pods(&shop("enabled"), "weir-system", &all[..2], false),
            &[(Level::Ok, "2 pods marked")],
        );
        let own = [pod(
            "own",
            on("istio.io/dataplane-mode", "ambient"),
            none(),
            none(),
        )];
        assert_found(
            &pods(&shop("disabled"), "weir-system", &own, true),
            &[(Level::Fail, "shop/own")],
        );
        assert_found(
            &pods(&shop("disabled"), "weir-system", &all[1..2], true),
            &[(Level::Ok, "0 pods")],
        );
    }

    #[test]
    fn a_mistyped_switch_is_told() {
        let found = pods(&shop("Enabled"), "weir-system", &[], false);
        assert_found(
            &found,
            &[(
                Level::Warn,
                "weir.dev/mesh: Enabled is not understood, and says nothing: namespace shop",
            )],
        );
    }

    #[test]
    fn a_switch_of_the_mesh_where_it_says_nothing_is_told() {
        let of = |name: &str, value: &str| {
            let meta = json!({"metadata": {"name": name, "labels": {"weir.dev/mesh-default": value}}});
            (
                name.to_owned(),
                serde_json::from_value::<Namespace>(meta).unwrap(),
            )
        };
        for (name, value, told) in [
            ("weir-system", "observe", false),
            ("weir-system", "enabled", true),
            ("shop", "observe", true),
        ] {
            let found = pods(&[of(name, value)].into(), "weir-system", &[], false);
            let what = format!("weir.dev/mesh-default says nothing: {value} of namespace {name}");
            let expected = [(Level::Warn, what.as_str())];
            assert_found(&found, if told { &expected } else { &[] });
        }
    }
}
