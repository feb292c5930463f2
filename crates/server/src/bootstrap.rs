//! What a cloud has from its beginning: the project `default` with its network, and where the numbers of networks begin.

use crate::app::App;
use crate::error::{Answer, Failure};
use crate::usage::Used;
use skein_api::Code;
use skein_fabric::{Compare, Key, Op, OpReply, Revision, Txn};
use skein_model::{NetworkRecord, NetworkSpec, ProjectName, ProjectRecord, Vni};
use skein_registry::{RecordKey, RegistryError};
use skein_shell::{now, random_u64};
use std::collections::BTreeSet;

/// How often a number is chosen again because others were given at the same time: each round one of them is served.
const TRIES_MAX: u32 = 64;

/// Where the number of the next network stands.
fn counter() -> Key {
    Key::new("vni/next").expect("a constant key")
}

/// A number for a network, and what a transaction must hold and write to take it.
#[derive(Debug)]
pub(crate) struct VniChoice {
    /// The number.
    pub(crate) vni: Vni,
    compare: Compare,
    put: Op,
}

impl VniChoice {
    /// The transaction that takes the number too.
    pub(crate) fn taken_in(self, txn: Txn) -> Txn {
        txn.when(self.compare).then(self.put)
    }
}

/// Chooses the number of a new network: each is given once before any is given again. They begin anywhere, so that clouds
/// that share a network between their nodes rarely share a number.
pub(crate) async fn choose_vni(app: &App) -> Answer<VniChoice> {
    let key = counter();
    let entry = app.state.get(&key).await?;
    let revision = entry.as_ref().map_or(Revision::ZERO, |entry| entry.mod_revision);
    // Networks that were given numbers until then are to be seen before one is chosen.
    if !app.mirror.reach(revision).await {
        return Err(Failure::new(Code::Unavailable, "the records are not up to date: try again"));
    }
    let stored = entry.and_then(|e| std::str::from_utf8(&e.value).ok()?.parse::<u32>().ok());
    let start = stored.and_then(Vni::new).unwrap_or_else(|| anywhere(random_u64()));
    let used: BTreeSet<Vni> =
        app.mirror.read(|view| view.networks.values().map(|network| network.value.vni).collect());
    let vni = free_vni(start, &used).ok_or_else(|| {
        Failure::new(Code::VniExhausted, "every number of the overlay is given to a network")
    })?;
    let put = Op::put(key.clone(), vni.next().to_string());
    Ok(VniChoice { vni, compare: Compare::unchanged(key, revision), put })
}

/// A number of those that are given out.
fn anywhere(random: u64) -> Vni {
    let count = u64::from(Vni::LAST.get() - Vni::FIRST.get() + 1);
    let number = Vni::FIRST.get() + u32::try_from(random % count).unwrap_or(0);
    Vni::new(number).unwrap_or(Vni::FIRST)
}

/// The first number from `start` on, and round, that is not used.
fn free_vni(start: Vni, used: &BTreeSet<Vni>) -> Option<Vni> {
    let mut vni = start;
    // As many steps as there are used numbers pass them all.
    for _ in 0..=used.len() {
        if !used.contains(&vni) {
            return Some(vni);
        }
        vni = vni.next();
        if vni == start {
            return None;
        }
    }
    None
}

/// What becomes of a project that is to be created.
#[derive(Debug)]
pub(crate) enum Created {
    /// It was made, with its first network.
    Now,
    /// It was there.
    Before,
}

/// Makes a project and its first network in one transaction: there is no moment at which one is there without the other.
pub(crate) async fn create_project(app: &App, project: &ProjectRecord) -> Answer<Created> {
    let key = RecordKey::Project(project.name.clone());
    for _ in 0..TRIES_MAX {
        let choice = choose_vni(app).await?;
        let network = NetworkRecord {
            project: project.name.clone(),
            spec: NetworkSpec::first(),
            vni: choice.vni,
            created_at: project.created_at,
        };
        let network_key = RecordKey::Network(project.name.clone(), network.spec.name.clone());
        let txn = Txn::new()
            .when(Compare::missing(key.key()))
            .then(key.put(project)?)
            .then(network_key.put(&network)?)
            .then(Used::Project(&project.name).mark())
            .otherwise(Op::get(key.key()));
        let reply = app.state.txn(choice.taken_in(txn)).await?;
        if reply.succeeded {
            app.mirror.reach(reply.revision).await;
            return Ok(Created::Now);
        }
        let there = reply.replies.into_iter().find_map(|reply| match reply {
            OpReply::Range(found) => found.entries.into_iter().next(),
            OpReply::Put | OpReply::Deleted(_) => None,
        });
        if let Some(entry) = there {
            app.mirror.reach(entry.mod_revision).await;
            return Ok(Created::Before);
        }
    }
    Err(Failure::new(Code::Unavailable, "other networks keep being created: try again"))
}

/// Makes the project `default` when the cloud begins.
///
/// # Errors
/// The store does not answer.
pub(crate) async fn ensure(app: &App) -> Result<(), RegistryError> {
    let name = ProjectName::default();
    if app.mirror.read(|view| view.projects.contains_key(&name)) {
        return Ok(());
    }
    let description = String::new();
    let project = ProjectRecord { name, description, exit: None, created_at: now() };
    match create_project(app, &project).await {
        Ok(_) => Ok(()),
        Err(failure) => {
            let why = failure.0.message;
            Err(RegistryError::State { source: skein_fabric::StateError::Unavailable { why } })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vni(number: u32) -> Vni {
        Vni::new(number).unwrap()
    }

    #[test]
    fn the_next_free_number_is_chosen() {
        let used = BTreeSet::from([vni(5000), vni(5001), Vni::LAST]);
        assert_eq!(free_vni(vni(4999), &used), Some(vni(4999)));
        assert_eq!(free_vni(vni(5000), &used), Some(vni(5002)));
        assert_eq!(free_vni(Vni::LAST, &used), Some(Vni::FIRST));
    }

    #[test]
    fn there_are_no_more_numbers_than_there_are() {
        let mut used: BTreeSet<Vni> =
            (Vni::FIRST.get()..=Vni::LAST.get()).filter_map(Vni::new).collect();
        assert_eq!(free_vni(vni(70_000), &used), None);
        used.remove(&vni(69_999));
        assert_eq!(free_vni(vni(70_000), &used), Some(vni(69_999)));
    }

    #[test]
    fn numbers_begin_among_those_given_out() {
        for random in [0, 1, u64::MAX, 0xdead_beef] {
            let start = anywhere(random);
            assert!(Vni::FIRST <= start && start <= Vni::LAST);
        }
    }
}
