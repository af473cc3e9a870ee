//! Figures of the cases that are measured alone, for people and for programs.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use serde_json::{Value, json};

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub(in crate::bench) struct Figure {
    metric: String,
    value: f64,
    unit: &'static str,
    /// What is promised, where something is.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<f64>,
    /// Whether that is the least, and not the most.
    #[serde(skip)]
    is_least: bool,
}

impl Figure {
    pub(in crate::bench) fn new(metric: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self {
            metric: metric.into(),
            value,
            unit,
            target: None,
            is_least: false,
        }
    }

    /// With what is promised at most.
    pub(in crate::bench) fn at_most(self, target: f64) -> Self {
        Self {
            target: Some(target),
            ..self
        }
    }

    /// With what is promised at least.
    pub(in crate::bench) fn at_least(self, target: f64) -> Self {
        Self {
            target: Some(target),
            is_least: true,
            ..self
        }
    }
}

/// An object for each.
pub(in crate::bench) fn rows(case: &str, figures: &[Figure]) -> Vec<Value> {
    let row = |figure: &Figure| {
        let mut row = json!(figure);
        row["case"] = case.into();
        row
    };
    figures.iter().map(row).collect()
}

/// A line for each.
pub(in crate::bench) fn table(title: &str, figures: &[Figure]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([title, "value", "unit", "promised"]);
    for figure in figures {
        let side = if figure.is_least { ">=" } else { "<=" };
        let target = figure
            .target
            .map_or_else(String::new, |target| format!("{side} {target}"));
        table.add_row([
            &figure.metric,
            &super::report::rounded(figure.value),
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
        let table = table("control plane", &figures);
        let lines: Vec<Vec<_>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines[1], ["memory,", "peak", "312", "MB", "<=", "400"]);
        assert_eq!(lines[2], ["bytes", "8.2", "MB"]);
        let json = rows("control", &figures);
        assert_eq!(json[0]["case"], "control");
        assert_eq!(json[0]["target"], 400.0);
        assert!(json[1].get("target").is_none());
    }
}
