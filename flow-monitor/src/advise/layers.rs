//! Which workloads need only layer 4, and which ask for a waypoint.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    record::{Id, Record},
    report::{Ask, LayerAnswer, LayerWorkload, Layers},
    state::State,
};

/// How an agent's warning of a field of layer 7 begins, after the policy and the field.
const UNDECIDABLE: &str = "cannot be decided at L4: ";

/// Of every workload that was connected to. `root` is the namespace whose policies concern all.
pub(crate) fn layers(record: &Record, state: &State, root: &str) -> Layers {
    let asks: BTreeSet<Ask> = state.warnings().into_iter().filter_map(ask).collect();
    let mut ports: BTreeMap<Id, BTreeSet<u16>> = BTreeMap::new();
    for pair in record.pairs.keys() {
        ports.entry(pair.to).or_default().insert(pair.port);
    }
    let mut workloads: Vec<LayerWorkload> = ports
        .into_iter()
        .map(|(id, ports)| {
            let workload = record.workloads.get(id);
            let concerns = |ask: &&Ask| {
                let namespace = ask.policy.split('/').next().unwrap_or_default();
                namespace == workload.namespace || namespace == root
            };
            let policies: BTreeSet<&String> = asks.iter().filter(concerns).map(|ask| &ask.policy).collect();
            LayerWorkload {
                namespace: workload.namespace.clone(),
                workload: workload.title(),
                ports: ports.into_iter().collect(),
                answer: if policies.is_empty() {
                    LayerAnswer::Layer4IsEnough
                } else {
                    LayerAnswer::AsksForWaypoint
                },
                policies: policies.into_iter().cloned().collect(),
            }
        })
        .collect();
    workloads.sort_by(|a, b| a.workload.cmp(&b.workload));
    let mut notes = vec![
        "records are of layer 4: what an application speaks is not in them, and no port is taken for a protocol"
            .to_owned(),
    ];
    if !state.asked {
        notes
            .push("policies are not in records: whether one asks for layer 7, ask running agents".to_owned());
    }
    if !asks.is_empty() {
        notes.push(
            "agents say which policy asks for layer 7, and not for which pods: it is told of each workload of its namespace"
                .to_owned(),
        );
    }
    Layers {
        policies_known: state.asked,
        workloads,
        asks: asks.into_iter().collect(),
        notes,
    }
}

/// `shop/api: rules[0].to[0].operation.methods: cannot be decided at L4: the ALLOW rule never matches`
fn ask(warning: &str) -> Option<Ask> {
    let (policy, rest) = warning.split_once(": ")?;
    let (field, what) = rest.split_once(": ")?;
    Some(Ask {
        policy: policy.to_owned(),
        field: field.to_owned(),
        now: what.strip_prefix(UNDECIDABLE)?.to_owned(),
    })
}
