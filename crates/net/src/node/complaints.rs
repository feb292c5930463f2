//! What is wrong with networks, told once: as long as it stays what it is, nobody is told again.

use crate::desired::Vni;
use std::collections::BTreeMap;

/// What was last said.
#[derive(Debug, Default)]
pub(super) struct Complaints(BTreeMap<Vni, String>);

/// What is to be said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// New, or not what it was.
    pub(super) wrong: Vec<(Vni, String)>,
    /// Right again.
    pub(super) mended: Vec<Vni>,
}

impl Complaints {
    /// Takes note of all that is wrong now.
    pub(super) fn update(&mut self, now: BTreeMap<Vni, String>) -> Said {
        let fresh = now.iter().filter(|(vni, text)| self.0.get(vni) != Some(text));
        let wrong = fresh.map(|(vni, text)| (*vni, text.clone())).collect();
        let mended = self.0.keys().filter(|vni| !now.contains_key(vni)).copied().collect();
        self.0 = now;
        Said { wrong, mended }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_wrong_is_said_once() {
        let vni = |number| Vni::new(number).unwrap();
        let mut complaints = Complaints::default();
        let mut check = |now: &[(u32, &str)], wrong: &[(u32, &str)], mended: &[u32]| {
            let pairs = |all: &[(u32, &str)]| {
                all.iter().map(|(number, text)| (vni(*number), (*text).to_owned())).collect()
            };
            let said = complaints.update(BTreeMap::from_iter::<Vec<_>>(pairs(now)));
            let mended = mended.iter().map(|number| vni(*number)).collect();
            assert_eq!(said, Said { wrong: pairs(wrong), mended });
        };
        check(&[(1, "a"), (2, "b")], &[(1, "a"), (2, "b")], &[]);
        check(&[(1, "a"), (2, "b")], &[], &[]);
        check(&[(1, "c")], &[(1, "c")], &[2]);
        check(&[(1, "c"), (2, "b")], &[(2, "b")], &[]);
        check(&[], &[], &[1, 2]);
    }
}
