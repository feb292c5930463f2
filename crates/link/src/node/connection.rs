//! One program's connection: from its ring to a channel and back.

use super::frame::{BYTES_HEAD, Decoder, Frame, HEAD_MAX, bytes_head};
use super::hub::{Hub, PeerIndex};
use crate::remote::{ConnectionKey, Local, Meeting, Note, Outgoing, PROJECT_BYTES_MAX};
use rustix::event::epoll;
use skein_link_core::light::ChannelId;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// What is taken from a ring at a time: a train of segments.
const PIECE: usize = 64 * 1024;
/// Less room than this is not worth reading for.
const ROOM_MIN: usize = 1500;

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Our program is here; the peer's node opens the channel when its program is.
    Waiting,
    /// We have opened the channel; the peer's node says when its program is there.
    Calling(ChannelId),
    /// Both are there.
    Joined(ChannelId),
}

/// What a round found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// Something was done.
    Work,
    /// Nothing to do.
    Nothing,
    /// Both directions have ended.
    Over,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    #[error("the program broke its ring")]
    Program(#[source] io::Error),
    #[error("the other node said something that means nothing")]
    Nonsense,
    #[error("the channel is gone")]
    Channel,
}

pub(super) struct Connection {
    pub(super) meeting: Meeting,
    pub(super) peer: PeerIndex,
    pub(super) phase: Phase,
    local: Box<dyn Local>,
    decoder: Decoder,
    /// A word that the program's end could not take yet.
    note: Option<Note>,
    piece: Vec<u8>,
}

impl Connection {
    pub(super) fn new(
        meeting: Meeting,
        peer: PeerIndex,
        phase: Phase,
        local: Box<dyn Local>,
    ) -> Self {
        Self {
            meeting,
            peer,
            phase,
            local,
            decoder: Decoder::default(),
            note: None,
            piece: Vec::new(),
        }
    }

    pub(super) fn local(&mut self) -> &mut dyn Local {
        self.local.as_mut()
    }

    pub(super) fn wake(&self) -> std::os::fd::BorrowedFd<'_> {
        self.local.wake()
    }

    pub(super) fn channel(&self) -> Option<ChannelId> {
        match self.phase {
            Phase::Waiting => None,
            Phase::Calling(channel) | Phase::Joined(channel) => Some(channel),
        }
    }

    /// Asks to be woken through `wakes`, under the number `id`, from [`Connection::listen`] on.
    pub(super) fn register(&self, wakes: &OwnedFd, id: u64) -> Result<(), Broken> {
        let data = epoll::EventData::new_u64(id);
        epoll::add(wakes, self.local.wake(), data, epoll::EventFlags::IN)
            .map_err(|errno| Broken::Program(errno.into()))
    }

    /// Asks to be woken when the program has something; `false` if it has already.
    pub(super) fn listen(&mut self) -> bool {
        self.local.arm()
    }

    /// Whether something waits for the program, and nobody tells when it can go on: for the end of a read, or for room on TCP.
    pub(super) fn stalls(&self) -> bool {
        self.note.is_some() || self.local.stalls()
    }

    /// Whether its program is gone before the other one came.
    pub(super) fn is_forlorn(&self) -> bool {
        !matches!(self.phase, Phase::Joined(_)) && self.local.is_over()
    }

    /// Both ends are there.
    pub(super) fn join(&mut self, channel: ChannelId) -> Result<(), Broken> {
        self.phase = Phase::Joined(channel);
        self.local.join().map_err(Broken::Program)
    }

    /// Bytes of the channel, next in turn; how many could be used.
    pub(super) fn feed(&mut self, input: &[u8]) -> Result<usize, Broken> {
        let mut used = 0;
        loop {
            if !self.give_note()? {
                return Ok(used);
            }
            let (frame, taken) = self.decoder.next(&input[used..]).map_err(|_| Broken::Nonsense)?;
            used += taken;
            match frame {
                None if taken == 0 => return Ok(used),
                None => {}
                Some(Frame::Bytes(bytes)) => {
                    let kept = self.local.write(bytes).map_err(Broken::Program)?;
                    if kept < bytes.len() {
                        self.decoder.give_back(bytes.len() - kept);
                        return Ok(used - (bytes.len() - kept));
                    }
                }
                Some(Frame::Note(note)) => self.note = Some(note),
                Some(Frame::Joined) => match self.phase {
                    Phase::Calling(channel) => self.join(channel)?,
                    Phase::Waiting | Phase::Joined(_) => return Err(Broken::Nonsense),
                },
            }
        }
    }

    /// Tells the program's end what waits for it; `false` if it cannot take it now.
    fn give_note(&mut self) -> Result<bool, Broken> {
        let Some(note) = self.note else { return Ok(true) };
        match self.local.tell(note) {
            Ok(()) => {
                self.note = None;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(Broken::Program(error)),
        }
    }

    /// One round in both directions.
    pub(super) fn pump(&mut self, hub: &mut Hub) -> Result<Found, Broken> {
        let Some(channel) = self.channel() else { return Ok(Found::Nothing) };
        let mut found = self.drain(hub, channel)?;
        if !matches!(self.phase, Phase::Joined(_)) {
            return Ok(found);
        }
        if self.send(hub, channel)? {
            found = Found::Work;
        }
        if self.local.is_over() {
            hub.session(self.peer).finish(channel).map_err(|_| Broken::Channel)?;
            return Ok(Found::Over);
        }
        Ok(found)
    }

    /// Gives the program what waits in the channel.
    fn drain(&mut self, hub: &mut Hub, channel: ChannelId) -> Result<Found, Broken> {
        let now = hub.now();
        let peer = self.peer;
        let mut found = Found::Nothing;
        loop {
            // The first piece only: the second follows when the first is used up.
            let (first, second) =
                hub.session(peer).readable(channel).map_err(|_| Broken::Channel)?;
            let piece = if first.is_empty() { second } else { first };
            if piece.is_empty() && self.note.is_none() {
                return Ok(found);
            }
            let waited = self.note.is_some();
            let used = self.feed(piece)?;
            if used == 0 && self.note.is_some() == waited {
                return Ok(found);
            }
            found = Found::Work;
            hub.session(peer).consume(channel, used, now).map_err(|_| Broken::Channel)?;
        }
    }

    /// Sends what the program has written, and what its end has to say; whether there was anything.
    fn send(&mut self, hub: &mut Hub, channel: ChannelId) -> Result<bool, Broken> {
        let session = hub.session(self.peer);
        let mut any = false;
        loop {
            let (room, _) = session.room(channel).map_err(|_| Broken::Channel)?;
            if room < ROOM_MIN {
                return Ok(any);
            }
            let length = (room - BYTES_HEAD).min(PIECE);
            self.piece.resize(BYTES_HEAD + PIECE, 0);
            let into = &mut self.piece[BYTES_HEAD..][..length];
            match self.local.read(into).map_err(Broken::Program)? {
                Outgoing::Bytes(count) => {
                    let count = count.min(length);
                    self.piece[..BYTES_HEAD].copy_from_slice(&bytes_head(count));
                    let piece = &self.piece[..BYTES_HEAD + count];
                    session.write(channel, piece).map_err(|_| Broken::Channel)?;
                    return Ok(true);
                }
                Outgoing::Note(note) => {
                    // There is room: `ROOM_MIN` is far more than a head.
                    const { assert!(HEAD_MAX < ROOM_MIN) };
                    let (head, length) = Frame::Note(note).head();
                    session.write(channel, &head[..length]).map_err(|_| Broken::Channel)?;
                    any = true;
                }
                Outgoing::Empty => return Ok(any),
            }
        }
    }
}

/// What a node gives with a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Opening {
    /// A connection of two programs.
    Connection(Meeting),
    /// A stream that is thrown away: it only shows how fast a way is.
    Race,
}

impl Opening {
    /// As bytes: kind, the two addresses, the project's name.
    pub(super) fn write(&self) -> Vec<u8> {
        match self {
            Self::Race => vec![2],
            Self::Connection(meeting) => {
                let mut bytes = vec![3];
                for address in [meeting.key.low, meeting.key.high] {
                    match address.ip() {
                        IpAddr::V4(ip) => {
                            bytes.push(4);
                            bytes.extend_from_slice(&ip.octets());
                        }
                        IpAddr::V6(ip) => {
                            bytes.push(6);
                            bytes.extend_from_slice(&ip.octets());
                        }
                    }
                    bytes.extend_from_slice(&address.port().to_be_bytes());
                }
                bytes.extend_from_slice(meeting.project.as_bytes());
                bytes
            }
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (2, []) => Some(Self::Race),
            (3, rest) => {
                let (low, rest) = read_address(rest)?;
                let (high, rest) = read_address(rest)?;
                let project = std::str::from_utf8(rest).ok()?.to_owned();
                let fits = low <= high && project.len() <= PROJECT_BYTES_MAX;
                let key = ConnectionKey { low, high };
                fits.then_some(Self::Connection(Meeting { project, key }))
            }
            _ => None,
        }
    }
}

fn read_address(bytes: &[u8]) -> Option<(SocketAddr, &[u8])> {
    let (kind, rest) = bytes.split_first()?;
    let (ip, rest) = match kind {
        4 => {
            let (ip, rest) = rest.split_first_chunk::<4>()?;
            (IpAddr::from(*ip), rest)
        }
        6 => {
            let (ip, rest) = rest.split_first_chunk::<16>()?;
            (IpAddr::from(*ip), rest)
        }
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk::<2>()?;
    Some((SocketAddr::new(ip, u16::from_be_bytes(*port)), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openings_survive() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        for (one, other) in [("10.0.0.1:80", "10.0.0.2:4000"), ("[fd00::1]:80", "10.0.0.2:4000")] {
            let key = ConnectionKey::new(address(one), address(other));
            let opening = Opening::Connection(Meeting { project: "search".to_owned(), key });
            let bytes = opening.write();
            assert_eq!(Opening::read(&bytes), Some(opening));
            for cut in 0..bytes.len() - "search".len() {
                assert_eq!(Opening::read(&bytes[..cut]), None);
            }
        }
        assert_eq!(Opening::read(&Opening::Race.write()), Some(Opening::Race));
        assert_eq!(Opening::read(&[2, 0]), None);
    }
}
