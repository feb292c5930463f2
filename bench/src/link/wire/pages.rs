//! What a remote-memory protocol would do: whole pages of 4 KiB, each a train of frames on the same Ethernet.
//!
//! It is built as one would build it for speed: 14 bytes of header as ours, full frames, one system call for a page,
//! an acknowledgement as small as a frame can be. A page that is not acknowledged in time is sent again whole.

use super::light::find_neighbour;
use super::run::{Meter, Stop};
use skein_link::carrier::{Address, Carrier, Ethernet, Source};
use skein_link::testbed::Host;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Bytes of a page.
const PAGE: usize = 4096;
const HEADER: usize = 14;
/// How long an acknowledgement may take before the page is sent again.
const PATIENCE: Duration = Duration::from_millis(20);
/// Marks an acknowledgement.
const ACKNOWLEDGES: u8 = 1;

/// One end.
pub(crate) struct End {
    carrier: Ethernet,
    to: Address,
    payload: usize,
}

impl End {
    /// To be called on the host's own thread.
    pub(crate) fn connect(host: Host) -> io::Result<Self> {
        let neighbour = find_neighbour(host.other().address().into())?;
        let carrier =
            Ethernet::open(&neighbour.interface, neighbour.mtu).map_err(io::Error::other)?;
        let payload = neighbour.mtu.get() - HEADER;
        Ok(Self { carrier, to: Address::Mac(neighbour.mac), payload })
    }

    /// Sends pages, at most `window` of them unacknowledged, until told to stop.
    pub(crate) fn send_until(&mut self, window: usize, stop: &Stop) -> io::Result<()> {
        let page = vec![0x5a; PAGE];
        let mut next = 0_u64;
        let mut unacknowledged: BTreeMap<u64, Instant> = BTreeMap::new();
        while !stop.load(Ordering::Relaxed) {
            while unacknowledged.len() < window {
                self.send_page(next, &page)?;
                unacknowledged.insert(next, Instant::now());
                next += 1;
            }
            let now = Instant::now();
            let late = unacknowledged.iter_mut().find(|(_, sent)| now - **sent > PATIENCE);
            if let Some((number, sent)) = late {
                *sent = now;
                let number = *number;
                self.send_page(number, &page)?;
            }
            let got = self.carrier.receive(&mut |_, frame| {
                if let Some((number, _, true)) = parse(frame) {
                    unacknowledged.remove(&number);
                }
            })?;
            if got == 0 {
                self.wait()?;
            }
        }
        Ok(())
    }

    fn send_page(&mut self, number: u64, page: &[u8]) -> io::Result<()> {
        let mut parts = page.chunks(self.payload).enumerate();
        self.send(&mut |out: &mut [u8]| {
            let (part, bytes) = parts.next()?;
            write_header(out, number, part as u8, 0, bytes.len());
            out[HEADER..][..bytes.len()].copy_from_slice(bytes);
            Some(HEADER + bytes.len())
        })
    }

    fn send(&mut self, source: &mut dyn Source) -> io::Result<()> {
        while self.carrier.send(&self.to, source)? != skein_link::carrier::Sent::All {
            self.wait_writable()?;
        }
        Ok(())
    }

    /// Takes pages and acknowledges each, until told to stop; as [`super::light::End::receive_until`].
    pub(crate) fn receive_until(
        &mut self,
        warm: Duration,
        stop: &Stop,
    ) -> io::Result<(u64, Duration)> {
        let mut meter = Meter::new(warm);
        let parts_of_page = PAGE.div_ceil(self.payload) as u32;
        let mut pages: BTreeMap<u64, u32> = BTreeMap::new();
        let mut memory = vec![0; PAGE];
        while !stop.load(Ordering::Relaxed) {
            let payload = self.payload;
            let mut complete = Vec::new();
            let got = self.carrier.receive(&mut |_, frame| {
                let Some((number, part, false)) = parse(frame) else { return };
                let bytes = &frame[HEADER..];
                let Some(place) = memory.get_mut(usize::from(part) * payload..) else { return };
                let length = bytes.len().min(place.len());
                place[..length].copy_from_slice(&bytes[..length]);
                let parts = pages.entry(number).or_default();
                *parts |= 1 << part;
                if *parts == (1 << parts_of_page) - 1 {
                    pages.remove(&number);
                    complete.push(number);
                }
            })?;
            for number in complete {
                meter.count(PAGE as u64);
                let mut once = Some(());
                self.send(&mut |out: &mut [u8]| {
                    once.take()?;
                    write_header(out, number, 0, ACKNOWLEDGES, 0);
                    Some(HEADER)
                })?;
            }
            if got == 0 {
                self.wait()?;
            }
        }
        Ok(meter.result())
    }

    fn wait(&self) -> io::Result<()> {
        self.poll(rustix::event::PollFlags::IN)
    }

    fn wait_writable(&self) -> io::Result<()> {
        self.poll(rustix::event::PollFlags::OUT)
    }

    fn poll(&self, flags: rustix::event::PollFlags) -> io::Result<()> {
        let descriptor = rustix::event::PollFd::from_borrowed_fd(self.carrier.descriptor(), flags);
        let limit = rustix::event::Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        match rustix::event::poll(&mut [descriptor], Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn write_header(out: &mut [u8], number: u64, part: u8, kind: u8, length: usize) {
    out[..8].copy_from_slice(&number.to_be_bytes());
    out[8..HEADER].fill(0);
    (out[8], out[9]) = (part, kind);
    out[10..12].copy_from_slice(&(length as u16).to_be_bytes());
}

/// Number, part, and whether it acknowledges.
fn parse(frame: &[u8]) -> Option<(u64, u8, bool)> {
    let (number, rest) = frame.split_first_chunk::<8>()?;
    let [part, kind, ..] = rest else { return None };
    Some((u64::from_be_bytes(*number), *part, *kind == ACKNOWLEDGES))
}
