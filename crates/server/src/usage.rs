//! What may not be removed while something refers to it: each reference is marked in the transaction that makes it, and a
//! removal holds only if nothing was marked since it looked. So whoever comes between the look and the removal is not
//! left without what it refers to.

use crate::app::App;
use crate::error::{Answer, Failure};
use bytes::Bytes;
use skein_api::Code;
use skein_fabric::{Compare, Key, Op, Revision, Txn};
use skein_model::{GroupName, ImageName, NodeName, ProjectName, Vni};

/// What others refer to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Used<'a> {
    /// An image, by services.
    Image(&'a ProjectName, &'a ImageName),
    /// A network, by services and machines.
    Network(Vni),
    /// The addresses of a network that services choose for themselves, by those that do.
    Choices(Vni),
    /// A group, by services, ports and rules.
    Group(&'a ProjectName, &'a GroupName),
    /// A project, by everything that it owns.
    Project(&'a ProjectName),
    /// A node, by networks and projects that leave by it.
    Node(&'a NodeName),
}

impl Used<'_> {
    fn key(self) -> Key {
        let text = match self {
            Self::Image(project, name) => format!("use/image/{project}/{name}"),
            Self::Network(vni) => format!("use/network/{vni}"),
            Self::Choices(vni) => format!("use/choices/{vni}"),
            Self::Group(project, name) => format!("use/group/{project}/{name}"),
            Self::Project(name) => format!("use/project/{name}"),
            Self::Node(name) => format!("use/node/{name}"),
        };
        Key::new(text).expect("names fit a key")
    }

    /// The operation that tells that something refers to it.
    pub(crate) fn mark(self) -> Op {
        Op::put(self.key(), Bytes::new())
    }

    /// The operation that forgets that anything did, because it goes.
    pub(crate) fn forget(self) -> Op {
        Op::delete(&self.key())
    }

    /// What a removal compares and deletes, once the mirror shows all references made so far.
    pub(crate) async fn look(self, app: &App) -> Answer<Unmarked> {
        let key = self.key();
        let at = app.state.get(&key).await?.map_or(Revision::ZERO, |entry| entry.mod_revision);
        if app.mirror.reach(at).await {
            return Ok(Unmarked { key, at });
        }
        Err(Failure::new(Code::Unavailable, "the records are not up to date: try again"))
    }
}

/// All references up to a moment are known.
#[derive(Debug)]
pub(crate) struct Unmarked {
    key: Key,
    at: Revision,
}

impl Unmarked {
    /// Holds while nothing was marked since.
    pub(crate) fn compare(&self) -> Compare {
        Compare::unchanged(self.key.clone(), self.at)
    }

    /// Adds to `txn` that the record goes and the marks with it, if the record is as it was at `revision` and nothing was
    /// marked since.
    pub(crate) fn removal(&self, txn: Txn, record: &Key, revision: Revision) -> Txn {
        txn.when(Compare::unchanged(record.clone(), revision))
            .when(self.compare())
            .then(Op::delete(record))
            .then(Op::delete(&self.key))
    }
}
