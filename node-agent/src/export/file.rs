//! A file that is put aside when it is full.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// A file of bounded size, and those that were full before.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    most: u64,
    keep: u32,
    file: File,
    size: u64,
}

// === impl RotatingFile ===

impl RotatingFile {
    /// Opens it, to go on where it ends.
    pub(super) fn open(path: &Path, most: u64, keep: u32) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let file = append(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            // It would be put aside like any other.
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "expected a regular file",
            ));
        }
        let size = meta.len();
        Ok(Self {
            path: path.to_owned(),
            most,
            keep,
            file,
            size,
        })
    }

    /// Writes whole lines. One file holds them all: none is torn.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let length = lines.len() as u64;
        // Somebody else may have taken it away.
        if !self.path.exists() || (self.size > 0 && self.size + length > self.most) {
            self.rotate()?;
        }
        self.size += length;
        self.file.write_all(lines)
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.path.exists() {
            // From the oldest on, which the one before it replaces.
            for number in (1..self.keep).rev() {
                move_on(&self.aside(number), &self.aside(number + 1))?;
            }
            if self.keep > 0 {
                move_on(&self.path, &self.aside(1))?;
            } else {
                fs::remove_file(&self.path)?;
            }
        }
        self.file = append(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }

    fn aside(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

fn append(path: &Path) -> io::Result<File> {
    // It tells what runs where.
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn move_on(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        moved => moved,
    }
}
