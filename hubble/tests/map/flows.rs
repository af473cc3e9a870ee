//! Flows that a map is given.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use serde_json::{Value, json};
use weir_hubble::map::Map;
use weir_types::Flow;

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// One end: `namespace/workload`, or an address.
fn end(name: &str, port: u16) -> Value {
    match name.split_once('/') {
        Some((namespace, workload)) => json!({
            "address": format!("10.0.0.1:{port}"), "namespace": namespace, "pod": format!("{workload}-0"),
            "about": { "workload": { "name": workload, "kind": "Deployment" } },
        }),
        None => json!({ "address": format!("{name}:{port}") }),
    }
}

/// A record of now, with fields of its own.
pub(crate) fn flow(from: &str, to: &str, event: &str, path: &str, more: Value) -> Flow {
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let mut value = json!({
        "sequence": number, "time": Timestamp::now(), "node": "n1", "connection": number, "event": event,
        "verdict": "forwarded", "reason": "none", "direction": "egress", "path": path,
        "source": end(from, 40000), "destination": end(to, 8080),
        "bytesSent": 1200, "bytesReceived": 48000, "durationUs": 5300, "rttUs": 420,
    });
    for (name, own) in more.as_object().unwrap() {
        value[name] = own.clone();
    }
    serde_json::from_value(value).unwrap()
}

/// So many connections that were made.
pub(crate) fn connect(map: &Map, from: &str, to: &str, path: &str, count: usize) {
    for number in 0..count {
        map.take(flow(from, to, "open", path, json!({})));
        if number % 2 == 0 {
            map.take(flow(from, to, "close", path, json!({})));
        }
    }
}

/// One that was refused.
pub(crate) fn refuse(map: &Map, from: &str, to: &str) {
    let more = json!({ "verdict": "denied", "reason": "not_allowed", "process": { "pid": 7, "name": "curl" },
        "policy": { "policy": "shop/payments", "rule": 0 } });
    map.take(flow(from, to, "refused", "nowhere", more));
}

/// A shop, as a demonstration has one.
pub(crate) fn shop(map: &Map) {
    connect(map, "192.0.2.7", "edge/gateway", "plaintext", 40);
    connect(map, "edge/gateway", "shop/web", "tunnel", 90);
    connect(map, "shop/web", "shop/cart", "direct", 30);
    connect(map, "shop/web", "shop/catalog", "tunnel", 60);
    connect(map, "shop/cart", "data/redis", "tunnel", 200);
    connect(map, "shop/catalog", "data/postgres", "tunnel", 25);
    connect(map, "shop/web", "pay/payments", "tunnel", 6);
    refuse(map, "shop/catalog", "pay/payments");
    refuse(map, "shop/catalog", "pay/payments");
    connect(map, "pay/payments", "203.0.113.9", "plaintext", 3);
    connect(map, "pay/payments", "data/postgres", "tunnel", 9);
    connect(map, "ops/prometheus", "shop/web", "plaintext", 4);
    connect(map, "ops/prometheus", "pay/payments", "tunnel", 4);
}

/// Workloads of twelve namespaces: in each a front calls its services, and all of them call what three namespaces have in common.
pub(crate) fn many(map: &Map, workloads: usize) {
    const TEAMS: [&str; 12] = [
        "auth", "billing", "cart", "catalog", "data", "edge", "mail", "ops", "orders", "search", "stock",
        "users",
    ];
    let name = |number: usize| format!("{}/service-{:03}", TEAMS[number % 12], number);
    let of = |team: &str, number: usize| {
        let at = TEAMS.iter().position(|other| *other == team).unwrap();
        name(at + 12 * (number % (workloads / 12)))
    };
    for number in 0..workloads {
        let (team, own) = (TEAMS[number % 12], name(number));
        let path = if number % 41 == 0 { "plaintext" } else { "tunnel" };
        if number >= 12 {
            connect(map, &name(number % 12), &own, "direct", 1 + number % 5);
        }
        match team {
            "data" => {}
            "edge" => connect(
                map,
                &own,
                &of(["cart", "catalog", "search", "users"][number / 12 % 4], number),
                path,
                8,
            ),
            "ops" => connect(map, &own, &of("edge", number), "plaintext", 2),
            "auth" | "mail" | "stock" => connect(map, &own, &of("data", number), path, 5),
            "cart" => connect(map, &own, &of("orders", number), path, 6),
            "orders" => connect(
                map,
                &own,
                &of(["billing", "stock", "mail"][number / 12 % 3], number),
                path,
                5,
            ),
            _ => {
                connect(map, &own, &of("auth", number), path, 4);
                connect(map, &own, &of("data", number), path, 5);
            }
        }
        if number % 60 == 9 {
            refuse(map, &own, &of("billing", number));
        }
    }
}
