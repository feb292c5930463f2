//! Addresses of machines: given with the machine's record, taken back when it is gone, free again when they have rested.
//!
//! ```text
//!   free ── with the machine's record ──▶ held ── machine gone ──▶ resting ── quarantine over ──▶ free
//! ```
//! Each step is part of a transaction that holds only for the leader and only if the address is as it was seen: two
//! machines never have the same one. What a crash leaves half done is found in the records by the next round.

use skein_fabric::{Compare, Op, Revision};
use skein_model::{
    ADDRESS_QUARANTINE, AddressRecord, Generation, MacAddr, MachineId, MachineRecord,
    NetworkRecord, PhaseName, PortRecord, ProjectName, PublishTarget, Timestamp, Transport, Vni,
};
use skein_registry::{RecordKey, RegistryError, View};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// What the leader remembers of addresses between rounds. Losing it costs nothing but that an address is used again
/// earlier than others that rested longer.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    /// Where the search goes on, so that the address unused for longest comes first.
    cursors: BTreeMap<Vni, u32>,
    /// Given in this round: the mirror does not show them yet.
    given: BTreeSet<(Vni, Ipv4Addr)>,
}

/// An address for a machine, and what must hold for it to be taken.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) port: PortRecord,
    compare: Compare,
}

/// Every address of a network, or of those that the service chose, is held or rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exhausted {
    pub(crate) held: usize,
    pub(crate) resting: usize,
    /// How many the service chose; 0 if any would do.
    pub(crate) chosen: usize,
}

impl Addresses {
    /// A new round: the mirror shows what was given before.
    pub(crate) fn begin(&mut self) {
        self.given.clear();
    }

    /// A port for `machine` in `network`: under one of the addresses that its service chose, or else one that no service did.
    pub(crate) fn choose(
        &mut self,
        view: &View,
        network: &NetworkRecord,
        machine: &MachineRecord,
        now: Timestamp,
    ) -> Result<Choice, Exhausted> {
        let vni = network.vni;
        let service = view.services.get(&(machine.project.clone(), machine.service.clone()));
        let chosen = service.map_or(&[][..], |service| &service.value.spec.network.addresses);
        let found = match chosen.is_empty() {
            // The MAC address follows from the address: who remembers the last machine there finds this one.
            false => chosen.iter().copied().find(|ipv4| {
                let stored = view.addresses.get(&(vni, *ipv4));
                let free = stored.is_none_or(|stored| stored.value.released_at.is_some());
                free && self.given.insert((vni, *ipv4))
            }),
            true => self.next_free(view, network, now),
        };
        let Some(ipv4) = found else { return Err(self.exhausted(view, vni, chosen)) };
        let stored = view.addresses.get(&(vni, ipv4));
        let revision = stored.map_or(Revision::ZERO, |stored| stored.revision);
        let port = PortRecord {
            machine: machine.id.clone(),
            project: machine.project.clone(),
            service: machine.service.clone(),
            node: machine.node.clone(),
            network: network.spec.name.clone(),
            vni,
            mac: MacAddr::for_port(vni.get(), ipv4),
            ipv4,
            ipv6: network.spec.ipv6.map(|prefix| prefix.machine(ipv4)),
            groups: None,
            limits: None,
            generation: Generation(1),
            created_at: now,
        };
        let compare = Compare::unchanged(RecordKey::Address(vni, ipv4).key(), revision);
        Ok(Choice { port, compare })
    }

    /// The address unused for longest that no service chose for itself.
    fn next_free(
        &mut self,
        view: &View,
        network: &NetworkRecord,
        now: Timestamp,
    ) -> Option<Ipv4Addr> {
        let (vni, subnet) = (network.vni, network.spec.cidr);
        let services = view.services.values().map(|stored| &stored.value);
        let of_network = services.filter(|service| {
            service.project == network.project && service.spec.network.name == network.spec.name
        });
        let reserved: BTreeSet<Ipv4Addr> =
            of_network.flat_map(|service| &service.spec.network.addresses).copied().collect();
        let count = subnet.machine_count();
        let cursor = self.cursors.entry(vni).or_default();
        for step in 0..count {
            let index = (*cursor % count + step) % count;
            let Some(ipv4) = subnet.machine(index) else { continue };
            let stored = view.addresses.get(&(vni, ipv4));
            let free = stored.is_none_or(|stored| stored.value.is_rested(now));
            if free && !reserved.contains(&ipv4) && self.given.insert((vni, ipv4)) {
                *cursor = (index + 1) % count;
                return Some(ipv4);
            }
        }
        None
    }

    /// What of a network, or of what was chosen in it, is not free.
    fn exhausted(&self, view: &View, vni: Vni, chosen: &[Ipv4Addr]) -> Exhausted {
        let counts = |address: Ipv4Addr| chosen.is_empty() || chosen.contains(&address);
        let of_network = view.addresses.range((vni, Ipv4Addr::UNSPECIFIED)..);
        let of_network = of_network.take_while(|((other, _), _)| *other == vni);
        let (resting, held): (Vec<_>, Vec<_>) = of_network
            .filter(|((_, address), _)| counts(*address))
            .partition(|(_, stored)| stored.value.released_at.is_some());
        let given = self.given.iter().filter(|(of, address)| *of == vni && counts(*address));
        Exhausted { held: held.len() + given.count(), resting: resting.len(), chosen: chosen.len() }
    }
}

impl Choice {
    /// What a transaction must hold and write to take it.
    pub(crate) fn take(&self) -> Result<(Compare, [Op; 2]), RegistryError> {
        let PortRecord { machine, vni, ipv4, .. } = &self.port;
        let address = AddressRecord { machine: machine.clone(), released_at: None };
        let ops = [
            RecordKey::Port(machine.clone()).put(&self.port)?,
            RecordKey::Address(*vni, *ipv4).put(&address)?,
        ];
        Ok((self.compare.clone(), ops))
    }
}

/// One change that keeps ports and addresses what the machines' records say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tidy {
    /// The port's machine is gone.
    Unplug { machine: MachineId, revision: Revision },
    /// The address has no port any more: it rests from now on.
    Release { vni: Vni, address: Ipv4Addr, machine: MachineId, revision: Revision },
    /// It has rested, or its network is gone.
    Forget { vni: Vni, address: Ipv4Addr, revision: Revision },
    /// What it leads to has ended or was removed.
    Unpublish { project: ProjectName, transport: Transport, port: u16, revision: Revision },
}

impl Tidy {
    /// As part of a transaction.
    pub(crate) fn step(&self, now: Timestamp) -> Result<(Compare, Op), RegistryError> {
        Ok(match self {
            Self::Unplug { machine, revision } => {
                let key = RecordKey::Port(machine.clone()).key();
                (Compare::unchanged(key.clone(), *revision), Op::delete(&key))
            }
            Self::Release { vni, address, machine, revision } => {
                let key = RecordKey::Address(*vni, *address);
                let record = AddressRecord { machine: machine.clone(), released_at: Some(now) };
                (Compare::unchanged(key.key(), *revision), key.put(&record)?)
            }
            Self::Forget { vni, address, revision } => {
                let key = RecordKey::Address(*vni, *address).key();
                (Compare::unchanged(key.clone(), *revision), Op::delete(&key))
            }
            Self::Unpublish { transport, port, revision, .. } => {
                let key = RecordKey::Publication(*transport, *port).key();
                (Compare::unchanged(key.clone(), *revision), Op::delete(&key))
            }
        })
    }
}

/// What is to be tidied: ports of machines that are gone, addresses without a port, addresses that have rested, and
/// publications that lead nowhere any more.
pub(crate) fn to_tidy(view: &View, now: Timestamp) -> Vec<Tidy> {
    let plugged = |machine: &MachineId| {
        view.machines.contains_key(machine)
            && crate::observe::phase(view.statuses.get(machine).map(|s| &*s.value))
                != PhaseName::Gone
    };
    let networks: BTreeSet<Vni> = view.networks.values().map(|n| n.value.vni).collect();
    let mut found = Vec::new();
    for (machine, stored) in &view.ports {
        if !plugged(machine) {
            found.push(Tidy::Unplug { machine: machine.clone(), revision: stored.revision });
        }
    }
    for ((vni, address), stored) in &view.addresses {
        let (vni, address, revision) = (*vni, *address, stored.revision);
        let record = &stored.value;
        let port = view.ports.get(&record.machine);
        let held = plugged(&record.machine)
            && port.is_some_and(|port| (port.value.vni, port.value.ipv4) == (vni, address));
        match record.released_at {
            _ if !networks.contains(&vni) && !held => {
                found.push(Tidy::Forget { vni, address, revision });
            }
            None if !held => {
                let machine = record.machine.clone();
                found.push(Tidy::Release { vni, address, machine, revision });
            }
            // Kept a while longer, so that it is not chosen by what was seen before it went.
            Some(at) if now.since(at) >= 2 * ADDRESS_QUARANTINE => {
                found.push(Tidy::Forget { vni, address, revision });
            }
            Some(_) | None => {}
        }
    }
    for ((transport, port), stored) in &view.publications {
        let record = &stored.value;
        let leads = match &record.spec.target {
            PublishTarget::Machine(machine) => plugged(machine),
            PublishTarget::Service(service) => {
                view.services.contains_key(&(record.project.clone(), service.clone()))
            }
        };
        if !leads {
            let (project, revision) = (record.project.clone(), stored.revision);
            found.push(Tidy::Unpublish { project, transport: *transport, port: *port, revision });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_model::{
        Addressing, ExitCause, ImageManifest, MachineGoal, MachinePhase, MachineStatus, MemoryMib,
        NetworkName, NetworkSpec, ServiceRecord,
    };
    use skein_registry::Stored;
    use std::sync::Arc;

    fn stored<T>(value: T) -> Stored<T> {
        Stored { value: Arc::new(value), revision: Revision::ZERO.next() }
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn machine(id: &str) -> MachineRecord {
        let image = ImageManifest {
            name: "echo".parse().unwrap(),
            kernel: "00".repeat(32).parse().unwrap(),
            kernel_bytes: 1,
            modules: Vec::new(),
            memory: MemoryMib::DEFAULT,
            capacity: 1,
            port: 80,
            created_at: at(0),
        };
        MachineRecord {
            id: id.parse().unwrap(),
            project: ProjectName::default(),
            service: "echo".parse().unwrap(),
            node: "n1".parse().unwrap(),
            generation: Generation(1),
            image,
            memory: MemoryMib::DEFAULT,
            cpu_milli: 1,
            capacity: 1,
            parameters: BTreeMap::new(),
            network: NetworkName::default(),
            addressing: Addressing::Static,
            goal: MachineGoal::Run,
            reason: String::new(),
            created_at: at(0),
        }
    }

    fn network(cidr: &str) -> NetworkRecord {
        let spec = NetworkSpec::new(NetworkName::default(), cidr.parse().unwrap());
        let project = ProjectName::default();
        NetworkRecord { project, spec, vni: Vni::FIRST, created_at: at(0) }
    }

    fn add(view: &mut View, record: MachineRecord, choice: &Choice) {
        let address = AddressRecord { machine: record.id.clone(), released_at: None };
        view.addresses.insert((choice.port.vni, choice.port.ipv4), stored(address));
        view.ports.insert(record.id.clone(), stored(choice.port.clone()));
        view.machines.insert(record.id.clone(), stored(record));
    }

    /// Carries out what is to be tidied, as the store would.
    fn tidy(view: &mut View, now: Timestamp) -> Vec<Tidy> {
        let found = to_tidy(view, now);
        for change in &found {
            match change {
                Tidy::Unplug { machine, .. } => drop(view.ports.remove(machine)),
                Tidy::Release { vni, address, machine, .. } => {
                    let machine = machine.clone();
                    let record = AddressRecord { machine, released_at: Some(now) };
                    view.addresses.insert((*vni, *address), stored(record));
                }
                Tidy::Forget { vni, address, .. } => {
                    drop(view.addresses.remove(&(*vni, *address)));
                }
                Tidy::Unpublish { transport, port, .. } => {
                    drop(view.publications.remove(&(*transport, *port)));
                }
            }
        }
        found
    }

    #[test]
    fn an_address_is_given_once_rests_and_comes_back() {
        let network = network("10.0.0.0/30");
        let mut view = View::default();
        view.networks
            .insert((ProjectName::default(), NetworkName::default()), stored(network.clone()));
        let mut addresses = Addresses::default();
        let first = machine("echo-1");
        let choice = addresses.choose(&view, &network, &first, at(1)).unwrap();
        assert_eq!(choice.port.ipv4, Ipv4Addr::new(10, 0, 0, 2));
        // The mirror does not show it yet, and it is not given twice.
        let second = machine("echo-2");
        assert!(addresses.choose(&view, &network, &second, at(1)).is_err());
        add(&mut view, first.clone(), &choice);
        addresses.begin();
        assert_eq!(
            addresses.choose(&view, &network, &second, at(2)).unwrap_err(),
            Exhausted { held: 1, resting: 0, chosen: 0 }
        );
        assert_eq!(tidy(&mut view, at(2)), vec![]);
        let phase = MachinePhase::Gone { cause: ExitCause::Stopped, at: at(3) };
        let status = MachineStatus {
            id: first.id.clone(),
            generation: Generation(1),
            phase,
            address: None,
            port: 80,
            launched_at: None,
            ready_at: None,
            boot_us: None,
        };
        view.statuses.insert(first.id.clone(), stored(status));
        assert_eq!(tidy(&mut view, at(4)).len(), 2);
        assert!(addresses.choose(&view, &network, &second, at(63)).is_err());
        assert!(addresses.choose(&view, &network, &second, at(64)).is_ok());
        assert_eq!(tidy(&mut view, at(123)), vec![]);
        assert_eq!(tidy(&mut view, at(124)).len(), 1);
        assert!(view.addresses.is_empty() && view.ports.is_empty());
    }

    #[test]
    fn chosen_addresses_are_their_services_and_need_no_rest() {
        let network = network("10.0.0.0/29");
        let mut view = View::default();
        view.networks
            .insert((ProjectName::default(), NetworkName::default()), stored(network.clone()));
        let chosen = [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(10, 0, 0, 5)];
        let spec =
            serde_json::json!({"name": "echo", "image": "echo", "network": {"addresses": chosen}});
        let service = ServiceRecord {
            project: ProjectName::default(),
            spec: serde_json::from_value(spec).unwrap(),
            generation: Generation(1),
            created_at: at(0),
        };
        view.services.insert((ProjectName::default(), "echo".parse().unwrap()), stored(service));
        let mut addresses = Addresses::default();
        let other = MachineRecord { service: "other".parse().unwrap(), ..machine("other-1") };
        let mut given = |view: &View, machine: &MachineRecord, now: u64| {
            addresses.choose(view, &network, machine, at(now)).map(|choice| choice.port.ipv4)
        };
        // Another service gets what is left: 3, 4 and 6.
        for last in [3, 4, 6] {
            assert_eq!(given(&view, &other, 1), Ok(Ipv4Addr::new(10, 0, 0, last)));
        }
        assert!(given(&view, &other, 1).is_err());
        assert_eq!(given(&view, &machine("echo-1"), 1), Ok(chosen[0]));
        assert_eq!(given(&view, &machine("echo-2"), 1), Ok(chosen[1]));
        let full = Exhausted { held: 2, resting: 0, chosen: 2 };
        assert_eq!(given(&view, &machine("echo-3"), 1), Err(full));
        // One that was just given back is taken at once.
        let resting =
            AddressRecord { machine: "echo-1".parse().unwrap(), released_at: Some(at(2)) };
        view.addresses.insert((Vni::FIRST, chosen[0]), stored(resting));
        addresses.begin();
        let again = addresses.choose(&view, &network, &machine("echo-3"), at(2));
        assert_eq!(again.map(|choice| choice.port.ipv4), Ok(chosen[0]));
    }

    #[test]
    fn what_a_crash_left_is_found() {
        let network = network("10.0.0.0/24");
        let mut view = View::default();
        view.networks
            .insert((ProjectName::default(), NetworkName::default()), stored(network.clone()));
        let mut addresses = Addresses::default();
        let first = machine("echo-1");
        let choice = addresses.choose(&view, &network, &first, at(1)).unwrap();
        add(&mut view, first.clone(), &choice);
        // The record of the machine was deleted, and nothing else.
        view.machines.remove(&first.id);
        assert_eq!(tidy(&mut view, at(2)).len(), 2);
        assert!(view.ports.is_empty());
        // The network was removed while the address rested.
        view.networks.clear();
        assert!(matches!(tidy(&mut view, at(3))[..], [Tidy::Forget { .. }]));
        assert!(view.addresses.is_empty());
    }
}
