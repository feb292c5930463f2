//! Connections from outside to the machines that take them.
//!
//! ```text
//!   turns:    a number that counts up ─ modulo n ─▶ machine
//!   clients:  hash of the client's address ─ modulo 1,024 ─▶ slot ─▶ machine
//! ```
//! A slot is the machine's that has the highest weight for it (rendezvous hashing: Thaler and Ravishankar, 1998). A weight
//! depends on nothing but slot and machine, so each node fills its slots the same way, and a machine that comes or goes
//! changes only the slots that it gets or had.

use super::Surroundings;
use super::inet::number;
use super::steps::{FAMILY_4, Steps, nat};
use crate::desired::{Balance, DesiredNetwork, Publication, Transport};
use crate::names::UPLINK;
use crate::netfilter::{
    DataKind, Element, Expression, Field, HookPoint, KeyField, NatKind, Set, Table,
};
use std::net::Ipv4Addr;

/// Priority of translation (`NF_IP_PRI_NAT_DST`).
const NAT_DESTINATION: i32 = -100;

/// Slots that clients fall into: with a hundred machines each has about ten.
const SLOTS: u32 = 1_024;

/// What the hash of a client's address begins with; the same on every node.
const SEED: u32 = 0x736b_6569;

pub(super) fn publications(table: &mut Table, network: &DesiredNetwork, around: &Surroundings) {
    let mut rules = Vec::new();
    for publication in &network.publications {
        let arriving = || {
            let steps = Steps::new().family(FAMILY_4).input(UPLINK);
            let port = publication.port;
            steps.protocol(number(publication.protocol)).ports(port, port)
        };
        let waiting = around.waiting.get(&(publication.protocol, publication.port));
        let steps = match (publication.backends.is_empty(), waiting) {
            (true, None) => continue,
            (true, Some(port)) => {
                let value = port.to_be_bytes().to_vec();
                arriving()
                    .then(Expression::Immediate { value, to: 0 })
                    .then(Expression::Redirect { port: 0 })
            }
            (false, _) => {
                let map = map_name(publication);
                table.sets.insert(map.clone(), map_of(publication));
                let nat = Expression::Nat { kind: NatKind::Destination, address: 1, port: Some(2) };
                choosing(arriving(), publication)
                    .then(Expression::Map { register: 0, map, to: 1 })
                    .then(nat)
            }
        };
        rules.push(steps.rule());
    }
    let chain = nat(HookPoint::Prerouting, NAT_DESTINATION, rules);
    table.chains.insert("prerouting".to_owned(), chain);
}

/// The number by which the map knows the machine, in register 0.
fn choosing(steps: Steps, publication: &Publication) -> Steps {
    match publication.balance {
        Balance::Turns => {
            let modulus = u32::try_from(publication.backends.len()).unwrap_or(u32::MAX);
            steps.then(Expression::Turn { modulus, to: 0 })
        }
        Balance::Clients => steps
            .then(Expression::Load { field: Field::IP4_SOURCE, to: 0 })
            .then(Expression::Hash { from: 0, len: 4, seed: SEED, modulus: SLOTS, to: 0 }),
    }
}

fn map_name(publication: &Publication) -> String {
    let protocol = match publication.protocol {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    format!("published-{protocol}-{}", publication.port)
}

/// From numbers to machines.
fn map_of(publication: &Publication) -> Set {
    let data = DataKind::Fields(vec![KeyField::Ip4, KeyField::Port]);
    let mut set = Set::new(&[KeyField::Number], data);
    let mut lead = |number: u32, to: &Ipv4Addr| {
        let mut value = to.octets().to_vec();
        value.extend(publication.target_port.to_be_bytes());
        value.extend([0; 2]);
        set.insert(&[&number.to_ne_bytes()], Element::Value(value));
    };
    let backends = &publication.backends;
    match publication.balance {
        Balance::Turns => (0..).zip(backends).for_each(|(turn, to)| lead(turn, to)),
        Balance::Clients => (0..SLOTS).for_each(|slot| {
            let owner = backends.iter().max_by_key(|backend| weight(slot, **backend));
            owner.into_iter().for_each(|to| lead(slot, to));
        }),
    }
    set
}

/// How much a machine counts for a slot: the finaliser of MurmurHash3 (64 bits) of both. It maps different values to
/// different ones, so no two machines have the same weight for one slot.
fn weight(slot: u32, machine: Ipv4Addr) -> u64 {
    let mut mixed = u64::from(slot) << 32 | u64::from(machine.to_bits());
    for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(factor);
    }
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::btree_set;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn owners(backends: &BTreeSet<u32>) -> Vec<u32> {
        let heaviest = |slot| {
            backends
                .iter()
                .copied()
                .max_by_key(|backend| weight(slot, Ipv4Addr::from_bits(*backend)))
        };
        (0..SLOTS).filter_map(heaviest).collect()
    }

    proptest! {
        #[test]
        fn one_machine_less_moves_its_own_clients_alone(
            backends in btree_set(0x0a14_0002_u32..0x0a14_00ff, 2..40), gone: prop::sample::Index,
        ) {
            let gone = *backends.iter().nth(gone.index(backends.len())).expect("one of them");
            let before = owners(&backends);
            let mut rest = backends.clone();
            rest.remove(&gone);
            for (before, after) in before.iter().zip(owners(&rest)) {
                prop_assert!(*before == gone || *before == after);
            }
        }

        #[test]
        fn machines_have_even_shares(backends in btree_set(0x0a14_0002_u32..0x0a14_00ff, 1..9)) {
            let owners = owners(&backends);
            let fair = owners.len() / backends.len();
            for backend in &backends {
                let share = owners.iter().filter(|owner| *owner == backend).count();
                prop_assert!((fair / 2..=fair * 2).contains(&share), "{share} beside {fair}");
            }
        }
    }
}
