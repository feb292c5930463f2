//! What passes at a port, frame by frame, and the file format that tools read.

use crate::service::PacketSocket;
use std::io;
use std::time::{Duration, SystemTime};
use tokio::io::unix::AsyncFd;

/// Longest frame that is kept: the largest network's.
const FRAME_BYTES_MAX: u32 = 9_300;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;
/// The number that begins a file with times in nanoseconds.
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;

/// How to capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CaptureOptions {
    /// Bytes of each frame to keep.
    pub bytes_max: u32,
}

impl Default for CaptureOptions {
    fn default() -> Self {
        Self { bytes_max: FRAME_BYTES_MAX }
    }
}

/// Frames of a port in both directions. What is not read in time is lost.
#[derive(Debug)]
pub struct Capture {
    socket: AsyncFd<PacketSocket>,
    buffer: Vec<u8>,
}

impl Capture {
    pub(crate) fn new(socket: PacketSocket) -> io::Result<Self> {
        Ok(Self { socket: crate::thread::ready(socket)?, buffer: vec![0; 1 << 16] })
    }

    /// The next frame, from its Ethernet header on.
    ///
    /// # Errors
    /// What the system says.
    ///
    /// # Cancel safety
    /// No frame is lost.
    pub async fn frame(&mut self) -> io::Result<&[u8]> {
        loop {
            let mut ready = self.socket.readable().await?;
            let buffer = &mut self.buffer;
            if let Ok(count) = ready.try_io(|inner| inner.get_ref().receive(buffer)) {
                let count = count?;
                return Ok(&self.buffer[..count]);
            }
        }
    }
}

/// What a file of frames begins with (the format `pcap`, as tcpdump and Wireshark read it, with
/// times in nanoseconds).
///
/// ```text
///   magic u32 | version 2.4 | time zone i32 | accuracy u32 | longest frame u32 | link type u32
/// ```
pub fn pcap_header() -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..4].copy_from_slice(&MAGIC_NANOSECONDS.to_le_bytes());
    bytes[4..6].copy_from_slice(&2_u16.to_le_bytes());
    bytes[6..8].copy_from_slice(&4_u16.to_le_bytes());
    bytes[16..20].copy_from_slice(&FRAME_BYTES_MAX.to_le_bytes());
    bytes[20..].copy_from_slice(&ETHERNET.to_le_bytes());
    bytes
}

/// One frame of such a file: seconds and nanoseconds since 1970, length kept, length, bytes.
pub fn pcap_record(at: SystemTime, frame: &[u8]) -> Vec<u8> {
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let kept = &frame[..frame.len().min(FRAME_BYTES_MAX as usize)];
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    // The format counts seconds in 32 bits, until 2106.
    let seconds = u32::try_from(since.as_secs()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(16 + kept.len());
    bytes.extend(seconds.to_le_bytes());
    bytes.extend(since.subsec_nanos().to_le_bytes());
    bytes.extend(length(kept));
    bytes.extend(length(frame));
    bytes.extend(kept);
    bytes
}
