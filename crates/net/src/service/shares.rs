//! Room that machines share: so much for all of them, and so much for each.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Room, and who has it.
#[derive(Debug)]
pub(super) struct Shares {
    all_max: usize,
    each_max: usize,
    taken: Mutex<BTreeMap<IpAddr, usize>>,
}

/// One place; it is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<Shares>,
    owner: IpAddr,
}

impl Shares {
    pub(super) fn new(all_max: usize, each_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, each_max, taken: Mutex::default() })
    }

    /// A place for `owner`; `None` if it has its share, or all are taken.
    pub(super) fn take(self: &Arc<Self>, owner: IpAddr) -> Option<Share> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        // At most as many owners as places.
        if taken.values().sum::<usize>() >= self.all_max {
            return None;
        }
        let own = taken.entry(owner).or_default();
        if *own >= self.each_max {
            return None;
        }
        *own += 1;
        Some(Share { of: self.clone(), owner })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = taken.get_mut(&self.owner) else { return };
        *own -= 1;
        if *own == 0 {
            taken.remove(&self.owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_takes_its_share_and_all_take_what_there_is() {
        let owner = |number| IpAddr::from([10, 20, 0, number]);
        let shares = Shares::new(5, 2);
        let [a, b] = [owner(1), owner(2)].map(|of| [shares.take(of), shares.take(of)]);
        assert!(a.iter().chain(&b).all(Option::is_some));
        assert!(shares.take(owner(1)).is_none(), "beyond its share");
        let last = shares.take(owner(3));
        assert!(last.is_some() && shares.take(owner(4)).is_none(), "beyond what there is");
        drop((a, last));
        assert!(shares.take(owner(1)).is_some() && shares.take(owner(4)).is_some());
        drop(b);
        assert!(shares.taken.lock().expect("no panic").is_empty(), "who has nothing is not kept");
    }
}
