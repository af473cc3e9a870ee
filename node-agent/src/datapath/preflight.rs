//! What the agent needs of the machine, checked before anything is attached.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use rustix::fs::FsWord;

use super::sys::{self, Insn};

/// Something that the machine lacks: what, why it is needed, how to get it.
#[derive(Debug, thiserror::Error)]
#[error("missing {what}\n  needed for: {why}\n  how to get it: {how}")]
pub struct Missing {
    what: String,
    why: &'static str,
    how: String,
}

impl Missing {
    fn new(what: impl Into<String>, why: &'static str, how: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            why,
            how: how.into(),
        }
    }
}

/// Capabilities by number, `linux/capability.h`.
const CAPABILITIES: &[(u32, &str, &str)] = &[
    (
        12,
        "CAP_NET_ADMIN",
        "attaching programs to cgroups and network namespaces",
    ),
    (
        21,
        "CAP_SYS_ADMIN",
        "entering the pods' network namespaces and pinning programs",
    ),
    (39, "CAP_BPF", "loading programs and making maps"),
];

/// `BPF_FS_MAGIC`, `linux/magic.h`.
const BPF_FS: FsWord = 0xcafe_4a11;
/// `CGROUP2_SUPER_MAGIC`, `linux/magic.h`.
const CGROUP2: FsWord = 0x6367_7270;

/// Checks capabilities, cgroup, bpffs and kernel; gives the cgroup's folder.
///
/// # Errors
/// The first thing that is missing.
pub fn check(cgroup: Option<&Path>, pin_dir: &Path) -> Result<PathBuf, Missing> {
    capabilities()?;
    let cgroup = find_cgroup(cgroup)?;
    bpffs(pin_dir)?;
    kernel()?;
    Ok(cgroup)
}

fn capabilities() -> Result<(), Missing> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    for (number, name, why) in CAPABILITIES {
        if effective & (1 << number) == 0 {
            let how = format!("run as root, or add {name} to the container's securityContext.capabilities");
            return Err(Missing::new(format!("capability {name}"), why, how));
        }
    }
    Ok(())
}

fn find_cgroup(configured: Option<&Path>) -> Result<PathBuf, Missing> {
    const WHY: &str = "knowing which connections belong to this node's pods and processes";
    let mount = mount_point();
    let Some(path) = configured.map(Path::to_owned).or_else(|| mount.clone()) else {
        let how = "mount -t cgroup2 none /sys/fs/cgroup, or boot with systemd.unified_cgroup_hierarchy=1";
        return Err(Missing::new(
            "cgroup v2: no cgroup2 file system is mounted",
            WHY,
            how,
        ));
    };
    if !is_on(&path, CGROUP2) {
        let what = format!(
            "cgroup v2: {} is not a folder of a cgroup2 file system",
            path.display()
        );
        let how = match mount {
            Some(mount) => {
                format!(
                    "set 'cgroup' in the configuration to a folder below {}, or leave it out",
                    mount.display()
                )
            }
            None => "mount -t cgroup2 none /sys/fs/cgroup".to_owned(),
        };
        return Err(Missing::new(what, WHY, how));
    }
    Ok(path)
}

/// The folder of a process's cgroup, by the text of its `/proc/PID/cgroup`.
///
/// # Errors
/// When no mounted tree shows it, or it is the tree's root.
pub fn cgroup_folder(text: &str) -> io::Result<PathBuf> {
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or_default();
    let mounts = mounts();
    let shown = |mount: &Mount| Some(mount.point.join(below(path, &mount.root)?));
    let folder = mounts.iter().find_map(shown).ok_or_else(|| {
        let what = format!("its cgroup {path} is in no cgroup v2 tree that is mounted here");
        io::Error::new(io::ErrorKind::NotFound, what)
    })?;
    if mounts.iter().any(|mount| mount.point == folder) {
        let what = format!("it is in {}, as all of the node's processes", folder.display());
        return Err(io::Error::other(what));
    }
    Ok(folder)
}

/// A path below another one. Both are as a cgroup namespace shows them: what is above its root starts with `..`.
fn below<'a>(path: &'a str, root: &str) -> Option<&'a Path> {
    let path = Path::new(path.strip_prefix('/')?);
    let root = root.strip_prefix('/')?;
    let below = path.strip_prefix(root).ok()?;
    // Further up than the root of the mount.
    (!below.starts_with("..")).then_some(below)
}

/// A mounted cgroup v2 tree.
struct Mount {
    /// What of the tree is mounted, as this process's cgroup namespace shows it.
    root: String,
    point: PathBuf,
}

/// Where the cgroup v2 tree is mounted first.
fn mount_point() -> Option<PathBuf> {
    mounts().into_iter().next().map(|mount| mount.point)
}

/// Where cgroup v2 trees are mounted. Fields: id parent device root mountpoint options... - type source super-options
/// (proc(5)).
fn mounts() -> Vec<Mount> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let cgroup = |line: &str| {
        let (fields, rest) = line.split_once(" - ")?;
        let fields: Vec<&str> = fields.split(' ').collect();
        let (root, point) = (fields.get(3)?, fields.get(4)?);
        rest.starts_with("cgroup2 ").then(|| Mount {
            root: (*root).to_owned(),
            point: PathBuf::from(point),
        })
    };
    text.lines().filter_map(cgroup).collect()
}

/// The agent's own connections to applications are recognised by the programs at the cgroup, so it must be below it.
///
/// # Errors
/// When it is not.
pub fn own_cgroup(cgroup: &Path) -> Result<(), Missing> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    let Some(mount) = mount_point() else { return Ok(()) };
    // With a cgroup namespace of its own, a process above it is shown with `..`: nothing can be said then.
    if own.starts_with("..") || mount.join(own).starts_with(cgroup) {
        return Ok(());
    }
    let what = format!(
        "cgroup v2: the agent itself is in {}, not below {}",
        mount.join(own).display(),
        cgroup.display()
    );
    let why = "delivering connections to the pods' applications";
    Err(Missing::new(
        what,
        why,
        "start the agent in that part of the tree, or set 'cgroup' to a folder above both",
    ))
}

fn bpffs(pin_dir: &Path) -> Result<(), Missing> {
    let existing = pin_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if is_on(existing, BPF_FS) {
        return Ok(());
    }
    let what = format!("bpffs: {} is not on a bpf file system", pin_dir.display());
    let how = "mount -t bpf bpf /sys/fs/bpf, and set 'pinDir' in the configuration to a folder below it";
    Err(Missing::new(
        what,
        "pinning programs and maps, so that connections outlive the agent",
        how,
    ))
}

fn is_on(path: &Path, magic: FsWord) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == magic)
}

/// What of bpf(2) a probe asks for. Numbers are those of `linux/bpf.h`.
enum Probe {
    /// A program of this type and attach type.
    Program(u32, u32, &'static [Insn]),
    /// A map of this type, with sizes of key, value and number of entries.
    Map(u32, u32, u32, u32),
}

const PROG_CGROUP_SOCK_ADDR: u32 = 18;
const PROG_SK_LOOKUP: u32 = 30;
const ATTACH_INET4_CONNECT: u32 = 10;
const ATTACH_INET4_GETPEERNAME: u32 = 29;
const ATTACH_SK_LOOKUP: u32 = 36;
const MAP_RINGBUF: u32 = 27;
const SET_RETVAL: i32 = 187;
/// Offset of `ingress_ifindex` in `struct bpf_sk_lookup`.
const INGRESS_IFINDEX: i16 = 64;

const fn insn(code: u8, regs: u8, off: i16, imm: i32) -> Insn {
    Insn { code, regs, off, imm }
}
/// `r<register> = value`.
const fn mov(register: u8, value: i32) -> Insn {
    insn(0xb7, register, 0, value)
}
const EXIT: Insn = insn(0x95, 0, 0, 0);

const PROBES: &[(&str, &str, &str, Probe)] = &[
    (
        "bpf_set_retval in connect hooks",
        "refusing a connection with ECONNREFUSED",
        "6.1",
        Probe::Program(
            PROG_CGROUP_SOCK_ADDR,
            ATTACH_INET4_CONNECT,
            &[mov(1, -111), insn(0x85, 0, 0, SET_RETVAL), mov(0, 1), EXIT],
        ),
    ),
    (
        "getpeername hooks",
        "showing applications the address that they asked for",
        "5.8",
        Probe::Program(
            PROG_CGROUP_SOCK_ADDR,
            ATTACH_INET4_GETPEERNAME,
            &[mov(0, 1), EXIT],
        ),
    ),
    (
        "sk_lookup programs that know the incoming interface",
        "handing connections to the agent's listeners",
        "5.17",
        Probe::Program(
            PROG_SK_LOOKUP,
            ATTACH_SK_LOOKUP,
            // r0 = *(u32 *)(r1 + INGRESS_IFINDEX)
            &[insn(0x61, 0x10, INGRESS_IFINDEX, 0), mov(0, 1), EXIT],
        ),
    ),
    (
        "BPF ring buffers",
        "recording flows",
        "5.8",
        Probe::Map(MAP_RINGBUF, 0, 0, 4096),
    ),
];

fn kernel() -> Result<(), Missing> {
    for (what, why, version, probe) in PROBES {
        let result = match probe {
            Probe::Program(kind, attach, program) => sys::try_program(*kind, *attach, program),
            Probe::Map(kind, key, value, entries) => sys::try_map(*kind, *key, *value, *entries),
        };
        if let Err(error) = result {
            return Err(Missing::new(
                format!("kernel feature: {what} ({})", Cause(&error)),
                why,
                kernel_how(version),
            ));
        }
    }
    Ok(())
}

fn kernel_how(version: &str) -> String {
    let running = rustix::system::uname();
    let running = running.release().to_string_lossy();
    format!(
        "a kernel from 6.1 (this one is {running}; the feature itself came with {version}) with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_INET"
    )
}

struct Cause<'a>(&'a io::Error);

impl fmt::Display for Cause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(libc::EPERM) => {
                f.write_str("not permitted: is it forbidden by a lockdown or seccomp profile?")
            }
            _ => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_below_a_mount_also_from_a_namespace_further_down() {
        let cases = [
            (
                "/system.slice/kubelet.service",
                "/",
                Some("system.slice/kubelet.service"),
            ),
            (
                "/../../system.slice/kubelet.service",
                "/../..",
                Some("system.slice/kubelet.service"),
            ),
            ("/../kubelet", "/../..", None),
            ("/../../kubelet", "/..", None),
            ("/", "/", Some("")),
            ("", "/", None),
        ];
        for (path, root, expected) in cases {
            assert_eq!(below(path, root), expected.map(Path::new), "{path} below {root}");
        }
    }
}
