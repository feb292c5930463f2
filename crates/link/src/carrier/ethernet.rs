//! Datagrams straight on Ethernet, through a packet socket (packet(7)).
//!
//! Frames are read where the kernel puts them ([`Frames`]), so that looking for one costs no system call. They are sent by system calls, and go through the interface's queueing discipline like everybody's, so that limits set on it hold. The socket's
//! send buffer is what bounds the queue there ([`Depth`]): when it is full the sender waits, and nothing is dropped on this host.

use super::depth::Depth;
use super::traffic::Traffic;
use super::{Address, Carrier, CarrierError, CarrierKind, Sent, Source};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{LinkAddr, bind};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, MMsgHdr, Protocol, RecvFlags, SendAncillaryBuffer, SendFlags, SocketFlags,
    SocketType, recv, send, sendmmsg, socket_with, sockopt,
};
use skein_link_core::frames::Frames;
use skein_link_core::light::DatagramSize;
use std::fmt;
use std::io::{self, IoSlice};
use std::num::NonZeroU32;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// `0x88b5`, given by IEEE 802 for local experiments: no other protocol of a network has it.
const ETHERTYPE: u16 = 0x88b5;
/// Addresses and type.
const FRAME_HEADER: usize = 14;
/// 64: a system call for so many frames costs a tenth of what their way through the kernel does.
const BATCH: usize = 64;
/// Frames that wait to be read where the kernel gives no memory to read them from: a receiver that is not scheduled for 10 ms
/// at 10 Gbit/s.
const RECEIVE_BUFFER: usize = 16 << 20;
/// Frames taken in one go before what they brought is answered.
const RECEIVE_MAX: usize = 64;
/// So many looks in vain, and the socket is asked: an error that waits there would end each wait for frames at once.
const LOOKS_PER_CALL: u32 = 64;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Where frames are read.
#[derive(Debug)]
enum Inlet {
    /// Where the kernel puts them. After so many looks in vain.
    Mapped(Frames, u32),
    /// From the socket, into this.
    Copied(Vec<u8>),
}

impl Inlet {
    /// Gives the next frame to `take`; whether there was one.
    fn read(&mut self, socket: &OwnedFd, take: impl FnOnce(&[u8])) -> io::Result<bool> {
        match self {
            Self::Mapped(frames, vain) => {
                if frames.read(take) {
                    *vain = 0;
                    return Ok(true);
                }
                *vain += 1;
                if *vain >= LOOKS_PER_CALL {
                    *vain = 0;
                    receive(socket, &mut [])?;
                }
                Ok(false)
            }
            Self::Copied(buffer) => {
                let Some(length) = receive(socket, buffer)? else { return Ok(false) };
                take(&buffer[..length]);
                Ok(true)
            }
        }
    }
}

/// One frame from a socket.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((length, _)) => return Ok(Some(length)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR | Errno::NETDOWN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Datagrams on one interface.
#[derive(Debug)]
pub struct Ethernet {
    socket: OwnedFd,
    mac: Mac,
    mtu: DatagramSize,
    /// Room for a batch of frames.
    frames: Vec<u8>,
    lengths: Vec<usize>,
    /// Of `lengths`, so many have been sent.
    sent: usize,
    depth: Depth,
    traffic: Traffic,
    inlet: Inlet,
    /// Frames to read before answering: more while they come in bursts.
    receive_next: usize,
}

impl Ethernet {
    /// Opens the interface `name` of the calling thread's network namespace, whose frames hold `mtu` bytes. Needs
    /// CAP_NET_RAW.
    ///
    /// # Errors
    /// No such interface, or not allowed.
    pub fn open(name: &str, mtu: DatagramSize) -> Result<Self, CarrierError> {
        let address = link_address(name)?;
        let protocol = NonZeroU32::new(u32::from(ETHERTYPE.to_be())).map(Protocol::from_raw);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol).map_err(
            |errno| CarrierError::socket("opening a packet socket on", name)(errno.into()),
        )?;
        bind(socket.as_raw_fd(), &address).map_err(|errno| {
            CarrierError::socket("binding a packet socket to", name)(errno.into())
        })?;
        let inlet = Frames::of(socket.as_fd(), FRAME_HEADER + mtu.get());
        let inlet = inlet.map(|frames| Inlet::Mapped(frames, 0)).unwrap_or_else(|_| {
            // A smaller buffer loses bursts and works; only root may have this one.
            let _ = sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER);
            Inlet::Copied(vec![0; FRAME_HEADER + 65_536])
        });
        let ethernet = Self {
            socket,
            mac: Mac(address.addr().unwrap_or_default()),
            mtu,
            frames: vec![0; BATCH * (FRAME_HEADER + mtu.get())],
            lengths: Vec::with_capacity(BATCH),
            sent: 0,
            depth: Depth::new(),
            traffic: Traffic::of(name),
            inlet,
            receive_next: 1,
        };
        ethernet.limit_queue();
        Ok(ethernet)
    }

    fn limit_queue(&self) {
        // The kernel doubles the value that it is given. With another one it works too, as long as that was the latest.
        let _ = sockopt::set_socket_send_buffer_size_force(&self.socket, self.depth.limit() / 2);
    }

    /// The interface's address.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Hands waiting frames to the kernel.
    fn flush(&mut self) -> io::Result<Sent> {
        let stride = FRAME_HEADER + self.mtu.get();
        while self.sent < self.lengths.len() {
            let frames = &self.frames[self.sent * stride..];
            let result = match self.lengths[self.sent..] {
                [one] => send(&self.socket, &frames[..one], SendFlags::DONTWAIT).map(|_| 1),
                ref many => send_many(&self.socket, frames.chunks(stride).zip(many)),
            };
            match result {
                Ok(sent) => {
                    let taken = &self.lengths[self.sent..self.sent + sent];
                    taken.iter().for_each(|length| self.depth.took(*length));
                    self.sent += sent;
                }
                Err(Errno::AGAIN) => {
                    if self.depth.fill(|| self.traffic.sent()) {
                        self.limit_queue();
                    }
                    return Ok(Sent::Full);
                }
                Err(Errno::NOBUFS) => return Ok(Sent::Congested),
                Err(Errno::INTR) => {}
                // Too long for the interface now, or it is down: lost, as on any wire.
                Err(Errno::MSGSIZE | Errno::NETDOWN) => self.sent += 1,
                Err(errno) => return Err(errno.into()),
            }
        }
        self.sent = 0;
        self.lengths.clear();
        Ok(Sent::All)
    }
}

/// Sends frames, each at the beginning of its slot.
fn send_many<'a>(
    socket: impl AsFd,
    frames: impl Iterator<Item = (&'a [u8], &'a usize)>,
) -> rustix::io::Result<usize> {
    let slices: Vec<[IoSlice<'_>; 1]> =
        frames.map(|(slot, length)| [IoSlice::new(&slot[..*length])]).collect();
    let mut controls: Vec<_> = slices.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<_> = slices
        .iter()
        .zip(&mut controls)
        .map(|(slice, control)| MMsgHdr::new(slice, control))
        .collect();
    sendmmsg(socket, &mut messages, SendFlags::DONTWAIT)
}

impl Carrier for Ethernet {
    fn kind(&self) -> CarrierKind {
        CarrierKind::Ethernet
    }

    fn datagram_max(&self, _to: &Address) -> DatagramSize {
        self.mtu
    }

    fn send(&mut self, to: &Address, source: &mut dyn Source) -> io::Result<Sent> {
        let Address::Mac(to) = to else { return Err(io::ErrorKind::InvalidInput.into()) };
        let stride = FRAME_HEADER + self.mtu.get();
        let mut has_more = true;
        loop {
            match self.flush()? {
                Sent::All => {}
                waiting => return Ok(waiting),
            }
            if !has_more {
                self.depth.rest();
                return Ok(Sent::All);
            }
            while self.lengths.len() < BATCH {
                let slot = &mut self.frames[self.lengths.len() * stride..][..stride];
                let (head, body) = slot.split_at_mut(FRAME_HEADER);
                let Some(length) = source.next(body) else {
                    has_more = false;
                    break;
                };
                head[..6].copy_from_slice(&to.0);
                head[6..12].copy_from_slice(&self.mac.0);
                head[12..].copy_from_slice(&ETHERTYPE.to_be_bytes());
                self.lengths.push(FRAME_HEADER + length);
            }
        }
    }

    fn receive(&mut self, take: &mut dyn FnMut(Address, &[u8])) -> io::Result<usize> {
        let mut taken = 0;
        while taken < self.receive_next {
            let mac = self.mac;
            let got = self.inlet.read(&self.socket, |frame| {
                let Some((head, body)) = frame.split_first_chunk::<FRAME_HEADER>() else { return };
                // Before it was bound, the socket saw other interfaces; and a promiscuous one sees others' frames.
                if head[..6] == mac.0 && head[12..] == ETHERTYPE.to_be_bytes() {
                    let from = core::array::from_fn(|place| head[6 + place]);
                    take(Address::Mac(Mac(from)), body);
                }
            })?;
            if !got {
                break;
            }
            taken += 1;
        }
        self.receive_next = if taken < self.receive_next { taken.max(1) } else { RECEIVE_MAX };
        Ok(taken)
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What the kernel tells of an interface, in the form that `bind` takes.
fn link_address(name: &str) -> Result<LinkAddr, CarrierError> {
    let addresses = getifaddrs().map_err(|errno| {
        CarrierError::socket("listing interfaces, looking for", name)(errno.into())
    })?;
    let mut links = addresses
        .filter(|entry| entry.interface_name == name)
        .filter_map(|entry| entry.address?.as_link_addr().copied());
    links
        .find(|link| link.halen() == 6)
        .ok_or_else(|| CarrierError::NoInterface { name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn without_mapped_memory_frames_are_taken_from_the_socket() {
        let (here, there) = UnixDatagram::pair().unwrap();
        here.set_nonblocking(true).unwrap();
        let here = OwnedFd::from(here);
        let mut inlet = Inlet::Copied(vec![0; 2000]);
        let mut read = || {
            let mut got = None;
            let any = inlet.read(&here, |frame| got = Some(frame.to_vec())).unwrap();
            assert_eq!(any, got.is_some());
            got
        };
        assert_eq!(read(), None);
        there.send(&[1; 60]).unwrap();
        there.send(&[2; 1514]).unwrap();
        assert_eq!(read(), Some(vec![1; 60]));
        assert_eq!(read(), Some(vec![2; 1514]));
        assert_eq!(read(), None);
    }
}
