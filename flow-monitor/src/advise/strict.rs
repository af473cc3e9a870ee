//! Which namespaces could refuse plaintext, and who would break.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    record::{Client, Id, Record, Seen, address},
    report::{PlainClient, Strict, StrictAnswer, StrictWorkload},
    state::State,
};

#[derive(Default)]
struct Workload {
    verified: u64,
    clients: BTreeMap<String, PlainClient>,
}

/// Of every namespace that is known.
pub(crate) fn strict(record: &Record, state: &State) -> Vec<Strict> {
    let mut workloads: BTreeMap<Id, Workload> = BTreeMap::new();
    for (pair, seen) in &record.pairs {
        let workload = workloads.entry(pair.to).or_default();
        let blocks = match seen {
            Seen::Verified(sum) => {
                workload.verified += sum.connections();
                continue;
            }
            Seen::Plain(blocks) => blocks,
        };
        let mut count = |client: String, sum: &super::record::Sum| {
            let entry = workload.clients.entry(client.clone());
            let entry = entry.or_insert_with(|| PlainClient {
                client,
                ports: Vec::new(),
                connections: 0,
                refused: 0,
                last: None,
            });
            // Pairs come in the order of their ports.
            if entry.ports.last() != Some(&pair.port) {
                entry.ports.push(pair.port);
            }
            entry.connections += sum.connections();
            entry.refused += sum.denied();
            entry.last = entry.last.max(sum.last).max(sum.tried.map(|(time, _)| time));
        };
        match pair.from {
            Client::Plain(id) => count(record.workloads.get(id).title(), &blocks.total()),
            _ => blocks.iter().for_each(|(block, sum)| count(address(&block), sum)),
        }
    }
    let wanted = |namespace: &str| {
        record.namespaces.is_empty() || record.namespaces.iter().any(|wanted| wanted == namespace)
    };
    let all = record
        .workloads
        .iter()
        .map(|(_, workload)| workload.namespace.as_str());
    let namespaces: BTreeSet<&str> = all
        .chain(record.workloads.known_namespaces())
        .chain(state.namespaces())
        .filter(|namespace| wanted(namespace))
        .collect();
    let of = |namespace| of_namespace(namespace, &mut workloads, record, state);
    namespaces.into_iter().map(of).collect()
}

fn of_namespace(
    namespace: &str,
    workloads: &mut BTreeMap<Id, Workload>,
    record: &Record,
    state: &State,
) -> Strict {
    let own = record.workloads.iter();
    let own: Vec<_> = own
        .filter(|(_, workload)| workload.namespace == namespace)
        .collect();
    let modes = state.modes(namespace);
    let in_mesh = own.iter().any(|(_, workload)| workload.in_mesh)
        || modes.any()
        || record
            .workloads
            .known_namespaces()
            .any(|known| known == namespace);
    let mut result = Strict {
        namespace: namespace.to_owned(),
        answer: StrictAnswer::NotInMesh,
        verified: 0,
        plaintext: 0,
        probes: own.iter().filter_map(|(id, _)| record.probes.get(id)).sum(),
        workloads: Vec::new(),
        notes: modes.notes(),
    };
    if !in_mesh {
        result
            .notes
            .push("no pod of it is known to be in the mesh: STRICT would do nothing".to_owned());
        return result;
    }
    let mut refusing = 0;
    for (id, workload) in own {
        let Some(seen) = workloads.remove(&id) else {
            continue;
        };
        let mut clients: Vec<PlainClient> = seen.clients.into_values().collect();
        clients.sort_by(|a, b| (b.connections, &a.client).cmp(&(a.connections, &b.client)));
        let plaintext: u64 = clients.iter().map(|client| client.connections).sum();
        let refused: u64 = clients.iter().map(|client| client.refused).sum();
        refusing += refused;
        if !workload.in_mesh {
            if plaintext > 0 {
                result.notes.push(format!(
                    "{} is not known to be in the mesh: its plaintext is not counted",
                    workload.title()
                ));
            }
            continue;
        }
        result.verified += seen.verified;
        result.plaintext += plaintext;
        result.workloads.push(StrictWorkload {
            workload: workload.title(),
            answer: if plaintext > 0 {
                StrictAnswer::ClientsWouldBreak
            } else if seen.verified > 0 || refused > 0 {
                StrictAnswer::CouldGoStrict
            } else {
                StrictAnswer::NothingSeen
            },
            verified: seen.verified,
            plaintext,
            clients,
        });
    }
    result.workloads.sort_by(|a, b| a.workload.cmp(&b.workload));
    result.answer = if modes.all_strict() {
        StrictAnswer::IsStrict
    } else if result.plaintext > 0 {
        StrictAnswer::ClientsWouldBreak
    } else if result.verified > 0 {
        StrictAnswer::CouldGoStrict
    } else {
        StrictAnswer::NothingSeen
    };
    if result.answer == StrictAnswer::IsStrict && result.plaintext > 0 {
        result
            .notes
            .push("the plaintext was before it was STRICT".to_owned());
    }
    if refusing > 0 {
        result.notes.push(format!(
            "{refusing} attempts in plaintext were refused: see each workload's clients"
        ));
    }
    result
}
