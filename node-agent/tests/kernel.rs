//! The programs in the kernel: what it accepts, what stays attached, what a second start changes.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is its result")]

use std::{
    collections::HashSet,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use weir_abi::{FlowKey, Pod};
use weir_agent::{
    datapath::{Datapath, Pins, PodHandle, Remember, preflight},
    netns::NetNs,
};

/// A bpffs, a cgroup and a network namespace of the test's own, gone when it ends.
struct Place {
    name: String,
    cgroup: PathBuf,
    mount: tempfile::TempDir,
}

impl Place {
    fn new(name: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests load kernel programs: run them as root"
        );
        let name = format!("weir-k{}-{name}", std::process::id());
        let mount = tempfile::tempdir().unwrap();
        run("mount", &["-t", "bpf", "bpf", mount.path().to_str().unwrap()]);
        let root = preflight::check(None, mount.path()).unwrap();
        let cgroup = root.join(&name);
        std::fs::create_dir(&cgroup).unwrap();
        run("ip", &["netns", "add", &name]);
        Self { name, cgroup, mount }
    }

    fn netns(&self) -> NetNs {
        NetNs::open(&Path::new("/run/netns").join(&self.name)).unwrap()
    }

    fn load(&self) -> Datapath {
        Datapath::load(
            Pins::claim_soon(&self.mount.path().join("pins")).unwrap(),
            &self.cgroup,
            Duration::from_secs(60),
            true,
        )
        .unwrap()
        .0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.mount.path()).status();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = std::fs::remove_dir(&self.cgroup);
    }
}

fn run(program: &str, arguments: &[&str]) {
    assert!(
        Command::new(program).args(arguments).status().unwrap().success(),
        "{program} {arguments:?}"
    );
}

#[test]
fn the_kernel_accepts_the_programs_and_a_second_start_updates_them_in_place() {
    let place = Place::new("update");
    let first = place.load();
    let pod = Pod::new(
        first.new_handle().unwrap().0,
        &["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
    );
    first.attach_pod(&pod, place.netns().as_fd()).unwrap();
    let before = first.programs();
    assert_eq!(before.len(), 6, "{before:?}");
    drop(first);

    let second = place.load();
    second.attach_pod(&pod, place.netns().as_fd()).unwrap();
    let after = second.programs();
    assert_eq!(after.len(), 6, "{after:?}");
    for (old, new) in before.iter().zip(&after) {
        assert_eq!(
            (&old.name, old.link_id),
            (&new.name, new.link_id),
            "the link stays"
        );
        assert_ne!(
            old.program_id, new.program_id,
            "{}: the program is a new one",
            old.name
        );
    }
}

#[test]
fn programs_carry_btf() {
    let place = Place::new("btf");
    let datapath = place.load();
    for program in datapath.programs() {
        let info = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .find(|info| info.id() == program.program_id)
            .unwrap();
        assert!(info.btf_id().is_some(), "{} has BTF", program.name);
    }
}

#[test]
fn a_pods_handle_is_never_given_again() {
    let place = Place::new("handles");
    let first = place.load();
    let handle = first.new_handle().unwrap();
    first.set_state(handle, true).unwrap();
    first
        .insert_pod(1, &Pod::new(handle.0, &["10.0.0.1".parse().unwrap()]))
        .unwrap();
    drop(first);
    let second = place.load();
    assert!(second.new_handle().unwrap() > handle);
}

#[test]
fn the_program_of_a_pod_that_went_is_detached() {
    let place = Place::new("reap");
    let datapath = place.load();
    let handle = datapath.new_handle().unwrap();
    let pod = Pod::new(handle.0, &["10.0.0.1".parse().unwrap()]);
    datapath.attach_pod(&pod, place.netns().as_fd()).unwrap();
    assert_eq!(datapath.programs().len(), 6);
    run("ip", &["netns", "del", &place.name]);
    datapath.detach_all_but(&HashSet::new());
    assert_eq!(datapath.programs().len(), 5);
    run("ip", &["netns", "add", &place.name]);
}

#[test]
fn an_unknown_connection_is_not_registered() {
    let place = Place::new("unknown");
    let datapath = place.load();
    assert!(datapath.connection(&FlowKey::default()).is_none());
    assert_eq!(datapath.connection_count(), 0);
    assert_eq!(datapath.lost_events(), 0);
    datapath.remove_pod(Some(1), PodHandle(1));
}

#[test]
fn what_the_agent_did_not_read_fills_the_ring_buffer_and_what_it_wrote_the_maps() {
    let place = Place::new("fill");
    let pins = Pins::claim_soon(&place.mount.path().join("pins")).unwrap();
    let (datapath, mut events) = Datapath::load(pins, &place.cgroup, Duration::from_secs(60), true).unwrap();
    let ring = || (datapath.event_ring().entries, datapath.event_ring().capacity);
    assert_eq!(ring(), (0, 1 << 20));
    let handle = datapath.new_handle().unwrap();
    let pod = Pod::new(handle.0, &["10.0.0.1".parse().unwrap()]);
    datapath.attach_pod(&pod, place.netns().as_fd()).unwrap();
    datapath.insert_pod(1, &pod).unwrap();
    let entries = |name: &str| {
        let maps = datapath.maps();
        let map = maps.iter().find(|map| map.name == name).unwrap();
        assert!(map.capacity > map.entries, "{map:?}");
        map.entries
    };
    assert_eq!((entries("PODS"), entries("VERDICTS")), (1, 0));
    let remember = Remember::Pass;
    let to = "192.0.2.1:80".parse::<SocketAddr>().unwrap();
    datapath
        .remember(handle, to.into(), 1, &remember, || true)
        .unwrap();
    assert_eq!(entries("VERDICTS"), 1);

    // Nobody registered such a connection: it is refused, and that is reported.
    for arguments in [
        &["link", "set", "lo", "up"][..],
        &["addr", "add", "10.0.0.1/32", "dev", "lo"],
    ] {
        run("ip", &[&["-n", &place.name], arguments].concat());
    }
    let own = "10.0.0.1:80".parse().unwrap();
    let refused = place
        .netns()
        .run(|| TcpStream::connect_timeout(&own, Duration::from_secs(1)));
    assert!(refused.unwrap().is_err());
    let (unread, _) = ring();
    assert!(unread as usize > size_of::<weir_abi::Event>(), "{unread}");
    while events.next().is_some() {}
    assert_eq!(ring().0, 0);
}
