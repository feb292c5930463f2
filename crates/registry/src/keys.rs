//! Where each record is stored.

use skein_fabric::Key;
use skein_model::{ImageName, MachineId, NodeName, ProjectName, ServiceName};

/// Prefix of all records: one watch covers them.
pub const RECORDS: &str = "r/";

/// The key of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordKey {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_back() {
        let project = ProjectName::default();
        for record in [
            RecordKey::Service(project.clone(), "echo".parse().unwrap()),
            RecordKey::Image(project, "echo".parse().unwrap()),
            RecordKey::Machine("echo-1".parse().unwrap()),
            RecordKey::Status("echo-1".parse().unwrap()),
            RecordKey::Node("n1".parse().unwrap()),
            RecordKey::Alive("n1".parse().unwrap()),
            RecordKey::Cordon("n1".parse().unwrap()),
        ] {
            assert_eq!(RecordKey::parse(record.key().as_str()), Some(record));
        }
        for foreign in ["r/", "r/machine/", "r/machine/a/b", "r/other/a", "q/a", "r/service/a"] {
            assert_eq!(RecordKey::parse(foreign), None, "{foreign}");
        }
    }
}
