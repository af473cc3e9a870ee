//! A place of a lab where processes run: a network namespace together with a cgroup.

use std::{
    ffi::OsStr,
    fs::{File, OpenOptions},
    io,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rustix::{
    process::Signal,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{Finished, PATIENCE, Process, netns};

/// A network namespace and a cgroup.
#[derive(Debug, Clone)]
pub struct Place {
    pub(crate) name: String,
    pub(crate) netns: String,
    pub(crate) cgroup: PathBuf,
    pub(crate) logs: PathBuf,
}

/// What can be done in a place: a pod, a node, the host outside.
pub trait Spawn {
    /// The place.
    fn place(&self) -> &Place;

    /// Starts a process: in the place's namespace and cgroup, with a process group of its own, its standard output
    /// collected and its standard error in a file. It dies with this process, with the lab, or with the handle.
    ///
    /// # Errors
    /// When it cannot be started.
    fn spawn(&self, command: Command) -> Result<Process> {
        self.place().spawn_as(command, None)
    }

    /// Runs a process to its end, for at most [`PATIENCE`].
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    fn run(&self, command: Command) -> Result<Finished> {
        self.run_for(command, PATIENCE)
    }

    /// Runs a process to its end, for at most `patience`.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    fn run_for(&self, command: Command, patience: Duration) -> Result<Finished> {
        self.spawn(command)?.wait(patience)
    }

    /// Starts `weir-testapp` with these arguments.
    ///
    /// # Errors
    /// When it is not built or cannot be started.
    fn testapp<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Process> {
        let mut command = Command::new(crate::program("weir-testapp")?);
        command.args(arguments);
        self.spawn(command)
    }

    /// Runs `weir-testapp` with these arguments to its end, for at most [`PATIENCE`].
    ///
    /// # Errors
    /// When it is not built, cannot be started or does not end.
    fn run_testapp<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Result<Finished> {
        self.testapp(arguments)?.wait(PATIENCE)
    }

    /// Runs `work` on a thread in the place's network namespace, but *outside* of its cgroup: see [`netns::inside`].
    ///
    /// # Errors
    /// When the namespace cannot be entered, or `work` fails.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T>
    where
        Self: Sized,
    {
        netns::inside(&self.place().netns_path(), work)
    }

    /// Sets sysctls (`net/ipv4/tcp_tw_reuse`) of the place's network namespace.
    ///
    /// # Errors
    /// When one cannot be set.
    fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        netns::sysctl(&self.place().netns_path(), settings)
    }

    /// Runs iproute2 commands, without the leading `ip`, in the place's network namespace.
    ///
    /// # Errors
    /// When one of them fails.
    fn ip(&self, lines: &[&str]) -> Result<()> {
        let lines: Vec<_> = lines.iter().map(|line| (*line).to_owned()).collect();
        netns::ip(Some(&self.place().netns), &lines)
    }
}

impl Place {
    /// Its name in the lab.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of its network namespace, as `ip netns` knows it.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Path of its network namespace.
    #[must_use]
    pub fn netns_path(&self) -> PathBuf {
        netns::path(&self.netns)
    }

    /// Its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// The same network namespace, but in another cgroup, which is made if it is not there. It should lie below the lab's,
    /// which goes with all below it.
    ///
    /// # Errors
    /// When the cgroup cannot be made.
    pub fn in_cgroup(&self, cgroup: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&cgroup).with_context(|| cgroup.display().to_string())?;
        Ok(Self {
            cgroup,
            ..self.clone()
        })
    }

    pub(crate) fn spawn_as(&self, mut command: Command, log: Option<&Path>) -> Result<Process> {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let program = Path::new(command.get_program());
        let name = program
            .file_name()
            .unwrap_or(program.as_os_str())
            .to_string_lossy()
            .into_owned();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let log = match log {
            Some(path) => path.to_owned(),
            None => self.logs.join(format!("{number:04}-{}-{name}", self.name)),
        };
        let errors = OpenOptions::new().create(true).append(true).open(&log);
        let errors = errors.with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        self.confine(&mut command)?;
        Process::start(format!("{name} in {}", self.name), command, log)
    }

    /// Makes a command run in this place: its namespace, its cgroup, a process group of its own (so that Ctrl-C on the
    /// terminal reaches this process alone, which then cleans up), and death with this process.
    ///
    /// # Errors
    /// When the namespace or the cgroup is not there.
    #[allow(
        unsafe_code,
        reason = "no safe way to enter a cgroup and a namespace between fork and exec"
    )]
    pub fn confine(&self, command: &mut Command) -> Result<()> {
        let netns = self.netns_path();
        let netns = File::open(&netns).with_context(|| netns.display().to_string())?;
        let procs = self.cgroup.join("cgroup.procs");
        let procs = OpenOptions::new()
            .write(true)
            .open(&procs)
            .with_context(|| procs.display().to_string())?;
        let parent = rustix::process::getpid();
        command.process_group(0);
        let enter = move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            rustix::io::write(&procs, b"0")?;
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(())
        };
        // SAFETY: the closure makes four system calls and neither allocates nor locks, so it may run after a fork
        // of a process with threads.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }

    /// Becomes a command of this place: enters it and replaces this process. Returns only on failure.
    #[must_use]
    pub fn exec(&self, command: &mut Command) -> anyhow::Error {
        let enter = || -> Result<()> {
            std::fs::write(self.cgroup.join("cgroup.procs"), "0").context("entering the cgroup")?;
            let netns = File::open(self.netns_path())?;
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(())
        };
        match enter() {
            Ok(()) => anyhow::Error::new(command.exec()).context(format!("{command:?}")),
            Err(error) => error,
        }
    }
}

impl Spawn for Place {
    fn place(&self) -> &Place {
        self
    }
}
