use std::{io::Write as _, path::PathBuf, process::Stdio};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use weir_api_server::{eventually, object};
use weir_control::crd::custom_resource_definitions;
use weir_types::api::{Request, Response};

use crate::{
    observer::Said,
    world::{Ran, World, status, weir},
};

/// Set to rewrite what is checked in.
const UPDATE: &str = "UPDATE_ADVICE";

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/cli/advise")
        .join(name)
}

/// Advice from the flows that are checked in.
fn advise(arguments: &[&str]) -> Ran {
    let mut command = weir();
    command.arg("advise").args(arguments);
    command.arg("--input-file").arg(file("flows.jsonl"));
    Ran::of(command.output().unwrap())
}

#[test]
fn what_is_advised_from_saved_flows_is_what_is_checked_in() {
    for (arguments, name) in [
        (&[][..], "all.txt"),
        (&["strict", "--namespace", "shop"], "strict.txt"),
        (&["-o", "json"], "all.json"),
        (&["-o", "yaml"], "all.yaml"),
        (&["policy", "-o", "yaml"], "policy.yaml"),
    ] {
        let ran = advise(arguments);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{name}");
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(file(name), &ran.out).unwrap();
        }
        let found = std::fs::read_to_string(file(name)).unwrap_or_default();
        assert!(
            ran.out == found,
            "{name} is not what is checked in: {UPDATE}=1 writes it"
        );
    }
    let json: Value = serde_json::from_str(&advise(&["-o", "json"]).out).unwrap();
    let yaml: Value = serde_saphyr::from_str(&advise(&["-o", "yaml"]).out).unwrap();
    assert_eq!(json, yaml, "both say the same");
}

#[test]
fn saved_flows_come_on_the_standard_input_too() {
    let mut child = weir()
        .args(["advise", "policy", "--input-file", "-", "-o", "yaml"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let flows = std::fs::read(file("flows.jsonl")).unwrap();
    child.stdin.take().unwrap().write_all(&flows).unwrap();
    let ran = Ran::of(child.wait_with_output().unwrap());
    let expected = std::fs::read_to_string(file("policy.yaml")).unwrap();
    assert_eq!((ran.code, ran.out), (0, expected));
}

#[test]
fn what_cannot_be_read_is_said_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let wrong = folder.path().join("wrong");
    std::fs::write(&wrong, "{\"flow\":").unwrap();
    let (wrong, nothing) = (wrong.to_str().unwrap(), folder.path().join("nothing"));
    for (arguments, said) in [
        (&["--input-file", wrong][..], "wrong: line 1: no flow"),
        (
            &["--input-file", nothing.to_str().unwrap()],
            "nothing: No such file",
        ),
        (
            &["--input-file", wrong, "--node", "a"],
            "--node says nothing here",
        ),
        (&["cost", "--input-file", wrong], "ask running ones"),
        (&["--since", "soon"], "expected minutes, hours or days"),
        (&["everything"], "possible values: strict, policy, layers, cost"),
    ] {
        let ran = Ran::of(weir().arg("advise").args(arguments).output().unwrap());
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}");
        assert!(ran.err.contains(said), "{arguments:?}: {}", ran.err);
        if ran.err.starts_with("weir: ") {
            assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        }
    }
    let help = Ran::of(weir().args(["advise", "--help"]).output().unwrap());
    assert!(
        help.out.contains("Examples:")
            && help
                .out
                .contains("weir advise policy -o yaml | kubectl apply -f -")
    );
}

/// What the rules of a definition, in CEL, say against a policy; those of its schema an API server in memory knows.
fn cel(definition: &CustomResourceDefinition, spec: &Value) -> Vec<String> {
    let schema = definition.spec.versions[0].schema.as_ref().unwrap();
    let schema = serde_json::to_value(schema.open_api_v3_schema.as_ref().unwrap()).unwrap();
    let checked = kube_cel::Validator::new().validate(&schema["properties"]["spec"], spec, None);
    let errors = checked.err().into_iter().flatten();
    errors.map(|error| error.to_string()).collect()
}

#[tokio::test]
async fn the_policies_are_what_an_api_server_takes() {
    let world = World::new().await;
    let definitions = custom_resource_definitions();
    let definition = definitions
        .iter()
        .find(|one| one.spec.names.kind == "AuthorizationPolicy")
        .unwrap();
    let api = Api::<CustomResourceDefinition>::all(world.cluster.client());
    let (name, params) = (definition.name_any(), PatchParams::apply("test").force());
    api.patch(&name, &params, &Patch::Apply(definition))
        .await
        .unwrap();
    eventually("a definition", || async {
        let status = api.get(&name).await.unwrap().status?;
        let mut conditions = status.conditions.into_iter().flatten();
        conditions
            .any(|one| one.type_ == "Established" && one.status == "True")
            .then_some(())
    })
    .await;
    let namespace = world.cluster.namespace("shop").await;
    let ran = advise(&["policy", "-o", "yaml"]);
    let made: Vec<Value> = serde_saphyr::from_multiple(&ran.out).unwrap();
    let made: Vec<Value> = made.into_iter().filter(Value::is_object).collect();
    assert_eq!(made.len(), 3);
    for mut made in made {
        assert_eq!(made["spec"]["dryRun"], true, "rehearsed first");
        assert_eq!(cel(definition, &made["spec"]), Vec::<String>::new(), "{made}");
        made["metadata"]["namespace"] = namespace.clone().into();
        let kind = kube::core::GroupVersionKind::gvk("weir.dev", "v1alpha1", "AuthorizationPolicy");
        let api = Api::<DynamicObject>::namespaced_with(
            world.cluster.client(),
            &namespace,
            &kube::api::ApiResource::from_gvk(&kind),
        );
        let policy: DynamicObject = object(made.clone());
        let created = api.create(&PostParams::default(), &policy).await.unwrap();
        assert_eq!(created.data["spec"], made["spec"], "nothing is dropped");
    }
    let wrong = json!({"rules": [{"from": [{"source": {"serviceAccounts": ["web"], "namespaces": ["a"]}}]}]});
    assert!(!cel(definition, &wrong).is_empty(), "the rules are asked");
}

#[tokio::test]
async fn running_agents_are_asked_and_those_that_are_not_there_make_it_weak() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    let second = world.cluster.node("second").await;
    let flows = std::fs::read_to_string(file("flows.jsonl")).unwrap();
    let first_node = flows
        .lines()
        .filter(|line| line.contains("\"node\":\"node1\""))
        .map(|line| Said::Flow(serde_json::from_str(line).unwrap()));
    let flows: Vec<Said> = first_node.chain([Said::Lost(4)]).collect();
    let answer = |request: Request| {
        match request {
        Request::Workloads => vec![Response::Workload(
            serde_json::from_value(json!({
                "uid": "u", "namespace": "idle", "name": "idle-0", "identity": "spiffe://cluster.local/ns/idle/sa/idle",
                "addresses": [], "node": "node1", "tunnel": "HBONE", "services": [], "labels": {}, "local": true,
            }))
            .unwrap(),
        )],
        _ => status(
            "node1",
            &json!({
                "pods": [{
                    "uid": "w", "namespace": "shop", "name": "web-7d9-x", "identity": "spiffe://cluster.local/ns/shop/sa/web",
                    "addresses": [], "enrolled": true, "mode": "STRICT", "policies": 2, "connections": 0,
                }],
                "warnings": ["shop/p: rules[0].to[0].operation.methods: cannot be decided at L4: the ALLOW rule never matches"],
                "process": {"cpuMs": 5000, "residentBytes": 1 << 25, "bytes": 1_000_000_000_u64, "connections": 500},
            }),
        ),
    }
    };
    let _agent = world.agent_with(&first, flows, answer).await;
    world.agent_pod(&second).await;
    let ran = world.run(&["advise", "-o", "json"]);
    assert_eq!(ran.code, 0);
    let json: Value = serde_json::from_str(&ran.out).unwrap();
    let weak = json["basis"]["weak"].to_string();
    assert!(
        weak.contains("4 events of") && weak.contains("not asked: node") && weak.contains(&second.name_any()),
        "{weak}"
    );
    let strict = json["strict"].as_array().unwrap().iter();
    let answers: Vec<_> = strict
        .map(|one| {
            (
                one["namespace"].as_str().unwrap(),
                one["answer"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(answers, [("idle", "nothingSeen"), ("shop", "isStrict")]);
    assert_eq!(json["layers"]["workloads"][0]["answer"], "asksForWaypoint");
    assert_eq!(json["cost"]["nodes"][0]["cpuSecondsPerGigabyte"], 5.0);
    assert_eq!(json["cost"]["nodes"][0]["cpuMsPerConnection"], 10.0);
    let notes = json["policy"]["policies"][0]["notes"].to_string();
    assert!(notes.contains("up to 2 policies apply"), "{notes}");

    // What it costs is asked without flows.
    let ran = world.run(&["advise", "cost"]);
    assert_eq!(ran.code, 0);
    assert!(
        ran.out.contains("32.0 MiB") && !ran.out.contains("Made from"),
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn without_any_agent_there_is_no_advice() {
    let Some((world, first)) = World::in_memory().await else {
        return;
    };
    world.agent_pod(&first).await;
    for what in ["strict", "cost"] {
        let ran = world.run(&["advise", what]);
        assert_eq!((ran.code, ran.out.as_str()), (3, ""), "{what}");
        assert!(ran.err.contains("no agent could be reached"), "{}", ran.err);
    }
}
