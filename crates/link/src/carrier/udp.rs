//! Datagrams in UDP, many at a time: the kernel cuts a train of equal datagrams late (GSO) and joins it early (GRO).

use super::{Address, Carrier, CarrierError, CarrierKind, Sent, datagram_in_udp};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use skein_link_core::light::DatagramSize;
use std::collections::HashMap;
use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

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

    /// Fills the train until it is full, a datagram does not fit, or there are no more.
    fn fill(&mut self, size: usize, next: &mut dyn FnMut(&mut [u8]) -> Option<usize>) {
        let segments = self.state.max_gso_segments();
        let mut count = usize::from(self.filled > 0);
        while count < segments && self.filled + size <= TRAIN_BYTES {
            let Some(length) = next(&mut self.train[self.filled..][..size]) else { break };
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

    fn send(
        &mut self,
        to: &Address,
        next: &mut dyn FnMut(&mut [u8]) -> Option<usize>,
    ) -> io::Result<Sent> {
        let Address::Socket(to) = to else { return Err(io::ErrorKind::InvalidInput.into()) };
        let size = self.datagram_max(&Address::Socket(*to));
        self.sizes.entry(*to).or_insert(size);
        loop {
            match self.flush()? {
                Sent::All => {}
                waiting => return Ok(waiting),
            }
            self.destination = Some(*to);
            self.fill(size.get(), next);
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
