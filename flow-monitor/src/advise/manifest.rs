//! Policies as `kubectl apply` takes them, with what they were made from in comments.

use std::fmt::Write as _;

use weir::style::{clean, clean_json};

use super::{
    report::{Basis, Policy},
    text,
};

/// A document for each policy. Comments say what each rule is for, and what would be denied.
pub(super) fn manifests(basis: &Basis, policy: &Policy) -> Result<String, serde_saphyr::ser::Error> {
    let mut out = String::new();
    let comment = |out: &mut String, line: &str| {
        let line = clean(line);
        // Writing to a String does not fail.
        let _ = writeln!(out, "# {line}");
    };
    for line in text::made_from(basis) {
        comment(&mut out, &line);
    }
    for note in &policy.notes {
        comment(&mut out, note);
    }
    for (title, attempts) in [
        ("Would be denied:", &policy.would_deny),
        ("No policy can be written for:", &policy.not_covered),
    ] {
        if !attempts.is_empty() {
            comment(&mut out, title);
        }
        for attempt in attempts {
            comment(&mut out, &format!("  {}", text::attempt(attempt)));
        }
    }
    for one in &policy.policies {
        out.push_str("---\n");
        let share = text::percent(one.share);
        comment(
            &mut out,
            &format!(
                "For {}: {} connections, {share} of all",
                one.workloads.join(", "),
                one.connections
            ),
        );
        for (index, rule) in one.rules.iter().enumerate() {
            comment(&mut out, &format!("  rule {index}: {}", text::covers(rule)));
        }
        for note in &one.notes {
            comment(&mut out, note);
        }
        let yaml = serde_saphyr::to_string(&one.manifest)?;
        out.push_str(clean_json(yaml.trim_end()).as_ref());
        out.push('\n');
    }
    Ok(out)
}
