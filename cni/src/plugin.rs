//! The commands of the specification.

use std::{fs::File, io, os::fd::AsFd as _, time::Duration};

use serde_json::{Value, json};

use crate::{
    args::{Attachment, PodArgs},
    client::{self, AskError},
    config::{NetConf, VERSIONS},
    decide::{Away, while_away},
    error::CniError,
    protocol::{Request, Response, Sandbox, SandboxRef},
};

/// How long DEL and GC wait for the agent: what they tell it, it also finds out otherwise.
const FORGET_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the command that the environment names, with what was read from standard input. Gives what goes to standard output.
///
/// # Errors
/// What goes to standard output when the command failed.
pub fn run(
    environment: impl Fn(&str) -> Option<String>,
    input: io::Result<Vec<u8>>,
) -> Result<String, String> {
    let newest = VERSIONS[VERSIONS.len() - 1];
    let input = input.map_err(|error| CniError::Io(format!("standard input: {error}")).json(newest))?;
    let asked = serde_json::from_slice::<Value>(&input).ok();
    let asked = asked.as_ref().and_then(|value| value.get("cniVersion")?.as_str());
    let asked = asked
        .filter(|version| VERSIONS.contains(version))
        .unwrap_or(newest);
    command(&environment, &input, asked).map_err(|error| error.json(asked))
}

fn command(
    environment: &impl Fn(&str) -> Option<String>,
    input: &[u8],
    asked: &str,
) -> Result<String, CniError> {
    let command = environment("CNI_COMMAND").unwrap_or_default();
    if command == "VERSION" {
        return Ok(json!({ "cniVersion": asked, "supportedVersions": VERSIONS }).to_string());
    }
    let config = NetConf::parse(input)?;
    let attachment = || Attachment::parse(environment("CNI_CONTAINERID"), environment("CNI_IFNAME"));
    match command.as_str() {
        "ADD" => {
            // Before anything is done: without a result to hand on it cannot end well.
            let result = config.result()?;
            attach(environment, &config, &attachment()?, Request::Add)?;
            Ok(result.to_string())
        }
        "CHECK" => {
            config.result()?;
            attach(environment, &config, &attachment()?, Request::Check)?;
            Ok(String::new())
        }
        "DEL" => {
            let own = attachment()?;
            forget(&config, &Request::Del(reference(own.container_id, own.ifname)));
            Ok(String::new())
        }
        "GC" => {
            let valid = config.valid_attachments.iter();
            let valid = valid.map(|own| reference(own.container_id.clone(), own.ifname.clone()));
            forget(
                &config,
                &Request::Gc {
                    valid: valid.collect(),
                },
            );
            Ok(String::new())
        }
        // Ready also while the agent is away: pods outside of the mesh start then too, and a node without a ready network
        // loses the pods that it has.
        "STATUS" => Ok(String::new()),
        other => Err(CniError::Environment {
            variable: "CNI_COMMAND",
            problem: format!("expected ADD, DEL, CHECK, GC, STATUS or VERSION, not '{other}'"),
        }),
    }
}

fn reference(container_id: String, ifname: String) -> SandboxRef {
    SandboxRef { container_id, ifname }
}

/// Never fails: the runtime would keep the sandbox, and with it the pod, until the agent is back.
fn forget(config: &NetConf, request: &Request) {
    let _ = client::ask(
        &config.socket,
        request,
        None,
        config.timeout().min(FORGET_TIMEOUT),
    );
}

fn attach(
    environment: &impl Fn(&str) -> Option<String>,
    config: &NetConf,
    attachment: &Attachment,
    request: impl Fn(Sandbox) -> Request,
) -> Result<(), CniError> {
    let pod = PodArgs::parse(&environment("CNI_ARGS").unwrap_or_default())?;
    let path = environment("CNI_NETNS")
        .filter(|path| !path.is_empty())
        .ok_or_else(|| CniError::Environment {
            variable: "CNI_NETNS",
            problem: "expected the file of a network namespace".to_owned(),
        })?;
    let netns = File::open(&path).map_err(|error| CniError::Io(format!("CNI_NETNS {path}: {error}")))?;
    let own = config.switch();
    let sandbox = Sandbox {
        uid: pod.uid,
        namespace: pod.namespace.clone(),
        name: pod.name,
        container_id: attachment.container_id.clone(),
        ifname: attachment.ifname.clone(),
        addresses: config.addresses()?,
        switch: own.clone().unwrap_or_default(),
        excluded: config.exclude.contains(&pod.namespace),
    };
    let answer = client::ask(
        &config.socket,
        &request(sandbox),
        Some(netns.as_fd()),
        config.timeout(),
    );
    let later = |reason: String| Err(CniError::TryAgainLater(reason));
    match answer {
        Ok(Response::Enrolled | Response::NotInMesh) => Ok(()),
        Ok(Response::Error { reason }) => later(reason),
        Ok(Response::Done) => later("weir-agent's answer is not one to this request".to_owned()),
        Err(AskError::Away(error)) => {
            let state = client::state(&config.state_file);
            match while_away(&own, &pod.namespace, state.as_ref(), &config.exclude) {
                Away::Start => Ok(()),
                Away::Wait => later(format!(
                    "weir-agent is not running on this node: the pod waits until it is ({}: {error})",
                    config.socket.display()
                )),
                Away::Unknown => later(format!(
                    "weir-agent is not running on this node, and nothing says whether pods of namespace '{}' are in the \
                     mesh: the pod waits until it is ({}: {error}); {}",
                    pod.namespace,
                    config.socket.display(),
                    match own {
                        Err(unknown) => unknown.to_string(),
                        Ok(_) => "the annotation weir.dev/mesh: disabled on the pod lets it start without"
                            .to_owned(),
                    }
                )),
            }
        }
        Err(error @ (AskError::Timeout | AskError::Answer(_))) => later(format!(
            "{error}: the pod waits; see the log of weir-agent on this node"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const UID: &str = "0b2f5c1e-1111-2222-3333-444455556666";

    /// Runs a command for a pod of a namespace while no agent is there.
    fn run_away(folder: &Path, command: &str, namespace: &str, annotations: &Value) -> Result<Value, Value> {
        let config = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "weir-cni",
            "socket": folder.join("sock"), "stateFile": folder.join("state"),
            "prevResult": { "cniVersion": "1.0.0", "ips": [{ "address": "10.1.0.2/24" }] },
            "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations },
        });
        let environment = |name: &str| {
            Some(match name {
                "CNI_COMMAND" => command.to_owned(),
                "CNI_CONTAINERID" => "abc".to_owned(),
                "CNI_IFNAME" => "eth0".to_owned(),
                "CNI_NETNS" => "/proc/self/ns/net".to_owned(),
                "CNI_ARGS" => {
                    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=a;K8S_POD_UID={UID}")
                }
                _ => return None,
            })
        };
        let value = |text: String| serde_json::from_str(&text).unwrap_or(Value::Null);
        run(environment, Ok(config.to_string().into_bytes()))
            .map(value)
            .map_err(value)
    }

    #[test]
    fn without_the_agent_a_pod_starts_only_if_it_is_not_meant_to_be_in_the_mesh() {
        let folder = tempfile::tempdir().unwrap();
        let run = |namespace, annotations| run_away(folder.path(), "ADD", namespace, &annotations);
        let handed_on = run("kube-system", json!({})).unwrap();
        assert_eq!(handed_on["ips"][0]["address"], "10.1.0.2/24");
        let disabled = json!({ "weir.dev/mesh": "disabled" });
        assert!(run("shop", disabled).is_ok());
        for (namespace, annotations) in [
            ("shop", json!({})),
            ("kube-system", json!({ "weir.dev/mesh": "enabled" })),
            ("kube-system", json!({ "weir.dev/mesh": "on" })),
        ] {
            let error = run(namespace, annotations).unwrap_err();
            assert_eq!(
                (&error["code"], &error["cniVersion"]),
                (&json!(11), &json!("1.0.0"))
            );
            let text = error["msg"].as_str().unwrap();
            assert!(text.contains("weir-agent is not running on this node"), "{text}");
        }
    }

    #[test]
    fn what_takes_a_pod_away_does_not_need_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        for command in ["DEL", "GC", "STATUS"] {
            assert_eq!(
                run_away(folder.path(), command, "shop", &json!({})),
                Ok(Value::Null),
                "{command}"
            );
        }
        assert_eq!(
            run_away(folder.path(), "CHECK", "shop", &json!({})).unwrap_err()["code"],
            11
        );
        assert_eq!(
            run_away(folder.path(), "OTHER", "shop", &json!({})).unwrap_err()["code"],
            4
        );
        let version = run_away(folder.path(), "VERSION", "shop", &json!({})).unwrap();
        assert_eq!(
            version["supportedVersions"],
            json!(["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
        );
    }
}
