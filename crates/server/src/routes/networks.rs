//! Networks.

use crate::agents::ask;
use crate::app::App;
use crate::bootstrap::choose_vni;
use crate::error::{Answer, Failure};
use crate::extract::{Json as Body, Path, parse};
use crate::scope::Scope;
use crate::usage::Used;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use skein_api::{
    Code, ErrorBody, Network, NetworkField, NetworkPatch, Trace, TraceHop, TraceRequest,
};
use skein_fabric::{Compare, KeySpan, Op, Revision, Txn};
use skein_model::{
    EventKind, EventSubject, Exit, MachineId, NetworkName, NetworkRecord, NetworkSpec, PortRecord,
    ProjectName,
};
use skein_registry::{AgentReply, AgentRequest, RecordKey, Stored, View};
use skein_shell::now;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// How often a network is tried to be created when others are created at the same time: each round one of them is.
const TRIES_MAX: u32 = 64;

fn unknown(name: &NetworkName) -> Failure {
    Failure::new(Code::NetworkUnknown, format!("network {name} does not exist"))
}

fn found(app: &App, project: &ProjectName, name: &str) -> Answer<Stored<NetworkRecord>> {
    let name: NetworkName = parse(name, Code::NetworkUnknown)?;
    let key = (project.clone(), name);
    app.mirror.read(|view| view.networks.get(&key).cloned()).ok_or_else(|| unknown(&key.1))
}

fn describe(view: &View, record: &NetworkRecord) -> Network {
    let ports = view.ports.values().filter(|port| port.value.vni == record.vni);
    let (mut count, mut nodes) = (0, BTreeSet::new());
    for port in ports {
        count += 1;
        nodes.insert(port.value.node.to_string());
    }
    Network::new(record, count, nodes.into_iter().collect())
}

fn subject(project: &ProjectName) -> EventSubject {
    EventSubject { project: Some(project.clone()), ..EventSubject::default() }
}

/// List networks
#[utoipa::path(get, path = "/v1/networks", tag = "networks",
    responses((status = 200, body = [Network]), (status = 401, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, scope: Scope) -> Json<Vec<Network>> {
    Json(app.mirror.read(|view| {
        let all = view.networks.values().map(|stored| &stored.value);
        let own = all.filter(|record| record.project == scope.project);
        own.map(|record| describe(view, record)).collect()
    }))
}

/// Show one network, and where it is
#[utoipa::path(get, path = "/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path, description = "Name")),
    responses((status = 200, body = Network), (status = 404, description = "NETWORK_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<Json<Network>> {
    let record = found(&app, &scope.project, &name)?.value;
    Ok(Json(app.mirror.read(|view| describe(view, &record))))
}

/// Create a network. It comes to be on a node with the first machine there. The same again is no error
#[utoipa::path(post, path = "/v1/networks", tag = "networks", request_body = NetworkSpec,
    responses((status = 201, description = "Created", body = Network), (status = 200, description = "It was there", body = Network),
        (status = 403, description = "FORBIDDEN", body = ErrorBody), (status = 404, description = "NODE_UNKNOWN", body = ErrorBody),
        (status = 409, description = "NETWORK_EXISTS, NETWORK_OVERLAPS", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody), (status = 503, description = "VNI_EXHAUSTED", body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    scope: Scope,
    Body(spec): Body<NetworkSpec>,
) -> Answer<(StatusCode, Json<Network>)> {
    spec.check().map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
    let of_the_nodes = spec.exit.is_some() || spec.interface.is_some();
    permit(&scope, of_the_nodes)?;
    for _ in 0..TRIES_MAX {
        check_exit(&app, spec.exit.as_ref())?;
        if let Some(answer) = try_create(&app, &scope.project, &spec).await? {
            return Ok(answer);
        }
    }
    Err(Failure::new(Code::Unavailable, "other networks keep being created: try again"))
}

/// Whether an exit's node exists, and its address can be a node's.
pub(super) fn check_exit(app: &App, exit: Option<&Exit>) -> Answer<()> {
    let Some(exit) = exit else { return Ok(()) };
    if !app.mirror.read(|view| view.nodes.contains_key(&exit.node)) {
        return Err(Failure::new(Code::NodeUnknown, format!("node {} does not exist", exit.node)));
    }
    let wrong = |ip: Ipv4Addr| {
        ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip.is_broadcast()
    };
    match exit.address.filter(|ip| wrong(*ip)) {
        Some(ip) => {
            Err(Failure::new(Code::Invalid, format!("exit.address: {ip} is no address of a node")))
        }
        None => Ok(()),
    }
}

/// Adds to `txn` that something leaves by a node, which is there.
pub(super) fn leaving_by(exit: Option<&Exit>, txn: Txn) -> Txn {
    let Some(Exit { node, .. }) = exit else { return txn };
    let there = Compare::exists(RecordKey::Node(node.clone()).key());
    txn.when(there).then(Used::Node(node).mark())
}

/// A project does not decide about addresses and interfaces of nodes.
fn permit(scope: &Scope, of_the_nodes: bool) -> Answer<()> {
    if !of_the_nodes || scope.is_admin() {
        return Ok(());
    }
    let message = "only the admin token gives a network an exit or an interface of the nodes";
    Err(Failure::new(Code::Forbidden, message))
}

/// Creates the network in one transaction: name, number and record at once, or nothing. None, if something else came
/// between.
async fn try_create(
    app: &App,
    project: &ProjectName,
    spec: &NetworkSpec,
) -> Answer<Option<(StatusCode, Json<Network>)>> {
    // Whatever is created in the project marks it, so that two networks with the same addresses cannot come at once.
    let alone = Used::Project(project).look(app).await?;
    let key = (project.clone(), spec.name.clone());
    let there = app.mirror.read(|view| view.networks.get(&key).map(|n| n.value.clone()));
    if let Some(there) = there {
        if there.spec == *spec {
            let network = app.mirror.read(|view| describe(view, &there));
            return Ok(Some((StatusCode::OK, Json(network))));
        }
        let message = format!("network {} exists and is another", spec.name);
        return Err(Failure::new(Code::NetworkExists, message));
    }
    if let Some(other) = app.mirror.read(|view| overlapping(view, project, spec)) {
        let message = format!("the addresses {} are those of network {other} too", spec.cidr);
        return Err(Failure::new(Code::NetworkOverlaps, message));
    }
    let choice = choose_vni(app).await?;
    let record = NetworkRecord {
        project: project.clone(),
        spec: spec.clone(),
        vni: choice.vni,
        created_at: now(),
    };
    let key = RecordKey::Network(project.clone(), spec.name.clone());
    let txn = Txn::new()
        .when(Compare::missing(key.key()))
        .when(Compare::exists(RecordKey::Project(project.clone()).key()))
        .when(alone.compare())
        .then(key.put(&record)?)
        .then(Used::Project(project).mark());
    let txn = leaving_by(spec.exit.as_ref(), txn);
    let reply = app.state.txn(choice.taken_in(txn)).await?;
    if !reply.succeeded {
        return Ok(None);
    }
    app.mirror.reach(reply.revision).await;
    let network = spec.name.to_string();
    app.events.emit(subject(project), EventKind::NetworkCreated { network });
    let network = app.mirror.read(|view| describe(view, &record));
    Ok(Some((StatusCode::CREATED, Json(network))))
}

/// A network of the project that has some of the same addresses: then an address would not tell a machine.
fn overlapping(view: &View, project: &ProjectName, spec: &NetworkSpec) -> Option<NetworkName> {
    let own = view.networks.values().map(|stored| &stored.value);
    let own = own.into_iter().filter(|network| network.project == *project);
    let mut same = own.filter(|network| {
        let six = network.spec.ipv6.is_some() && network.spec.ipv6 == spec.ipv6;
        six || network.spec.cidr.overlaps(spec.cidr)
    });
    same.next().map(|network| network.spec.name.clone())
}

/// What uses a network, in words.
fn user(view: &View, network: &NetworkRecord) -> Option<String> {
    let service = view.services.values().map(|stored| &stored.value).find(|service| {
        service.project == network.project && service.spec.network.name == network.spec.name
    });
    let port = || view.ports.values().find(|port| port.value.vni == network.vni);
    match service {
        Some(service) => Some(format!("service {}", service.spec.name)),
        None => port().map(|port| format!("machine {}", port.value.machine)),
    }
}

/// Remove a network that no service and no machine uses
#[utoipa::path(delete, path = "/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path, description = "Name")),
    responses((status = 204, description = "Removed"), (status = 404, description = "NETWORK_UNKNOWN", body = ErrorBody),
        (status = 409, description = "NETWORK_IN_USE", body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    let Stored { value: network, revision } = found(&app, &scope.project, &name)?;
    let unused = Used::Network(network.vni).look(&app).await?;
    if let Some(user) = app.mirror.read(|view| user(view, &network)) {
        let message = format!("network {name} is used by {user}");
        return Err(Failure::new(Code::NetworkInUse, message));
    }
    if !delete(&app, &network, revision, &unused).await? {
        let message = format!("network {name} was taken into use at the same time");
        return Err(Failure::new(Code::NetworkInUse, message));
    }
    let event = EventKind::NetworkRemoved { network: network.spec.name.to_string() };
    app.events.emit(subject(&scope.project), event);
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes a network and what rests of its addresses, unless it was used since `unused` was looked at; whether it did.
async fn delete(
    app: &App,
    network: &NetworkRecord,
    revision: Revision,
    unused: &crate::usage::Unmarked,
) -> Answer<bool> {
    let key = RecordKey::Network(network.project.clone(), network.spec.name.clone()).key();
    let txn = unused
        .removal(Txn::new(), &key, revision)
        .then(Used::Choices(network.vni).forget())
        .then(Op::Delete(KeySpan::prefix(&format!("r/address/{}/", network.vni))?));
    let reply = app.state.txn(txn).await?;
    if reply.succeeded {
        app.mirror.reach(reply.revision).await;
    }
    Ok(reply.succeeded)
}

/// A network as the change wants it.
fn patched(spec: &NetworkSpec, patch: &NetworkPatch) -> Answer<NetworkSpec> {
    let mut next = spec.clone();
    for part in &patch.clear {
        match part {
            NetworkField::Exit => next.exit = None,
            NetworkField::Resolvers => next.resolvers.clear(),
            NetworkField::Routes => next.routes.clear(),
        }
    }
    next.exit = patch.exit.clone().or(next.exit);
    next.resolvers = patch.resolvers.clone().unwrap_or(next.resolvers);
    next.routes = patch.routes.clone().unwrap_or(next.routes);
    next.mtu = patch.mtu.unwrap_or(next.mtu);
    next.check().map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
    Ok(next)
}

/// Change a network while machines are in it: resolvers, routes, exit, and largest packet. Machines hear of it with their next lease;
/// a packet may only become smaller while no machine is there that would send larger ones
#[utoipa::path(patch, path = "/v1/networks/{network}", tag = "networks",
    params(("network" = String, Path, description = "Name")), request_body = NetworkPatch,
    responses((status = 200, body = Network), (status = 403, description = "FORBIDDEN", body = ErrorBody),
        (status = 404, description = "NETWORK_UNKNOWN, NODE_UNKNOWN", body = ErrorBody),
        (status = 409, description = "NETWORK_IN_USE", body = ErrorBody), (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn change(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Body(patch): Body<NetworkPatch>,
) -> Answer<Json<Network>> {
    permit(&scope, patch.exit.is_some() || patch.clear.contains(&NetworkField::Exit))?;
    loop {
        check_exit(&app, patch.exit.as_ref())?;
        let Stored { value: network, revision } = found(&app, &scope.project, &name)?;
        let spec = patched(&network.spec, &patch)?;
        let next = NetworkRecord { spec, ..(*network).clone() };
        if next != *network {
            let mut ports = app.mirror.read(|view| {
                let ports = view.ports.values().filter(|port| port.value.vni == network.vni);
                ports.map(|port| port.value.machine.clone()).collect::<Vec<_>>().into_iter()
            });
            if let Some(machine) = ports.next().filter(|_| next.spec.mtu < network.spec.mtu) {
                let message = format!(
                    "mtu: machine {machine} sends packets of up to {} bytes: remove the network's machines first",
                    network.spec.mtu
                );
                return Err(Failure::new(Code::NetworkInUse, message));
            }
            let key = RecordKey::Network(network.project.clone(), network.spec.name.clone());
            let txn = Txn::new().when(Compare::unchanged(key.key(), revision));
            let txn = leaving_by(patch.exit.as_ref(), txn.then(key.put(&next)?));
            let reply = app.state.txn(txn).await?;
            app.mirror.reach(reply.revision).await;
            if !reply.succeeded {
                continue;
            }
            let event = EventKind::NetworkChanged { network: next.spec.name.to_string() };
            app.events.emit(subject(&scope.project), event);
        }
        return Ok(Json(app.mirror.read(|view| describe(view, &next))));
    }
}

/// What would happen to a packet that a machine sends: hop by hop, and which rule decides
#[utoipa::path(post, path = "/v1/trace", tag = "networks", request_body = TraceRequest,
    responses((status = 200, body = Trace), (status = 404, description = "PORT_UNKNOWN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody), (status = 503, description = "NODE_UNREACHABLE", body = ErrorBody)))]
pub(crate) async fn trace(
    State(app): State<App>,
    scope: Scope,
    Body(packet): Body<TraceRequest>,
) -> Answer<Json<Trace>> {
    let source = super::ports::found(&app, &scope.project, &packet.source)?.value;
    let destination = destination(&app, &source, &packet.destination)?;
    if packet.protocol.has_ports() != packet.port.is_some() {
        let message = "port: must be given for tcp and udp, and for them alone";
        return Err(Failure::new(Code::Invalid, message));
    }
    let request = AgentRequest::Trace {
        machine: source.machine.clone(),
        destination,
        protocol: packet.protocol,
        port: packet.port,
    };
    let AgentReply::Trace { trace } = ask(&app, &source.node, &request).await? else {
        return Err(Failure::new(Code::NodeUnreachable, "the agent answered something else"));
    };
    let hops = trace.hops.into_iter().map(|hop| {
        let (group, rule) = hop.rule.unzip();
        TraceHop {
            place: hop.place,
            what: hop.what,
            group: group.map(|name| name.to_string()),
            rule: rule.map(|id| id.to_string()),
        }
    });
    Ok(Json(Trace { arrives: trace.arrives, hops: hops.collect() }))
}

/// An address, or that of a machine of the same project.
fn destination(app: &App, source: &PortRecord, text: &str) -> Answer<IpAddr> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let port = text.parse::<MachineId>().ok().and_then(|machine| {
        let port = app.mirror.read(|view| view.ports.get(&machine).map(|p| p.value.clone()));
        port.filter(|port| port.project == source.project)
    });
    let shown: String = text.chars().take(80).collect();
    let missing = || {
        let message = format!("{shown:?} is neither an address nor a machine that is plugged in");
        Failure::new(Code::PortUnknown, message)
    };
    port.map(|port| port.ipv4.into()).ok_or_else(missing)
}
