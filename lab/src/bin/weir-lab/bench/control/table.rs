//! The figures, for people and for programs.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(in crate::bench) struct Figure {
    case: &'static str,
    metric: String,
    value: f64,
    unit: &'static str,
    /// What is promised at most, where something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
}

impl Figure {
    pub(super) fn new(metric: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            case: "control",
            metric: metric.into(),
            value,
            unit,
            target: None,
        }
    }

    /// With what is promised at most.
    pub(super) fn at_most(self, target: f64) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }
}

/// A line for each.
pub(in crate::bench) fn table(figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["control plane", "value", "unit", "at most"]);
    for figure in figures {
        let target = figure
            .target
            .map_or_else(String::new, |target| target.to_string());
        table.add_row([
            &figure.metric,
            &super::super::report::rounded(figure.value),
            figure.unit,
            &target,
        ]);
    }
    for index in [1, 3] {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_stands_beside_its_figure_and_nothing_where_nothing_is_promised() {
        let figures = [
            Figure::new("memory, peak", 312.4, "MB").at_most(400.0),
            Figure::new("bytes", 8.25, "MB"),
        ];
        let table = table(&figures);
        let lines: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1], ["memory,", "peak", "312", "MB", "400"]);
        assert_eq!(lines[2], ["bytes", "8.2", "MB"]);
        let json = serde_json::to_value(&figures).unwrap();
        assert_eq!(json[0]["target"], 400.0);
        assert!(json[1].get("target").is_none());
    }
}
