//! Pinned links: attached once, updated in place afterwards, never attached twice.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, CgroupSockAddr, SkLookup, SockOps,
    links::{FdLink, LinkError, PinnedLink},
};
use weir_types::api::ProgramStatus;

use super::{DatapathError, program_fd, sys};

const SK_LOOKUP: &str = "weir_sk_lookup";

/// Folders of the cgroup's links start with this; its inode follows, so that a link to another cgroup is never updated
/// in the belief that it is the configured one's.
const CGROUP: &str = "cgroup-";

pub(super) struct Links {
    /// Of the pods' links.
    folder: PathBuf,
    /// Of the links to the cgroup.
    cgroup: PathBuf,
}

impl Links {
    pub(super) fn new(pins: &Path, cgroup: u64) -> Result<Self, DatapathError> {
        let links = Self {
            folder: pins.join("links"),
            cgroup: pins.join(format!("{CGROUP}{cgroup}")),
        };
        for path in [&links.folder, &links.cgroup] {
            std::fs::create_dir_all(path).map_err(|source| DatapathError::PinDir {
                path: path.clone(),
                source,
            })?;
        }
        Ok(links)
    }

    /// Detaches from cgroups that an earlier configuration named. After the present one is attached.
    pub(super) fn leave_other_cgroups(&self) -> Result<(), DatapathError> {
        let pins = self.cgroup.parent().unwrap_or(&self.cgroup);
        for path in std::fs::read_dir(pins)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
        {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if name.starts_with(CGROUP) && path != self.cgroup {
                std::fs::remove_dir_all(&path).map_err(|source| DatapathError::PinDir { path, source })?;
            }
        }
        Ok(())
    }

    pub(super) fn attach_sock_addr(
        &self,
        name: &'static str,
        program: &mut CgroupSockAddr,
        cgroup: BorrowedFd<'_>,
    ) -> Result<(), DatapathError> {
        let pin = self.cgroup.join(name);
        if update(&pin, program_fd(name, program.fd())?)? {
            return Ok(());
        }
        let refused = |source| DatapathError::Program { name, source };
        // A link is always "multi"; any other mode is EINVAL.
        let id = program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(refused)?;
        let link = program.take_link(id).map_err(refused)?;
        pin_link(&pin, link.try_into())
    }

    pub(super) fn attach_sock_ops(
        &self,
        name: &'static str,
        program: &mut SockOps,
        cgroup: BorrowedFd<'_>,
    ) -> Result<(), DatapathError> {
        let pin = self.cgroup.join(name);
        if update(&pin, program_fd(name, program.fd())?)? {
            return Ok(());
        }
        let refused = |source| DatapathError::Program { name, source };
        let id = program
            .attach(cgroup, CgroupAttachMode::Single)
            .map_err(refused)?;
        let link = program.take_link(id).map_err(refused)?;
        pin_link(&pin, link.try_into())
    }

    pub(super) fn attach_sk_lookup(
        &self,
        handle: u32,
        program: &mut SkLookup,
        netns: BorrowedFd<'_>,
    ) -> Result<(), DatapathError> {
        let pin = self.sk_lookup_pin(handle);
        if update(&pin, program_fd(SK_LOOKUP, program.fd())?)? {
            return Ok(());
        }
        let refused = |source| DatapathError::Program {
            name: SK_LOOKUP,
            source,
        };
        let id = program.attach(netns).map_err(refused)?;
        let link = program.take_link(id).map_err(refused)?;
        pin_link(&pin, Ok(link.into()))
    }

    pub(super) fn remove_sk_lookup(&self, handle: u32) {
        let pin = self.sk_lookup_pin(handle);
        if let Err(error) = std::fs::remove_file(&pin)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(pin = %pin.display(), %error, "cannot detach the program of a pod that is gone");
        }
    }

    pub(super) fn retain_sk_lookup(&self, handles: &HashSet<u32>) {
        for handle in names(&self.folder)
            .iter()
            .filter_map(|name| sk_lookup_handle(name))
        {
            if !handles.contains(&handle) {
                self.remove_sk_lookup(handle);
            }
        }
    }

    pub(super) fn status(&self, cgroup: &Path) -> Vec<ProgramStatus> {
        let all = names(&self.folder).into_iter().map(|name| (&self.folder, name));
        let all = all.chain(names(&self.cgroup).into_iter().map(|name| (&self.cgroup, name)));
        let mut programs: Vec<_> = all
            .filter_map(|(folder, name)| {
                let link = FdLink::from(PinnedLink::from_pin(folder.join(&name)).ok()?);
                let info = link.info().ok()?;
                let attached_to = match sk_lookup_handle(&name) {
                    Some(handle) => format!("pod {handle}"),
                    None => cgroup.display().to_string(),
                };
                Some(ProgramStatus {
                    name,
                    attached_to,
                    link_id: info.id(),
                    program_id: info.program_id(),
                })
            })
            .collect();
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        programs
    }

    fn sk_lookup_pin(&self, handle: u32) -> PathBuf {
        self.folder.join(format!("{SK_LOOKUP}-{handle}"))
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect()
}

fn sk_lookup_handle(name: &str) -> Option<u32> {
    name.strip_prefix(SK_LOOKUP)?.strip_prefix('-')?.parse().ok()
}

/// Makes the pinned link, if there is one that is still attached, run another program.
fn update(pin: &Path, program: BorrowedFd<'_>) -> Result<bool, DatapathError> {
    let failed = |source| DatapathError::Link {
        path: pin.to_owned(),
        source,
    };
    let link = match sys::object(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(error)),
    };
    match sys::update_link(link.as_fd(), program) {
        Ok(()) => Ok(true),
        // The cgroup or namespace that it was attached to is gone.
        Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
            std::fs::remove_file(pin).map_err(failed)?;
            Ok(false)
        }
        Err(error) => Err(failed(error)),
    }
}

fn pin_link(pin: &Path, link: Result<FdLink, LinkError>) -> Result<(), DatapathError> {
    let failed = |source| DatapathError::Link {
        path: pin.to_owned(),
        source,
    };
    let link = link.map_err(|error| failed(io::Error::other(error)))?;
    link.pin(pin)
        .map(drop)
        .map_err(|error| failed(io::Error::other(error)))
}
