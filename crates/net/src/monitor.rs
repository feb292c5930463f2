//! Notices that somebody changed something: sockets in a namespace that hear of every change of
//! interfaces, addresses, neighbours, routes and rules, and what rules log.

use crate::desired::Vni;
use crate::events::{Events, NetworkEvent};
use crate::firewall::LOG_GROUP;
use crate::netfilter::{GROUP_RULES, Logged, bind_log, parse_log};
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::sync::Arc;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Groups of changes of links, neighbours, addresses and routes of both families
/// (`RTNLGRP_*`, linux/rtnetlink.h).
const ROUTE_GROUPS: [u32; 5] = [1, 3, 5, 7, 9];
/// Longest message that is read whole; what is longer still wakes.
const MESSAGE_BYTES: usize = 16 << 10;
/// Flag of `recv`: an empty queue is an answer (`MSG_DONTWAIT`).
const DONT_WAIT: i32 = 0x40;

/// Sockets of a namespace, opened on a thread inside.
pub(crate) struct Ears {
    route: Socket,
    rules: Socket,
    log: Option<Socket>,
}

impl Ears {
    /// Opens them in the namespace of the calling thread.
    pub(crate) fn open(with_log: bool) -> io::Result<Self> {
        let route = listening(NETLINK_ROUTE, &ROUTE_GROUPS)?;
        let rules = listening(NETLINK_NETFILTER, &[GROUP_RULES])?;
        let log = with_log.then(|| {
            let socket = listening(NETLINK_NETFILTER, &[])?;
            for request in bind_log(LOG_GROUP) {
                socket.send(&request, 0)?;
            }
            Ok::<_, io::Error>(socket)
        });
        Ok(Self { route, rules, log: log.transpose()? })
    }
}

fn listening(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    // A burst that does not fit is one change like any other.
    socket.set_no_enobufs(true)?;
    socket.set_non_blocking(true)?;
    groups.iter().try_for_each(|group| socket.add_membership(*group))?;
    Ok(socket)
}

/// Listens until dropped.
#[derive(Debug)]
pub(crate) struct Monitor {
    _tasks: JoinSet<()>,
}

impl Monitor {
    /// Wakes `changed` for each change.
    pub(crate) fn start(
        ears: Ears,
        changed: Arc<Notify>,
        vni: Option<Vni>,
        events: Events,
    ) -> io::Result<Self> {
        let mut tasks = JoinSet::new();
        for socket in [ears.route, ears.rules] {
            let changed = changed.clone();
            tasks.spawn(read(crate::thread::ready(socket)?, move |_| changed.notify_one()));
        }
        if let (Some(log), Some(vni)) = (ears.log, vni) {
            let tell = move |bytes: &[u8]| {
                for logged in parse_log(bytes) {
                    events.mention(told(vni, logged));
                }
            };
            tasks.spawn(read(crate::thread::ready(log)?, tell));
        }
        Ok(Self { _tasks: tasks })
    }
}

fn told(vni: Vni, logged: Logged) -> NetworkEvent {
    let Logged { prefix, source, destination, protocol, port } = logged;
    let rule = prefix.strip_prefix("rule ").unwrap_or(&prefix).to_owned();
    NetworkEvent::RuleMatched { vni, rule, source, destination, protocol, port }
}

async fn read(socket: AsyncFd<Socket>, mut each: impl FnMut(&[u8])) {
    let mut buffer = vec![0; MESSAGE_BYTES];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let received = ready.try_io(|inner| inner.get_ref().recv(&mut &mut buffer[..], DONT_WAIT));
        match received {
            Ok(Ok(count)) => each(&buffer[..count]),
            // Lost messages: something changed.
            Ok(Err(_)) => each(&[]),
            Err(_) => {}
        }
    }
}
