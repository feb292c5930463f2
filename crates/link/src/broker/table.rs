//! Which connections there are, and who has which end. Pure: no socket, no clock.

use crate::remote::ConnectionKey;
use skein_link_core::ring::Role;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// A connection as the broker tells them apart: two network namespaces, or two projects, may use the same addresses.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Place {
    /// The project whose socket was asked on.
    pub project: Arc<str>,
    /// The network namespace's number: `SO_NETNS_COOKIE` of its sockets.
    pub namespace: u64,
    /// The two addresses.
    pub key: ConnectionKey,
}

/// One end of a connection, as its program's library asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// The kernel's number of the socket; never used again while the host runs.
    pub cookie: u64,
    /// The socket's inode, by which its holders are found in `/proc`.
    pub inode: u64,
    /// The process that asked, or another that holds the socket when that one has ended.
    pub pid: u32,
}

/// A connection and what belongs to it.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    /// The ends, low and high.
    pub ends: [Option<End>; 2],
    /// What both ends share.
    pub shared: T,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Table<T> {
    entries: HashMap<Place, Entry<T>>,
    /// How many each project has.
    counts: HashMap<Arc<str>, usize>,
    limit: usize,
}

/// Which role an end with these addresses has. `None`: a socket that is connected to itself.
pub(crate) fn role(local: SocketAddr, peer: SocketAddr) -> Option<Role> {
    match local.cmp(&peer) {
        std::cmp::Ordering::Less => Some(Role::Low),
        std::cmp::Ordering::Greater => Some(Role::High),
        std::cmp::Ordering::Equal => None,
    }
}

impl<T> Table<T> {
    /// An empty table for at most `limit` connections of each project: none can take another's places.
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: HashMap::new(), counts: HashMap::new(), limit }
    }

    /// Forgets the connection of a place if another socket than this one had the end before: the addresses were used again.
    pub(crate) fn supersede(&mut self, place: &Place, role: Role, cookie: u64) -> Option<Entry<T>> {
        let known = self.entries.get(place).and_then(|entry| entry.ends[role.index()])?;
        if known.cookie == cookie { None } else { self.remove(place) }
    }

    /// An end asks, after [`Table::supersede`]: it joins the connection of its place. `make` is called for a new one.
    ///
    /// # Errors
    /// `make`'s. `Ok(None)`: the project has as many as it may.
    pub(crate) fn ask<E>(
        &mut self,
        place: Place,
        role: Role,
        end: End,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Option<&mut Entry<T>>, E> {
        if !self.entries.contains_key(&place) {
            let count = self.count(&place.project);
            if count >= self.limit {
                return Ok(None);
            }
            let entry = Entry { ends: [None, None], shared: make()? };
            self.counts.insert(Arc::clone(&place.project), count + 1);
            self.entries.insert(place.clone(), entry);
        }
        let mut entry = self.entries.get_mut(&place);
        if let Some(entry) = &mut entry {
            entry.ends[role.index()] = Some(end);
        }
        Ok(entry)
    }

    /// Forgets a connection.
    pub(crate) fn remove(&mut self, place: &Place) -> Option<Entry<T>> {
        let entry = self.entries.remove(place)?;
        discount(&mut self.counts, &place.project);
        Some(entry)
    }

    /// Whether there is one of a place.
    pub(crate) fn has(&self, place: &Place) -> bool {
        self.entries.contains_key(place)
    }

    /// How many a project has.
    pub(crate) fn count(&self, project: &Arc<str>) -> usize {
        self.counts.get(project).copied().unwrap_or_default()
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Place, &Entry<T>)> {
        self.entries.iter()
    }

    /// All entries, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&Place, &mut Entry<T>)> {
        self.entries.iter_mut()
    }

    /// Drops entries that are not to be kept.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Place, &Entry<T>) -> bool) {
        let counts = &mut self.counts;
        self.entries.retain(|place, entry| {
            let keeps = keep(place, entry);
            if !keeps {
                discount(counts, &place.project);
            }
            keeps
        });
    }
}

fn discount(counts: &mut HashMap<Arc<str>, usize>, project: &Arc<str>) {
    if let Some(count) = counts.get_mut(project) {
        *count = count.saturating_sub(1);
        if *count == 0 {
            counts.remove(project);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(port: u16) -> Place {
        let low = SocketAddr::from(([127, 0, 0, 1], 80));
        let high = SocketAddr::from(([127, 0, 0, 1], port));
        Place { project: "one".into(), namespace: 1, key: ConnectionKey::new(low, high) }
    }

    fn ask(table: &mut Table<u32>, port: u16, role: Role, cookie: u64, made: u32) -> Option<u32> {
        let end = End { cookie, inode: 1, pid: 1 };
        table.supersede(&place(port), role, cookie);
        let entry = table.ask(place(port), role, end, || Ok::<_, ()>(made)).unwrap();
        entry.map(|entry| entry.shared)
    }

    #[test]
    fn both_ends_get_the_same() {
        let mut table = Table::new(10);
        assert_eq!(ask(&mut table, 5000, Role::Low, 7, 1), Some(1));
        assert_eq!(ask(&mut table, 5000, Role::High, 8, 2), Some(1));
        assert_eq!(ask(&mut table, 5000, Role::Low, 7, 3), Some(1), "asking again changes nothing");
    }

    #[test]
    fn addresses_used_again_are_another_connection() {
        let mut table = Table::new(10);
        ask(&mut table, 5000, Role::Low, 7, 1);
        ask(&mut table, 5000, Role::High, 8, 2);
        assert_eq!(ask(&mut table, 5000, Role::High, 9, 3), Some(3));
        assert_eq!(ask(&mut table, 5000, Role::Low, 10, 4), Some(3));
    }

    #[test]
    fn projects_do_not_meet() {
        let mut table = Table::new(10);
        ask(&mut table, 5000, Role::Low, 7, 1);
        let other = Place { project: "two".into(), ..place(5000) };
        let end = End { cookie: 8, inode: 1, pid: 1 };
        let entry = table.ask(other, Role::High, end, || Ok::<_, ()>(2));
        assert_eq!(entry.unwrap().unwrap().shared, 2);
    }

    #[test]
    fn a_full_table_answers_nothing() {
        let mut table = Table::new(1);
        ask(&mut table, 5000, Role::Low, 7, 1);
        assert_eq!(ask(&mut table, 5001, Role::Low, 9, 2), None);
        // Another project's places are its own.
        let end = End { cookie: 10, inode: 1, pid: 1 };
        let other = Place { project: "two".into(), ..place(5001) };
        assert!(table.ask(other.clone(), Role::Low, end, || Ok::<_, ()>(3)).unwrap().is_some());
        table.retain(|place, _| *place == other);
        assert_eq!(ask(&mut table, 5002, Role::Low, 11, 4), Some(4));
        assert!(table.remove(&place(5002)).is_some());
        assert_eq!(ask(&mut table, 5003, Role::Low, 12, 5), Some(5));
    }
}
