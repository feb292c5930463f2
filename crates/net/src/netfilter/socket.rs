//! The socket to the kernel's netfilter. Blocks, for as long as the kernel works on what it is
//! told: a few microseconds a change.

use super::conntrack::{self, Flow, Tuple};
use super::diff::Change;
use super::encode;
use super::ruleset::{Family, Table};
use super::wire::{DUMP, KIND_DONE, KIND_ERROR, Message, Messages, Writer};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use rustix::net::sockopt;
use std::io;
use std::os::fd::AsFd;
use tracing::debug;

/// Room for answers: an error for each of some thousand messages of a batch, and pieces of lists.
const RECEIVE_BYTES: usize = 4 << 20;
/// What a netlink socket needs beside the message itself.
const SEND_SLACK_BYTES: usize = 1 << 16;
/// One piece of a list; the kernel makes them no longer than 32 KiB.
const PIECE_BYTES: usize = 64 << 10;
/// Flag of `recv`: an empty queue is an answer (`MSG_DONTWAIT`).
const DONT_WAIT: i32 = 0x40;
/// Multicast group of changes of rules (`NFNLGRP_NFTABLES`).
pub(crate) const GROUP_RULES: u32 = 7;

/// A socket of the namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct Netfilter {
    socket: Socket,
    send_bytes: usize,
}

/// A rule that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleCounter {
    pub(crate) tag: String,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

impl Netfilter {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Answers then carry the text of an error and not the message it is about.
        socket.set_cap_ack(true)?;
        socket.set_ext_ack(true)?;
        sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), RECEIVE_BYTES)?;
        Ok(Self { socket, send_bytes: 0 })
    }

    /// Makes all changes, or none. Returns the ruleset's generation after them.
    pub(crate) fn commit(&mut self, changes: &[Change<'_>]) -> io::Result<u32> {
        if !changes.is_empty() {
            let batch = encode::batch(changes);
            self.send(&batch)?;
        }
        self.generation()
    }

    /// The ruleset's generation: grows with each change that anybody makes in this namespace.
    /// Reports the first failure of what was sent before.
    pub(crate) fn generation(&mut self) -> io::Result<u32> {
        let request = encode::generation_request();
        self.send(&request)?;
        let mut generation = None;
        let mut failure = None;
        // The kernel answers in order, so the answer to the last message ends what was asked.
        self.receive(|message| {
            if message.kind == KIND_ERROR {
                match error_of(&message) {
                    Some(error) => {
                        debug!(message.sequence, %error, "netfilter refuses a message");
                        failure = failure.take().or(Some(error));
                    }
                    None => return Step::End,
                }
            } else {
                generation = message.attributes().u32(1).or(generation);
            }
            Step::More
        })?;
        match (failure, generation) {
            (Some(error), _) => Err(error),
            (None, Some(generation)) => Ok(generation),
            (None, None) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Whether a table is there with as many rules and elements as it should have; `None`: whether it
    /// is not there.
    pub(crate) fn shows(
        &mut self,
        (family, name): &(Family, String),
        table: Option<&Table>,
    ) -> io::Result<bool> {
        let mut writer = Writer::default();
        writer.message(encode::GET_RULE, DUMP, family.number(), 0);
        writer.text(1, name);
        let mut rules = 0;
        // Some kernels do not filter by table.
        self.list(&writer.finish(), |message| {
            rules += usize::from(message.attributes().text(1) == Some(name.as_str()));
        })?;
        let Some(table) = table else { return Ok(rules == 0) };
        if rules != table.chains.values().map(|chain| chain.rules.len()).sum::<usize>() {
            return Ok(false);
        }
        for (set, wanted) in &table.sets {
            let mut writer = Writer::default();
            writer.message(encode::GET_ELEMENT, DUMP, family.number(), 0);
            writer.text(1, name);
            writer.text(2, set);
            let mut elements = 0;
            let listed = self.list(&writer.finish(), |message| {
                elements += message.attributes().nested(3).count();
            });
            match listed {
                Ok(()) if elements == wanted.elements.len() => {}
                Ok(()) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The names of all tables of a family, whoever made them.
    pub(crate) fn tables(&mut self, family: Family) -> io::Result<Vec<String>> {
        let mut writer = Writer::default();
        writer.message(encode::GET_TABLE, DUMP, family.number(), 0);
        let mut names = Vec::new();
        self.list(&writer.finish(), |message| {
            names.extend(message.attributes().text(1).map(str::to_owned));
        })?;
        Ok(names)
    }

    /// What the rules of a table with a tag have counted since they were made.
    pub(crate) fn counters(&mut self, family: Family, table: &str) -> io::Result<Vec<RuleCounter>> {
        let mut writer = Writer::default();
        writer.message(encode::GET_RULE, DUMP, family.number(), 0);
        writer.text(1, table);
        let mut counters = Vec::new();
        self.list(&writer.finish(), |message| counters.extend(counter_of(&message)))?;
        Ok(counters)
    }

    /// The connections of the namespace.
    pub(crate) fn flows(&mut self) -> io::Result<Vec<Flow>> {
        let mut flows = Vec::new();
        self.list(&conntrack::list_request(), |message| {
            flows.extend(conntrack::parse(message.attributes()));
        })?;
        Ok(flows)
    }

    /// How many connections the namespace has. Costs nothing, unlike reading them.
    pub(crate) fn flows_count(&mut self) -> io::Result<u32> {
        self.send(&conntrack::count_request())?;
        let (mut count, mut failure) = (None, None);
        self.receive(|message| {
            if message.kind == KIND_ERROR {
                failure = error_of(&message);
                return Step::End;
            }
            count = message.attributes().u32(1);
            Step::More
        })?;
        failure.map_or_else(|| count.ok_or_else(|| io::ErrorKind::InvalidData.into()), Err)
    }

    /// Forgets a connection; one that is gone is as good as forgotten.
    pub(crate) fn forget(&mut self, flow: &Tuple) -> io::Result<()> {
        self.ask(&conntrack::delete_request(flow), io::ErrorKind::NotFound)
    }

    /// Makes a connection known, as on another node; one that is known is left as it is.
    pub(crate) fn adopt(&mut self, flow: &Flow) -> io::Result<()> {
        self.ask(&conntrack::create_request(flow), io::ErrorKind::AlreadyExists)
    }

    fn ask(&mut self, request: &[u8], fine: io::ErrorKind) -> io::Result<()> {
        self.send(request)?;
        let mut failure = None;
        self.receive(|message| {
            if message.kind != KIND_ERROR {
                return Step::More;
            }
            failure = error_of(&message);
            Step::End
        })?;
        match failure {
            Some(error) if error.kind() != fine => Err(error),
            Some(_) | None => Ok(()),
        }
    }

    fn list(&mut self, request: &[u8], mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        self.send(request)?;
        let mut failure = None;
        self.receive(|message| match message.kind {
            KIND_DONE => Step::End,
            KIND_ERROR => {
                failure = error_of(&message);
                Step::End
            }
            _ => {
                each(message);
                Step::More
            }
        })?;
        failure.map_or(Ok(()), Err)
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        let wanted = bytes.len() + SEND_SLACK_BYTES;
        if wanted > self.send_bytes {
            sockopt::set_socket_send_buffer_size_force(self.socket.as_fd(), wanted)?;
            self.send_bytes = wanted;
        }
        self.socket.send(bytes, 0).map(drop)
    }

    /// Hands over messages until it is told to end. The kernel works while `send` runs, so that
    /// what is not there now never comes, except for further pieces of a list.
    fn receive(&self, mut each: impl FnMut(Message<'_>) -> Step) -> io::Result<()> {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            let count = self.socket.recv(&mut &mut buffer[..], DONT_WAIT)?;
            for message in Messages(&buffer[..count]) {
                if matches!(each(message), Step::End) {
                    return Ok(());
                }
            }
        }
    }
}

enum Step {
    More,
    End,
}

/// `None` for the answer that all is well.
fn error_of(message: &Message<'_>) -> Option<io::Error> {
    let number = message.payload.get(..4).and_then(|bytes| bytes.try_into().ok());
    match number.map(i32::from_ne_bytes) {
        Some(0) => None,
        Some(number) => Some(io::Error::from_raw_os_error(-number)),
        None => Some(io::ErrorKind::InvalidData.into()),
    }
}

fn counter_of(message: &Message<'_>) -> Option<RuleCounter> {
    let attributes = message.attributes();
    let tag = std::str::from_utf8(attributes.find(7)?).ok()?.to_owned();
    let mut steps = attributes.nested(4).map(|(_, step)| super::wire::Attributes(step));
    let counter = steps.find(|step| step.text(1) == Some("counter"))?.nested(2);
    Some(RuleCounter { tag, bytes: counter.u64(1)?, packets: counter.u64(2)? })
}
