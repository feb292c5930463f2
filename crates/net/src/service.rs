//! Moves bytes between machines and `crate::answer`: sockets in a network's namespace, and the tasks
//! that serve them until dropped.
//!
//! What can be asked is bounded before it comes here: the rules of the bridge let a port ask some
//! tens of questions a second, in its own name only.

mod dns;
mod packet;
mod resolvers;
mod shares;
mod wait;

pub(crate) use packet::{PacketSocket, dhcp6_filter, interface_filter};
pub(crate) use resolvers::Resolvers;
pub(crate) use wait::{Waiting, WaitingRoom};

use crate::answer::{Directory, advertisement, answer4, answer6};
use crate::connector::Connector;
use crate::error::NetError;
use crate::names::NetworkName;
use crate::setup;
use crate::thread::NamespaceThread;
use dns::Forwarder;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketFlags, SocketType, ipproto, recvfrom,
    sendto, socket_with, sockopt,
};
use skein_model::MacAddr;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::debug;

/// What machines are told and asked, as it is now.
pub(crate) type Told = watch::Receiver<Arc<Directory>>;

/// Frames of the largest network, whole.
const FRAME_BYTES: usize = 9_300;
/// Between two advertisements that nobody asked for: well within what a router's lifetime is.
const ADVERTISE_EVERY: Duration = Duration::from_secs(1_800);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_DHCP6_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
const ROUTER_SOLICITATION: u8 = 133;
/// ARP and DHCP of a machine that is being answered must not stop over one failed send.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// The tasks of a network's services; they end with this.
#[derive(Debug)]
pub(crate) struct Services {
    _tasks: JoinSet<()>,
}

/// What services need to know of where they are.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) name: NetworkName,
    /// Index of the bridge.
    pub(crate) bridge: u32,
    /// Where the node's resolvers are reached from.
    pub(crate) outside: Connector,
    pub(crate) resolvers: Resolvers,
}

/// Sockets in the namespace.
struct Sockets {
    dhcp4: OwnedFd,
    dhcp4_answers: OwnedFd,
    v6: Option<Sockets6>,
    dns_udp: Vec<OwnedFd>,
    dns_tcp: Vec<OwnedFd>,
}

struct Sockets6 {
    dhcp6: PacketSocket,
    dhcp6_answers: OwnedFd,
    icmp6: OwnedFd,
}

impl Services {
    /// Opens the sockets and starts to answer.
    pub(crate) async fn start(
        thread: &NamespaceThread,
        place: Place,
        told: Told,
    ) -> Result<Self, NetError> {
        let directory = told.borrow().clone();
        let (name, bridge) = (place.name.clone(), place.bridge);
        let sockets = thread.run(move |_| {
            Box::pin(async move {
                open(&directory, bridge).map_err(setup::failed("opening services of", &name))
            })
        });
        let sockets = sockets.await?;
        let failed = setup::failed("starting services of", &place.name);
        let mut tasks = JoinSet::new();
        let udp = |fd: OwnedFd| UdpSocket::from_std(fd.into()).map_err(&failed);
        tasks.spawn(serve_dhcp4(udp(sockets.dhcp4)?, udp(sockets.dhcp4_answers)?, told.clone()));
        let forwarder = Arc::new(Forwarder::new(place.outside.clone(), place.resolvers.clone()));
        for socket in sockets.dns_udp {
            let socket = Arc::new(udp(socket)?);
            tasks.spawn(dns::serve_udp(socket, told.clone(), forwarder.clone()));
        }
        for socket in sockets.dns_tcp {
            let listener = TcpListener::from_std(socket.into()).map_err(&failed)?;
            tasks.spawn(dns::serve_tcp(listener, told.clone(), forwarder.clone()));
        }
        if let Some(v6) = sockets.v6 {
            let frames = crate::thread::ready(v6.dhcp6).map_err(&failed)?;
            let answers = udp(v6.dhcp6_answers)?;
            tasks.spawn(serve_dhcp6(frames, answers, told.clone(), place.bridge, thread.clone()));
            let icmp6 = crate::thread::ready(v6.icmp6).map_err(&failed)?;
            tasks.spawn(serve_router(icmp6, told, place.bridge));
        }
        Ok(Self { _tasks: tasks })
    }
}

fn open(directory: &Directory, bridge: u32) -> io::Result<Sockets> {
    let network = directory.network();
    let server = directory.server();
    let dhcp4 = udp4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67))?;
    // Answers to everybody leave by the interface that has the address they come from.
    let dhcp4_answers = udp4(SocketAddrV4::new(server, 67))?;
    sockopt::set_socket_broadcast(&dhcp4_answers, true)?;
    let mut dns_udp = vec![udp4(SocketAddrV4::new(server, 53))?];
    let mut dns_tcp = vec![listen(SocketAddrV4::new(server, 53).into())?];
    let v6 = match network.ipv6 {
        None => None,
        Some(range) => {
            let at = SocketAddrV6::new(range.gateway, 53, 0, 0);
            dns_udp.push(udp6(at)?);
            dns_tcp.push(listen(at.into())?);
            let dhcp6 = PacketSocket::open(&dhcp6_filter(bridge))?;
            let dhcp6_answers = udp6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 547, 0, 0))?;
            sockopt::set_ipv6_add_membership(&dhcp6_answers, &ALL_DHCP6_SERVERS, bridge)?;
            Some(Sockets6 { dhcp6, dhcp6_answers, icmp6: icmp6()? })
        }
    };
    Ok(Sockets { dhcp4, dhcp4_answers, v6, dns_udp, dns_tcp })
}

fn raw(
    family: AddressFamily,
    kind: SocketType,
    protocol: Option<rustix::net::Protocol>,
) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(family, kind, flags, protocol)?)
}

fn udp4(at: SocketAddrV4) -> io::Result<OwnedFd> {
    let socket = raw(AddressFamily::INET, SocketType::DGRAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &at)?;
    Ok(socket)
}

fn udp6(at: SocketAddrV6) -> io::Result<OwnedFd> {
    let socket = raw(AddressFamily::INET6, SocketType::DGRAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_ipv6_v6only(&socket, true)?;
    rustix::net::bind(&socket, &at)?;
    Ok(socket)
}

fn listen(at: SocketAddr) -> io::Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = raw(family, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &at)?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

fn icmp6() -> io::Result<OwnedFd> {
    let socket = raw(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
    // Who receives an advertisement believes it only from the link itself (RFC 4861, 6.1.2).
    sockopt::set_ipv6_unicast_hops(&socket, Some(255))?;
    sockopt::set_ipv6_multicast_hops(&socket, 255)?;
    Ok(socket)
}

async fn serve_dhcp4(questions: UdpSocket, answers: UdpSocket, told: Told) {
    let (mut first, mut second) = (vec![0; FRAME_BYTES], vec![0; FRAME_BYTES]);
    loop {
        // Renewals come to the server's own address.
        let received = tokio::select! {
            received = questions.recv(&mut first) => received.map(|count| &first[..count]),  // cancel-safe: a datagram stays
            received = answers.recv(&mut second) => received.map(|count| &second[..count]),  // cancel-safe: a datagram stays
        };
        let Ok(question) = received else {
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
            continue;
        };
        let directory = told.borrow().clone();
        let Some(answer) = answer4(question, &directory) else { continue };
        if let Err(error) = answers.send_to(&answer.bytes, (answer.to, 68)).await {
            debug!(%error, to = %answer.to, "an answer of DHCP was not sent");
        }
    }
}

async fn serve_dhcp6(
    frames: AsyncFd<PacketSocket>,
    answers: UdpSocket,
    told: Told,
    bridge: u32,
    thread: NamespaceThread,
) {
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let Ok(mut ready) = frames.readable().await else { return };
        let Ok(Ok(count)) = ready.try_io(|inner| inner.get_ref().receive(&mut buffer)) else {
            continue;
        };
        let Some((mac, source, message)) = packet::parse_dhcp6(&buffer[..count]) else { continue };
        let directory = told.borrow().clone();
        let Some(answer) = answer6(message, mac, &directory) else { continue };
        // The kernel would ask everybody who has the link-local address; here it is known.
        let known = thread.run(move |netlink| {
            Box::pin(async move {
                let known = netlink.introduce(bridge, source.into(), mac.octets()).await;
                known.map_err(|source| NetError::Netlink {
                    action: "introducing",
                    subject: "a machine".to_owned(),
                    source,
                })
            })
        });
        let _ = known.await;
        let to = SocketAddrV6::new(source, 546, 0, bridge);
        if let Err(error) = answers.send_to(&answer, to).await {
            debug!(%error, %to, "an answer of DHCPv6 was not sent");
        }
    }
}

async fn serve_router(socket: AsyncFd<OwnedFd>, mut told: Told, bridge: u32) {
    let mut buffer = [0; 1_500];
    let mut timer = tokio::time::interval(ADVERTISE_EVERY);
    let everybody = SocketAddrV6::new(ALL_NODES, 0, 0, bridge);
    loop {
        let to = tokio::select! {
            _ = timer.tick() => everybody,                                    // cancel-safe: timer
            changed = told.changed() => match changed {                       // cancel-safe: watch
                Ok(()) => continue,
                Err(_) => return,
            },
            asked = solicited(&socket, &mut buffer) => match asked {          // cancel-safe: a datagram stays
                Some(from) if from.ip().is_unspecified() => everybody,
                Some(from) => SocketAddrV6::new(*from.ip(), 0, 0, bridge),
                None => continue,
            },
        };
        let directory = told.borrow().clone();
        let Some(bytes) = advertisement(&directory) else { continue };
        if let Err(error) = sendto(socket.get_ref(), &bytes, SendFlags::empty(), &to) {
            debug!(%error, %to, "a router advertisement was not sent");
        }
    }
}

/// Who asks for routers; `None` for any other message.
async fn solicited(socket: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> Option<SocketAddrV6> {
    let mut ready = socket.readable().await.ok()?;
    let received = ready.try_io(|inner| {
        let (count, _, from) = recvfrom(inner.get_ref(), &mut *buffer, RecvFlags::empty())?;
        Ok((count, from))
    });
    let (count, from) = received.ok()?.ok()?;
    let is_question = count >= 8 && buffer[0] == ROUTER_SOLICITATION;
    let from = from.and_then(|from: SocketAddrAny| SocketAddrV6::try_from(from).ok());
    from.filter(|_| is_question)
}

/// Used by parsers of frames.
pub(crate) fn mac_at(frame: &[u8], at: usize) -> Option<MacAddr> {
    let octets: [u8; 6] = frame.get(at..at + 6)?.try_into().ok()?;
    MacAddr::new(octets).ok()
}
