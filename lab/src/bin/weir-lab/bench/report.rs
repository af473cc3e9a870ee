//! Medians and ratios, as a table and as JSON.

use std::{borrow::Cow, collections::BTreeMap};

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{Case, Key, Metric, Path, SystemKind, programs::Usage};

/// One number.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    path: Path,
    case: Case,
    system: SystemKind,
    metric: Cow<'static, str>,
    value: f64,
    unit: &'static str,
    /// To no mesh; absent where that is nothing.
    ratio: Option<f64>,
    /// What is wanted at most, where something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
}

/// The median of each key's samples.
pub(crate) fn rows(samples: &BTreeMap<Key, Vec<f64>>) -> Vec<Row> {
    let medians: BTreeMap<Key, f64> = samples
        .iter()
        .map(|(key, values)| (*key, median(values)))
        .collect();
    medians
        .iter()
        .map(|(&(path, case, metric, system), &value)| {
            let none = medians.get(&(path, case, metric, SystemKind::None)).copied();
            let ratio = none.filter(|none| *none > 0.0).map(|none| value / none);
            let Metric { name, unit } = metric;
            Row {
                path,
                case,
                system,
                metric: name.into(),
                value,
                unit,
                ratio,
                target: None,
            }
        })
        .collect()
}

/// A line for each metric, a column for each system.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines = BTreeMap::<(Path, Case, &str, &str), BTreeMap<SystemKind, &Row>>::new();
    let mut systems = Vec::new();
    for row in rows {
        lines
            .entry((row.path, row.case, &*row.metric, row.unit))
            .or_default()
            .insert(row.system, row);
        if !systems.contains(&row.system) {
            systems.push(row.system);
        }
    }
    systems.sort();
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut header = vec![
        "path".to_owned(),
        "case".to_owned(),
        "metric".to_owned(),
        "unit".to_owned(),
    ];
    for system in &systems {
        header.push(system.name().to_owned());
        if *system != SystemKind::None {
            header.push("ratio".to_owned());
        }
    }
    table.set_header(header);
    for ((path, case, metric, unit), line) in &lines {
        let case = clap::ValueEnum::to_possible_value(case).map(|value| value.get_name().to_owned());
        let mut cells = vec![
            path.name().to_owned(),
            case.unwrap_or_default(),
            (*metric).to_owned(),
            (*unit).to_owned(),
        ];
        for system in &systems {
            let row = line.get(system);
            cells.push(row.map_or_else(String::new, |row| rounded(row.value)));
            if *system != SystemKind::None {
                cells.push(
                    row.and_then(|row| row.ratio)
                        .map_or_else(String::new, |ratio| format!("{ratio:.2}")),
                );
            }
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// What the kernel programs did, as rows of their own.
pub(crate) fn programs_rows(usages: &[Usage]) -> Vec<Row> {
    let row = |usage: &Usage, metric: String, unit, value, target| Row {
        path: Path::SameNode,
        case: Case::Programs,
        system: usage.system,
        metric: metric.into(),
        value,
        unit,
        ratio: None,
        target,
    };
    let mut rows = Vec::new();
    for usage in usages {
        for program in &usage.programs {
            let name = |what: &str| format!("{} {what}", program.name);
            rows.push(row(usage, name("runs"), "1/connection", program.runs, None));
            rows.push(row(usage, name("time"), "ns/run", program.run, program.target));
        }
        let all = "all programs".to_owned();
        rows.push(row(usage, all, "ns/connection", usage.all, usage.target_of_all));
    }
    rows
}

/// A line for each program of each system.
pub(crate) fn programs_table(usages: &[Usage]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "system",
        "kernel program",
        "runs/connection",
        "ns/run",
        "at most",
        "ns/connection",
        "at most",
    ]);
    let text = |target: Option<f64>| target.map_or_else(String::new, |target| format!("{target:.0}"));
    for usage in usages {
        for program in &usage.programs {
            table.add_row([
                usage.system.name(),
                &program.name,
                &format!("{:.2}", program.runs),
                &format!("{:.0}", program.run),
                &text(program.target),
                &format!("{:.0}", program.runs * program.run),
                "",
            ]);
        }
        let all = format!("{:.0}", usage.all);
        let most = text(usage.target_of_all);
        table.add_row([usage.system.name(), "all", "", "", "", &all, &most]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// Three digits or so: more would be noise.
pub(super) fn rounded(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        1.0.. => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The one in the middle.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::programs::Program;

    #[test]
    fn ratios_are_those_of_medians() {
        let metric = Metric {
            name: "throughput",
            unit: "Gb/s",
        };
        let key = |system| (Path::CrossNode, Case::Bulk1, metric, system);
        let samples = BTreeMap::from([
            (key(SystemKind::None), vec![30.0, 10.0, 20.0]),
            (key(SystemKind::Mtls), vec![4.0, 6.0, 100.0, 1.0]),
        ]);
        let rows = rows(&samples);
        let json = serde_json::to_value(&rows).unwrap();
        assert_eq!(
            json[1],
            serde_json::json!({
                "path": "cross-node", "case": "bulk-1", "system": "mtls", "metric": "throughput",
                "value": 5.0, "unit": "Gb/s", "ratio": 0.25,
            })
        );
        assert!(table(&rows).contains("0.25"));
    }

    #[test]
    fn what_programs_take_stands_beside_what_they_may_take() {
        let usage = Usage {
            system: SystemKind::Direct,
            programs: vec![Program {
                name: "weir_connect4".to_owned(),
                runs: 2.0,
                run: 321.4,
                target: Some(500.0),
            }],
            all: 642.8,
            target_of_all: Some(3000.0),
        };
        let table = programs_table(std::slice::from_ref(&usage));
        let lines: Vec<Vec<_>> = table
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[0], ["direct", "weir_connect4", "2.00", "321", "500", "643"]);
        assert_eq!(lines[1], ["direct", "all", "643", "3000"]);
        let json = serde_json::to_value(programs_rows(&[usage])).unwrap();
        assert_eq!(json[1]["metric"], "weir_connect4 time");
        assert_eq!(json[1]["target"], 500.0);
        assert_eq!(json[2]["case"], "programs");
    }
}
