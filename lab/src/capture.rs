//! What really passed a link: a packet socket in a node's namespace, so that nothing has to be installed.

mod analysis;
mod stream;

use std::{
    ffi::CString,
    io::{ErrorKind, Read as _},
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub use analysis::Findings;

use analysis::Analysis;

/// Kernel memory for packets that were not looked at yet. At 20 Gb/s this is a tenth of a second.
const BUFFER: usize = 256 << 20;
/// A frame with segmentation offload is up to 64 KiB of IP packet.
const FRAME: usize = 1 << 17;
/// How often a silent link's reader looks whether it shall stop.
const TICK: Duration = Duration::from_millis(50);

/// A running capture.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    analysis: Mutex<Analysis>,
    stop: AtomicBool,
}

// === impl Capture ===

impl Capture {
    /// Captures both directions of an interface and looks for canaries in every payload.
    ///
    /// # Errors
    /// When the interface is not there or the caller lacks CAP_NET_RAW.
    pub fn start(netns: &Path, interface: &str, canaries: &[&[u8]]) -> Result<Self> {
        let socket = crate::netns::inside(netns, || open(interface))
            .with_context(|| format!("capturing on {interface} of {}", netns.display()))?;
        Ok(Self::on(socket, canaries))
    }

    /// As [`Self::start`], in the caller's own namespace.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn here(interface: &str, canaries: &[&[u8]]) -> Result<Self> {
        let socket = open(interface).with_context(|| format!("capturing on {interface}"))?;
        Ok(Self::on(socket, canaries))
    }

    fn on(socket: Socket, canaries: &[&[u8]]) -> Self {
        let shared = Arc::new(Shared {
            analysis: Mutex::new(Analysis::new(canaries)),
            stop: AtomicBool::new(false),
        });
        let reader = std::thread::spawn({
            let shared = shared.clone();
            move || shared.read(socket)
        });
        Self {
            shared,
            reader: Some(reader),
        }
    }

    /// What was found so far.
    #[must_use]
    pub fn so_far(&self) -> Findings {
        self.shared.lock().findings()
    }

    /// Stops after the last packet that passed before this call, and gives what was found.
    ///
    /// # Errors
    /// When reading failed, or packets were dropped: then "not seen" would mean nothing.
    pub fn stop(mut self) -> Result<Findings> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let reader = self.reader.take().context("stopped once")?;
        reader
            .join()
            .map_err(|_| anyhow!("the capture's reader panicked"))??;
        let findings = self.so_far();
        ensure!(
            findings.dropped == 0,
            "the capture missed {} of {} packets: it cannot say what was not on the link",
            findings.dropped,
            findings.packets
        );
        Ok(findings)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

// === impl Shared ===

impl Shared {
    fn read(&self, mut socket: Socket) -> Result<()> {
        let mut frame = vec![0; FRAME];
        loop {
            // Asked before reading: what passed before the stop is read after it.
            let last_round = self.stop.load(Ordering::Relaxed);
            socket.set_nonblocking(last_round)?;
            loop {
                match socket.read(&mut frame) {
                    Ok(length) => self.lock().frame(&frame[..length]),
                    Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        break;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error).context("reading packets"),
                }
                if !last_round && self.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
            let (packets, dropped) = statistics(&socket)?;
            self.lock().count(packets, dropped);
            if last_round {
                return Ok(());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Analysis> {
        self.analysis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn open(interface: &str) -> Result<Socket> {
    // Protocol 0 receives nothing until it is bound to the one interface.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER)?;
    socket.set_read_timeout(Some(TICK))?;
    let index =
        rustix::net::netdevice::name_to_index(socket.as_fd(), &CString::new(interface)?.to_string_lossy())?;
    socket.bind(&link_address(index)?)?;
    Ok(socket)
}

#[allow(
    unsafe_code,
    reason = "no crate in use has the address type of packet sockets"
)]
fn link_address(interface: u32) -> Result<SockAddr> {
    // SAFETY: `sockaddr_ll` fits into the storage that is given, is plain data, and its length is set beside it.
    let made = unsafe {
        SockAddr::try_init(|storage, length| {
            let address = libc::sockaddr_ll {
                sll_family: libc::AF_PACKET as u16,
                sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
                sll_ifindex: interface as i32,
                sll_hatype: 0,
                sll_pkttype: 0,
                sll_halen: 0,
                sll_addr: [0; 8],
            };
            storage.cast::<libc::sockaddr_ll>().write(address);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    };
    Ok(made?.1)
}

/// Packets since the last call, and how many of them were dropped for want of room.
#[allow(unsafe_code, reason = "no crate in use has this socket option")]
fn statistics(socket: &Socket) -> Result<(u64, u64)> {
    let mut stats = libc::tpacket_stats {
        tp_packets: 0,
        tp_drops: 0,
    };
    let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes of plain data into `stats`, which is of that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut length,
        )
    };
    ensure!(
        result == 0,
        "packet statistics: {}",
        std::io::Error::last_os_error()
    );
    Ok((stats.tp_packets.into(), stats.tp_drops.into()))
}
