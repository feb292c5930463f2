//! Those who have connected to ask something.

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use skein_link_core::negotiate::{Answer, Ask, LIST, MESSAGE_LEN};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use tracing::debug;

/// Of one project at a time. 64: an ask follows its connection within microseconds, and when one more comes, the one that
/// has waited longest goes. So nobody keeps others from asking by connecting and saying nothing.
pub(super) const ASKERS_MAX: usize = 64;

/// Lists of one project that are being told at a time: of 4,096 connections each is two megabytes. When one more is asked
/// for, the one that has gone on least goes.
const LISTS_MAX: usize = 4;

/// Keeps an asker, and lets those of its project go that are too many.
pub(super) fn keep(askers: &mut Vec<Asker>, asker: Asker) {
    let project = Arc::clone(&asker.project);
    askers.push(asker);
    let mut limit = |most: usize, counts: fn(&Asker) -> bool| {
        let is_one = |other: &Asker| other.project == project && counts(other);
        while askers.iter().filter(|other| is_one(other)).count() > most {
            let Some(oldest) = askers.iter().position(is_one) else { return };
            askers.remove(oldest);
        }
    };
    limit(LISTS_MAX, Asker::is_told);
    limit(ASKERS_MAX, |_| true);
}

/// Somebody who has connected.
pub(super) struct Asker {
    pub(super) socket: OwnedFd,
    pub(super) project: Arc<str>,
    /// It was there at the last sweep, and has taken nothing since.
    pub(super) old: bool,
    /// What it is still to be told.
    telling: VecDeque<Vec<u8>>,
}

/// Asks a broker that was only started for want of another to leave its sockets.
pub(super) const LEAVE: [u8; MESSAGE_LEN] = *b"SkLv\x02\0\0\0\0\0\0\0\0\0\0\0";

/// What somebody wants.
pub(super) enum Wish {
    /// Nothing yet.
    Waits,
    /// A list of the project's connections.
    List,
    /// That the broker leaves its sockets to him.
    Leave,
    /// A segment for a socket.
    Segment(Ask, OwnedFd),
    /// Nothing that means anything.
    Nonsense,
}

impl Asker {
    pub(super) fn new(socket: OwnedFd, project: Arc<str>) -> Self {
        Self { socket, project, old: false, telling: VecDeque::new() }
    }

    /// What is waited for.
    pub(super) fn interest(&self) -> PollFlags {
        if self.telling.is_empty() { PollFlags::IN } else { PollFlags::OUT }
    }

    /// Whether it is being told something.
    pub(super) fn is_told(&self) -> bool {
        !self.telling.is_empty()
    }

    /// Its process, as the kernel says; 0 if it is in a namespace of processes that we do not see.
    pub(super) fn pid(&self) -> u32 {
        sockopt::socket_peercred(&self.socket)
            .map_or(0, |peer| u32::try_from(peer.pid.as_raw_nonzero().get()).unwrap_or(0))
    }

    /// Whether it is root's, or this process's own user's.
    fn is_ours(&self) -> bool {
        let own = rustix::process::geteuid();
        sockopt::socket_peercred(&self.socket)
            .is_ok_and(|peer| peer.uid.is_root() || peer.uid == own)
    }

    /// Takes what it says.
    pub(super) fn hear(&self) -> Wish {
        let mut bytes = [0; MESSAGE_LEN];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(&self.socket, &mut pieces, &mut control, flags) {
            Ok(received) if received.bytes == MESSAGE_LEN => {}
            Err(Errno::AGAIN) => return Wish::Waits,
            _ => return Wish::Nonsense,
        }
        let mut passed = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => Some(files),
            _ => None,
        });
        let socket = passed.next().and_then(|mut files| files.next());
        match (Ask::decode(&bytes), socket) {
            _ if bytes == LIST => Wish::List,
            _ if bytes == LEAVE && self.is_ours() => Wish::Leave,
            (Ok(ask), Some(socket)) => Wish::Segment(ask, socket),
            _ => Wish::Nonsense,
        }
    }

    /// It is to be told these packets; whether it goes on to listen.
    pub(super) fn tell(&mut self, packets: VecDeque<Vec<u8>>) -> bool {
        self.telling = packets;
        self.go_on()
    }

    /// Tells it as much as it takes now; whether it is to be told more.
    pub(super) fn go_on(&mut self) -> bool {
        while let Some(packet) = self.telling.front() {
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::send(&self.socket, packet, flags) {
                Ok(_) => {
                    self.old = false;
                    self.telling.pop_front();
                }
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    /// Answers an ask.
    pub(super) fn reply(&self, answer: Answer, file: Option<BorrowedFd<'_>>) {
        let bytes = answer.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files;
        if let Some(file) = file {
            files = [file];
            control.push(SendAncillaryMessage::ScmRights(&files));
        }
        let pieces = [IoSlice::new(&bytes)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let Err(error) = sendmsg(self.socket.as_fd(), &pieces, &mut control, flags) {
            debug!(%error, "an asker did not wait for its answer");
        }
    }
}
