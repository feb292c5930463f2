//! What answers here, whether it is well, its figures, and its page.

use crate::app::App;
use crate::error::Answer;
use crate::metrics::{Of, OnNode};
use crate::scope::Admin;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use skein_api::{ErrorBody, Version};
use skein_model::{NodeState, PhaseName};
use skein_policy::ServiceKey;
use std::collections::BTreeMap;

/// What answers at this address
#[utoipa::path(get, path = "/v1/version", tag = "system",
    responses((status = 200, body = Version), (status = 401, body = ErrorBody)))]
pub(crate) async fn version(State(app): State<App>) -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION").to_owned(), cloud: app.cloud.to_string() })
}

/// The process answers.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}

/// The state can be written, so that work can be accepted.
pub(crate) async fn readyz(State(app): State<App>) -> impl IntoResponse {
    if app.readiness.look(&*app.state).await {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the state store cannot be written\n")
    }
}

/// The minimal page: nodes, machines and jobs, refreshing itself. It asks for the token, or takes it from the fragment of
/// its address, which never leaves the browser.
pub(crate) async fn page() -> impl IntoResponse {
    let policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                  frame-ancestors 'none'; base-uri 'none'; form-action 'none'";
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, Html(include_str!("../page.html")))
}

/// Figures for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "system",
    responses((status = 200, description = "OpenMetrics text", content_type = "application/openmetrics-text")))]
pub(crate) async fn metrics(State(app): State<App>, _: Admin) -> Answer<impl IntoResponse> {
    let mut machines: BTreeMap<ServiceKey, (u32, u32)> = BTreeMap::new();
    let nodes = app.mirror.read(|view| {
        for stored in view.services.values() {
            machines.entry((&*stored.value).into()).or_default();
        }
        for stored in view.machines.values() {
            let record = &stored.value;
            let key =
                ServiceKey { project: record.project.clone(), service: record.service.clone() };
            let (ready, booting) = machines.entry(key).or_default();
            match crate::observe::phase(view.statuses.get(&record.id).map(|s| &*s.value)) {
                PhaseName::Ready => *ready += 1,
                PhaseName::Scheduled | PhaseName::Booting => *booting += 1,
                PhaseName::Draining | PhaseName::Stopping | PhaseName::Gone => {}
            }
        }
        let used = crate::reserved::reserved(view);
        let used = |name| used.get(name).copied().unwrap_or_default();
        let state = |name| (view.node_state(name) != NodeState::Lost, used(name));
        view.nodes.keys().map(|name| (name.clone(), state(name))).collect::<Vec<_>>()
    });
    let mut services = Vec::with_capacity(machines.len());
    for (key, (ready, booting)) in machines {
        services.push((app.depth(&key).await?, key, ready, booting));
    }
    let gauges = &app.metrics;
    let reading = gauges.begin_reading();
    for (depth, key, ready, booting) in services {
        let of = Of { project: key.project.to_string(), service: key.service.to_string() };
        gauges.queue_length.get_or_create(&of).set(depth.waiting.into());
        gauges.in_service.get_or_create(&of).set(depth.in_service.into());
        gauges.replicas_ready.get_or_create(&of).set(ready.into());
        gauges.replicas_booting.get_or_create(&of).set(booting.into());
    }
    for (name, (up, used)) in nodes {
        let on = OnNode { node: name.to_string() };
        gauges.node_up.get_or_create(&on).set(up.into());
        gauges.node_machines.get_or_create(&on).set(used.machines.into());
        let bytes = i64::try_from(used.memory_mib * 1024 * 1024).unwrap_or(i64::MAX);
        gauges.node_memory_reserved.get_or_create(&on).set(bytes);
        if let Some(figures) = app.reports.link(&name) {
            gauges.link.set(name.as_str(), &figures);
        }
    }
    let text = gauges.text();
    drop(reading);
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    Ok(([(header::CONTENT_TYPE, kind)], text))
}
