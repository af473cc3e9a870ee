//! Other meshes, and whose pods both would take.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    apps::v1::DaemonSet,
    core::v1::{Namespace, Pod},
};
use kube::{ResourceExt as _, core::ObjectMeta};

use super::finding::{Finding, named};
use crate::mesh::{ISTIO_SWITCH, Switch, annotation, has_ended, is_wanted};

/// A mesh of sidecars.
struct Sidecars {
    name: &'static str,
    /// In the name of its webhook.
    webhook: &'static str,
    /// Its containers.
    containers: &'static [&'static str],
    /// Labels or annotations by which namespaces or pods ask for a sidecar, with the values that do; none: any value.
    asked: &'static [(&'static str, &'static [&'static str])],
    /// How to take it off.
    off: &'static str,
}

const SIDECARS: &[Sidecars] = &[
    Sidecars {
        name: "Istio (sidecars)",
        webhook: "istio-sidecar-injector",
        containers: &["istio-proxy"],
        asked: &[
            ("istio-injection", &["enabled"]),
            ("istio.io/rev", &[]),
            ("sidecar.istio.io/inject", &["true"]),
        ],
        off: "remove the label istio-injection or istio.io/rev there and restart the pods, or set weir.dev/mesh: disabled",
    },
    Sidecars {
        name: "Linkerd",
        webhook: "linkerd-proxy-injector",
        containers: &["linkerd-proxy"],
        asked: &[("linkerd.io/inject", &["enabled", "ingress"])],
        off: "remove the annotation linkerd.io/inject there and restart the pods, or set weir.dev/mesh: disabled",
    },
    Sidecars {
        name: "Kuma",
        webhook: "kuma-admission-mutating",
        containers: &["kuma-sidecar"],
        asked: &[("kuma.io/sidecar-injection", &["enabled", "true"])],
        off: "remove the label kuma.io/sidecar-injection there and restart the pods, or set weir.dev/mesh: disabled",
    },
    Sidecars {
        name: "Consul",
        webhook: "consul-connect-injector",
        containers: &["consul-dataplane", "envoy-sidecar"],
        asked: &[("consul.hashicorp.com/connect-inject", &["true"])],
        off: "remove the annotation consul.hashicorp.com/connect-inject there and restart the pods, or set weir.dev/mesh: \
              disabled",
    },
];

/// Set by Istio's CNI plugin on pods that ztunnel has.
const AMBIENT_POD: (&str, &str) = ("ambient.istio.io/redirection", "enabled");

/// Meshes with sidecars that are installed, or whose sidecars there are.
pub(crate) fn sidecars(
    webhooks: &[MutatingWebhookConfiguration],
    namespaces: &BTreeMap<String, Namespace>,
    pods: &[Pod],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for mesh in SIDECARS {
        let asked = |meta: &ObjectMeta| {
            let texts = [&meta.labels, &meta.annotations].into_iter().flatten();
            let mut found = texts.flat_map(|texts| {
                mesh.asked
                    .iter()
                    .map(move |(key, values)| (texts.get(*key), values))
            });
            found.any(|(value, values)| {
                value.is_some_and(|value| values.is_empty() || values.contains(&value.as_str()))
            })
        };
        let mut both: Vec<String> = namespaces
            .iter()
            .filter(|(_, namespace)| {
                Switch::of_namespace(namespace) == Some(Switch::Enabled) && asked(&namespace.metadata)
            })
            .map(|(name, _)| format!("namespace {name}"))
            .collect();
        let mut any = webhooks
            .iter()
            .any(|webhook| webhook.name_any().contains(mesh.webhook));
        for pod in pods.iter().filter(|pod| !has_ended(pod)) {
            let spec = pod.spec.as_ref();
            // Native sidecars are among the init containers.
            let init = spec
                .into_iter()
                .flat_map(|spec| spec.init_containers.iter().flatten());
            let mut containers = init.chain(spec.into_iter().flat_map(|spec| &spec.containers));
            if !containers.any(|container| mesh.containers.contains(&container.name.as_str())) {
                continue;
            }
            any = true;
            let namespace = pod.namespace().unwrap_or_default();
            if is_wanted(pod, namespaces.get(&namespace)) {
                both.push(format!("pod {namespace}/{}", pod.name_any()));
            }
        }
        if !both.is_empty() {
            let what = format!("both it and Weir are to take: {}", named(&both));
            findings.push(Finding::fail(mesh.name, what, mesh.off));
        } else if any {
            findings.push(Finding::ok(
                mesh.name,
                "there, and no pod is to be in both meshes",
            ));
        }
    }
    findings
}

/// Istio without sidecars. Weir understands its label, so that both would take what bears it.
pub(crate) fn ambient(
    daemon_sets: &[DaemonSet],
    namespaces: &BTreeMap<String, Namespace>,
    pods: &[Pod],
) -> Vec<Finding> {
    const ABOUT: &str = "Istio ambient";
    if !daemon_sets.iter().any(|set| set.name_any() == "ztunnel") {
        return Vec::new();
    }
    let ambient = |meta: &ObjectMeta| {
        let labels = meta.labels.as_ref().and_then(|labels| labels.get(ISTIO_SWITCH));
        labels.is_some_and(|value| value == "ambient")
    };
    let mut both: Vec<String> = namespaces
        .iter()
        .filter(|(_, namespace)| {
            Switch::of_namespace(namespace) == Some(Switch::Enabled) && ambient(&namespace.metadata)
        })
        .map(|(name, _)| format!("namespace {name}"))
        .collect();
    for pod in pods.iter().filter(|pod| !has_ended(pod)) {
        let namespace = pod.namespace().unwrap_or_default();
        let taken = annotation(&pod.metadata, AMBIENT_POD.0) == Some(AMBIENT_POD.1) || ambient(&pod.metadata);
        if taken && is_wanted(pod, namespaces.get(&namespace)) {
            both.push(format!("pod {namespace}/{}", pod.name_any()));
        }
    }
    if both.is_empty() {
        return vec![Finding::ok(ABOUT, "there, and no pod is to be in both meshes")];
    }
    vec![Finding::fail(
        ABOUT,
        format!("both ztunnel and Weir are to take: {}", named(&both)),
        "for Weir set weir.dev/mesh: enabled and istio.io/dataplane-mode: none; for Istio set weir.dev/mesh: disabled",
    )]
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::finding::{Level, tests::assert_found},
        *,
    };

    fn namespace(labels: Value, annotations: Value) -> BTreeMap<String, Namespace> {
        let meta = json!({"name": "shop", "labels": labels, "annotations": annotations});
        let namespace = serde_json::from_value(json!({ "metadata": meta })).unwrap();
        BTreeMap::from([("shop".to_owned(), namespace)])
    }

    fn pod(container: &str, annotations: Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "annotations": annotations},
            "spec": {"containers": [{"name": "main"}], "initContainers": [{"name": container}]},
        }))
        .unwrap()
    }

    #[test]
    fn who_asks_for_a_sidecar_and_for_weir_is_named() {
        let on = |key: &str, value: &str| json!({"weir.dev/mesh": "enabled", key: value});
        let none = || json!({});
        for (labels, annotations, expected) in [
            (on("istio-injection", "enabled"), none(), Some("Istio (sidecars)")),
            (on("istio-injection", "disabled"), none(), None),
            (on("istio.io/rev", "1-27"), none(), Some("Istio (sidecars)")),
            (
                on("a", "b"),
                json!({"linkerd.io/inject": "enabled"}),
                Some("Linkerd"),
            ),
            (json!({}), json!({"linkerd.io/inject": "enabled"}), None),
            (on("kuma.io/sidecar-injection", "enabled"), none(), Some("Kuma")),
            (
                on("a", "b"),
                json!({"consul.hashicorp.com/connect-inject": "true"}),
                Some("Consul"),
            ),
        ] {
            let found = sidecars(&[], &namespace(labels, annotations), &[]);
            let expected: Vec<(Level, &str)> = expected.map(|name| (Level::Fail, name)).into_iter().collect();
            assert_found(&found, &expected);
        }
        let enrolled = namespace(json!({"weir.dev/mesh": "enabled"}), json!({}));
        let injected = [pod("linkerd-proxy", json!({}))];
        assert_found(
            &sidecars(&[], &enrolled, &injected),
            &[(Level::Fail, "pod shop/web")],
        );
        let outside = [pod("linkerd-proxy", json!({"weir.dev/mesh": "disabled"}))];
        assert_found(&sidecars(&[], &enrolled, &outside), &[(Level::Ok, "Linkerd")]);
        let webhook = json!({"metadata": {"name": "linkerd-proxy-injector-webhook-config"}});
        let webhook = [serde_json::from_value(webhook).unwrap()];
        assert_found(&sidecars(&webhook, &enrolled, &[]), &[(Level::Ok, "Linkerd")]);
    }

    #[test]
    fn what_ztunnel_has_is_not_weirs_as_well() {
        let set: DaemonSet = serde_json::from_value(json!({"metadata": {"name": "ztunnel"}})).unwrap();
        let istios = namespace(json!({"istio.io/dataplane-mode": "ambient"}), json!({}));
        let ours = namespace(
            json!({"weir.dev/mesh": "enabled", "istio.io/dataplane-mode": "none"}),
            json!({}),
        );
        let theirs = namespace(
            json!({"weir.dev/mesh": "disabled", "istio.io/dataplane-mode": "ambient"}),
            json!({}),
        );
        let set = std::slice::from_ref(&set);
        assert_found(&ambient(set, &istios, &[]), &[(Level::Fail, "namespace shop")]);
        assert_found(&ambient(set, &ours, &[]), &[(Level::Ok, "")]);
        assert_found(&ambient(set, &theirs, &[]), &[(Level::Ok, "")]);
        let taken = [pod("x", json!({"ambient.istio.io/redirection": "enabled"}))];
        assert_found(&ambient(set, &ours, &taken), &[(Level::Fail, "pod shop/web")]);
        assert!(ambient(&[], &istios, &taken).is_empty());
    }
}
