//! Services.

use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::{Json as Body, Path, parse};
use crate::metrics::Of;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use skein_api::{Code, ErrorBody, ScaleRequest, Service, ServiceCounters};
use skein_fabric::{Compare, Op, Revision, Txn};
use skein_model::{
    EventKind, EventSubject, Generation, PhaseName, ProjectName, ServiceName, ServiceRecord,
    ServiceSpec,
};
use skein_policy::ServiceKey;
use skein_registry::{RecordKey, Stored};
use skein_shell::now;
use std::sync::Arc;

fn found(app: &App, name: &str) -> Answer<Stored<ServiceRecord>> {
    let name: ServiceName = parse(name, Code::ServiceUnknown)?;
    let key = (ProjectName::default(), name);
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
pub(crate) async fn list(State(app): State<App>) -> Answer<Json<Vec<Service>>> {
    let records: Vec<Arc<ServiceRecord>> =
        app.mirror.read(|view| view.services.values().map(|s| s.value.clone()).collect());
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
    Path(name): Path<String>,
) -> Answer<Json<Service>> {
    let record = found(&app, &name)?.value;
    describe(&app, &record).await.map(Json)
}

fn check(app: &App, spec: &ServiceSpec) -> Answer<()> {
    spec.check().map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
    let image = (ProjectName::default(), spec.image.clone());
    if app.mirror.read(|view| view.images.contains_key(&image)) {
        return Ok(());
    }
    Err(image_unknown(spec))
}

fn image_unknown(spec: &ServiceSpec) -> Failure {
    Failure::new(Code::ImageUnknown, format!("image {} does not exist", spec.image))
}

/// Writes a service's record if it was last written at `expected` and its image exists; whether it did. If not, the
/// mirror has seen what was written instead.
async fn write(app: &App, record: &ServiceRecord, expected: Revision) -> Answer<bool> {
    let key = RecordKey::Service(record.project.clone(), record.spec.name.clone());
    let image = RecordKey::Image(record.project.clone(), record.spec.image.clone()).key();
    let txn = Txn::new()
        .when(Compare::unchanged(key.key(), expected))
        .when(Compare::exists(image.clone()))
        .then(key.put(record)?)
        // Bars a removal of the image that has not seen this service.
        .then(super::images::mark_use(&record.project, &record.spec.image))
        .otherwise(Op::get(key.key()))
        .otherwise(Op::get(image));
    let reply = app.state.txn(txn).await?;
    if reply.succeeded {
        app.mirror.reach(reply.revision).await;
        return Ok(true);
    }
    let mut found = reply.ranges().map(|range| range.entries.into_iter().next());
    let (there, image) = (found.next().flatten(), found.next().flatten());
    if image.is_none() {
        return Err(image_unknown(&record.spec));
    }
    match there {
        Some(entry) => drop(app.mirror.reach(entry.mod_revision).await),
        None => return Err(unknown(&record.spec.name)),
    }
    Ok(false)
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
        (status = 404, description = "IMAGE_UNKNOWN", body = ErrorBody), (status = 409, description = "SERVICE_EXISTS", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    Body(spec): Body<ServiceSpec>,
) -> Answer<(StatusCode, Json<Service>)> {
    check(&app, &spec)?;
    let record = ServiceRecord {
        project: ProjectName::default(),
        spec,
        generation: Generation(1),
        created_at: now(),
    };
    if write(&app, &record, Revision::ZERO).await? {
        app.events.emit(subject(&record), EventKind::ServiceCreated);
        return Ok((StatusCode::CREATED, Json(describe(&app, &record).await?)));
    }
    let there = found(&app, record.spec.name.as_str())?.value;
    if there.spec == record.spec {
        return Ok((StatusCode::OK, Json(describe(&app, &there).await?)));
    }
    let message = format!("service {} exists with another specification", record.spec.name);
    Err(Failure::new(Code::ServiceExists, message))
}

/// Applies a change to a service until no other change came between.
async fn change(app: &App, name: &str, apply: impl Fn(&mut ServiceSpec)) -> Answer<Json<Service>> {
    loop {
        let stored = found(app, name)?;
        let mut record = (*stored.value).clone();
        apply(&mut record.spec);
        check(app, &record.spec)?;
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
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn put(
    State(app): State<App>,
    Path(name): Path<String>,
    Body(spec): Body<ServiceSpec>,
) -> Answer<Json<Service>> {
    if spec.name.as_str() != name {
        let message = format!("name: is {}, and the path says {name}", spec.name);
        return Err(Failure::new(Code::Invalid, message));
    }
    change(&app, &name, |old| old.clone_from(&spec)).await
}

/// Change how a service is scaled
#[utoipa::path(post, path = "/v1/services/{service}/scale", tag = "services",
    params(("service" = String, Path, description = "Name")), request_body = ScaleRequest,
    responses((status = 200, body = Service), (status = 404, description = "SERVICE_UNKNOWN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn scale(
    State(app): State<App>,
    Path(name): Path<String>,
    Body(scale): Body<ScaleRequest>,
) -> Answer<Json<Service>> {
    change(&app, &name, |spec| {
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

/// Remove a service: its machines drain, its waiting jobs are given up (SERVICE_REMOVED)
#[utoipa::path(delete, path = "/v1/services/{service}", tag = "services",
    params(("service" = String, Path, description = "Name")),
    responses((status = 204, description = "Removed"), (status = 404, description = "SERVICE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn remove(State(app): State<App>, Path(name): Path<String>) -> Answer<StatusCode> {
    let stored = found(&app, &name)?;
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
