//! Licences and banned crates. `cargo deny` where it is installed; compiling it takes longer than all of the tests, so
//! CI makes do with a check of the same lists.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::steps::{SELECTION, cargo, output, root, run};

/// Checks them.
pub(crate) fn check() -> Result<()> {
    if output(Command::new("cargo-deny").arg("--version")).is_some() {
        return run(cargo("deny").args(["check", "bans", "licenses", "sources"]));
    }
    eprintln!("   cargo-deny is not installed: checking licenses.allow and bans.deny of deny.toml alone");
    let policy = fs::read_to_string(root().join("deny.toml")).context("deny.toml")?;
    let allowed = list(&policy, "allow").context("deny.toml has licenses.allow")?;
    let banned = list(&policy, "deny").context("deny.toml has bans.deny")?;
    let mut tree = cargo("tree");
    tree.args(SELECTION)
        .args(["--target", "all", "--prefix", "none", "--format", "{p}\t{l}"]);
    let tree = output(&mut tree).context("cargo tree")?;
    let wrong: BTreeSet<_> = tree
        .lines()
        .filter_map(|line| complaint(line, &allowed, &banned))
        .collect();
    ensure!(
        wrong.is_empty(),
        "deny.toml forbids:\n{}",
        wrong.into_iter().collect::<Vec<_>>().join("\n")
    );
    Ok(())
}

/// What is wrong with a line of `cargo tree`.
fn complaint(line: &str, allowed: &[&str], banned: &[&str]) -> Option<String> {
    let (package, license) = line.split_once('\t')?;
    let name = package.split(' ').next()?;
    if banned.contains(&name) {
        return Some(format!("{package}: a banned crate"));
    }
    // `(*)` marks a package that was listed before.
    let license = license.trim_end_matches("(*)").trim();
    (!acceptable(license, allowed)).then(|| format!("{package}: license {license:?}"))
}

/// Whether every licence that must be accepted can be: all crates state theirs as alternatives joined by AND.
fn acceptable(license: &str, allowed: &[&str]) -> bool {
    license.split(" AND ").all(|alternatives| {
        let alternatives = alternatives.trim_matches(['(', ')', ' ']).replace('/', " OR ");
        alternatives
            .split(" OR ")
            .any(|name| allowed.contains(&name.trim()))
    })
}

/// The strings of `key = [...]`.
fn list<'a>(policy: &'a str, key: &str) -> Option<Vec<&'a str>> {
    let start = policy.find(&format!("\n{key} = ["))?;
    let inside = policy[start..].split_once('[')?.1.split_once(']')?.0;
    Some(inside.split('"').skip(1).step_by(2).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_license_is_acceptable_if_each_part_has_an_allowed_alternative() {
        let policy = "[licenses]\nallow = [\n  \"MIT\",\n  \"ISC\",\n]\n[bans]\ndeny = [\"ring\"]\n";
        let (allowed, banned) = (list(policy, "allow").unwrap(), list(policy, "deny").unwrap());
        let table = [
            ("a v1\tMIT", true),
            ("a v1\tApache-2.0 OR MIT (*)", true),
            ("a v1\tApache-2.0/ISC", true),
            ("a v1\tISC AND (GPL-3.0 OR MIT) AND MIT", true),
            ("a v1\tMIT AND GPL-3.0", false),
            ("a v1\t", false),
            ("ring v1\tMIT", false),
        ];
        for (line, fine) in table {
            assert_eq!(complaint(line, &allowed, &banned).is_none(), fine, "{line}");
        }
    }
}
