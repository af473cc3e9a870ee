//! The chart: its manifests, its values, what it refuses.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs helm: that of PATH, or the one that `.ci/install-test-programs` installs.
fn helm(arguments: &[&str]) -> Output {
    let installed = root().join("target/tools/bin/helm");
    let program = if installed.exists() {
        installed
    } else {
        "helm".into()
    };
    let run = Command::new(program)
        .args(arguments)
        .current_dir(root().join("daemonset"))
        .output();
    run.expect("helm cannot be run; .ci/install-test-programs installs it")
}

/// Renders the chart.
pub(crate) fn render(values: &[&str]) -> Result<String, String> {
    let mut arguments = vec!["template", "weir", "chart", "--namespace", "weir-system"];
    arguments.extend(values);
    let output = helm(&arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() {
        Ok(text(output.stdout))
    } else {
        Err(text(output.stderr))
    }
}

/// The objects of a rendered chart.
pub(crate) fn objects(text: &str) -> Vec<Value> {
    let documents = serde_saphyr::from_multiple::<Value>(text).unwrap();
    documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect()
}

#[test]
fn the_manifests_are_what_the_chart_renders() {
    let rendered = render(&["--set", "namespace.create=true"]).unwrap();
    let lines = rendered.lines().filter(|line| !line.starts_with("# Source: "));
    let head =
        "# Rendered from daemonset/chart. UPDATE_MANIFESTS=1 cargo test --test packaging writes it anew.";
    let text: String = [head]
        .into_iter()
        .chain(lines)
        .flat_map(|line| [line, "\n"])
        .collect();
    let file = root().join("daemonset/manifests/weir.yaml");
    if std::env::var_os("UPDATE_MANIFESTS").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, &text).unwrap();
    }
    let written = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == text,
        "{} is not what the chart renders; UPDATE_MANIFESTS=1 cargo test --test packaging writes it anew",
        file.display()
    );
}

#[test]
fn helm_finds_nothing_wrong_with_the_chart() {
    let output = helm(&["lint", "--strict", "chart"]);
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn a_value_that_is_none_is_refused() {
    let wrong = [
        ("control.replica=3", "replica"),
        ("control.replicas=0", "replicas"),
        ("trustDomain=spiffe://x", "trustDomain"),
        ("agent.kubeletCgroup=kubelet", "kubeletCgroup"),
        ("sameNode=plaintext", "sameNode"),
        ("control.authority.source=file", "source"),
    ];
    for (value, field) in wrong {
        let error = render(&["--set", value]).expect_err(value);
        assert!(error.contains(field), "{value}: {error}");
    }
}

#[test]
fn with_an_istiod_there_is_no_control_plane_and_agents_follow_it() {
    let rendered = objects(&render(&["--set", "istiod.enabled=true"]).unwrap());
    let text = serde_json::to_string(&rendered).unwrap();
    assert!(!text.contains("weir-control"), "{text}");
    let set = rendered
        .iter()
        .find(|object| object["kind"] == "DaemonSet")
        .unwrap();
    let volumes = set["spec"]["template"]["spec"]["volumes"].as_array().unwrap();
    let volume = |name: &str| volumes.iter().find(|volume| volume["name"] == name);
    let token = volume("token").unwrap();
    assert_eq!(
        token["projected"]["sources"][0]["serviceAccountToken"]["audience"],
        "istio-ca"
    );
    assert_eq!(
        volume("roots").unwrap()["configMap"]["name"],
        "istio-ca-root-cert"
    );
    // It would keep pods from starting that istiod tells of only once they run.
    assert!(volume("cni-conf").is_none() && volume("pod-logs").is_some());
    agent_takes_configuration(&rendered);
}

/// Names of all values, as `control.replicas`.
fn names(schema: &Value, prefix: &str, into: &mut Vec<String>) {
    let Some(fields) = schema.get("properties").and_then(Value::as_object) else {
        into.push(prefix.to_owned());
        return;
    };
    for (name, field) in fields.iter().filter(|(name, _)| *name != "global") {
        let name = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        names(field, &name, into);
    }
}

#[test]
fn every_value_has_a_default_and_a_schema_and_is_documented() {
    let schema = fs::read_to_string(root().join("daemonset/chart/values.schema.json")).unwrap();
    let values = fs::read_to_string(root().join("daemonset/chart/values.yaml")).unwrap();
    let values: Value = serde_saphyr::from_str(&values).unwrap();
    let reference = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let mut known = Vec::new();
    names(&serde_json::from_str(&schema).unwrap(), "", &mut known);
    assert!(known.len() > 40, "{known:?}");
    for name in known {
        let default = values.pointer(&format!("/{}", name.replace('.', "/")));
        assert!(default.is_some(), "{name} has no default in values.yaml");
        assert!(
            reference.contains(&format!("`{name}`")),
            "docs/install.md does not have `{name}`"
        );
    }
    // The other way round helm itself looks: values.yaml is checked by the schema, which allows nothing else.
}

#[test]
fn the_agents_configuration_is_one_that_the_agent_takes() {
    let rendered = objects(&render(&["--set", "agent.config.verdictLease=2m"]).unwrap());
    let map = rendered
        .iter()
        .find(|object| object["kind"] == "ConfigMap")
        .unwrap();
    let text = map["data"]["agent.yaml"].as_str().unwrap();
    assert!(text.contains("verdictLease: 2m"), "{text}");
    agent_takes_configuration(&rendered);
}

#[test]
fn the_files_for_a_collector_are_mounted_where_the_configuration_names_them() {
    let otlp = r#"{"endpoint":"https://c:4317","roots":"/etc/weir/collector/ca.crt","spans":true}"#;
    let config = format!("agent.config.flows.otlp={otlp}");
    let rendered = render(&["--set-json", &config, "--set", "agent.collectorSecret=collector"]).unwrap();
    let rendered = objects(&rendered);
    agent_takes_configuration(&rendered);
    let agent = rendered
        .iter()
        .find(|object| object["kind"] == "DaemonSet")
        .unwrap();
    let pod = &agent["spec"]["template"]["spec"];
    let named = |list: &Value| -> Value {
        let mut all = list.as_array().unwrap().iter();
        all.find(|own| own["name"] == "collector").unwrap().clone()
    };
    assert_eq!(named(&pod["volumes"])["secret"]["secretName"], "collector");
    let mount = named(&pod["containers"][0]["volumeMounts"]);
    assert_eq!(
        (&mount["mountPath"], &mount["readOnly"]),
        (&"/etc/weir/collector".into(), &true.into())
    );
}

#[test]
fn agents_open_the_port_for_flows_only_when_they_are_told_to_and_for_whom() {
    let hubble = |values: &str| {
        let rendered = objects(&render(&["--set", values]).unwrap());
        agent_takes_configuration(&rendered);
        let map = rendered
            .iter()
            .find(|object| object["kind"] == "ConfigMap")
            .unwrap();
        let text = map["data"]["agent.yaml"].as_str().unwrap();
        let has_address = serde_json::to_string(&rendered).unwrap().contains("POD_IP");
        let config: Value = serde_saphyr::from_str(text).unwrap();
        assert_eq!(config["hubble"].is_object(), has_address);
        config["hubble"].clone()
    };
    assert!(
        hubble("relay.enabled=false").is_null(),
        "off unless it is asked for"
    );
    let relay = json!({ "name": "relay.hubble.weir.dev" });
    assert_eq!(hubble("relay.enabled=true"), json!({ "clients": [relay] }));
    let ui = json!({ "name": "ui.example.org", "namespaces": ["shop"] });
    let named = "flows.port.clients[0].name=ui.example.org,flows.port.clients[0].namespaces={shop}";
    assert_eq!(
        hubble(&format!("flows.port.enabled=true,{named}")),
        json!({ "clients": [ui] })
    );
    assert_eq!(
        hubble(&format!("relay.enabled=true,{named}")),
        json!({ "clients": [relay, ui] })
    );
    for (values, said) in [
        ("flows.port.enabled=true", "nobody may ask yet"),
        ("relay.enabled=true,istiod.enabled=true", "need weir-control"),
    ] {
        let error = render(&["--set", values]).unwrap_err();
        assert!(error.contains(said), "{error}");
    }
}

fn agent_takes_configuration(rendered: &[Value]) {
    let map = rendered
        .iter()
        .find(|object| object["kind"] == "ConfigMap")
        .unwrap();
    let text = map["data"]["agent.yaml"].as_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.yaml");
    fs::write(&file, text).unwrap();
    let agent = weir_lab::program("weir-agent").unwrap();
    let mut check = Command::new(agent);
    check.arg("--config").arg(&file).args(["--node", "n1", "--check"]);
    let output = check.output().unwrap();
    // 2 is a wrong configuration; what this machine lacks is another matter.
    let error = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(2), "{error}");
}
