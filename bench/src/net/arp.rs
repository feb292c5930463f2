//! The first packet of a machine: a question for its gateway, straight on its tap.

use crate::error::BenchError;
use rustix::event::{PollFd, PollFlags, Timespec};
use skein_model::MacAddr;
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Bytes of the virtio-net header in front of each frame of a tap.
const TAP_HEADER: usize = 10;
/// Of a frame: the kind, and within ARP (RFC 826) what is said; 2 is an answer.
const KIND: std::ops::Range<usize> = 12..14;
const OPERATION: std::ops::Range<usize> = 20..22;
/// A question that is not answered for so long is asked again.
const ASK_AGAIN: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Who asks whom.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question {
    pub(super) mac: MacAddr,
    pub(super) address: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
}

/// Asks for the gateway's MAC address until it is told, for `patience` at most.
pub(super) async fn first_answer(
    tap: OwnedFd,
    question: Question,
    patience: Duration,
) -> Result<(), BenchError> {
    let answered = tokio::task::spawn_blocking(move || ask(tap, question, patience)).await;
    answered.map_err(|_| BenchError::Bug)?.map_err(BenchError::io("asking the gateway"))
}

fn ask(tap: OwnedFd, question: Question, patience: Duration) -> io::Result<()> {
    let mut tap = std::fs::File::from(tap);
    let mut frame = vec![0; TAP_HEADER];
    frame.extend([0xff; 6]);
    frame.extend(question.mac.octets());
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(question.mac.octets());
    frame.extend(question.address.octets());
    frame.extend([0; 6]);
    frame.extend(question.gateway.octets());
    frame.resize(TAP_HEADER + 60, 0);
    let start = Instant::now();
    let mut buffer = vec![0; 2048];
    while start.elapsed() < patience {
        tap.write_all(&frame)?;
        loop {
            let mut readable = [PollFd::new(&tap, PollFlags::IN)];
            if rustix::event::poll(&mut readable, Some(&ASK_AGAIN))? == 0 {
                break;
            }
            let count = tap.read(&mut buffer)?;
            let heard = buffer[..count].get(TAP_HEADER..).unwrap_or_default();
            if heard.get(KIND) == Some(&[8, 6]) && heard.get(OPERATION) == Some(&[0, 2]) {
                return Ok(());
            }
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}
