//! Processes of a lab: started in a place, killed with the lab, their output at hand.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::PathBuf,
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags, Signal},
};
use serde_json::Value;

use crate::PATIENCE;

/// A running process. Killed, with all of its process group, when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    reaped: Option<ExitStatus>,
    stdout: Arc<Output>,
    log: PathBuf,
}

/// What a process that ended left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

#[derive(Debug, Default)]
struct Output {
    state: Mutex<OutputState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct OutputState {
    bytes: Vec<u8>,
    ended: bool,
}

// === impl Process ===

impl Process {
    /// Starts a process where this one runs, not in a place of the lab: something that is beside the mesh. Its standard
    /// error goes to a file.
    ///
    /// # Errors
    /// When it cannot be started.
    #[allow(unsafe_code, reason = "it must not outlive this process")]
    pub fn beside(name: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let errors = std::fs::OpenOptions::new().create(true).append(true).open(&log);
        let errors = errors.with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        command.process_group(0);
        let die_with_us = || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            Ok(())
        };
        // SAFETY: one system call, which neither allocates nor locks.
        unsafe { command.pre_exec(die_with_us) };
        Self::start(name.to_owned(), command, log)
    }

    pub(crate) fn start(name: String, command: Command, log: PathBuf) -> Result<Self> {
        let mut child = spawn_from_lasting_thread(command).with_context(|| format!("starting {name}"))?;
        let stdout = Arc::<Output>::default();
        if let Some(pipe) = child.stdout.take() {
            let output = stdout.clone();
            thread::spawn(move || output.fill(pipe));
        } else {
            stdout.lock().ended = true;
        }
        Ok(Self {
            name,
            child,
            reaped: None,
            stdout,
            log,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The file that its standard error goes to.
    #[must_use]
    pub fn log_path(&self) -> &std::path::Path {
        &self.log
    }

    /// What it wrote to standard output so far.
    #[must_use]
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.lock().bytes.clone()
    }

    /// Waits for a whole line of standard output, from the first on, of which `wanted` makes something.
    ///
    /// # Errors
    /// When the process ends its output, or `patience` does, before one comes.
    pub fn wait_line<T>(&self, patience: Duration, mut wanted: impl FnMut(&str) -> Option<T>) -> Result<T> {
        let end = Instant::now() + patience;
        let mut seen = 0;
        let mut state = self.stdout.lock();
        loop {
            while let Some(length) = memchr::memchr(b'\n', &state.bytes[seen..]) {
                let line = String::from_utf8_lossy(&state.bytes[seen..seen + length]);
                if let Some(found) = wanted(&line) {
                    return Ok(found);
                }
                seen += length + 1;
            }
            let left = end.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended {
                    "it ended its output"
                } else {
                    "not in time"
                };
                let so_far = String::from_utf8_lossy(&state.bytes).into_owned();
                drop(state);
                bail!(
                    "{}: awaited line did not come: {why}\nstdout: {so_far}\nstderr: {}",
                    self.name,
                    self.stderr()
                );
            }
            let waited = self.stdout.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for a line of JSON that has this field, and gives the field.
    ///
    /// # Errors
    /// As [`Process::wait_line`].
    pub fn wait_json(&self, field: &str) -> Result<Value> {
        self.wait_line(PATIENCE, |line| {
            let value = serde_json::from_str::<Value>(line).ok()?;
            value.get(field).cloned()
        })
    }

    /// Waits until a test program's server is ready; gives its address.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn wait_listening(&self) -> Result<std::net::SocketAddr> {
        let value = self.wait_json("listening")?;
        value
            .as_str()
            .and_then(|text| text.parse().ok())
            .context("`listening` is an address")
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        if self.reaped.is_none() {
            self.reaped = self.child.try_wait()?;
        }
        Ok(self.reaped)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within `patience`; it is killed then.
    pub fn wait(mut self, patience: Duration) -> Result<Finished> {
        let status = self.wait_status(patience)?;
        let mut state = self.stdout.lock();
        let end = Instant::now() + Duration::from_secs(1);
        // The pipe's last bytes; a grandchild that holds it open is not waited for.
        while !state.ended && Instant::now() < end {
            let waited = self
                .stdout
                .changed
                .wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let stdout = std::mem::take(&mut state.bytes);
        drop(state);
        Ok(Finished {
            status,
            stdout,
            stderr: self.stderr(),
        })
    }

    /// Waits for its end and leaves its output where it is.
    ///
    /// # Errors
    /// When it does not end within `patience`.
    pub fn wait_status(&mut self, patience: Duration) -> Result<ExitStatus> {
        if self.reaped.is_none() {
            let pidfd = rustix::process::pidfd_open(self.rustix_pid()?, PidfdFlags::empty())?;
            let timeout = Timespec::try_from(patience)?;
            let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
            if rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&timeout)))? == 0 {
                bail!(
                    "{} did not end within {patience:?}\nstderr: {}",
                    self.name,
                    self.stderr()
                );
            }
            self.reaped = Some(self.child.wait()?);
        }
        self.reaped.context("reaped above")
    }

    /// Sends a signal, unless it has ended.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended()?.is_none() {
            rustix::process::kill_process(self.rustix_pid()?, signal)?;
        }
        Ok(())
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<()> {
        if self.ended()?.is_none() {
            // It leads a group of its own, and has not been reaped: nobody else can bear the number.
            let _ = rustix::process::kill_process_group(self.rustix_pid()?, Signal::KILL);
            self.child.kill()?;
            self.reaped = Some(self.child.wait()?);
        }
        Ok(())
    }

    fn rustix_pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id())
            .ok()
            .and_then(Pid::from_raw)
            .context("a process id is positive")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

// === impl Finished ===

impl Finished {
    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The last line of standard output, as JSON.
    ///
    /// # Errors
    /// When it is not JSON.
    pub fn json(&self) -> Result<Value> {
        let text = self.text();
        let line = text.lines().last().unwrap_or_default();
        serde_json::from_str(line).with_context(|| format!("not JSON: {line:?}\nstderr: {}", self.stderr))
    }

    /// Itself if it ended well.
    ///
    /// # Errors
    /// When it did not, with what it wrote.
    pub fn success(self) -> Result<Self> {
        let how = self.status.code().or_else(|| self.status.signal());
        let what = self.text();
        ensure!(
            self.status.success(),
            "failed with {how:?}\nstdout: {what}\nstderr: {}",
            self.stderr
        );
        Ok(self)
    }
}

// === impl Output ===

impl Output {
    fn lock(&self) -> MutexGuard<'_, OutputState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, mut pipe: ChildStdout) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = match pipe.read(&mut buffer) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => 0,
            };
            let mut state = self.lock();
            state.bytes.extend_from_slice(&buffer[..count]);
            state.ended = count == 0;
            self.changed.notify_all();
            if count == 0 {
                return;
            }
        }
    }
}

/// Starts a process from a thread that lives as long as this process: the kernel sends the parent-death signal when
/// the *thread* that forked ends, and a test's threads come and go.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Job = (Command, mpsc::Sender<io::Result<Child>>);
    static JOBS: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let jobs = JOBS.get_or_init(|| {
        let (sender, receiver) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in receiver {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, answer) = mpsc::channel();
    let gone = |_| io::Error::other("the thread that starts processes is gone");
    jobs.send((command, reply)).map_err(|_| gone(()))?;
    answer.recv().map_err(|_| gone(()))?
}
