//! A machine without QEMU: a thread that reads and writes a tap, with smoltcp as its TCP/IP.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use skein_model::MacAddr;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Bytes of the virtio-net header in front of each frame, as the kernel sets it unless told
/// otherwise.
const HEADER_BYTES: usize = 10;
/// Connections served at a time.
const SOCKETS: usize = 8;
/// The machine looks at its timers at least this often.
const TICK_NS: i64 = 50_000_000;

/// Echoes what it receives by TCP on one port, until dropped.
pub(crate) struct TestMachine {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl TestMachine {
    /// Starts a machine with an address of a /16 at the end of `tap`.
    pub(crate) fn start(tap: OwnedFd, mac: MacAddr, address: Ipv4Addr, port: u16) -> Self {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("an eventfd"));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run(tap, mac, address, port, &stopped));
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for TestMachine {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).expect("the eventfd takes a write");
        let result = self.thread.take().expect("joined once").join();
        if !std::thread::panicking() {
            result.expect("the machine does not panic");
        }
    }
}

fn run(tap: OwnedFd, mac: MacAddr, address: Ipv4Addr, port: u16, stop: &OwnedFd) {
    rustix::io::ioctl_fionbio(&tap, true).expect("the tap becomes non-blocking");
    let mut device = Tap(tap);
    let hardware = HardwareAddress::Ethernet(EthernetAddress(mac.octets()));
    let started = std::time::Instant::now();
    let now = || Instant::from_micros(i64::try_from(started.elapsed().as_micros()).expect("short"));
    let mut interface = Interface::new(Config::new(hardware), &mut device, now());
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(address.into(), 16)).expect("room for an address");
    });
    let mut sockets = SocketSet::new(Vec::new());
    let handles: Vec<_> = (0..SOCKETS).map(|_| sockets.add(socket())).collect();
    loop {
        interface.poll(now(), &mut device, &mut sockets);
        for handle in &handles {
            serve(&mut sockets, *handle, port);
        }
        interface.poll(now(), &mut device, &mut sockets);
        let mut wait = [PollFd::new(&device.0, PollFlags::IN), PollFd::new(stop, PollFlags::IN)];
        let tick = Timespec { tv_sec: 0, tv_nsec: TICK_NS };
        poll(&mut wait, Some(&tick)).expect("poll works");
        let [tap, stop] = wait.map(|fd| fd.revents());
        if stop.contains(PollFlags::IN) || tap.intersects(PollFlags::ERR | PollFlags::NVAL) {
            return;
        }
    }
}

fn socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 16 * 1024]);
    let mut socket = tcp::Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket
}

fn serve(sockets: &mut SocketSet<'_>, handle: SocketHandle, port: u16) {
    let socket = sockets.get_mut::<tcp::Socket<'_>>(handle);
    if !socket.is_open() {
        socket.listen(port).expect("a closed socket listens");
    }
    while socket.can_recv() && socket.can_send() {
        let room = socket.send_capacity() - socket.send_queue();
        let take = |data: &mut [u8]| {
            let count = data.len().min(room);
            (count, data[..count].to_vec())
        };
        let data = socket.recv(take).expect("data is there");
        socket.send_slice(&data).expect("the socket is open");
    }
    if socket.state() == tcp::State::CloseWait {
        socket.close();
    }
}

/// One frame for each read and write, each behind a header that says nothing (no offload used).
struct Tap(OwnedFd);

impl Device for Tap {
    type RxToken<'a> = Frame;
    type TxToken<'a> = Sender<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Frame, Sender<'_>)> {
        let mut frame = vec![0; 64 * 1024];
        let count = rustix::io::read(&self.0, &mut frame).ok()?;
        frame.truncate(count);
        Some((Frame(frame), Sender(&self.0)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sender<'_>> {
        Some(Sender(&self.0))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        // The kernel leaves checksums to the device, as it would to QEMU's.
        capabilities.checksum = ChecksumCapabilities::default();
        capabilities.checksum.tcp = smoltcp::phy::Checksum::Tx;
        capabilities
    }
}

struct Frame(Vec<u8>);

impl RxToken for Frame {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, use_frame: F) -> R {
        use_frame(self.0.get(HEADER_BYTES..).unwrap_or_default())
    }
}

struct Sender<'a>(&'a OwnedFd);

impl TxToken for Sender<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, fill: F) -> R {
        let mut frame = vec![0; HEADER_BYTES + length];
        let result = fill(&mut frame[HEADER_BYTES..]);
        // A tap that was removed under us takes nothing; the poll sees it.
        let _ = rustix::io::write(self.0, &frame);
        result
    }
}
