//! The record of a lab's places in its folder, by which another process can enter them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::{Place, lab::replace_file, run};

const FILE: &str = "places.json";

#[derive(Debug, Serialize, Deserialize)]
struct PlaceRecord {
    name: String,
    netns: String,
    cgroup: PathBuf,
}

/// Writes the record.
pub(crate) fn record<'a>(folder: &Path, places: impl Iterator<Item = &'a Place>) -> Result<()> {
    let records: Vec<_> = places
        .map(|place| PlaceRecord {
            name: place.name.clone(),
            netns: place.netns.clone(),
            cgroup: place.cgroup.clone(),
        })
        .collect();
    replace_file(&folder.join(FILE), &serde_json::to_vec_pretty(&records)?)
}

/// A place of a lab of another process, by its name (a pod's uid, a node's name), for entering it.
///
/// # Errors
/// When no live lab has it, or several do and `lab` names none of them.
pub fn find(name: &str, lab: Option<&str>) -> Result<Place> {
    let mut found = Vec::new();
    let mut known = Vec::new();
    for run in run::live()?
        .iter()
        .filter(|run| lab.is_none_or(|id| id == run.id()))
    {
        let Ok(text) = fs::read(run.folder().join(FILE)) else {
            continue;
        };
        for PlaceRecord {
            name: other,
            netns,
            cgroup,
        } in serde_json::from_slice(&text).unwrap_or(Vec::new())
        {
            if other == name {
                let logs = run.folder().join("log");
                found.push(Place {
                    name: other,
                    netns,
                    cgroup,
                    logs,
                });
            } else {
                known.push(format!("{other} (lab {})", run.id()));
            }
        }
    }
    match (found.pop(), found.len()) {
        (Some(place), 0) => Ok(place),
        (Some(_), _) => bail!("several labs have {name}: say which one with --lab"),
        (None, _) if known.is_empty() => bail!("no lab is running: start one with `cargo xtask demo --keep`"),
        (None, _) => bail!("no lab has {name}; there are: {}", known.join(", ")),
    }
}
