//! What a check found.

use serde::Serialize;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// It works, or may work; worth a look.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// What was looked at.
    pub(crate) about: String,
    /// What was found.
    pub(crate) what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) todo: Option<String>,
}

impl Finding {
    pub(crate) fn ok(about: &str, what: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            about: about.to_owned(),
            what: what.into(),
            todo: None,
        }
    }

    pub(crate) fn warn(about: &str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            todo: Some(todo.into()),
            ..Self::ok(about, what)
        }
    }

    pub(crate) fn fail(about: &str, what: impl Into<String>, todo: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(about, what, todo)
        }
    }
}

/// Names in a finding before the rest is only counted.
const NAMED: usize = 6;

/// Names, of which there may be thousands.
pub(crate) fn named<S: AsRef<str>>(names: &[S]) -> String {
    let first: Vec<&str> = names.iter().take(NAMED).map(AsRef::as_ref).collect();
    let mut text = first.join(", ");
    if names.len() > NAMED {
        text.push_str(&format!(" and {} more", names.len() - NAMED));
    }
    text
}

/// `1 node`, `2 nodes`.
pub(crate) fn count(number: usize, what: &str) -> String {
    if number == 1 {
        format!("1 {what}")
    } else {
        format!("{number} {what}s")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// How bad each finding is, with the words that must stand in it.
    pub(in crate::check) fn assert_found(findings: &[Finding], expected: &[(Level, &str)]) {
        let levels: Vec<Level> = findings.iter().map(|one| one.level).collect();
        let wanted: Vec<Level> = expected.iter().map(|(level, _)| *level).collect();
        assert_eq!(levels, wanted, "{findings:#?}");
        for (finding, (_, words)) in findings.iter().zip(expected) {
            let text = format!(
                "{}: {} {}",
                finding.about,
                finding.what,
                finding.todo.as_deref().unwrap_or_default()
            );
            assert!(text.contains(words), "{text}\nwithout: {words}");
        }
    }

    #[test]
    fn many_names_are_counted() {
        let names: Vec<String> = (0..8).map(|number| format!("n{number}")).collect();
        assert_eq!(named(&names), "n0, n1, n2, n3, n4, n5 and 2 more");
        assert_eq!(named(&names[..2]), "n0, n1");
        assert_eq!(
            (count(1, "node"), count(2, "node")),
            ("1 node".to_owned(), "2 nodes".to_owned())
        );
    }
}
