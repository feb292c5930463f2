//! Datagrams in UDP, many at a time: the kernel cuts a train of equal datagrams late (GSO) and joins it early (GRO).

use super::{Address, Carrier, CarrierError, CarrierKind, Sent, Source, datagram_in_udp};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use skein_link_core::light::{DatagramSize, Planned};
use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The largest payload of a UDP datagram over IPv4, and so of a train.
const TRAIN_BYTES: usize = 65_507;
/// Trains taken in one go: more would push the first out of the processor's cache before they are read.
const TRAINS: usize = 4;
/// Room for what comes while the receiver is not scheduled: 10 ms at 10 Gbit/s.
const BUFFER_BYTES: usize = 16 << 20;

/// Datagrams of one UDP socket.
#[derive(Debug)]
pub struct Udp {
    socket: UdpSocket,
    state: UdpSocketState,
    /// What waits to be sent: a train, and the datagram that did not fit it.
    train: Vec<u8>,
    filled: usize,
    segment: usize,
    closed: usize,
    destination: Option<SocketAddr>,
    /// The kernel takes trains in pieces.
    gathers: bool,
    planned: Vec<Planned>,
    received: Vec<u8>,
    sizes: HashMap<SocketAddr, DatagramSize>,
}

impl Udp {
    /// Opens a socket on `local`, in the calling thread's network namespace.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub fn open(local: SocketAddr) -> Result<Self, CarrierError> {
        let failed = |action| CarrierError::socket(action, local);
        let socket = UdpSocket::bind(local).map_err(failed("binding a UDP socket to"))?;
        socket.set_nonblocking(true).map_err(failed("setting up the UDP socket on"))?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))
            .map_err(failed("setting up the UDP socket on"))?;
        // A smaller one loses bursts and works. The send buffer stays as the system has it: it bounds what waits in the
        // interface's queue, and a queue that overflows drops without telling us.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, BUFFER_BYTES);
        Ok(Self {
            socket,
            state,
            train: vec![0; TRAIN_BYTES + DatagramSize::new(usize::MAX).get()],
            filled: 0,
            segment: 0,
            closed: 0,
            destination: None,
            gathers: true,
            planned: Vec::new(),
            received: vec![0; TRAINS * 65_536],
            sizes: HashMap::new(),
        })
    }

    /// The address it has.
    ///
    /// # Errors
    /// The socket is unusable.
    pub fn local(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// Sends the train that is complete.
    fn flush(&mut self) -> io::Result<Sent> {
        let Some(destination) = self.destination.filter(|_| self.closed > 0) else {
            return Ok(Sent::All);
        };
        let transmit = Transmit {
            destination,
            ecn: None,
            contents: &self.train[..self.closed],
            segment_size: (self.closed > self.segment).then_some(self.segment),
            src_ip: None,
        };
        match self.state.try_send(UdpSockRef::from(&self.socket), &transmit) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Full),
            Err(error) => match rustix::io::Errno::from_io_error(&error) {
                Some(rustix::io::Errno::NOBUFS) => return Ok(Sent::Congested),
                // A datagram that the path does not take, or a peer that is away: lost, as on any wire.
                Some(_) => {}
                None => return Err(error),
            },
        }
        // The datagram that was too long for the train begins the next one.
        self.train.copy_within(self.closed..self.filled, 0);
        self.filled -= self.closed;
        self.segment = self.filled;
        self.closed = 0;
        Ok(Sent::All)
    }

    /// Sends a train straight from where its payload is; whether there was one. What the kernel does not take now is copied
    /// and waits.
    fn send_planned(&mut self, to: SocketAddr, size: usize, source: &mut dyn Source) -> bool {
        let segments = self.state.max_gso_segments();
        let (mut total, mut segment) = (0, 0);
        let mut longer = None;
        self.planned.clear();
        while self.planned.len() < segments && total + size <= TRAIN_BYTES {
            let Some(planned) = source.plan() else { break };
            let length = planned.datagram_bytes();
            if segment == 0 {
                segment = length;
            }
            if length > segment {
                longer = Some(planned);
                break;
            }
            total += length;
            self.planned.push(planned);
            if length < segment {
                break;
            }
        }
        if self.planned.is_empty() {
            return false;
        }
        let sent = send_pieces(&self.socket, to, segment, &self.planned, source);
        let (mut keep, mut closed) = (0, 0);
        if let Err(errno) = sent {
            // The way by copies knows what to do about kernels and interfaces without this offload.
            self.gathers = !matches!(errno, Errno::EIO | Errno::EINVAL | Errno::EOPNOTSUPP);
            (keep, closed) = (self.planned.len(), total);
        }
        for planned in self.planned[..keep].iter().chain(&longer) {
            let (first, second) = source.pieces(planned);
            for piece in [planned.head(), first, second] {
                self.train[self.filled..][..piece.len()].copy_from_slice(piece);
                self.filled += piece.len();
            }
        }
        self.closed = closed;
        self.segment = if closed > 0 { segment } else { self.filled };
        true
    }

    /// Fills the train until it is full, a datagram does not fit, or there are no more.
    fn fill(&mut self, size: usize, source: &mut dyn Source) {
        let segments = self.state.max_gso_segments();
        let mut count = usize::from(self.filled > 0);
        while count < segments && self.filled + size <= TRAIN_BYTES {
            let Some(length) = source.next(&mut self.train[self.filled..][..size]) else { break };
            if self.segment == 0 {
                self.segment = length;
            }
            if length > self.segment {
                self.closed = self.filled;
                self.filled += length;
                return;
            }
            self.filled += length;
            count += 1;
            if length < self.segment {
                break;
            }
        }
        self.closed = self.filled;
    }
}

/// One system call for a train of planned datagrams.
fn send_pieces(
    socket: &UdpSocket,
    to: SocketAddr,
    segment: usize,
    train: &[Planned],
    source: &dyn Source,
) -> Result<usize, Errno> {
    let mut slices = Vec::with_capacity(3 * train.len());
    for planned in train {
        let (first, second) = source.pieces(planned);
        slices.extend([planned.head(), first, second].map(IoSlice::new));
    }
    let segment = u16::try_from(segment).unwrap_or(u16::MAX);
    let cut = [ControlMessage::UdpGsoSegments(&segment)];
    let control = if train.len() > 1 { &cut[..] } else { &[] };
    let to = SockaddrStorage::from(to);
    sendmsg(socket.as_raw_fd(), &slices, control, MsgFlags::MSG_DONTWAIT, Some(&to))
}

impl Carrier for Udp {
    fn kind(&self) -> CarrierKind {
        CarrierKind::Udp
    }

    fn datagram_max(&self, to: &Address) -> DatagramSize {
        match to {
            Address::Socket(to) => {
                self.sizes.get(to).copied().unwrap_or_else(|| datagram_in_udp(*to))
            }
            Address::Mac(_) => DatagramSize::LEAST,
        }
    }

    fn send(&mut self, to: &Address, source: &mut dyn Source) -> io::Result<Sent> {
        let Address::Socket(to) = to else { return Err(io::ErrorKind::InvalidInput.into()) };
        let size = self.datagram_max(&Address::Socket(*to));
        self.sizes.entry(*to).or_insert(size);
        loop {
            match self.flush()? {
                Sent::All => {}
                waiting => return Ok(waiting),
            }
            self.destination = Some(*to);
            if self.filled == 0 && self.gathers && self.send_planned(*to, size.get(), source) {
                continue;
            }
            self.fill(size.get(), source);
            if self.filled == 0 {
                self.segment = 0;
                return Ok(Sent::All);
            }
        }
    }

    fn receive(&mut self, take: &mut dyn FnMut(Address, &[u8])) -> io::Result<usize> {
        let mut metas = [RecvMeta::default(); TRAINS];
        let mut chunks = self.received.chunks_mut(65_536);
        let mut buffers: [IoSliceMut<'_>; TRAINS] =
            core::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let got = match self.state.recv(UdpSockRef::from(&self.socket), &mut buffers, &mut metas) {
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            // An earlier datagram found nobody at the other end: the session learns it by silence.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut taken = 0;
        for (meta, bytes) in metas.iter().zip(self.received.chunks(65_536)).take(got) {
            let train = &bytes[..meta.len.min(bytes.len())];
            for datagram in train.chunks(meta.stride.max(1)) {
                take(Address::Socket(meta.addr), datagram);
                taken += 1;
            }
        }
        Ok(taken)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
