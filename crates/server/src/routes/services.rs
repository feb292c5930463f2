//! Services.

use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::{Json as Body, Path, parse};
use crate::metrics::Of;
use crate::scope::Scope;
use crate::usage::Used;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use skein_api::{Code, ErrorBody, ScaleRequest, Service, ServiceCounters, ServicePatch};
use skein_fabric::{Compare, Key, Op, Revision, Txn};
use skein_model::{
    EventKind, EventSubject, Generation, GroupName, NameError, PhaseName, ProjectName, ServiceName,
    ServiceRecord, ServiceSpec,
};
use skein_policy::ServiceKey;
use skein_registry::{RecordKey, Stored};
use skein_shell::now;
use std::sync::Arc;

fn found(app: &App, project: &ProjectName, name: &str) -> Answer<Stored<ServiceRecord>> {
    let name: ServiceName = parse(name, Code::ServiceUnknown)?;
    let key = (project.clone(), name);
    app.mirror.read(|view| view.services.get(&key).cloned()).ok_or_else(|| unknown(&key.1))
}

fn unknown(name: &ServiceName) -> Failure {
    Failure::new(Code::ServiceUnknown, format!("service {name} does not exist"))
}

/// A service and how it does.
async fn describe(app: &App, record: &ServiceRecord) -> Answer<Service> {
    let key: ServiceKey = record.into();
    let depth = app.depth(&key).await?;
    let (ready, booting) = app.mirror.read(|view| {
        let mine = view
            .machines
            .values()
            .filter(|m| m.value.project == record.project && m.value.service == record.spec.name);
        mine.fold((0, 0), |(ready, booting), machine| {
            let status = view.statuses.get(&machine.value.id).map(|s| &*s.value);
            match crate::observe::phase(status) {
                PhaseName::Ready => (ready + 1, booting),
                PhaseName::Scheduled | PhaseName::Booting => (ready, booting + 1),
                PhaseName::Draining | PhaseName::Stopping | PhaseName::Gone => (ready, booting),
            }
        })
    });
    Ok(Service {
        project: record.project.to_string(),
        spec: record.spec.clone(),
        generation: record.generation.0,
        created_at: skein_api::time_text(record.created_at),
        waiting: depth.waiting,
        running: depth.in_service,
        ready,
        booting,
        decisions: app.decisions.of(&key),
        hold: app.holds.of(&key),
        counters: counters(app, &key),
    })
}

fn counters(app: &App, key: &ServiceKey) -> ServiceCounters {
    let of = Of { project: key.project.to_string(), service: key.service.to_string() };
    let metrics = &app.metrics;
    let sums = metrics.sums(&of);
    let mean =
        |seconds: f64| if sums.served == 0 { 0.0 } else { seconds * 1e3 / sums.served as f64 };
    ServiceCounters {
        accepted: metrics.accepted.get_or_create(&of).get(),
        refused: metrics.refused.get_or_create(&of).get(),
        done: metrics.served.get_or_create(&of).get(),
        dead: metrics.dead.get_or_create(&of).get(),
        lost: metrics.lost.get_or_create(&of).get(),
        cancelled: metrics.cancelled.get_or_create(&of).get(),
        returned: metrics.returned.get_or_create(&of).get(),
        replications: metrics.replications.get_or_create(&of).get(),
        dereplications: metrics.dereplications.get_or_create(&of).get(),
        queue_ms_mean: mean(sums.queue_seconds),
        service_ms_mean: mean(sums.service_seconds),
    }
}

/// List services
#[utoipa::path(get, path = "/v1/services", tag = "services",
    responses((status = 200, body = [Service]), (status = 401, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, scope: Scope) -> Answer<Json<Vec<Service>>> {
    let records: Vec<Arc<ServiceRecord>> = app.mirror.read(|view| {
        let all = view.services.values().map(|stored| &stored.value);
        all.filter(|record| record.project == scope.project).cloned().collect()
    });
    let mut services = Vec::with_capacity(records.len());
    for record in records {
        services.push(describe(&app, &record).await?);
    }
    Ok(Json(services))
}

/// Show a service, and why the policy decided as it did
#[utoipa::path(get, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Name")),
    responses((status = 200, body = Service), (status = 404, description = "SERVICE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<Json<Service>> {
    let record = found(&app, &scope.project, &name)?.value;
    describe(&app, &record).await.map(Json)
}

fn check(spec: &ServiceSpec) -> Answer<()> {
    spec.check().map_err(|error| Failure::new(Code::Invalid, error.to_string()))
}

/// What a service refers to: where it is stored, what it is marked as, and what to say when it is not there.
fn references<'a>(app: &App, record: &'a ServiceRecord) -> Answer<Vec<(Key, Used<'a>, Failure)>> {
    let (project, spec) = (&record.project, &record.spec);
    let image = RecordKey::Image(project.clone(), spec.image.clone()).key();
    let unknown = Failure::new(Code::ImageUnknown, format!("image {} does not exist", spec.image));
    let mut all = vec![(image, Used::Image(project, &spec.image), unknown)];
    let name = &spec.network.name;
    let unknown = || Failure::new(Code::NetworkUnknown, format!("network {name} does not exist"));
    let key = (project.clone(), name.clone());
    let vni = app.mirror.read(|view| view.networks.get(&key).map(|n| n.value.vni));
    let network = RecordKey::Network(project.clone(), name.clone()).key();
    all.push((network, Used::Network(vni.ok_or_else(unknown)?), unknown()));
    for group in &spec.network.groups {
        let unknown = Failure::new(Code::GroupUnknown, format!("group {group} does not exist"));
        let key = RecordKey::Group(project.clone(), group.clone()).key();
        all.push((key, Used::Group(project, group), unknown));
    }
    let unknown = Failure::new(Code::ProjectUnknown, format!("project {project} does not exist"));
    all.push((RecordKey::Project(project.clone()).key(), Used::Project(project), unknown));
    Ok(all)
}

/// Checks the addresses that a service chooses: its network has them, and no other service chose them. A machine that has
/// one of them already keeps it, and the service's machines wait.
fn check_addresses(app: &App, record: &ServiceRecord) -> Answer<()> {
    let chosen = &record.spec.network.addresses;
    let key = (record.project.clone(), record.spec.network.name.clone());
    let problem = app.mirror.read(|view| {
        let subnet = view.networks.get(&key)?.value.spec.cidr;
        if let Some(ip) = chosen.iter().find(|ip| subnet.index_of(**ip).is_none()) {
            let message = format!("network.addresses: {ip} is no machine's address in {subnet}");
            return Some(Failure::new(Code::Invalid, message));
        }
        let others = view.services.values().map(|stored| &stored.value);
        let mut others = others.filter(|other| {
            (other.project.clone(), other.spec.network.name.clone()) == key
                && other.spec.name != record.spec.name
        });
        others.find_map(|other| {
            let ip = chosen.iter().find(|ip| other.spec.network.addresses.contains(ip))?;
            let message = format!("address {ip} is that of service {}", other.spec.name);
            Some(Failure::new(Code::AddressTaken, message))
        })
    });
    problem.map_or(Ok(()), Err)
}

/// Writes a service's record if it was last written at `expected` and all that it refers to exists; whether it did. If
/// not, the mirror has seen what was written instead.
async fn write(app: &App, record: &ServiceRecord, expected: Revision) -> Answer<bool> {
    loop {
        match try_write(app, record, expected).await? {
            Written::Yes => return Ok(true),
            Written::Changed => return Ok(false),
            // Another service chose addresses at the same moment: which ones, the mirror shows now.
            Written::Again => {}
        }
    }
}

/// What became of one attempt to write a service's record.
enum Written {
    Yes,
    /// The record is another by now.
    Changed,
    /// What was looked at beforehand has changed.
    Again,
}

async fn try_write(app: &App, record: &ServiceRecord, expected: Revision) -> Answer<Written> {
    let key = RecordKey::Service(record.project.clone(), record.spec.name.clone());
    let of_network = (record.project.clone(), record.spec.network.name.clone());
    let vni = app.mirror.read(|view| view.networks.get(&of_network).map(|n| n.value.vni));
    // Who chooses addresses does so alone: what others chose is known, and nobody chooses until this is written.
    let choosing = vni.filter(|_| !record.spec.network.addresses.is_empty()).map(Used::Choices);
    let alone = match choosing {
        Some(choices) => Some((choices.look(app).await?, choices)),
        None => None,
    };
    check_addresses(app, record)?;
    let references = references(app, record)?;
    let mut txn = Txn::new()
        .when(Compare::unchanged(key.key(), expected))
        .then(key.put(record)?)
        .otherwise(Op::get(key.key()));
    if let Some((unchosen, choices)) = &alone {
        txn = txn.when(unchosen.compare()).then(choices.mark());
    }
    for (referred, used, _) in &references {
        // The mark bars a removal that has not seen this service.
        txn = txn
            .when(Compare::exists(referred.clone()))
            .then(used.mark())
            .otherwise(Op::get(referred.clone()));
    }
    let reply = app.state.txn(txn).await?;
    if reply.succeeded {
        app.mirror.reach(reply.revision).await;
        return Ok(Written::Yes);
    }
    let mut found = reply.ranges().map(|range| range.entries.into_iter().next());
    let there = found.next().flatten();
    for (_, _, unknown) in references {
        if found.next().flatten().is_none() {
            return Err(unknown);
        }
    }
    let at = there.map_or(Revision::ZERO, |entry| entry.mod_revision);
    match (at == expected, alone) {
        (true, Some(_)) => Ok(Written::Again),
        (_, _) if at == Revision::ZERO => Err(unknown(&record.spec.name)),
        (_, _) => {
            app.mirror.reach(at).await;
            Ok(Written::Changed)
        }
    }
}

fn subject(record: &ServiceRecord) -> EventSubject {
    EventSubject {
        project: Some(record.project.clone()),
        service: Some(record.spec.name.clone()),
        ..EventSubject::default()
    }
}

/// Create a service. The same specification again is no error
#[utoipa::path(post, path = "/v1/services", tag = "services", request_body = ServiceSpec,
    responses((status = 201, description = "Created", body = Service), (status = 200, description = "It was there", body = Service),
        (status = 404, description = "IMAGE_UNKNOWN", body = ErrorBody), (status = 409, description = "SERVICE_EXISTS, ADDRESS_TAKEN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    scope: Scope,
    Body(spec): Body<ServiceSpec>,
) -> Answer<(StatusCode, Json<Service>)> {
    check(&spec)?;
    let record = ServiceRecord {
        project: scope.project,
        spec,
        generation: Generation(1),
        created_at: now(),
    };
    if write(&app, &record, Revision::ZERO).await? {
        app.events.emit(subject(&record), EventKind::ServiceCreated);
        return Ok((StatusCode::CREATED, Json(describe(&app, &record).await?)));
    }
    let there = found(&app, &record.project, record.spec.name.as_str())?.value;
    if there.spec == record.spec {
        return Ok((StatusCode::OK, Json(describe(&app, &there).await?)));
    }
    let message = format!("service {} exists with another specification", record.spec.name);
    Err(Failure::new(Code::ServiceExists, message))
}

/// Applies a change to a service until no other change came between.
async fn change(
    app: &App,
    scope: &Scope,
    name: &str,
    apply: impl Fn(&mut ServiceSpec),
) -> Answer<Json<Service>> {
    loop {
        let stored = found(app, &scope.project, name)?;
        let mut record = (*stored.value).clone();
        apply(&mut record.spec);
        check(&record.spec)?;
        if record.spec == stored.value.spec {
            return describe(app, &record).await.map(Json);
        }
        record.generation = record.generation.next();
        if write(app, &record, stored.revision).await? {
            let generation = record.generation.0;
            app.events.emit(subject(&record), EventKind::ServiceChanged { generation });
            return describe(app, &record).await.map(Json);
        }
    }
}

/// Replace a service's specification; its machines are replaced one after the other
#[utoipa::path(put, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Name")), request_body = ServiceSpec,
    responses((status = 200, body = Service), (status = 404, description = "SERVICE_UNKNOWN, IMAGE_UNKNOWN", body = ErrorBody),
        (status = 409, description = "ADDRESS_TAKEN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn put(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Body(spec): Body<ServiceSpec>,
) -> Answer<Json<Service>> {
    if spec.name.as_str() != name {
        let message = format!("name: is {}, and the path says {name}", spec.name);
        return Err(Failure::new(Code::Invalid, message));
    }
    change(&app, &scope, &name, |old| old.clone_from(&spec)).await
}

/// Change how a service is scaled
#[utoipa::path(post, path = "/v1/services/{service}/scale", tag = "services",
    params(("service" = String, Path, description = "Name")), request_body = ScaleRequest,
    responses((status = 200, body = Service), (status = 404, description = "SERVICE_UNKNOWN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn scale(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Body(scale): Body<ScaleRequest>,
) -> Answer<Json<Service>> {
    change(&app, &scope, &name, |spec| {
        let scaling = &mut spec.scaling;
        scaling.replicas_max = scale.max.unwrap_or(scaling.replicas_max);
        scaling.replicas_min = scale.min.unwrap_or(scaling.replicas_min);
        if scale.max.is_none() {
            scaling.replicas_max = scaling.replicas_max.max(scaling.replicas_min);
        } else if scale.min.is_none() {
            scaling.replicas_min = scaling.replicas_min.min(scaling.replicas_max);
        }
        scaling.warm = scale.warm.unwrap_or(scaling.warm).min(scaling.replicas_max);
    })
    .await
}

/// Change the groups or bounds of a service's ports; its machines run on
#[utoipa::path(patch, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Name")), request_body = ServicePatch,
    responses((status = 200, body = Service), (status = 404, description = "SERVICE_UNKNOWN, GROUP_UNKNOWN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn patch(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Body(patch): Body<ServicePatch>,
) -> Answer<Json<Service>> {
    let invalid = |error: &dyn std::fmt::Display| Failure::new(Code::Invalid, error.to_string());
    let groups: Option<Vec<GroupName>> = match patch.groups {
        Some(groups) => {
            let parsed: Result<_, _> = groups.iter().map(|group| group.parse()).collect();
            Some(parsed.map_err(|error: NameError| invalid(&error))?)
        }
        None => None,
    };
    change(&app, &scope, &name, |spec| {
        spec.network.groups = groups.clone().unwrap_or(std::mem::take(&mut spec.network.groups));
        spec.network.limits = patch.limits.unwrap_or(spec.network.limits);
    })
    .await
}

/// Remove a service: its machines drain, its waiting jobs are given up (SERVICE_REMOVED)
#[utoipa::path(delete, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Name")),
    responses((status = 204, description = "Removed"), (status = 404, description = "SERVICE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    let stored = found(&app, &scope.project, &name)?;
    let key =
        RecordKey::Service(stored.value.project.clone(), stored.value.spec.name.clone()).key();
    let txn = Txn::new().when(Compare::exists(key.clone())).then(Op::delete(&key));
    // Before the commit: a job accepted between the two is the sweeper's, or of the next service of this name.
    let removed_at = now();
    let reply = app.state.txn(txn).await?;
    if !reply.succeeded {
        return Err(unknown(&stored.value.spec.name));
    }
    app.mirror.reach(reply.revision).await;
    app.events.emit(subject(&stored.value), EventKind::ServiceRemoved);
    app.abandon(&(&*stored.value).into(), removed_at).await?;
    Ok(StatusCode::NO_CONTENT)
}
