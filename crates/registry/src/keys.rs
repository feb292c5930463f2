//! Where each record is stored.

use skein_fabric::Key;
use skein_model::{
    GroupName, ImageName, MachineId, NetworkName, NodeName, ProjectName, ServiceName, TokenDigest,
    Transport, Vni,
};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// Prefix of all records: one watch covers them.
pub const RECORDS: &str = "r/";

/// The key of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKey {
    /// A project.
    Project(ProjectName),
    /// A token that opens a project, by the digest of its secret.
    Token(TokenDigest),
    /// A network.
    Network(ProjectName, NetworkName),
    /// A machine's port.
    Port(MachineId),
    /// An address of a network that is held or rests.
    Address(Vni, Ipv4Addr),
    /// A group of firewall rules.
    Group(ProjectName, GroupName),
    /// A published port of the nodes.
    Publication(Transport, u16),
    /// A service.
    Service(ProjectName, ServiceName),
    /// An image.
    Image(ProjectName, ImageName),
    /// What a machine shall be.
    Machine(MachineId),
    /// What a machine is.
    Status(MachineId),
    /// A node.
    Node(NodeName),
    /// A node's agent lives.
    Alive(NodeName),
    /// Nothing new is placed on a node.
    Cordon(NodeName),
}

impl RecordKey {
    /// As the store knows it.
    #[expect(clippy::missing_panics_doc, reason = "names are bounded, so the key always is valid")]
    pub fn key(&self) -> Key {
        let text = match self {
            Self::Project(name) => format!("r/project/{name}"),
            Self::Token(digest) => format!("r/token/{}", hex(digest)),
            Self::Network(project, name) => format!("r/network/{project}/{name}"),
            Self::Port(id) => format!("r/port/{id}"),
            Self::Address(vni, address) => format!("r/address/{vni}/{address}"),
            Self::Group(project, name) => format!("r/group/{project}/{name}"),
            Self::Publication(transport, port) => {
                format!("r/publication/{}/{port}", transport.as_str())
            }
            Self::Service(project, name) => format!("r/service/{project}/{name}"),
            Self::Image(project, name) => format!("r/image/{project}/{name}"),
            Self::Machine(id) => format!("r/machine/{id}"),
            Self::Status(id) => format!("r/status/{id}"),
            Self::Node(name) => format!("r/node/{name}"),
            Self::Alive(name) => format!("r/alive/{name}"),
            Self::Cordon(name) => format!("r/cordon/{name}"),
        };
        Key::new(text).expect("names are short and have no NUL")
    }

    /// From the store's key; none for a key of another release.
    pub fn parse(key: &str) -> Option<Self> {
        let mut parts = key.strip_prefix(RECORDS)?.split('/');
        let (kind, first, second) = (parts.next()?, parts.next()?, parts.next());
        let record = match (kind, second) {
            ("project", None) => Self::Project(first.parse().ok()?),
            ("token", None) => Self::Token(unhex(first)?),
            ("network", Some(name)) => Self::Network(first.parse().ok()?, name.parse().ok()?),
            ("port", None) => Self::Port(first.parse().ok()?),
            ("address", Some(address)) => {
                Self::Address(Vni::new(number(first)?)?, address.parse().ok()?)
            }
            ("group", Some(name)) => Self::Group(first.parse().ok()?, name.parse().ok()?),
            ("publication", Some(port)) => {
                Self::Publication(first.parse().ok()?, u16::try_from(number(port)?).ok()?)
            }
            ("service", Some(name)) => Self::Service(first.parse().ok()?, name.parse().ok()?),
            ("image", Some(name)) => Self::Image(first.parse().ok()?, name.parse().ok()?),
            ("machine", None) => Self::Machine(first.parse().ok()?),
            ("status", None) => Self::Status(first.parse().ok()?),
            ("node", None) => Self::Node(first.parse().ok()?),
            ("alive", None) => Self::Alive(first.parse().ok()?),
            ("cordon", None) => Self::Cordon(first.parse().ok()?),
            _ => return None,
        };
        parts.next().is_none().then_some(record)
    }
}

/// A number as we write it: without sign or leading zero.
fn number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

fn hex(digest: &TokenDigest) -> String {
    let mut text = String::with_capacity(64);
    for byte in digest.0 {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex(text: &str) -> Option<TokenDigest> {
    let lower = |b: &u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 64 || !text.as_bytes().iter().all(lower) {
        return None;
    }
    let mut digest = [0; 32];
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(TokenDigest(digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        let project = ProjectName::default();
        for record in [
            RecordKey::Service(project.clone(), "echo".parse().unwrap()),
            RecordKey::Image(project.clone(), "echo".parse().unwrap()),
            RecordKey::Project(project.clone()),
            RecordKey::Token(TokenDigest([0xa5; 32])),
            RecordKey::Network(project.clone(), "web".parse().unwrap()),
            RecordKey::Port("echo-1".parse().unwrap()),
            RecordKey::Address(Vni::FIRST, "10.64.0.2".parse().unwrap()),
            RecordKey::Group(project, "web".parse().unwrap()),
            RecordKey::Publication(Transport::Tcp, 8080),
            RecordKey::Machine("echo-1".parse().unwrap()),
            RecordKey::Status("echo-1".parse().unwrap()),
            RecordKey::Node("n1".parse().unwrap()),
            RecordKey::Alive("n1".parse().unwrap()),
            RecordKey::Cordon("n1".parse().unwrap()),
        ] {
            assert_eq!(RecordKey::parse(record.key().as_str()), Some(record));
        }
        for foreign in [
            "r/",
            "r/machine/",
            "r/machine/a/b",
            "r/other/a",
            "q/a",
            "r/service/a",
            "r/token/00",
            "r/address/0/10.0.0.1",
            "r/address/04096/10.0.0.1",
            "r/publication/sctp/80",
            "r/publication/tcp/65536",
        ] {
            assert_eq!(RecordKey::parse(foreign), None, "{foreign}");
        }
    }
}
