//! Puts the plugin into the node's CNI, keeps it there, and takes it out again.

use std::{
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use super::conflist::{self, ConflistError, MADE, PLUGIN};
use crate::{agent::Agent, config::CniConfig};

/// How often it is looked whether the network's own installer has written its configuration anew.
const INTERVAL: Duration = Duration::from_secs(1);
/// Of the executable.
const EXECUTABLE: u32 = 0o755;
/// Of a list that is made from a configuration whose mode cannot be seen.
const PRIVATE: u32 = 0o600;
/// Largest configuration that is read: they have some kilobytes.
const MAX_CONFIG: u64 = 1 << 20;
/// The part of the agent that a fault is noted under.
const PART: &str = "CNI installation";

/// Why the plugin is not where it should be. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no configuration yet.
    #[error("{}: there is no CNI configuration (yet)", .0.display())]
    Nothing(PathBuf),
    /// A configuration is none.
    #[error("{}: {source}", path.display())]
    Conflist {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ConflistError,
    },
    /// Runtimes would take the single configuration before a list made from it.
    #[error("{}: no list can be made that comes before it by name: rename it to begin with '1'", .0.display())]
    Order(PathBuf),
}

fn at(path: &Path) -> impl Fn(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File {
        path: path.clone(),
        source,
    }
}

/// Keeps the plugin installed, for ever.
pub async fn keep(agent: Arc<Agent>, config: CniConfig) {
    let (Some(bin_dir), Some(conf_dir)) = (&config.bin_dir, &config.conf_dir) else {
        return;
    };
    let entry = conflist::entry(&config.socket, &config.state_file);
    let mut ticks = tokio::time::interval(INTERVAL);
    let mut copied = false;
    loop {
        ticks.tick().await;
        let result = tokio::task::block_in_place(|| {
            // First the executable: a list that names one that is not there lets no pod start.
            if !copied || !bin_dir.join(PLUGIN).exists() {
                copy(bin_dir)?;
                copied = true;
            }
            put(conf_dir, &entry)
        });
        match result {
            Ok(changed) => {
                for path in changed {
                    tracing::info!(path = %path.display(), "the CNI plugin is in the node's configuration");
                }
                agent.fault(PART, None);
            }
            Err(error) => agent.fault(PART, Some(format!("{error}; pods start unprotected until then"))),
        }
    }
}

/// Takes the plugin out of all that an agent with this configuration put it into. What it finds gone is well.
///
/// # Errors
/// When a file cannot be changed; the lists beside it were.
pub fn remove(config: &CniConfig) -> Result<(), InstallError> {
    let mut result = Ok(());
    let mut note = |done: Result<(), InstallError>| {
        if done.is_err() {
            result = done;
        }
    };
    if let Some(conf_dir) = &config.conf_dir {
        match files(conf_dir) {
            Ok(files) => files.iter().for_each(|path| note(take_out(path))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => note(Err(at(conf_dir)(error))),
        }
    }
    // While a list may name the executable it has to be there: without it no pod at all starts.
    result?;
    if let Some(bin_dir) = &config.bin_dir {
        unlink(&bin_dir.join(PLUGIN))?;
    }
    unlink(&config.state_file)
}

fn take_out(path: &Path) -> Result<(), InstallError> {
    if is_made(path) {
        return unlink(path);
    }
    if path.extension() != Some(OsStr::new("conflist")) {
        return Ok(());
    }
    let (text, mode) = read(path).map_err(at(path))?;
    // What is no list has no plugin of ours.
    match conflist::remove(&text) {
        Ok(Some(without)) => replace(path, without.as_bytes(), mode).map_err(at(path)),
        Ok(None) | Err(_) => Ok(()),
    }
}

fn unlink(path: &Path) -> Result<(), InstallError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// Copies the executable from beside the agent's own.
fn copy(bin_dir: &Path) -> Result<(), InstallError> {
    let own = std::env::current_exe().map_err(at(Path::new("/proc/self/exe")))?;
    let from = own.with_file_name(PLUGIN);
    let to = bin_dir.join(PLUGIN);
    let new = fs::read(&from).map_err(at(&from))?;
    if fs::read(&to).is_ok_and(|old| old == new)
        && fs::metadata(&to).is_ok_and(|meta| meta.mode() & 0o111 == 0o111)
    {
        return Ok(());
    }
    replace(&to, &new, EXECUTABLE).map_err(at(&to))
}

/// Puts the plugin into the first list, or into one made from the first single configuration. Gives the files that it changed.
fn put(conf_dir: &Path, entry: &serde_json::Value) -> Result<Vec<PathBuf>, InstallError> {
    let all = files(conf_dir).map_err(at(conf_dir))?;
    // Runtimes take the first by name. Lists that were made here are what their source says.
    let first = all.iter().find(|path| !is_made(path));
    let first = first.ok_or_else(|| InstallError::Nothing(conf_dir.to_owned()))?;
    let (text, mode) = read(first).map_err(at(first))?;
    let wrong = |source| InstallError::Conflist {
        path: first.clone(),
        source,
    };
    let is_list = first.extension() == Some(OsStr::new("conflist"));
    let (path, wanted) = if is_list {
        (first.clone(), conflist::insert(&text, entry).map_err(wrong)?)
    } else {
        let path = made_from(first);
        if path >= *first {
            return Err(InstallError::Order(first.clone()));
        }
        let list = conflist::from_single(&text, entry).map_err(wrong)?;
        let is_there = read(&path).is_ok_and(|(text, _)| text == list);
        (path, (!is_there).then_some(list))
    };
    let mut changed = Vec::new();
    if let Some(text) = wanted {
        replace(&path, text.as_bytes(), mode).map_err(at(&path))?;
        changed.push(path.clone());
    }
    // One of a configuration that is gone, or not the first any more, would keep it in force.
    for old in all.iter().filter(|own| is_made(own) && **own != path) {
        unlink(old)?;
    }
    Ok(changed)
}

/// The files that runtimes look at, by name.
fn files(conf_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let is_configuration = |path: &PathBuf| {
        let extension = path.extension().and_then(OsStr::to_str);
        matches!(extension, Some("conf" | "conflist" | "json")) && path.is_file()
    };
    let mut all = Vec::new();
    for entry in fs::read_dir(conf_dir)? {
        all.push(entry?.path());
    }
    all.retain(is_configuration);
    all.sort();
    Ok(all)
}

fn is_made(path: &Path) -> bool {
    path.file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|name| name.starts_with(MADE))
}

fn made_from(path: &Path) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{MADE}{stem}.conflist"))
}

fn read(path: &Path) -> io::Result<(String, u32)> {
    let file = File::open(path)?;
    let mode = file
        .metadata()
        .map_or(PRIVATE, |meta| meta.permissions().mode() & 0o7777);
    let mut text = String::new();
    file.take(MAX_CONFIG).read_to_string(&mut text)?;
    Ok((text, mode))
}

/// Replaces a file, or makes it: who reads it sees the old or the new, and nothing else.
pub(super) fn replace(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    // A name that no runtime takes for a configuration's.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let hidden = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    let written = (|| {
        let _ = fs::remove_file(&hidden);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(PRIVATE)
            .open(&hidden)?;
        file.write_all(contents)?;
        // Past the umask.
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        // A node that loses power must not come up with an empty one.
        file.sync_all()?;
        fs::rename(&hidden, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&hidden);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{ "cniVersion": "1.0.0", "name": "n", "plugins": [{ "type": "bridge" }] }"#;
    const SINGLE: &str = r#"{ "cniVersion": "1.0.0", "name": "n", "type": "bridge" }"#;

    fn entry() -> serde_json::Value {
        conflist::entry(Path::new("/s"), Path::new("/f"))
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_first_list_gets_the_plugin_again_whenever_it_is_written_anew_and_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second) = (
            folder.path().join("05-a.conflist"),
            folder.path().join("10-b.conflist"),
        );
        let config = CniConfig {
            conf_dir: Some(folder.path().to_owned()),
            state_file: folder.path().join("state"),
            ..CniConfig::default()
        };
        assert!(matches!(
            put(folder.path(), &entry()),
            Err(InstallError::Nothing(_))
        ));
        fs::write(&second, LIST).unwrap();
        for _ in 0..2 {
            fs::write(&first, LIST).unwrap();
            fs::set_permissions(&first, fs::Permissions::from_mode(0o640)).unwrap();
            assert_eq!(
                put(folder.path(), &entry()).unwrap(),
                std::slice::from_ref(&first)
            );
            let inode = fs::metadata(&first).unwrap().ino();
            assert!(
                put(folder.path(), &entry()).unwrap().is_empty(),
                "it comes to rest"
            );
            let meta = fs::metadata(&first).unwrap();
            assert_eq!((meta.mode() & 0o777, meta.ino()), (0o640, inode));
        }
        assert_eq!(fs::read_to_string(&second).unwrap(), LIST);
        remove(&config).unwrap();
        let text = fs::read_to_string(&first).unwrap();
        assert!(!text.contains(PLUGIN) && text.contains("bridge"), "{text}");
        assert_eq!(names(folder.path()), ["05-a.conflist", "10-b.conflist"]);
    }

    #[test]
    fn a_single_configuration_gets_a_list_before_it_that_goes_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let single = folder.path().join("10-a.conf");
        fs::write(&single, SINGLE).unwrap();
        let made = folder.path().join("0-weir-10-a.conflist");
        assert_eq!(put(folder.path(), &entry()).unwrap(), std::slice::from_ref(&made));
        assert!(put(folder.path(), &entry()).unwrap().is_empty());
        assert_eq!(files(folder.path()).unwrap()[0], made, "runtimes take it");
        assert_eq!(fs::read_to_string(&single).unwrap(), SINGLE);
        fs::write(&single, SINGLE.replace("bridge", "ptp")).unwrap();
        assert_eq!(put(folder.path(), &entry()).unwrap(), std::slice::from_ref(&made));
        assert!(fs::read_to_string(&made).unwrap().contains("ptp"));
        fs::remove_file(&single).unwrap();
        fs::write(folder.path().join("20-b.conflist"), LIST).unwrap();
        put(folder.path(), &entry()).unwrap();
        assert_eq!(names(folder.path()), ["20-b.conflist"]);
    }

    #[test]
    fn a_configuration_that_is_half_written_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("05-a.conflist");
        fs::write(&path, &LIST[..20]).unwrap();
        assert!(matches!(
            put(folder.path(), &entry()),
            Err(InstallError::Conflist { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), &LIST[..20]);
    }
}
