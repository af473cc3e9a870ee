//! What Prometheus makes of metrics: `promtool`, and the families of a page.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
};

/// A family of a metrics page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Family {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// Names of its labels, without a histogram's `le`.
    pub labels: BTreeSet<String>,
}

/// Runs promtool. What it printed, if it found nothing wrong; else that too.
///
/// # Errors
/// What it found wrong.
///
/// # Panics
/// When it cannot be run.
pub fn promtool(arguments: &[&str], folder: &Path, input: &str) -> Result<String, String> {
    let mut command = Command::new("promtool");
    command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .expect("promtool cannot be run; .ci/install-test-programs installs it");
    let mut stdin = child.stdin.take().expect("its standard input");
    stdin
        .write_all(input.as_bytes())
        .expect("promtool to read its input");
    drop(stdin);
    let output = child.wait_with_output().expect("promtool to end");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(said)
    } else {
        Err(said)
    }
}

/// Sees that `promtool check metrics` has nothing to say of a page.
///
/// # Panics
/// When it has.
pub fn check_page(page: &str) {
    let said = promtool(&["check", "metrics"], Path::new("/"), page);
    assert_eq!(said.as_deref(), Ok(""), "promtool, of\n{page}");
}

/// The families of a page, by name.
///
/// # Panics
/// When it has a line that is none of the text format.
#[must_use]
pub fn families(page: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if !line.starts_with('#') && !line.is_empty() {
            let (name, labels) = series(line);
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|end| name.strip_suffix(end))
                .find(|name| families.contains_key(*name))
                .unwrap_or(name);
            let family = families.get_mut(family).expect("a type before its series");
            family
                .labels
                .extend(labels.filter(|label| *label != "le").map(str::to_owned));
        }
    }
    families
}

/// Name and label names of a line. No label value of ours has a comma or an equals sign.
fn series(line: &str) -> (&str, impl Iterator<Item = &str>) {
    let end = line.find(['{', ' ']).expect("a name");
    let labels = line[end..]
        .strip_prefix('{')
        .and_then(|rest| rest.split_once('}'));
    let labels = labels.map_or("", |(labels, _)| labels).split(',');
    (
        &line[..end],
        labels.filter_map(|pair| Some(pair.split_once('=')?.0)),
    )
}

/// The value of a series, with its labels as the page has them; 0 if it is not there.
#[must_use]
pub fn value(page: &str, series: &str) -> f64 {
    let value = page
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or(0.0)
}

/// The families that `docs/metrics.md` lists under a heading.
///
/// # Panics
/// When a row of its tables is not as the others.
#[must_use]
pub fn documented(heading: &str) -> BTreeMap<String, Family> {
    let text = include_str!("../../docs/metrics.md");
    let part = text
        .split("\n## ")
        .find(|part| part.lines().next() == Some(heading))
        .unwrap_or_default();
    let rows = part.lines().filter(|line| line.starts_with("| `weir_"));
    let family = |row: &str| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, kind, labels, ..] = cells[..] else {
            panic!("{row}");
        };
        let labels = labels
            .split(", ")
            .filter_map(|label| label.strip_prefix('`')?.strip_suffix('`').map(str::to_owned));
        let family = Family {
            kind: kind.to_owned(),
            labels: labels.collect(),
        };
        (name.trim_matches('`').to_owned(), family)
    };
    rows.map(family).collect()
}

/// Sees that a page has what is documented under a heading, and nothing else.
///
/// # Panics
/// When it has not.
pub fn check_documented(page: &str, heading: &str) {
    let (live, documented) = (families(page), documented(heading));
    for (name, family) in &live {
        assert_eq!(
            documented.get(name),
            Some(family),
            "docs/metrics.md, under {heading}: {name}"
        );
    }
    for name in documented.keys() {
        assert!(
            live.contains_key(name),
            "docs/metrics.md lists {name}, which is not served:\n{page}"
        );
    }
}
