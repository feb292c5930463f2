//! What the records say of ports, in one place for server and agents. Pure.

use crate::mirror::View;
use skein_model::{
    Exit, GroupName, MachinePhase, NetworkKind, NetworkRecord, PortRecord, PublicationRecord,
    PublishTarget, Vni,
};

/// The groups of a port: its own, or those of its service.
pub fn groups_of<'a>(view: &'a View, port: &'a PortRecord) -> &'a [GroupName] {
    if let Some(own) = &port.groups {
        return own;
    }
    let service = view.services.get(&(port.project.clone(), port.service.clone()));
    service.map_or(&[], |service| &service.value.spec.network.groups)
}

/// Whether the machine of a port takes work: then its service's name leads to it.
pub fn is_ready(view: &View, port: &PortRecord) -> bool {
    let status = view.statuses.get(&port.machine);
    status.is_some_and(|status| matches!(status.value.phase, MachinePhase::Ready { .. }))
}

/// The ports that take the connections of a publication now.
pub fn backends<'a>(
    view: &'a View,
    publication: &'a PublicationRecord,
) -> impl Iterator<Item = &'a PortRecord> {
    let target = &publication.spec.target;
    let ports = view.ports.values().map(|stored| &*stored.value);
    ports.filter(move |port| {
        port.project == publication.project
            && match target {
                PublishTarget::Machine(machine) => port.machine == *machine,
                PublishTarget::Service(service) => port.service == *service && is_ready(view, port),
            }
    })
}

/// The network that a publication leads into: that of its machine, or the one that its service's machines shall be in.
pub fn network_of<'a>(
    view: &'a View,
    publication: &PublicationRecord,
) -> Option<&'a NetworkRecord> {
    let name = match &publication.spec.target {
        PublishTarget::Machine(machine) => &view.ports.get(machine)?.value.network,
        PublishTarget::Service(service) => {
            let key = (publication.project.clone(), service.clone());
            &view.services.get(&key)?.value.spec.network.name
        }
    };
    let network = view.networks.get(&(publication.project.clone(), name.clone()))?;
    Some(&network.value)
}

/// Where a network of kind nat leaves: by its own exit, or that of its project.
pub fn exit_of<'a>(view: &'a View, network: &'a NetworkRecord) -> Option<&'a Exit> {
    let project = || view.projects.get(&network.project)?.value.exit.as_ref();
    let exit = network.spec.exit.as_ref().or_else(project);
    exit.filter(|_| network.spec.kind == NetworkKind::Nat)
}

/// The network with this number.
pub fn network_with(view: &View, vni: Vni) -> Option<&NetworkRecord> {
    let mut networks = view.networks.values().map(|stored| &*stored.value);
    networks.find(|network| network.vni == vni)
}
