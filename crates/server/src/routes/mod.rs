//! The API: routes, and the OpenAPI document made of them.

mod events;
mod images;
mod jobs;
mod machines;
mod nodes;
mod services;
mod system;

use crate::app::App;
use crate::auth;
use crate::error::Failure;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::response::IntoResponse;
use axum::routing::get;
use skein_api::Code;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
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

fn api() -> (Router<App>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(system::version))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show))
        .routes(routes!(nodes::cordon))
        .routes(routes!(nodes::uncordon))
        .routes(routes!(images::put_blob))
        .routes(routes!(images::list))
        .routes(routes!(images::show, images::put, images::remove))
        .routes(routes!(services::list, services::create))
        .routes(routes!(services::show, services::put, services::remove))
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
        .routes(routes!(events::page))
        .routes(routes!(events::stream))
        .routes(routes!(system::metrics))
        .split_for_parts()
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
        .layer(middleware::from_fn_with_state(app.token.clone(), auth::check));
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
