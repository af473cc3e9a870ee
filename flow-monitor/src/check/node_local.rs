//! Whether this machine can have an agent, without Kubernetes.

use std::{fs, path::Path};

use super::{
    finding::Finding,
    nodes::{OLDEST_KERNEL, kernel_version},
};

/// What is to be known of a machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    /// `uname -r`.
    kernel: String,
    /// Whether the kernel describes its types.
    btf: bool,
    /// As in `/proc/self/mounts`.
    mounts: String,
}

/// Where the agent pins what outlives it, unless configured otherwise.
const BPFFS: &str = "/sys/fs/bpf";
const BTF: &str = "/sys/kernel/btf/vmlinux";

impl Machine {
    /// This one. What cannot be read counts as not there.
    pub(crate) fn look() -> Self {
        Self {
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default(),
            btf: Path::new(BTF).exists(),
            mounts: fs::read_to_string("/proc/self/mounts").unwrap_or_default(),
        }
    }

    /// Where a kind of file system is mounted: at its usual place, or elsewhere.
    fn mounted(&self, kind: &str, usual: &str) -> Option<&str> {
        let places = self.mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let at = fields.next()?;
            (fields.next()? == kind).then_some(at)
        });
        places.max_by_key(|at| *at == usual)
    }
}

/// Kernel, BTF, cgroup v2, bpffs.
pub(crate) fn machine(machine: &Machine) -> Vec<Finding> {
    let (major, minor) = OLDEST_KERNEL;
    let kernel = machine.kernel.trim();
    let mut findings = vec![match kernel_version(kernel) {
        Some(version) if version >= OLDEST_KERNEL => Finding::ok("Kernel", kernel),
        _ => Finding::fail(
            "Kernel",
            format!("'{kernel}' is older than {major}.{minor}"),
            format!("upgrade to Linux {major}.{minor} or newer"),
        ),
    }];
    findings.push(if machine.btf {
        Finding::ok("BTF", BTF)
    } else {
        Finding::fail(
            "BTF",
            format!("{BTF} is missing: the kernel does not say what its types look like"),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are",
        )
    });
    findings.push(match machine.mounted("cgroup2", "/sys/fs/cgroup") {
        Some(at) => Finding::ok("cgroup v2", at),
        None => Finding::fail(
            "cgroup v2",
            "not mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or: mount -t cgroup2 none /sys/fs/cgroup/unified",
        ),
    });
    findings.push(match machine.mounted("bpf", BPFFS) {
        Some(at) => Finding::ok("bpffs", at),
        None => Finding::fail(
            "bpffs",
            "not mounted",
            "mount -t bpf bpf /sys/fs/bpf, and put it into /etc/fstab",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::{
        super::finding::{Level, tests::assert_found},
        *,
    };

    #[test]
    fn what_a_machine_lacks_is_named() {
        let mounts = "bpf /sys/fs/bpf bpf rw,nosuid 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let good = Machine {
            kernel: "6.12.0-1-amd64\n".to_owned(),
            btf: true,
            mounts: mounts.to_owned(),
        };
        let ok = [
            (Level::Ok, "6.12.0"),
            (Level::Ok, BTF),
            (Level::Ok, "/sys/fs/cgroup"),
            (Level::Ok, "/sys/fs/bpf"),
        ];
        assert_found(&machine(&good), &ok);
        let bad = Machine {
            kernel: "5.10.0".to_owned(),
            btf: false,
            mounts: "cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\ncgroup2 /bpf tmpfs rw 0 0\n".to_owned(),
        };
        let expected = [
            (Level::Fail, "upgrade to Linux 6.1"),
            (Level::Fail, "CONFIG_DEBUG_INFO_BTF"),
            (Level::Fail, "cgroup_hierarchy"),
            (Level::Fail, "mount -t bpf"),
        ];
        assert_found(&machine(&bad), &expected);
    }
}
