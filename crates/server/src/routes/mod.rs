//! The API: routes, and the OpenAPI document made of them.

mod events;
mod groups;
mod images;
mod jobs;
mod links;
mod machines;
mod networks;
mod nodes;
mod ports;
mod projects;
mod publications;
mod services;
mod system;

use crate::app::App;
use crate::error::Failure;
use crate::scope;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::get;
use skein_api::Code;
use std::time::Duration;
use utoipa::openapi::path::{ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{RefOr, Required};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

/// Largest JSON document, bytes. Payloads and blobs have bounds of their own.
const DOCUMENT_MAX: usize = 1024 * 1024;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Skein",
        description = "A cloud of lightweight virtual machines. Every error has a body with a stable code; every request \
                       but /healthz and /readyz shows a bearer token.",
        license(name = "MIT OR Apache-2.0")
    ),
    modifiers(&Bearer),
    security(("token" = []))
)]
struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme =
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// What is not a project's.
const OF_THE_CLOUD: [&str; 3] = ["nodes", "projects", "system"];

/// Adds the parameter that names the project to each operation on what projects own: it is taken out of the address before
/// the routes see it.
fn describe_project(openapi: &mut utoipa::openapi::OpenApi) {
    let what = "Project that it is about; that of the token, or `default`, unless given";
    let parameter = ParameterBuilder::new()
        .name(scope::PROJECT)
        .parameter_in(ParameterIn::Query)
        .required(Required::False)
        .description(Some(what))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build();
    for item in openapi.paths.paths.values_mut() {
        let operations =
            [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
        for operation in operations.into_iter().flatten() {
            let mut tags = operation.tags.iter().flatten();
            if !tags.any(|tag| OF_THE_CLOUD.contains(&tag.as_str())) {
                operation.parameters.get_or_insert_default().push(parameter.clone().into());
            }
        }
    }
}

/// Durations are numbers of milliseconds on the wire; their defaults, which are made of the types, are told as such too.
fn tell_milliseconds(schema: &mut RefOr<Schema>) {
    let RefOr::T(schema) = schema else { return };
    match schema {
        Schema::Object(object) => {
            if let Some(millis) = object.default.as_ref().and_then(milliseconds) {
                object.default = Some(millis);
            }
            object.properties.values_mut().for_each(tell_milliseconds);
        }
        Schema::OneOf(one) => one.items.iter_mut().for_each(tell_milliseconds),
        Schema::AllOf(all) => all.items.iter_mut().for_each(tell_milliseconds),
        Schema::AnyOf(any) => any.items.iter_mut().for_each(tell_milliseconds),
        _ => {}
    }
}

/// The milliseconds of a [`Duration`] as serde writes it.
fn milliseconds(value: &serde_json::Value) -> Option<serde_json::Value> {
    let fields = value.as_object().filter(|fields| fields.len() == 2)?;
    let duration = Duration::new(
        fields.get("secs")?.as_u64()?,
        u32::try_from(fields.get("nanos")?.as_u64()?).ok()?,
    );
    u64::try_from(duration.as_millis()).ok().map(Into::into)
}

fn api() -> (Router<App>, utoipa::openapi::OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(system::version))
        .routes(routes!(projects::list, projects::create))
        .routes(routes!(projects::show, projects::change, projects::remove))
        .routes(routes!(projects::tokens, projects::create_token))
        .routes(routes!(projects::remove_token))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show, nodes::remove))
        .routes(routes!(nodes::cordon))
        .routes(routes!(nodes::uncordon))
        .routes(routes!(nodes::renew_key))
        .routes(routes!(images::put_blob))
        .routes(routes!(images::list))
        .routes(routes!(images::show, images::put, images::remove))
        .routes(routes!(services::list, services::create))
        .routes(routes!(services::show, services::put, services::patch, services::remove))
        .routes(routes!(services::scale))
        .routes(routes!(jobs::submit))
        .routes(routes!(jobs::submit_batch))
        .routes(routes!(jobs::call))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::payload_of))
        .routes(routes!(jobs::result))
        .routes(routes!(jobs::cancel))
        .routes(routes!(machines::list))
        .routes(routes!(machines::show))
        .routes(routes!(machines::stop))
        .routes(routes!(machines::log))
        .routes(routes!(machines::console))
        .routes(routes!(networks::list, networks::create))
        .routes(routes!(networks::show, networks::change, networks::remove))
        .routes(routes!(networks::trace))
        .routes(routes!(ports::list))
        .routes(routes!(ports::show, ports::change))
        .routes(routes!(ports::capture))
        .routes(routes!(groups::list, groups::create))
        .routes(routes!(groups::show, groups::put, groups::remove))
        .routes(routes!(groups::add_rule))
        .routes(routes!(groups::remove_rule))
        .routes(routes!(groups::counters))
        .routes(routes!(publications::list, publications::create))
        .routes(routes!(publications::remove))
        .routes(routes!(links::list))
        .routes(routes!(events::page))
        .routes(routes!(events::stream))
        .routes(routes!(system::metrics))
        .split_for_parts();
    describe_project(&mut document);
    let schemas = document.components.iter_mut().flat_map(|parts| parts.schemas.values_mut());
    schemas.for_each(tell_milliseconds);
    (router, document)
}

/// The OpenAPI document of this release, as pretty JSON with a final newline.
///
/// # Panics
/// Never: the document is made of constants.
pub fn openapi() -> String {
    let (_, document) = api();
    document.to_pretty_json().expect("the document is plain data") + "\n"
}

/// Everything that the server answers.
pub(crate) fn router(app: App) -> Router {
    let (api, document) = api();
    let guarded = api
        .route("/v1/openapi.json", get(async || axum::Json(document)))
        .layer(DefaultBodyLimit::max(DOCUMENT_MAX))
        .layer(middleware::from_fn_with_state(app.clone(), scope::check));
    Router::new()
        .merge(guarded)
        .route("/healthz", get(system::healthz))
        .route("/readyz", get(system::readyz))
        .route("/", get(system::page))
        .fallback(async |uri: axum::http::Uri| {
            Failure::new(Code::RouteUnknown, format!("{} does not exist", uri.path()))
                .into_response()
        })
        .method_not_allowed_fallback(async |method: axum::http::Method, uri: axum::http::Uri| {
            let message = format!("{} cannot be used with {method}", uri.path());
            Failure::new(Code::MethodNotAllowed, message).into_response()
        })
        .with_state(app)
}
