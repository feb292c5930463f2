//! Connections that the kernel follows: which of them the rules forbid by now, and how they go along
//! when a machine moves.

use crate::desired::{DesiredNetwork, Publication, Transport};
use crate::firewall::{Packet, Policy};
use crate::netfilter::{Flow, Tuple};
use std::net::IpAddr;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// `TCP_CONNTRACK_ESTABLISHED`.
const TCP_ESTABLISHED: u8 = 3;
/// Bit of a status: its destination was translated (`IPS_DST_NAT`).
const TRANSLATED: u32 = 32;

/// A connection of a machine, as one node knows it and another can take it over. Without it, the
/// first segment that arrives there would belong to no connection and be dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    original: Tuple,
    reply: Tuple,
    timeout: u32,
    tcp_state: Option<u8>,
}

impl Connection {
    /// Who opened it, as the machine sees them.
    pub fn client(&self) -> IpAddr {
        self.reply.destination
    }

    /// Whom it leads to behind translation, and to which port.
    pub fn server(&self) -> (IpAddr, u16) {
        (self.reply.source, self.reply.source_port)
    }

    /// Whether it is one of TCP that is open in both directions (`TCP_CONNTRACK_ESTABLISHED`).
    pub fn is_established(&self) -> bool {
        self.original.protocol == TCP && self.tcp_state == Some(TCP_ESTABLISHED)
    }

    /// As 28 numbers that another node understands: see [`Connection::from_text`].
    pub fn to_text(&self) -> String {
        let tuple = |t: &Tuple| {
            let Tuple { source, destination, source_port, destination_port, .. } = t;
            format!("{source} {destination} {source_port} {destination_port}")
        };
        let state = self.tcp_state.unwrap_or(0);
        let (original, reply) = (tuple(&self.original), tuple(&self.reply));
        format!("{} {original} {reply} {} {state}", self.original.protocol, self.timeout)
    }

    /// The inverse of [`Connection::to_text`]; `None` for any other text.
    pub fn from_text(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let protocol = words.next()?.parse().ok()?;
        let mut tuple = || -> Option<Tuple> {
            Some(Tuple {
                source: words.next()?.parse().ok()?,
                destination: words.next()?.parse().ok()?,
                protocol,
                source_port: words.next()?.parse().ok()?,
                destination_port: words.next()?.parse().ok()?,
            })
        };
        let (original, reply) = (tuple()?, tuple()?);
        let timeout = words.next()?.parse().ok()?;
        let state: u8 = words.next()?.parse().ok()?;
        let tcp_state = (protocol == TCP && state > 0).then_some(state);
        let one_family = |t: &Tuple| t.source.is_ipv4() == t.destination.is_ipv4();
        let sane = one_family(&original) && one_family(&reply) && words.next().is_none();
        sane.then_some(Self { original, reply, timeout, tcp_state })
    }

    pub(crate) fn flow(&self) -> Flow {
        let (original, reply) = (self.original, self.reply);
        // Seen both ways and assured.
        let status = 2 | 4;
        Flow { original, reply, status, timeout: self.timeout, tcp_state: self.tcp_state }
    }
}

impl From<Flow> for Connection {
    fn from(flow: Flow) -> Self {
        let Flow { original, reply, timeout, tcp_state, .. } = flow;
        Self { original, reply, timeout, tcp_state }
    }
}

impl Packet {
    /// The packet that opened a connection, as rules saw it: behind translation.
    pub(crate) fn opening(flow: &Flow) -> Self {
        let Tuple { source, protocol, destination_port, .. } = flow.original;
        let port = match protocol {
            TCP | UDP => flow.reply.source_port,
            // Type and code.
            _ => destination_port >> 8,
        };
        Self { source, destination: flow.reply.source, protocol, port }
    }
}

/// Whether a connection must end, because what it does is forbidden now. What the node itself takes
/// part in is not judged.
pub(crate) fn stale(flow: &Flow, network: &DesiredNetwork, policy: &Policy<'_>) -> bool {
    let packet = Packet::opening(flow);
    let known = |address| policy.is_machine(address);
    let translated = flow.status & TRANSLATED != 0;
    if translated && !is_published(flow, network) {
        return true;
    }
    if !known(packet.source) && !known(packet.destination) {
        return false;
    }
    let own = [Some(IpAddr::V4(network.gateway)), network.ipv6.map(|r| IpAddr::V6(r.gateway))];
    if own.contains(&Some(packet.source)) || own.contains(&Some(packet.destination)) {
        return false;
    }
    let node =
        |address: IpAddr| matches!(address, IpAddr::V4(v4) if v4.octets()[..2] == [100, 127]);
    // Nodes speak for clients of what they publish; those were judged there.
    if node(packet.source) && !known(packet.destination) {
        return false;
    }
    !policy.allows(&packet)
}

/// Whether a connection that came from outside is still open to it.
fn is_published(flow: &Flow, network: &DesiredNetwork) -> bool {
    let open = |publication: &Publication| {
        let protocol = match publication.protocol {
            Transport::Tcp => TCP,
            Transport::Udp => UDP,
        };
        let own = |address: &std::net::Ipv4Addr| flow.reply.source == IpAddr::V4(*address);
        let waiting = publication.wake.is_some() && !publication.backends.iter().any(own);
        protocol == flow.original.protocol
            && publication.port == flow.original.destination_port
            && (publication.backends.iter().any(own) || waiting)
    };
    network.publications.iter().any(open)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    proptest! {
        #[test]
        fn text_tells_all(a: u32, b: u32, ports: (u16, u16), timeout: u32, state in 1u8..12) {
            let [source, destination] = [a, b].map(|ip| IpAddr::V4(Ipv4Addr::from(ip)));
            let original = Tuple {
                source, destination, protocol: TCP, source_port: ports.0, destination_port: ports.1,
            };
            let reply = Tuple {
                source: destination, destination: source, protocol: TCP,
                source_port: ports.1, destination_port: ports.0,
            };
            let connection = Connection { original, reply, timeout, tcp_state: Some(state) };
            prop_assert_eq!(Connection::from_text(&connection.to_text()), Some(connection));
        }

        #[test]
        fn any_text_is_answered(text in "([0-9]{1,5} |10.0.0.1 |::1 ){0,12}") {
            let _ = Connection::from_text(&text);
        }
    }
}
