//! The network: smoltcp over the card, and the sockets of the HTTP server.
//!
//! ```text
//! free --> listening --SYN--> half-open --ACK--> accepted (a task owns it) --> free
//!                                 \---- 3 s ----> free
//! ```
//! One socket listens at a time, and frames are taken one by one, so that a fresh one listens
//! before the next SYN is looked at. When all sockets are in use, the oldest half-open one or the
//! connection that has been idle longest gives way; when none may, newcomers are refused with a
//! reset.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use core::task::{Context, Poll};

use skein_wire::Ipv4Network;
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketHandle, SocketSet};
use smoltcp::phy::{Device, TxToken};
use smoltcp::socket::{dhcpv4, tcp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, HardwareAddress, IpCidr, Ipv4Cidr,
};

use crate::clock;
use crate::sync::Mutex;
use crate::virtio::network::Network;

/// 16 KiB each way per connection: eleven full frames in flight, more than a round trip between
/// machines of one host needs.
const BUFFER: usize = 16 << 10;
/// Memory of one socket, bytes.
pub(crate) const SOCKET_BYTES: usize = 2 * BUFFER + 1024;
/// 3 s: the time of two retransmissions of a SYN.
const HALF_OPEN_NS: u64 = 3_000_000_000;
/// 200 ms: a peer that has not confirmed by then, while others ask for its place, is not a real
/// one.
const HALF_OPEN_LEAST_NS: u64 = 200_000_000;
/// 1 s: a connection that idles longer gives way when all sockets are in use.
const IDLE_LEAST_NS: u64 = 1_000_000_000;
/// 64 frames before tasks get their turn again.
const FRAMES_PER_POLL: usize = 64;

/// The machine's network.
pub(crate) struct Net {
    card: Network,
    interface: Interface,
    sockets: SocketSet<'static>,
    dhcp: Option<SocketHandle>,
    listening: Option<SocketHandle>,
    /// With the time from which on they are given up, oldest first.
    half_open: VecDeque<(SocketHandle, u64)>,
    free: Vec<SocketHandle>,
    /// Accepted connections between two requests, with the time since when, longest first.
    idle: VecDeque<(SocketHandle, u64)>,
    tcp_count: usize,
    tcp_max: usize,
    /// 0 until the server listens, and again once it stops.
    port: u16,
}

static NET: Mutex<Option<Net>> = Mutex::new(None);

/// What a DHCP server said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Address and prefix.
    pub(crate) ip: Ipv4Network,
    /// Gateway.
    pub(crate) gw: Option<Ipv4Addr>,
    /// Resolver.
    pub(crate) dns: Option<Ipv4Addr>,
}

fn instant(ns: u64) -> Instant {
    Instant::from_micros(i64::try_from(ns / 1000).unwrap_or(i64::MAX))
}

impl Net {
    /// A network without address. `tcp_max`: sockets, at least 4. `random_seed` makes sequence
    /// numbers and transaction numbers differ.
    pub(crate) fn new(mut card: Network, tcp_max: usize, random_seed: u64) -> Self {
        let mac = HardwareAddress::Ethernet(EthernetAddress(card.mac_address()));
        let mut config = Config::new(mac);
        config.random_seed = random_seed;
        let interface = Interface::new(config, &mut card, instant(clock::now_ns()));
        Self {
            card,
            interface,
            sockets: SocketSet::new(Vec::new()),
            dhcp: None,
            listening: None,
            half_open: VecDeque::new(),
            free: Vec::new(),
            idle: VecDeque::new(),
            tcp_count: 0,
            tcp_max: tcp_max.max(4),
            port: 0,
        }
    }

    /// Sets address and gateway and announces the address.
    fn set_address(&mut self, ip: Ipv4Network, gw: Option<Ipv4Addr>) {
        let cidr = IpCidr::Ipv4(Ipv4Cidr::new(ip.address(), ip.prefix()));
        self.interface.update_ip_addrs(|addresses| {
            addresses.clear();
            // There is room for one.
            let _ = addresses.push(cidr);
        });
        let routes = self.interface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some(gw) = gw {
            // There is room for two.
            let _ = routes.add_default_ipv4_route(gw);
        }
        self.announce(ip.address());
    }

    /// A gratuitous ARP request: neighbours and bridges learn where the address is now.
    fn announce(&mut self, address: Ipv4Addr) {
        let HardwareAddress::Ethernet(mac) = self.interface.hardware_addr();
        let arp = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: mac,
            source_protocol_addr: address,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: address,
        };
        let ethernet = EthernetRepr {
            src_addr: mac,
            dst_addr: EthernetAddress::BROADCAST,
            ethertype: EthernetProtocol::Arp,
        };
        let header = EthernetFrame::<&[u8]>::header_len();
        if let Some(token) = self.card.transmit(instant(0)) {
            token.consume(header + arp.buffer_len(), |bytes| {
                ethernet.emit(&mut EthernetFrame::new_unchecked(&mut *bytes));
                arp.emit(&mut ArpPacket::new_unchecked(&mut bytes[header..]));
            });
            self.card.notify();
        }
    }

    /// Asks DHCP for an address, from the beginning.
    fn ask_dhcp(&mut self) {
        self.interface.update_ip_addrs(|addresses| addresses.clear());
        match self.dhcp {
            Some(handle) => self.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).reset(),
            None => self.dhcp = Some(self.sockets.add(dhcpv4::Socket::new())),
        }
    }

    fn poll_dhcp(&mut self) -> Option<Lease> {
        let socket = self.sockets.get_mut::<dhcpv4::Socket<'_>>(self.dhcp?);
        match socket.poll()? {
            dhcpv4::Event::Configured(lease) => {
                let ip = Ipv4Network::new(lease.address.address(), lease.address.prefix_len())?;
                let (gw, dns) = (lease.router, lease.dns_servers.first().copied());
                self.set_address(ip, gw);
                Some(Lease { ip, gw, dns })
            }
            dhcpv4::Event::Deconfigured => {
                self.interface.update_ip_addrs(|addresses| addresses.clear());
                None
            }
        }
    }

    /// Moves sockets on after a frame; connections that are established now go to `accepted`.
    fn after_frame(&mut self, now: u64, accepted: &mut Vec<Connection>) {
        if let Some(handle) = self.listening
            && self.state(handle) != tcp::State::Listen
        {
            self.half_open.push_back((handle, now.saturating_add(HALF_OPEN_NS)));
            self.listening = None;
        }
        for _ in 0..self.half_open.len() {
            let Some((handle, end)) = self.half_open.pop_front() else { break };
            match self.state(handle) {
                tcp::State::SynReceived if now < end => self.half_open.push_back((handle, end)),
                tcp::State::Established | tcp::State::CloseWait => {
                    accepted.push(Connection { handle });
                }
                _ => self.release(handle),
            }
        }
        if self.listening.is_none() && self.port != 0 {
            self.listen(now);
        }
    }

    fn state(&self, handle: SocketHandle) -> tcp::State {
        self.sockets.get::<tcp::Socket<'_>>(handle).state()
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Puts a socket to listening, if one can be had.
    fn listen(&mut self, now: u64) {
        let oldest_may_go = |(_, end): &(SocketHandle, u64)| {
            now.saturating_add(HALF_OPEN_NS) >= end.saturating_add(HALF_OPEN_LEAST_NS)
        };
        let handle = if let Some(handle) = self.free.pop() {
            handle
        } else if self.tcp_count < self.tcp_max {
            self.tcp_count += 1;
            let buffer = || tcp::SocketBuffer::new(alloc::vec![0; BUFFER]);
            self.sockets.add(tcp::Socket::new(buffer(), buffer()))
        } else if self.half_open.front().is_some_and(oldest_may_go) {
            let Some((oldest, _)) = self.half_open.pop_front() else { return };
            oldest
        } else {
            self.end_longest_idle(now);
            return;
        };
        let port = self.port;
        let socket = self.socket(handle);
        socket.abort();
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        // The socket is closed and the port is not 0.
        let _ = socket.listen(port);
        self.listening = Some(handle);
    }

    /// Resets the connection that has been idle longest, if that is long enough. Its task gives the
    /// socket back, which then listens.
    fn end_longest_idle(&mut self, now: u64) {
        let long_enough =
            |(_, since): &(SocketHandle, u64)| now >= since.saturating_add(IDLE_LEAST_NS);
        if self.idle.front().is_some_and(long_enough)
            && let Some((handle, _)) = self.idle.pop_front()
        {
            self.socket(handle).abort();
        }
    }

    /// Takes a socket back. A connection that is still there is reset; one that only waits out its
    /// time is forgotten.
    fn release(&mut self, handle: SocketHandle) {
        let port = self.port.max(1);
        let socket = self.socket(handle);
        let waits_out = socket.state() == tcp::State::TimeWait;
        socket.abort();
        if waits_out {
            // Listening once clears the peer, so that no reset is sent to it.
            let _ = socket.listen(port);
            socket.abort();
        }
        self.free.push(handle);
        self.idle.retain(|(idle, _)| *idle != handle);
        if self.listening.is_none() && self.port != 0 {
            self.listen(clock::now_ns());
        }
    }

    /// Takes frames, moves sockets on, sends frames.
    fn poll(&mut self, now: u64) -> Polled {
        let mut polled = Polled::default();
        // A socket may have come free, or old enough to give way.
        self.after_frame(now, &mut polled.accepted);
        for _ in 0..FRAMES_PER_POLL {
            let time = instant(now);
            let Self { card, interface, sockets, .. } = self;
            match interface.poll_ingress_single(time, card, sockets) {
                PollIngressSingleResult::None => break,
                PollIngressSingleResult::PacketProcessed
                | PollIngressSingleResult::SocketStateChanged => {}
            }
            self.after_frame(now, &mut polled.accepted);
        }
        polled.lease = self.poll_dhcp();
        polled
    }

    fn flush(&mut self, now: u64) {
        let Self { card, interface, sockets, .. } = self;
        interface.poll_egress(instant(now), card, sockets);
        card.notify();
    }

    /// When [`Net::poll`] is to be called again without a frame, ns since boot.
    fn deadline(&mut self, now: u64) -> Option<u64> {
        let stack = self
            .interface
            .poll_at(instant(now), &self.sockets)
            .map(|at| u64::try_from(at.total_micros()).unwrap_or(0).saturating_mul(1000));
        let half_open = self.half_open.front().map(|(_, end)| *end);
        [stack, half_open].into_iter().flatten().min()
    }
}

/// What a poll brought.
#[derive(Default)]
pub(crate) struct Polled {
    /// New connections.
    pub(crate) accepted: Vec<Connection>,
    /// A new or changed address.
    pub(crate) lease: Option<Lease>,
}

fn with<R>(f: impl FnOnce(&mut Net) -> R) -> Option<R> {
    NET.lock().as_mut().map(f)
}

/// Uses `net` from now on.
pub(crate) fn install(net: Net) {
    *NET.lock() = Some(net);
}

/// Takes frames and moves connections on. Call [`flush`] after the tasks have run.
pub(crate) fn poll(pending: u32) -> Polled {
    let now = clock::now_ns();
    with(|net| {
        if pending & net.card.slot_bit() != 0 {
            net.card.acknowledge();
        }
        net.poll(now)
    })
    .unwrap_or_default()
}

/// Sends what sockets have to send.
pub(crate) fn flush() {
    let now = clock::now_ns();
    with(|net| net.flush(now));
}

/// Whether frames wait.
pub(crate) fn has_frame() -> bool {
    with(|net| net.card.has_frame()).unwrap_or(false)
}

/// When [`poll`] is due without a frame, ns since boot.
pub(crate) fn deadline() -> Option<u64> {
    let now = clock::now_ns();
    with(|net| net.deadline(now)).flatten()
}

/// Sets a static address, or asks DHCP for one.
pub(crate) fn configure(ip: Option<Ipv4Network>, gw: Option<Ipv4Addr>) {
    with(|net| match ip {
        Some(ip) => {
            if let Some(dhcp) = net.dhcp.take() {
                net.sockets.remove(dhcp);
            }
            net.set_address(ip, gw);
        }
        None => net.ask_dhcp(),
    });
}

/// The address the machine has now.
pub(crate) fn address() -> Option<Ipv4Addr> {
    with(|net| net.interface.ipv4_addr()).flatten()
}

/// Accepts connections on `port`; 0 stops accepting.
pub(crate) fn listen(port: u16) {
    with(|net| {
        net.port = port;
        if port == 0 {
            if let Some(handle) = net.listening.take() {
                net.release(handle);
            }
            while let Some((handle, _)) = net.half_open.pop_front() {
                net.release(handle);
            }
        } else if net.listening.is_none() {
            net.listen(clock::now_ns());
        }
    });
}

/// Takes `mac`, or else the card's address as it is now. Connections belong to the old one; they
/// are dropped silently.
pub(crate) fn renew_card(mac: Option<[u8; 6]>) {
    with(|net| {
        let mac = EthernetAddress(mac.unwrap_or_else(|| net.card.mac_address()));
        net.interface.set_hardware_addr(HardwareAddress::Ethernet(mac));
        let handles: Vec<_> = net
            .sockets
            .iter()
            .filter(|(_, socket)| matches!(socket, smoltcp::socket::Socket::Tcp(_)))
            .map(|(handle, _)| handle)
            .collect();
        for handle in handles {
            if net.state(handle) != tcp::State::Listen {
                let socket = net.socket(handle);
                socket.abort();
                // Clears the peer, so that no reset leaves under the new identity.
                let _ = socket.listen(1);
                socket.abort();
            }
        }
    });
}

/// An established connection. Dropping it resets what is left of it and takes its socket back.
pub(crate) struct Connection {
    handle: SocketHandle,
}

/// The peer has reset the connection, or it was never there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl Connection {
    fn socket<R>(&self, f: impl FnOnce(&mut tcp::Socket<'static>) -> R) -> Option<R> {
        with(|net| f(net.socket(self.handle)))
    }

    /// Passes bytes that have arrived to `take`, which says how many it took. `Ok(None)` after the
    /// last byte; pending while there are none.
    pub(crate) fn poll_receive<R>(
        &self,
        context: &mut Context<'_>,
        take: impl FnOnce(&[u8]) -> (usize, R),
    ) -> Poll<Result<Option<R>, Broken>> {
        let result = self.socket(|socket| {
            if socket.can_recv() {
                let taken = socket.recv(|bytes| take(bytes));
                return Poll::Ready(taken.map(Some).map_err(|_| Broken));
            }
            if !socket.is_active() {
                return Poll::Ready(Err(Broken));
            }
            if !socket.may_recv() {
                return Poll::Ready(Ok(None));
            }
            socket.register_recv_waker(context.waker());
            Poll::Pending
        });
        result.unwrap_or(Poll::Ready(Err(Broken)))
    }

    /// Takes as much of `bytes` as there is room for; pending while there is none.
    fn poll_send(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, Broken>> {
        let result = self.socket(|socket| match socket.send_slice(bytes) {
            Err(_) => Poll::Ready(Err(Broken)),
            Ok(0) if !bytes.is_empty() => {
                socket.register_send_waker(context.waker());
                Poll::Pending
            }
            Ok(sent) => Poll::Ready(Ok(sent)),
        });
        result.unwrap_or(Poll::Ready(Err(Broken)))
    }

    /// Sends some of `bytes`; returns how many.
    pub(crate) async fn send(&self, bytes: &[u8]) -> Result<usize, Broken> {
        core::future::poll_fn(|context| self.poll_send(context, bytes)).await
    }

    /// Says whether the connection is between two requests, and may have to give way.
    pub(crate) fn set_idle(&self, is_idle: bool) {
        let now = clock::now_ns();
        with(|net| {
            net.idle.retain(|(handle, _)| *handle != self.handle);
            if is_idle {
                net.idle.push_back((self.handle, now));
            }
        });
    }

    /// Whether the peer has reset the connection.
    pub(crate) fn is_broken(&self) -> bool {
        self.socket(|socket| !socket.is_active()).unwrap_or(true)
    }

    /// Sends the end of this side after everything that was sent.
    pub(crate) fn finish(&self) {
        self.socket(tcp::Socket::close);
    }

    /// Waits until both sides have ended. What still arrives is dropped.
    pub(crate) async fn closed(&self) {
        core::future::poll_fn(|context| {
            let ended = self.socket(|socket| {
                while socket.can_recv() {
                    if socket.recv(|bytes| (bytes.len(), ())).is_err() {
                        break;
                    }
                }
                let ended = matches!(socket.state(), tcp::State::Closed | tcp::State::TimeWait);
                if !ended {
                    socket.register_recv_waker(context.waker());
                    socket.register_send_waker(context.waker());
                }
                ended
            });
            if ended.unwrap_or(true) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        with(|net| net.release(self.handle));
    }
}
