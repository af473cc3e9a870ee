//! What the parts may do, in Kubernetes and on a node.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::chart::{objects, render};

/// With all that there is.
fn rendered() -> Vec<Value> {
    with("istioPolicies=true,relay.enabled=true,relay.clients[0].name=ui.client.hubble.weir.dev")
}

fn with(values: &str) -> Vec<Value> {
    objects(&render(&["--set", values]).unwrap())
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .map(|item| item.as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn nobody_is_bound_to_the_agents_and_the_relays_accounts() {
    for object in rendered() {
        let subjects = object["subjects"].as_array().into_iter().flatten();
        for subject in subjects {
            assert_eq!(subject["name"], "weir-control", "{object}");
        }
    }
}

#[test]
fn no_right_is_for_everything_and_secrets_are_read_in_the_authoritys_namespace_only() {
    let mut roles = 0;
    for object in rendered() {
        for rule in object["rules"].as_array().into_iter().flatten() {
            roles += 1;
            for field in ["apiGroups", "resources", "verbs"] {
                assert!(!texts(&rule[field]).contains(&"*".to_owned()), "{object}");
            }
            let verbs: BTreeSet<_> = texts(&rule["verbs"]).into_iter().collect();
            for dangerous in ["delete", "deletecollection", "bind", "escalate", "impersonate"] {
                assert!(!verbs.contains(dangerous), "{object}");
            }
            let resources = texts(&rule["resources"]);
            // Whoever may write pods may run what he likes where he likes.
            if resources.iter().any(|resource| resource == "pods") {
                assert!(
                    verbs
                        .iter()
                        .all(|verb| ["get", "list", "watch"].contains(&verb.as_str())),
                    "{rule}"
                );
            }
            if resources.iter().any(|resource| resource == "secrets") {
                assert_eq!(object["kind"], "Role");
                assert_eq!(object["metadata"]["namespace"], "weir-authority");
            }
        }
    }
    assert!(roles > 8, "{roles} rules");
}

/// Who may ask for tokens of service accounts is whom he likes.
#[test]
fn service_accounts_are_listed_and_watched_and_nothing_else() {
    let mut rules = 0;
    for object in rendered() {
        for rule in object["rules"].as_array().into_iter().flatten() {
            let resources = texts(&rule["resources"]);
            if resources.iter().any(|one| one.starts_with("serviceaccounts")) {
                rules += 1;
                assert!(resources.contains(&"serviceaccounts".to_owned()), "{rule}");
                assert_eq!(texts(&rule["verbs"]), ["list", "watch"], "{rule}");
            }
        }
    }
    assert_eq!(rules, 1);
}

#[test]
fn containers_have_the_capabilities_that_are_listed_and_cannot_write_their_image() {
    let mut seen = BTreeSet::new();
    for object in rendered() {
        let spec = &object["spec"]["template"]["spec"];
        for container in spec["containers"].as_array().into_iter().flatten() {
            let name = container["name"].as_str().unwrap();
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert!(context["privileged"].is_null(), "{name}");
            assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{name}");
            let expected: &[&str] = match name {
                "weir-agent" => &["BPF", "NET_ADMIN", "PERFMON", "SYS_ADMIN", "SYS_PTRACE"],
                _ => &[],
            };
            assert_eq!(texts(&context["capabilities"]["add"]), expected, "{name}");
            for bound in [
                "/resources/requests/cpu",
                "/resources/requests/memory",
                "/resources/limits/memory",
            ] {
                assert!(container.pointer(bound).is_some(), "{name}: {bound}");
            }
            seen.insert(name.to_owned());
        }
        if !spec.is_null() {
            assert!(spec["hostNetwork"].is_null());
            assert!(spec["priorityClassName"].is_string());
        }
    }
    let all = ["weir-agent", "weir-control", "weir-relay"];
    assert_eq!(seen, all.map(str::to_owned).into());
}

/// Rules for Secrets, by the names that they are for.
fn secrets(objects: &[Value]) -> BTreeSet<(Vec<String>, Vec<String>)> {
    let rules = objects
        .iter()
        .flat_map(|object| object["rules"].as_array().into_iter().flatten());
    let of_secrets = rules.filter(|rule| texts(&rule["resources"]).contains(&"secrets".to_owned()));
    of_secrets
        .map(|rule| (texts(&rule["resourceNames"]), texts(&rule["verbs"])))
        .collect()
}

#[test]
fn the_flows_authority_is_within_reach_only_where_a_port_needs_it() {
    let own = |name: &str| {
        (
            vec![name.to_owned()],
            ["get", "list", "watch", "update"].map(str::to_owned).to_vec(),
        )
    };
    let create = (Vec::new(), vec!["create".to_owned()]);
    let (workloads, flows) = (own("weir-authority"), own("weir-flows-authority"));
    assert_eq!(
        secrets(&with("relay.enabled=false")),
        [workloads.clone(), create.clone()].into()
    );
    for values in [
        "relay.enabled=true",
        "relay.enabled=true,control.authority.source=given",
        "flows.port.enabled=true,flows.port.clients[0].name=ui.example.org",
    ] {
        assert_eq!(
            secrets(&with(values)),
            [workloads.clone(), flows.clone(), create.clone()].into(),
            "{values}"
        );
    }
    assert_eq!(
        secrets(&with("control.authority.source=given")),
        [workloads].into()
    );
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn a_relay_has_no_rights_and_is_not_root_and_its_token_is_for_the_control_plane_alone() {
    let objects = rendered();
    let account = find(&objects, "ServiceAccount", "weir-relay");
    assert_eq!(account["automountServiceAccountToken"], false);
    let spec = &find(&objects, "Deployment", "weir-relay")["spec"]["template"]["spec"];
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        spec["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    let volumes = spec["volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 2, "{volumes:?}");
    let token = &volumes[1]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "weir");
    assert!(spec["hostPID"].is_null() && spec["hostNetwork"].is_null());
}

#[test]
fn a_relay_is_on_loopback_unless_clients_are_named_and_nobody_reaches_agents_but_it_and_who_is_named() {
    let arguments = |objects: &[Value]| {
        texts(&find(objects, "Deployment", "weir-relay")["spec"]["template"]["spec"]["containers"][0]["args"])
    };
    let ingress =
        |objects: &[Value], name: &str| find(objects, "NetworkPolicy", name)["spec"]["ingress"].clone();
    let relay = json!({ "podSelector": { "matchLabels": { "app.kubernetes.io/name": "weir-relay" } } });

    let closed = with("relay.enabled=true");
    assert!(arguments(&closed).contains(&"--listen=127.0.0.1:4245".to_owned()));
    assert!(arguments(&closed).iter().all(|one| !one.starts_with("--client")));
    assert!(
        !closed
            .iter()
            .any(|one| one["kind"] == "Service" && one["metadata"]["name"] == "weir-relay")
    );
    assert!(ingress(&closed, "weir-relay").is_null(), "nobody reaches its pod");
    let rule = |from: Value| json!({ "from": from, "ports": [{ "port": "flows" }] });
    assert_eq!(ingress(&closed, "weir-agent")[1], rule(json!([relay])));
    assert_eq!(ingress(&closed, "weir-control")[0]["from"][1], relay);

    let open = with(
        "relay.enabled=true,relay.map=false,relay.clients[0].name=ui.client.hubble.weir.dev,relay.clients[0].namespaces={a,b}",
    );
    assert!(arguments(&open).contains(&"--listen=[::]:4245".to_owned()));
    assert!(arguments(&open).contains(&"--client=ui.client.hubble.weir.dev=a,b".to_owned()));
    assert!(!arguments(&open).contains(&"--map".to_owned()));
    assert_eq!(ingress(&open, "weir-relay")[0]["ports"][0]["port"], "flows");

    let alone = with("flows.port.enabled=true,flows.port.clients[0].name=ui.example.org");
    assert_eq!(
        ingress(&alone, "weir-agent").as_array().unwrap().len(),
        1,
        "nobody is let in who is not named"
    );
    let named = "flows.port.enabled=true,flows.port.clients[0].name=ui.example.org,flows.port.from[0].podSelector.matchLabels.app=ui";
    let ui = json!({ "podSelector": { "matchLabels": { "app": "ui" } } });
    assert_eq!(ingress(&with(named), "weir-agent")[1], rule(json!([ui])));
}

#[test]
fn no_other_node_proxy_is_trusted_but_those_that_are_named_which_are_looked_up_where_they_are() {
    let text = |objects: &[Value]| serde_json::to_string(objects).unwrap();
    assert!(!text(&rendered()).contains("trusted-node-account"));
    let named = objects(&render(&["--set", "control.trustedNodeAccounts={mesh/ztunnel}"]).unwrap());
    assert!(text(&named).contains("--trusted-node-account=mesh/ztunnel"));
    let there: Vec<_> = named
        .iter()
        .filter(|object| object["metadata"]["namespace"] == "mesh")
        .collect();
    let [role, binding] = there[..] else {
        panic!("{there:?}");
    };
    assert_eq!(
        (&role["kind"], &binding["kind"]),
        (&json!("Role"), &json!("RoleBinding"))
    );
    let right =
        |group: &str, kind: &str| json!({ "apiGroups": [group], "resources": [kind], "verbs": ["get"] });
    let mut sets = right("apps", "daemonsets");
    sets["resourceNames"] = json!(["ztunnel"]);
    assert_eq!(role["rules"], json!([right("", "pods"), sets]));
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    assert_eq!(binding["subjects"][0]["namespace"], "weir-system");
}
