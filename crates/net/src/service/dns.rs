//! DNS over UDP and TCP, and what is passed on to the node's resolvers.

use super::shares::{Share, Shares};
use super::{Resolvers, Told};
use crate::answer::{DnsAnswer, Way, answer_dns, fail_dns};
use crate::connector::Connector;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// Questions under way to resolvers, per network: each is a socket of the node.
const FORWARDED_MAX: usize = 256;
/// Of these, from one address: a machine that asks for what nobody answers leaves room to others.
const FORWARDED_EACH: usize = 16;
/// Connections over TCP, per network: each is a socket of the node.
const CONNECTIONS_MAX: usize = 128;
/// Of these, from one address: a client needs one, or one for each program (RFC 7766, section 6.2.2).
const CONNECTIONS_EACH: usize = 4;
/// How long one resolver is waited for.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a connection may be silent: "of the order of a few seconds" (RFC 7766, section 6.2.3).
const IDLE_MAX: Duration = Duration::from_secs(4);
const DATAGRAM_BYTES: usize = 4_096;

/// Passes questions on.
#[derive(Debug)]
pub(super) struct Forwarder {
    outside: Connector,
    resolvers: Resolvers,
    questions: Arc<Shares>,
    connections: Arc<Shares>,
}

impl Forwarder {
    pub(super) fn new(outside: Connector, resolvers: Resolvers) -> Self {
        Self {
            outside,
            resolvers,
            questions: Shares::new(FORWARDED_MAX, FORWARDED_EACH),
            connections: Shares::new(CONNECTIONS_MAX, CONNECTIONS_EACH),
        }
    }

    /// The first answer of a resolver, in their order; `None` if none answers.
    async fn ask(&self, question: &[u8], way: Way, _share: Share) -> Option<Vec<u8>> {
        for resolver in self.resolvers.now().await {
            let answer = async {
                match way {
                    Way::Udp => self.ask_udp(question, resolver).await,
                    Way::Tcp => self.ask_tcp(question, resolver).await,
                }
            };
            if let Ok(Ok(answer)) = tokio::time::timeout(RESOLVER_TIMEOUT, answer).await {
                return Some(answer);
            }
        }
        None
    }

    /// From a port of its own each time, so that answers cannot be guessed.
    async fn ask_udp(&self, question: &[u8], resolver: SocketAddrV4) -> io::Result<Vec<u8>> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        let socket = self.outside.bind_udp(any).await?;
        socket.connect(resolver).await?;
        socket.send(question).await?;
        let mut buffer = vec![0; DATAGRAM_BYTES];
        loop {
            let count = socket.recv(&mut buffer).await?;
            // The same number, or it answers something else.
            if buffer.get(..2) == question.get(..2) {
                buffer.truncate(count);
                return Ok(buffer);
            }
        }
    }

    async fn ask_tcp(&self, question: &[u8], resolver: SocketAddrV4) -> io::Result<Vec<u8>> {
        let mut stream = self.outside.connect(resolver).await?;
        write_message(&mut stream, question).await?;
        read_message(&mut stream).await
    }
}

/// Answers questions that come over UDP, until it is dropped.
pub(super) async fn serve_udp(socket: Arc<UdpSocket>, told: Told, forwarder: Arc<Forwarder>) {
    let mut buffer = vec![0; DATAGRAM_BYTES];
    let mut waiting = JoinSet::new();
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,         // cancel-safe: a datagram stays
            Some(_) = waiting.join_next() => continue,                    // cancel-safe: a set
        };
        let Ok((count, from)) = received else {
            tokio::time::sleep(super::PAUSE_AFTER_ERROR).await;
            continue;
        };
        let question = &buffer[..count];
        let directory = told.borrow().clone();
        match answer_dns(question, Way::Udp, &directory) {
            DnsAnswer::Bytes(answer) => drop(socket.send_to(&answer, from).await),
            DnsAnswer::Silence => {}
            DnsAnswer::Forward => match forwarder.questions.take(from.ip()) {
                Some(share) => {
                    let (socket, forwarder) = (socket.clone(), forwarder.clone());
                    waiting.spawn(forward(socket, from, question.to_vec(), forwarder, share));
                }
                None => tell(&socket, from, fail_dns(question, Way::Udp)).await,
            },
        }
    }
}

async fn forward(
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    question: Vec<u8>,
    forwarder: Arc<Forwarder>,
    share: Share,
) {
    let answer = forwarder.ask(&question, Way::Udp, share).await;
    tell(&socket, to, answer.or_else(|| fail_dns(&question, Way::Udp))).await;
}

/// Who asked may have gone.
async fn tell(socket: &UdpSocket, to: SocketAddr, answer: Option<Vec<u8>>) {
    if let Some(answer) = answer {
        let _ = socket.send_to(&answer, to).await;
    }
}

/// Answers questions that come over TCP, until it is dropped. Who has its share of connections sees the next one end.
pub(super) async fn serve_tcp(listener: TcpListener, told: Told, forwarder: Arc<Forwarder>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {                                         // cancel-safe
                Ok((stream, from)) => if let Some(share) = forwarder.connections.take(from.ip()) {
                    let conversation = converse(stream, from.ip(), told.clone(), forwarder.clone());
                    connections.spawn(async move {
                        conversation.await;
                        drop(share);
                    });
                },
                Err(_) => tokio::time::sleep(super::PAUSE_AFTER_ERROR).await,
            },
            Some(_) = connections.join_next() => {}                                             // cancel-safe: a set
        }
    }
}

async fn converse(mut stream: TcpStream, from: IpAddr, told: Told, forwarder: Arc<Forwarder>) {
    loop {
        let question = tokio::time::timeout(IDLE_MAX, read_message(&mut stream)).await;
        let Ok(Ok(question)) = question else { return };
        let directory = told.borrow().clone();
        let answer = match answer_dns(&question, Way::Tcp, &directory) {
            DnsAnswer::Bytes(answer) => answer,
            DnsAnswer::Silence => return,
            DnsAnswer::Forward => {
                let answer = match forwarder.questions.take(from) {
                    Some(share) => forwarder.ask(&question, Way::Tcp, share).await,
                    None => None,
                };
                match answer.or_else(|| fail_dns(&question, Way::Tcp)) {
                    Some(answer) => answer,
                    None => return,
                }
            }
        };
        let sent = tokio::time::timeout(IDLE_MAX, write_message(&mut stream, &answer)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}

/// A message behind its length in two bytes (RFC 1035, section 4.2.2).
async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let framed = [&length.to_be_bytes()[..], message].concat();
    stream.write_all(&framed).await
}
