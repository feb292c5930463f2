//! Who is asked for names that are not the networks'.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

/// Names and addresses of the host's resolvers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The resolvers of a node.
#[derive(Debug, Clone)]
pub(crate) enum Resolvers {
    /// These.
    Given(Arc<[SocketAddrV4]>),
    /// Those that the host itself asks, as they are at each question: a host that moves to another wire has others.
    OfHost,
}

impl Resolvers {
    /// Those given; without any, the host's.
    pub(crate) fn new(given: Vec<SocketAddrV4>) -> Self {
        if given.is_empty() { Self::OfHost } else { Self::Given(given.into()) }
    }

    /// In the order in which they are asked. Of the host's those of IPv4.
    pub(super) async fn now(&self) -> Vec<SocketAddrV4> {
        match self {
            Self::Given(resolvers) => resolvers.to_vec(),
            Self::OfHost => {
                // A host without the file has none.
                parse(&tokio::fs::read_to_string(RESOLV_CONF).await.unwrap_or_default())
            }
        }
    }
}

fn parse(text: &str) -> Vec<SocketAddrV4> {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = lines.filter_map(|rest| rest.trim().parse::<Ipv4Addr>().ok());
    addresses.map(|address| SocketAddrV4::new(address, 53)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_resolvers() {
        let text = "# x\nsearch a\nnameserver 192.0.2.1\nnameserver\t192.0.2.2 \nnameserver ::1\n";
        let found = parse(text);
        assert_eq!(found, ["192.0.2.1:53".parse().unwrap(), "192.0.2.2:53".parse().unwrap()]);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "(nameserver|\\PC|\n){0,60}") {
            let _ = parse(&text);
        }
    }
}
