//! Editing the node's CNI configuration. Pure: texts in, texts out.

use std::path::Path;

use serde_json::{Map, Value, json};

/// The plugin's name, and that of its executable.
pub const PLUGIN: &str = "weir-cni";
/// Lists that are made from a single configuration begin so, and come before it by name: runtimes take the first file.
pub const MADE: &str = "0-weir-";

/// Why a configuration is left alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConflistError {
    /// It is not JSON, perhaps because it is being written.
    #[error("it is not JSON: {0}")]
    Json(String),
    /// It is not of the form of the specification.
    #[error("expected a CNI configuration with {0}")]
    Form(&'static str),
}

/// The plugin's entry in a list.
#[must_use]
pub fn entry(socket: &Path, state_file: &Path) -> Value {
    json!({
        "type": PLUGIN, "socket": socket, "stateFile": state_file,
        "capabilities": { "io.kubernetes.cri.pod-annotations": true },
    })
}

/// A list with the plugin in it, last; nothing if it is there already.
///
/// # Errors
/// When the text is not a list.
pub fn insert(text: &str, entry: &Value) -> Result<Option<String>, ConflistError> {
    let mut list = object(text)?;
    let plugins = plugins(&mut list)?;
    let is_own = |plugin: &Value| plugin.get("type").and_then(Value::as_str) == Some(PLUGIN);
    let own: Vec<&Value> = plugins.iter().filter(|plugin| is_own(plugin)).collect();
    // Another installer may keep its own plugin last as well: where ours stands in the chain is left as it is then, for the two
    // would never come to rest. All that it needs is the result of one before it.
    if own == [entry] && !plugins.first().is_some_and(is_own) {
        return Ok(None);
    }
    plugins.retain(|plugin| !is_own(plugin));
    plugins.push(entry.clone());
    Ok(Some(text_of(list)))
}

/// A list without the plugin; nothing if it is not there.
///
/// # Errors
/// When the text is not a list.
pub fn remove(text: &str) -> Result<Option<String>, ConflistError> {
    let mut list = object(text)?;
    let plugins = plugins(&mut list)?;
    let before = plugins.len();
    plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(PLUGIN));
    let changes = plugins.len() != before;
    Ok(changes.then(|| text_of(list)))
}

/// The list that means what a single configuration does, with the plugin in it.
///
/// # Errors
/// When the text is not a single configuration.
pub fn from_single(text: &str, entry: &Value) -> Result<String, ConflistError> {
    let single = object(text)?;
    if !single.get("type").is_some_and(Value::is_string) {
        return Err(ConflistError::Form("a 'type'"));
    }
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = single.get(key) {
            list.insert(key.to_owned(), value.clone());
        }
    }
    list.insert("plugins".to_owned(), json!([single, entry]));
    Ok(text_of(list))
}

fn object(text: &str) -> Result<Map<String, Value>, ConflistError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ConflistError::Form("an object")),
        Err(error) => Err(ConflistError::Json(error.to_string())),
    }
}

fn plugins(list: &mut Map<String, Value>) -> Result<&mut Vec<Value>, ConflistError> {
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    // A list of nothing, or of ours alone, gives a pod no network.
    plugins
        .filter(|plugins| !plugins.is_empty())
        .ok_or(ConflistError::Form("'plugins'"))
}

fn text_of(list: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Value {
        entry(
            Path::new("/run/weir/cni.sock"),
            Path::new("/run/weir/cni-state.json"),
        )
    }

    /// As the networks write them.
    fn lists() -> Vec<Value> {
        vec![
            json!({ "cniVersion": "1.0.0", "name": "containerd-net", "plugins": [
                { "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
                  "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.88.0.0/16" }]], "routes": [{ "dst": "0.0.0.0/0" }] } },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ]}),
            json!({ "name": "k8s-pod-network", "cniVersion": "0.3.1", "plugins": [
                { "type": "calico", "log_level": "info", "datastore_type": "kubernetes", "nodename": "n", "mtu": 0,
                  "ipam": { "type": "calico-ipam" }, "policy": { "type": "k8s" },
                  "kubernetes": { "kubeconfig": "/etc/cni/net.d/calico-kubeconfig" } },
                { "type": "portmap", "snat": true, "capabilities": { "portMappings": true } },
                { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            ]}),
            json!({ "cniVersion": "0.3.1", "name": "cilium", "plugins": [
                { "type": "cilium-cni", "enable-debug": false, "log-file": "/var/run/cilium/cilium-cni.log" },
            ]}),
            json!({ "name": "cbr0", "cniVersion": "0.3.1", "plugins": [
                { "type": "flannel", "delegate": { "hairpinMode": true, "isDefaultGateway": true } },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ]}),
            json!({ "cniVersion": "0.3.1", "name": "kindnet", "disableCheck": true, "plugins": [
                { "type": "ptp", "ipMasq": false, "ipam": { "type": "host-local", "dataDir": "/run/cni-ipam-state",
                  "routes": [{ "dst": "0.0.0.0/0" }], "ranges": [[{ "subnet": "10.244.0.0/24" }]] }, "mtu": 1500 },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ]}),
        ]
    }

    fn value(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_plugin_is_put_last_once_and_taken_out_again_and_all_else_stays() {
        for list in lists() {
            let with = insert(&list.to_string(), &own()).unwrap().unwrap();
            let mut wanted = list.clone();
            wanted["plugins"].as_array_mut().unwrap().push(own());
            assert_eq!(value(&with), wanted);
            assert_eq!(insert(&with, &own()), Ok(None), "it is there");
            assert_eq!(value(&remove(&with).unwrap().unwrap()), list);
            assert_eq!(remove(&list.to_string()), Ok(None));
        }
    }

    #[test]
    fn an_entry_that_says_something_else_or_stands_twice_or_first_is_replaced() {
        let list = &lists()[0];
        let plugins = list["plugins"].as_array().unwrap();
        let old = entry(Path::new("/old.sock"), Path::new("/old.json"));
        let orders: [Vec<Value>; 3] = [
            plugins.iter().cloned().chain([old.clone()]).collect(),
            [own()].into_iter().chain(plugins.clone()).collect(),
            plugins.iter().cloned().chain([own(), own()]).collect(),
        ];
        for order in orders {
            let mut changed = list.clone();
            changed["plugins"] = order.into();
            let with = value(&insert(&changed.to_string(), &own()).unwrap().unwrap());
            let mut wanted = list.clone();
            wanted["plugins"].as_array_mut().unwrap().push(own());
            assert_eq!(with, wanted);
        }
        // Behind ours stands another that wants to be last too.
        let mut shared = list.clone();
        shared["plugins"]
            .as_array_mut()
            .unwrap()
            .extend([own(), json!({ "type": "istio-cni" })]);
        assert_eq!(insert(&shared.to_string(), &own()), Ok(None));
    }

    #[test]
    fn a_single_configuration_becomes_a_list() {
        let single =
            json!({ "cniVersion": "0.4.0", "name": "mynet", "type": "bridge", "ipam": { "type": "dhcp" } });
        let list = value(&from_single(&single.to_string(), &own()).unwrap());
        assert_eq!(
            list,
            json!({ "cniVersion": "0.4.0", "name": "mynet", "plugins": [single, own()] })
        );
    }

    #[test]
    fn what_is_no_configuration_is_left_alone() {
        for text in [
            "",
            "{",
            "[]",
            "{}",
            r#"{ "plugins": {} }"#,
            r#"{ "plugins": [] }"#,
        ] {
            assert!(insert(text, &own()).is_err(), "{text}");
            assert!(remove(text).is_err(), "{text}");
            assert!(from_single(text, &own()).is_err(), "{text}");
        }
    }
}
