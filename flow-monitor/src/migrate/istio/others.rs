//! What of Istio's and of namespaces is no policy.

use serde_json::Value;

use crate::migrate::{
    input::{Item, NETWORKING},
    report::{Effect, Entry, Outcome},
};

/// Kinds of which Weir has no word, and what to do instead. `true`: it protected something.
const NONE: [(&str, bool, &str); 12] = [
    (
        "Gateway",
        false,
        "Weir has no ingress: keep Istio's gateway, or another, outside of the mesh",
    ),
    (
        "ServiceEntry",
        false,
        "Weir leaves alone what is outside of the cluster: the name resolves as DNS has it",
    ),
    (
        "WorkloadEntry",
        true,
        "Weir has pods alone: connections to and from machines are plaintext",
    ),
    (
        "WorkloadGroup",
        true,
        "Weir has pods alone: connections to and from machines are plaintext",
    ),
    (
        "EnvoyFilter",
        true,
        "there is no Envoy: what it filtered is not filtered",
    ),
    (
        "WasmPlugin",
        true,
        "there is no Envoy: what it filtered is not filtered",
    ),
    (
        "Telemetry",
        false,
        "metrics and flow records are of layer 4, and there for every connection",
    ),
    ("ProxyConfig", false, "it is for sidecars"),
    (
        "HTTPRoute",
        true,
        "routes need a waypoint, and there is none yet: keep a gateway, or let the application do it",
    ),
    (
        "GRPCRoute",
        true,
        "routes need a waypoint, and there is none yet: keep a gateway, or let the application do it",
    ),
    (
        "HTTPLocalRateLimitPolicy",
        true,
        "Weir limits no rates: let the application do it, or a gateway",
    ),
    (
        "EgressNetwork",
        true,
        "Weir says nothing of what leaves the cluster: use a NetworkPolicy",
    ),
];

/// What there is to say of an object of Istio's or Linkerd's that is translated by nobody.
pub(crate) fn other(item: &Item) -> Entry {
    match item.kind() {
        "DestinationRule" => destination_rule(item),
        "VirtualService" => virtual_service(item),
        "Sidecar" if item.group() == NETWORKING => Entry::not_needed(
            item,
            "it bounds what a sidecar is told; Weir's agent knows what its node's pods need",
        ),
        kind => match NONE.iter().find(|(known, ..)| *known == kind) {
            Some((_, true, text)) => Entry::lost(item, *text),
            Some((_, false, text)) => Entry::none(item, *text),
            None => Entry::lost(item, "this kind is not known here: look what it did"),
        },
    }
}

fn destination_rule(item: &Item) -> Entry {
    let spec = item.spec();
    let host = spec["host"].as_str().unwrap_or("?").to_owned();
    let mut entry = Entry::not_needed(item, "between pods of the mesh there is mutual TLS by itself");
    entry.notes.clear();
    let mut policies = vec![("trafficPolicy".to_owned(), &spec["trafficPolicy"])];
    for (index, subset) in spec["subsets"].as_array().into_iter().flatten().enumerate() {
        policies.push((
            format!("subsets[{index}].trafficPolicy"),
            &subset["trafficPolicy"],
        ));
    }
    if spec["subsets"]
        .as_array()
        .is_some_and(|subsets| !subsets.is_empty())
    {
        none(
            &mut entry,
            "subsets",
            "there is nothing that routes to them: make a Service for each",
        );
    }
    let mut index = 0;
    while let Some((path, policy)) = policies.get(index).cloned() {
        index += 1;
        for (at, port) in policy["portLevelSettings"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            policies.push((format!("{path}.portLevelSettings[{at}]"), port));
        }
        tls(&mut entry, &path, &policy["tls"], &host);
        for (field, instead) in [
            (
                "loadBalancer",
                "each connection goes to a ready endpoint of its Service",
            ),
            ("connectionPool", "the mesh bounds no connections of applications"),
            ("outlierDetection", "readiness probes say which endpoints count"),
            ("tunnel", "there is no other proxy to go through"),
            ("proxyProtocol", "the server sees the client's address as it is"),
        ] {
            if !policy[field].is_null() {
                none(&mut entry, &format!("{path}.{field}"), instead);
            }
        }
    }
    if entry.notes.is_empty() {
        entry.say("between pods of the mesh there is mutual TLS by itself");
    }
    entry
}

fn tls(entry: &mut Entry, path: &str, tls: &Value, host: &str) {
    match tls["mode"].as_str() {
        None if tls.is_null() => {}
        Some("ISTIO_MUTUAL") => {}
        // What an absent or new mode does, nobody knows here.
        None | Some("DISABLE") => entry.say(format!(
            "{path}.tls DISABLE: clients sent plaintext to {host}; with Weir they use mutual TLS where both ends are in the mesh, \
             and plaintext where the server is not: a server that must have plaintext is annotated weir.dev/mesh: disabled"
        )),
        Some(mode) => {
            entry.outcome = Outcome::NoCounterpart;
            entry.notes.push(crate::migrate::report::Note {
                effect: Effect::Lost,
                text: format!(
                    "{path}.tls {mode}: Weir opens no TLS for the application: what it sends to {host} in plaintext stays so; let \
                     the application speak TLS"
                ),
            });
        }
    }
}

fn none(entry: &mut Entry, path: &str, instead: &str) {
    entry.outcome = Outcome::NoCounterpart;
    entry.say(format!("{path}: {instead}"));
}

fn virtual_service(item: &Item) -> Entry {
    let spec = item.spec();
    let routes = |field: &str| spec[field].as_array().is_some_and(|routes| !routes.is_empty());
    let gateway = spec["gateways"].as_array().into_iter().flatten();
    if gateway.clone().any(|gateway| gateway.as_str() != Some("mesh")) {
        return Entry::none(
            item,
            "it is for a gateway, and Weir has none: keep that gateway, or another",
        );
    }
    if routes("http") || routes("tls") {
        return Entry::lost(
            item,
            "routes, retries, timeouts and rewrites of layer 7 need a waypoint, and there is none yet: keep a gateway, or let the \
             application do it",
        );
    }
    let hosts: Vec<&str> = spec["hosts"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for route in spec["tcp"].as_array().into_iter().flatten() {
        let destinations = route["route"].as_array().map_or(&[][..], Vec::as_slice);
        let plain = match destinations {
            [one] => {
                let host = one["destination"]["host"].as_str();
                one["destination"]["subset"].is_null()
                    && one["destination"]["port"].is_null()
                    && matches!(one["weight"].as_u64(), None | Some(0 | 100))
                    && hosts.len() == 1
                    && host == Some(hosts[0])
            }
            _ => false,
        };
        let anything = route["match"].as_array().is_none_or(Vec::is_empty);
        if !plain || !anything {
            return Entry::none(
                item,
                "it sends TCP connections elsewhere than to their Service, or to several: make a Service that selects what you \
                 mean",
            );
        }
    }
    Entry::not_needed(item, "it sends connections where they go by themselves")
}

/// What a namespace's labels and annotations mean; nothing if they are of no mesh.
pub(crate) fn namespace(item: &Item) -> Option<Entry> {
    let name = item.name();
    let mut texts = Vec::new();
    let enrol = format!("kubectl label --overwrite namespace {name} weir.dev/mesh=enabled");
    match item.label("istio.io/dataplane-mode") {
        Some("ambient") => texts.push(format!(
            "istio.io/dataplane-mode=ambient: Weir heeds it too where weir.dev/mesh is absent: before you install Weir, 'kubectl \
             label namespace {name} weir.dev/mesh=disabled'; to move it, remove Istio's label, then '{enrol}'"
        )),
        Some("none") => texts.push("istio.io/dataplane-mode=none: not in the mesh, with Weir neither".to_owned()),
        _ => {}
    }
    if item.label("istio-injection") == Some("enabled") || item.label("istio.io/rev").is_some() {
        texts.push(format!(
            "sidecars are injected: remove istio-injection and istio.io/rev, restart its pods, then '{enrol}'"
        ));
    }
    if item
        .label("istio.io/use-waypoint")
        .is_some_and(|value| value != "none")
    {
        texts.push("istio.io/use-waypoint: there is no waypoint: what it routes and authorizes at layer 7 is not done".to_owned());
    }
    if item
        .annotation("linkerd.io/inject")
        .is_some_and(|value| value != "disabled")
    {
        texts.push(format!(
            "proxies are injected: remove linkerd.io/inject, restart its pods, then '{enrol}'"
        ));
    }
    let default = item.annotation("config.linkerd.io/default-inbound-policy");
    if default.is_none() && texts.is_empty() {
        return None;
    }
    let mut entry = Entry::not_needed(item, "");
    entry.notes.clear();
    for text in texts {
        entry.say(text);
    }
    match default {
        None => {}
        Some(mode @ ("all-unauthenticated" | "audit")) => {
            entry.say(format!(
                "config.linkerd.io/default-inbound-policy {mode}: anybody may connect, with Weir too"
            ));
        }
        Some(mode) => {
            let instead = match mode {
                "all-authenticated" | "cluster-authenticated" => {
                    "a PeerAuthentication with mode STRICT in this namespace"
                }
                _ => "AuthorizationPolicies that say who may connect",
            };
            entry = entry.with(
                Outcome::NoCounterpart,
                Effect::Lost,
                format!("config.linkerd.io/default-inbound-policy {mode}, for ports without a Server: write {instead}"),
            );
        }
    }
    Some(entry)
}
