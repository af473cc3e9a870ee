//! The calls of bpf(2) that aya does not offer: updating a pinned link in place, and socket storage without `&mut`.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use weir_abi::{FlowKey, SockState};

// Commands of `enum bpf_cmd`, linux/bpf.h.
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;

/// As much of `union bpf_attr` as these commands read; the kernel takes the rest as zero.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Attr([u8; 128]);

impl Attr {
    const fn new() -> Self {
        Self([0; 128])
    }

    fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn ptr<T>(self, offset: usize, pointer: *const T) -> Self {
        let mut this = self;
        this.0[offset..offset + 8].copy_from_slice(&(pointer as u64).to_ne_bytes());
        this
    }
}

fn bpf(command: libc::c_int, attr: &Attr) -> io::Result<libc::c_long> {
    // SAFETY: the attribute is zero-padded, and its pointers point to what the callers keep alive during the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.0.as_ptr(), size_of::<Attr>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    let fd = i32::try_from(fd).unwrap_or(-1);
    // SAFETY: the kernel just returned this descriptor; nobody else has it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn fd(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Opens a pinned object.
pub(crate) fn object(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)?;
    bpf(BPF_OBJ_GET, &Attr::new().ptr(0, path.as_ptr())).map(owned)
}

/// Makes a link run another program, without a moment between (kernel 5.7; netns links 5.8).
pub(crate) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_UPDATE, &Attr::new().u32(0, fd(link)).u32(4, fd(program))).map(drop)
}

/// Sets a socket's state. By descriptor and without a lock: the map's key is the socket.
pub(crate) fn set_socket_state(
    map: BorrowedFd<'_>,
    socket: BorrowedFd<'_>,
    state: &SockState,
) -> io::Result<()> {
    let key = socket.as_raw_fd();
    let attr = Attr::new().u32(0, fd(map)).ptr(8, &raw const key).ptr(16, state);
    bpf(BPF_MAP_UPDATE_ELEM, &attr).map(drop)
}

/// Removes an entry of a map of connections. Without a lock: each caller has a key of its own.
pub(crate) fn remove_connection(map: BorrowedFd<'_>, key: &FlowKey) -> io::Result<()> {
    let attr = Attr::new().u32(0, fd(map)).ptr(8, key);
    bpf(BPF_MAP_DELETE_ELEM, &attr).map(drop)
}

/// One instruction of a probe: `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Insn {
    /// Operation.
    pub(crate) code: u8,
    /// Destination register in the low, source register in the high half.
    pub(crate) regs: u8,
    /// Offset.
    pub(crate) off: i16,
    /// Immediate.
    pub(crate) imm: i32,
}

/// Whether the kernel takes a program. Loads it and lets it go at once.
pub(crate) fn try_program(kind: u32, attach: u32, program: &[Insn]) -> io::Result<()> {
    let licence = c"Dual MIT/GPL";
    let count = u32::try_from(program.len()).map_err(io::Error::other)?;
    let attr = Attr::new()
        .u32(0, kind)
        .u32(4, count)
        .ptr(8, program.as_ptr())
        .ptr(16, licence.as_ptr())
        .u32(68, attach);
    bpf(BPF_PROG_LOAD, &attr).map(owned).map(drop)
}

/// Whether the kernel makes a map of this type.
pub(crate) fn try_map(kind: u32, key: u32, value: u32, entries: u32) -> io::Result<()> {
    let attr = Attr::new()
        .u32(0, kind)
        .u32(4, key)
        .u32(8, value)
        .u32(12, entries);
    bpf(BPF_MAP_CREATE, &attr).map(owned).map(drop)
}
