//! What is translated, asked of the evaluator that decides in the mesh; what the originals decide stands in the tables.

use std::{collections::BTreeMap, net::IpAddr};

use clap::Parser as _;
use kube::api::DynamicObject;
use serde_json::Value;
use weir_control::{
    cluster::{PolicyApi, Read},
    crd::{Reading, read_authorization, read_peer_authentication},
};
use weir_policy::{Policies, Request, Verdict};

use super::{Settings, input, report::Outcome, report::Report, translate};

mod bounds;
mod chance;
mod istio;
mod linkerd;

const ROOT: &str = "weir-system";

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    settings: Settings,
}

pub(super) fn settings(arguments: &[&str]) -> Settings {
    let line = Line::parse_from(["weir"].iter().chain(arguments));
    Settings {
        root: ROOT.to_owned(),
        ..line.settings
    }
}

/// What became of objects in YAML.
pub(super) fn migrated(yaml: &str) -> Report {
    migrated_with(yaml, &[])
}

pub(super) fn migrated_with(yaml: &str, arguments: &[&str]) -> Report {
    let items = input::parse(yaml, "test.yaml", "default").unwrap();
    let report = translate(&items, &settings(arguments));
    let mut text = Vec::new();
    report.print(&mut text).unwrap();
    println!(
        "{}",
        anstream::adapter::strip_str(std::str::from_utf8(&text).unwrap())
    );
    for made in &report.made {
        let yaml = serde_saphyr::to_string(&made.object).unwrap();
        println!("---\n{yaml}");
        let again: Value = serde_saphyr::from_str(&yaml).unwrap();
        assert_eq!(again, made.object, "it is read as it was written");
    }
    // Each is accepted.
    policies(&report);
    report
}

/// As the control plane reads what was made.
pub(super) fn policies(report: &Report) -> Policies {
    let (mut authorizations, mut peers) = (Vec::new(), Vec::new());
    for made in &report.made {
        let object: DynamicObject = serde_json::from_value(made.object.clone()).unwrap();
        if made.object["kind"] == "PeerAuthentication" {
            let (_, read) = read_peer_authentication(&object).unwrap();
            let Reading::Policy(Read::Understood(policy)) = read else {
                panic!("{read:?}")
            };
            peers.push(policy);
        } else {
            let (_, read) = read_authorization(PolicyApi::Weir, &object).unwrap();
            let Reading::Policy(Read::Understood(policy)) = read else {
                panic!("{read:?}")
            };
            let (policy, warnings) = policy.compile(ROOT).unwrap();
            assert!(warnings.is_empty(), "{warnings:?}");
            authorizations.push(policy);
        }
    }
    Policies::new(ROOT, authorizations, &peers).unwrap()
}

/// Whether a connection is let through: who (`-` for nobody), from where, to which port of `namespace/app`.
pub(super) fn allowed(report: &Report, who: &str, from: &str, to: &str, port: u16) -> bool {
    let (namespace, app) = to.split_once('/').unwrap();
    let labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
    let identity = (who != "-").then(|| {
        let who = match who.matches('/').count() {
            1 => {
                let (namespace, account) = who.split_once('/').unwrap();
                format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
            }
            _ => format!("spiffe://{who}"),
        };
        who.parse().unwrap()
    });
    let from: IpAddr = from.parse().unwrap();
    let policies = policies(report).for_workload(namespace, &labels);
    let decision = policies.decide(&Request {
        source: identity.as_ref(),
        source_ip: from,
        destination_ip: [10, 9, 9, 9].into(),
        destination_port: port,
    });
    matches!(decision.verdict, Verdict::Allowed(_))
}

/// A connection, whether the original lets it through, and whether the translation does.
pub(super) type Row = (&'static str, &'static str, &'static str, u16, bool, bool);

pub(super) fn check(report: &Report, rows: &[Row]) {
    for (who, from, to, port, original, translated) in rows {
        assert!(*original || !translated, "never more than the original");
        assert_eq!(
            allowed(report, who, from, to, *port),
            *translated,
            "{who} from {from} to {to}:{port}"
        );
    }
}

/// What became of each, in the order of the report.
pub(super) fn outcomes(report: &Report) -> Vec<(&str, Outcome)> {
    let entries = report.entries.iter();
    entries
        .map(|entry| (entry.object.as_str(), entry.outcome))
        .collect()
}

pub(super) fn said(report: &Report) -> String {
    let notes = report.entries.iter().flat_map(|entry| &entry.notes);
    notes
        .map(|note| format!("{:?} {}\n", note.effect, note.text))
        .collect()
}
