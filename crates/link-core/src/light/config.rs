//! What a session is told.

use super::check::CHECK_BYTES;
use super::control::AgentId;
use super::header::HEADER_BYTES_MIN;
use super::proof::Key;
use core::time::Duration;

/// The longest opening of a channel, bytes: it must fit into the smallest datagram.
pub const OPENING_BYTES_MAX: usize = 400;

/// Bytes of a datagram, header and check included, without what the carrier adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DatagramSize(u16);

impl DatagramSize {
    /// What every path carries: IPv4 obliges hosts to take 576 bytes, of which 28 go to IP and UDP (RFC 791).
    pub const LEAST: Self = Self(548);
    /// An Ethernet frame's payload.
    pub const ETHERNET: Self = Self(1500);
    /// Sizes that are tried in turn, besides the largest: an Ethernet frame, one in UDP, in VXLAN, in UDP in VXLAN, in
    /// a tunnel, IPv6's least, and the least of all.
    pub(crate) const LADDER: [Self; 7] =
        [Self(1500), Self(1472), Self(1450), Self(1422), Self(1380), Self(1232), Self::LEAST];

    /// `bytes`, brought between the least and the most there are: 548 to 65,000.
    pub const fn new(bytes: usize) -> Self {
        match bytes {
            0..548 => Self::LEAST,
            548..=65_000 => Self(bytes as u16),
            _ => Self(65_000),
        }
    }

    /// In bytes.
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    pub(crate) const fn raw(self) -> u16 {
        self.0
    }

    /// The next smaller size to try.
    pub(crate) fn smaller(self) -> Option<Self> {
        Self::LADDER.into_iter().find(|size| *size < self)
    }
}

/// How a datagram's bytes are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// By the carrier: Ethernet's frame check on each hop, or the checksum of UDP from end to end.
    Carrier,
    /// By four bytes of CRC-32C behind each datagram as well, from end to end. Used if either end asks for it.
    EndToEnd,
}

/// What a session is told. [`Config::new`] has what suits a local network.
#[derive(Debug, Clone)]
pub struct Config {
    /// This agent.
    pub me: AgentId,
    /// The agent at the other end: no other is answered.
    pub peer: AgentId,
    /// What both know and nobody else.
    pub key: Key,
    /// Chosen at random when the agent starts, so that the peer sees a restart.
    pub incarnation: u64,
    /// Random, for nonces.
    pub seed: [u8; 32],
    /// The largest datagram the carrier takes.
    pub datagram_max: DatagramSize,
    /// How datagrams are checked.
    pub check: Check,
    /// Bytes that may wait on each side of a channel, 64 KiB to 1 GiB: buffer of the sender, credit of the receiver.
    pub window: u32,
    /// Channels that the peer may have open.
    pub channels_max: usize,
    /// How long an acknowledgement may wait for company.
    pub acknowledge_within: Duration,
    /// The least time before a datagram that nothing answers is sent again. Smaller than a sleeping host's delay it
    /// only makes duplicates.
    pub probe_min: Duration,
    /// An idle session with channels is looked after so often.
    pub keep_alive: Duration,
    /// Nothing heard for so long although something was due: [`Event::Stalled`](super::Event::Stalled).
    pub stalled_after: Duration,
    /// Nothing heard for so long: the peer is lost and its channels are reset.
    pub lost_after: Duration,
}

impl Config {
    /// For a local network, with windows of 2 MiB: 10 Gbit/s at 1.6 milliseconds, or 1 Gbit/s to an agent that is not given a processor
    /// for 16.
    pub fn new(me: AgentId, peer: AgentId, key: Key, incarnation: u64, seed: [u8; 32]) -> Self {
        Self {
            me,
            peer,
            key,
            incarnation,
            seed,
            datagram_max: DatagramSize::ETHERNET,
            check: Check::Carrier,
            window: 2 << 20,
            channels_max: 4096,
            acknowledge_within: Duration::from_micros(500),
            probe_min: Duration::from_millis(2),
            keep_alive: Duration::from_millis(500),
            stalled_after: Duration::from_secs(1),
            lost_after: Duration::from_secs(3),
        }
    }

    pub(crate) fn window(&self) -> u64 {
        u64::from(self.window.clamp(64 * 1024, 1 << 30))
    }
}

/// Bytes of the check behind each datagram.
pub(crate) const fn check_bytes(checked: bool) -> usize {
    if checked { CHECK_BYTES } else { 0 }
}

/// Payload of a full data datagram, whose header leaves the length out.
pub(crate) const fn payload_max(size: DatagramSize, checked: bool) -> usize {
    size.get() - HEADER_BYTES_MIN - check_bytes(checked)
}
