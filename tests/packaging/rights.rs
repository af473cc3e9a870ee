//! What the parts may do, in Kubernetes and on a node.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::chart::{objects, render};

fn rendered() -> Vec<Value> {
    objects(&render(&["--set", "istioPolicies=true"]).unwrap())
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .map(|item| item.as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn nobody_is_bound_to_the_agents_account() {
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
    assert_eq!(seen, ["weir-agent", "weir-control"].map(str::to_owned).into());
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
