//! Looks for files, where a container has no shell.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Args;

/// Prints files and folders below a folder whose name or text holds something.
#[derive(Debug, Args)]
pub(crate) struct Find {
    /// Where to look.
    folder: PathBuf,
    /// In the name.
    #[arg(long)]
    name: String,
    /// In the text of a regular file of at most a mebibyte.
    #[arg(long)]
    text: Option<String>,
}

/// Larger files are not read.
const MOST: u64 = 1 << 20;

impl Find {
    pub(crate) fn run(self) -> Result<()> {
        self.look(&self.folder)
    }

    fn look(&self, folder: &Path) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
        for entry in entries {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let named = entry.file_name().to_string_lossy().contains(&self.name);
            if named || (kind.is_file() && self.holds(&path)) {
                println!("{}", path.display());
            } else if kind.is_dir() {
                self.look(&path)?;
            }
        }
        Ok(())
    }

    fn holds(&self, path: &Path) -> bool {
        let Some(text) = &self.text else {
            return false;
        };
        let small = fs::metadata(path).is_ok_and(|meta| meta.len() <= MOST);
        small && fs::read(path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text.as_str()))
    }
}
