//! What is installed: the manifests of this version, changed as the user wants it.

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// Rendered from the chart.
const MANIFESTS: &str = include_str!("../../../daemonset/manifests/weir.yaml");
/// The registry that the manifests name.
const REGISTRY: &str = "weir";

/// What may differ from the manifests. What is absent is as it is installed, else as it stands there.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub(crate) struct Settings {
    /// Where images come from: REGISTRY/weir-agent:TAG.
    #[arg(long, value_name = "REGISTRY")]
    pub(crate) registry: Option<String>,
    /// The images' tag, if not this version.
    #[arg(long, value_name = "TAG")]
    pub(crate) tag: Option<String>,
    /// When images are pulled.
    #[arg(long, value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub(crate) pull_policy: Option<String>,
    /// First part of every identity. Cannot be changed once workloads have certificates without an outage.
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) trust_domain: Option<String>,
    /// Whether policies of Istio's security.istio.io count too.
    #[arg(long, value_name = "BOOL")]
    pub(crate) istio_policies: Option<bool>,
    /// Replicas of weir-control.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) replicas: Option<u16>,
    /// The folder of each node's own cgroup, where several nodes share a kernel; $(WEIR_NODE) is the node's name.
    #[arg(long, value_name = "PATH")]
    pub(crate) agent_cgroup: Option<String>,
}

/// An object to be applied.
pub(crate) type Object = Value;

/// The objects of this version, in the order in which they are to be applied.
///
/// # Errors
/// When the manifests are none: a bug.
pub(crate) fn objects(namespace: &str, settings: &Settings) -> anyhow::Result<Vec<Object>> {
    let documents =
        serde_saphyr::from_multiple::<Value>(MANIFESTS).context("the manifests of this program")?;
    let mut objects: Vec<_> = documents.into_iter().filter(|one| !one.is_null()).collect();
    if namespace != crate::target::NAMESPACE {
        bail!(
            "the manifests are for the namespace {}; for another one use the Helm chart",
            crate::target::NAMESPACE
        );
    }
    for object in &mut objects {
        change(object, settings);
    }
    // A stable order: what others are in, or are of, comes first.
    objects.sort_by_key(|object| match object["kind"].as_str() {
        Some("Namespace") => 0,
        Some("CustomResourceDefinition") => 1,
        // An agent may need what an older weir-control does not have.
        Some("Deployment") => 3,
        Some("DaemonSet") => 4,
        _ => 2,
    });
    Ok(objects)
}

fn change(object: &mut Object, settings: &Settings) {
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    match (kind.as_str(), name.as_str()) {
        ("Deployment" | "DaemonSet", _) => {
            if let (Some(replicas), "Deployment") = (settings.replicas, kind.as_str()) {
                object["spec"]["replicas"] = json!(replicas);
            }
            for container in containers(object) {
                image(container, settings);
                arguments(container, settings);
                let (name, value) = match kind.as_str() {
                    "DaemonSet" => ("WEIR_CGROUP", &settings.agent_cgroup),
                    _ => ("WEIR_TRUST_DOMAIN", &settings.trust_domain),
                };
                if let (Some(value), Some(variables)) = (value, container["env"].as_array_mut()) {
                    // In its place: another order would be another template, and restart every pod.
                    let variable = json!({"name": name, "value": value});
                    match variables.iter_mut().find(|variable| variable["name"] == name) {
                        Some(there) => *there = variable,
                        None => variables.push(variable),
                    }
                }
            }
        }
        ("ConfigMap", "weir-agent") => {
            if let (Some(domain), Some(text)) =
                (&settings.trust_domain, object["data"]["agent.yaml"].as_str())
            {
                let lines = text.lines().map(|line| match line.strip_prefix("trustDomain: ") {
                    Some(_) => format!("trustDomain: {domain}\n"),
                    None => format!("{line}\n"),
                });
                object["data"]["agent.yaml"] = json!(lines.collect::<String>());
            }
        }
        ("ClusterRole", "weir-control") if settings.istio_policies == Some(true) => {
            if let Some(rules) = object["rules"].as_array_mut() {
                rules.push(json!({
                    "apiGroups": ["security.istio.io"],
                    "resources": ["authorizationpolicies", "peerauthentications"],
                    "verbs": ["list", "watch"],
                }));
            }
        }
        _ => {}
    }
}

fn containers(object: &mut Object) -> impl Iterator<Item = &mut Value> {
    let containers = object["spec"]["template"]["spec"]["containers"].as_array_mut();
    containers.into_iter().flatten()
}

fn image(container: &mut Value, settings: &Settings) {
    let image = container["image"].as_str().unwrap_or_default().to_owned();
    let (path, tag) = image.rsplit_once(':').unwrap_or((&image, ""));
    let name = path.rsplit('/').next().unwrap_or_default();
    let registry = settings.registry.as_deref().unwrap_or(REGISTRY);
    let tag = settings.tag.as_deref().unwrap_or(tag);
    container["image"] = json!(format!("{}/{name}:{tag}", registry.trim_end_matches('/')));
    if let Some(policy) = &settings.pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
}

fn arguments(container: &mut Value, settings: &Settings) {
    if container["name"] != "weir-control" {
        return;
    }
    let Some(arguments) = container["args"].as_array_mut() else {
        return;
    };
    if settings.istio_policies == Some(true) {
        arguments.push(json!("--istio-policies"));
    }
}

// === impl Settings ===

impl Settings {
    /// What is installed, as far as it is known from the two workloads.
    pub(crate) fn of(deployment: Option<&Object>, daemon_set: Option<&Object>) -> Self {
        let first = |object: Option<&Object>| object?.pointer("/spec/template/spec/containers/0").cloned();
        let (control, agent) = (first(deployment), first(daemon_set));
        let text =
            |container: &Option<Value>, field: &str| Some(container.as_ref()?[field].as_str()?.to_owned());
        let registry = text(&agent, "image").and_then(|image| {
            let (path, _) = image.rsplit_once(':')?;
            Some(path.strip_suffix("/weir-agent")?.to_owned())
        });
        let arguments = control.iter().filter_map(|one| one["args"].as_array()).flatten();
        let arguments: Vec<_> = arguments.filter_map(Value::as_str).collect();
        let variable = |container: &Option<Value>, name: &str| {
            let mut variables = container.as_ref()?["env"].as_array()?.iter();
            let found = variables.find(|variable| variable["name"] == name)?;
            Some(found["value"].as_str()?.to_owned())
        };
        Self {
            registry,
            // That of the new version.
            tag: None,
            pull_policy: text(&agent, "imagePullPolicy"),
            trust_domain: variable(&control, "WEIR_TRUST_DOMAIN"),
            istio_policies: (!arguments.is_empty()).then(|| arguments.contains(&"--istio-policies")),
            replicas: deployment
                .and_then(|object| object["spec"]["replicas"].as_u64())
                .and_then(|count| count.try_into().ok()),
            agent_cgroup: variable(&agent, "WEIR_CGROUP"),
        }
    }

    /// These, and where they say nothing, others.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            registry: self.registry.or(other.registry),
            tag: self.tag.or(other.tag),
            pull_policy: self.pull_policy.or(other.pull_policy),
            trust_domain: self.trust_domain.or(other.trust_domain),
            istio_policies: self.istio_policies.or(other.istio_policies),
            replicas: self.replicas.or(other.replicas),
            agent_cgroup: self.agent_cgroup.or(other.agent_cgroup),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<'a>(objects: &'a [Object], kind: &str, name: &str) -> &'a Object {
        let mut found = objects.iter();
        let is = |object: &&Object| object["kind"] == kind && object["metadata"]["name"] == name;
        found.find(is).unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    fn settings() -> Settings {
        Settings {
            registry: Some("registry.example/mesh".to_owned()),
            tag: Some("9".to_owned()),
            pull_policy: Some("Never".to_owned()),
            trust_domain: Some("example.org".to_owned()),
            istio_policies: Some(true),
            replicas: Some(3),
            agent_cgroup: Some("/sys/fs/cgroup/$(WEIR_NODE)".to_owned()),
        }
    }

    #[test]
    fn what_is_set_is_in_every_object_that_it_concerns() {
        let objects = objects("weir-system", &settings()).unwrap();
        let deployment = find(&objects, "Deployment", "weir-control");
        let control = &deployment["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(control["image"], "registry.example/mesh/weir-control:9");
        let text = control["args"].to_string();
        let variables = control["env"].to_string();
        assert!(
            variables.contains("example.org") && !variables.contains("cluster.local"),
            "{variables}"
        );
        assert!(text.contains("--istio-policies"), "{text}");
        assert_eq!(deployment["spec"]["replicas"], 3);
        let agents = find(&objects, "DaemonSet", "weir-agent");
        let agent = &agents["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(agent["imagePullPolicy"], "Never");
        assert!(agent["env"].to_string().contains("WEIR_CGROUP"));
        let config = find(&objects, "ConfigMap", "weir-agent");
        assert!(
            config["data"]["agent.yaml"]
                .as_str()
                .unwrap()
                .contains("trustDomain: example.org\n")
        );
        assert!(
            find(&objects, "ClusterRole", "weir-control")["rules"]
                .to_string()
                .contains("security.istio.io")
        );
    }

    #[test]
    fn what_is_installed_is_kept_when_nothing_else_is_said() {
        let installed = objects("weir-system", &settings()).unwrap();
        let deployment = find(&installed, "Deployment", "weir-control");
        let agents = find(&installed, "DaemonSet", "weir-agent");
        let known = Settings::of(Some(deployment), Some(agents));
        // The tag is that of the version which is installed now.
        assert_eq!(
            known,
            Settings {
                tag: None,
                ..settings()
            }
        );
        let more = Settings {
            replicas: Some(5),
            ..Settings::default()
        };
        assert_eq!(more.or(known).replicas, Some(5));
        assert_eq!(Settings::of(None, None), Settings::default());
        // Applied again, with what is known of it, nothing is another: no pod is restarted.
        for wanted in [settings(), Settings::default()] {
            let installed = objects("weir-system", &wanted).unwrap();
            let known = Settings::of(
                Some(find(&installed, "Deployment", "weir-control")),
                Some(find(&installed, "DaemonSet", "weir-agent")),
            );
            let tag = wanted.tag.clone();
            assert_eq!(
                objects("weir-system", &Settings { tag, ..known }).unwrap(),
                installed
            );
        }
    }

    #[test]
    fn namespaces_and_definitions_come_first_and_what_runs_comes_last() {
        let objects = objects("weir-system", &Settings::default()).unwrap();
        let kinds: Vec<_> = objects
            .iter()
            .map(|object| object["kind"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds[..4],
            [
                "Namespace",
                "Namespace",
                "CustomResourceDefinition",
                "CustomResourceDefinition"
            ]
        );
        assert!(matches!(kinds[kinds.len() - 1], "DaemonSet" | "Deployment"));
    }
}
