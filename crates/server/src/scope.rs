//! Who asks, and of which project.
//!
//! Every request shows a token. The admin token opens all projects, and a request says which with `?project=NAME`;
//! `default` unless it does. A project's token opens that project only: to it, others do not exist.

use crate::app::App;
use crate::auth::Token;
use crate::error::Failure;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use skein_api::Code;
use skein_model::ProjectName;

/// The query parameter that names a project.
pub(crate) const PROJECT: &str = "project";

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Whoever has the admin token.
    Admin,
    /// Whoever has a token of the project.
    Project,
}

/// What a request is about: one project, which exists.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// The project.
    pub(crate) project: ProjectName,
    access: Access,
    /// Whether the request named it.
    named: bool,
}

impl Scope {
    /// The only project whose history and figures may be shown; none when all may.
    pub(crate) fn only(&self) -> Option<&ProjectName> {
        match (self.access, self.named) {
            (Access::Admin, false) => None,
            (Access::Admin, true) | (Access::Project, _) => Some(&self.project),
        }
    }

    /// Whether the whole cloud is open to the request.
    pub(crate) fn is_admin(&self) -> bool {
        self.access == Access::Admin
    }
}

impl<S: Sync> FromRequestParts<S> for Scope {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let scope = parts.extensions.get::<Self>().cloned();
        scope.ok_or_else(|| Failure::new(Code::Internal, "a route without a check of tokens"))
    }
}

/// A request that shows the admin token: what is not a project's belongs to the operator.
#[derive(Debug)]
pub(crate) struct Admin;

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        if Scope::from_request_parts(parts, state).await?.is_admin() {
            return Ok(Self);
        }
        let message = "only the admin token opens this: it concerns the cloud and no project alone";
        Err(Failure::new(Code::Forbidden, message))
    }
}

/// Lets a request through that shows a token, and tells the routes what it is about. In front of everything below `/v1` and
/// `/metrics`.
pub(crate) async fn check(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match scope(&app, request.headers(), request.uri()) {
        Ok((scope, uri)) => {
            *request.uri_mut() = uri;
            request.extensions_mut().insert(scope);
            next.run(request).await
        }
        Err(failure) => failure.into_response(),
    }
}

/// What a request is about, and its address without the project, which the routes need not know.
fn scope(app: &App, headers: &HeaderMap, uri: &Uri) -> Result<(Scope, Uri), Failure> {
    let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
    let opened = match shown {
        Some(secret) if app.token.accepts(secret) => None,
        Some(secret) => Some(of_token(app, secret).ok_or_else(unauthorized)?),
        None => return Err(unauthorized()),
    };
    let (named, uri) = take_project(uri)?;
    let unknown = |name: &str| {
        let shown: String = name.chars().take(80).collect();
        Failure::new(Code::ProjectUnknown, format!("project {shown:?} does not exist"))
    };
    let asked = match &named {
        Some(text) => Some(text.parse::<ProjectName>().map_err(|_| unknown(text))?),
        None => None,
    };
    let (project, access) = match opened {
        Some(own) if asked.as_ref().is_some_and(|asked| *asked != own) => {
            return Err(unknown(named.as_deref().unwrap_or_default()));
        }
        Some(own) => (own, Access::Project),
        None => (asked.unwrap_or_default(), Access::Admin),
    };
    if !app.mirror.read(|view| view.projects.contains_key(&project)) {
        return Err(unknown(project.as_str()));
    }
    Ok((Scope { project, access, named: named.is_some() }, uri))
}

fn unauthorized() -> Failure {
    let message = "the request shows no token, or a wrong one: send `Authorization: Bearer TOKEN`";
    Failure::new(Code::Unauthorized, message)
}

/// The project that a secret opens. What is looked up is its digest, whose comparison tells nothing of the secret.
fn of_token(app: &App, secret: &str) -> Option<ProjectName> {
    let digest = Token::digest(secret);
    app.mirror.read(|view| view.tokens.get(&digest).map(|stored| stored.value.project.clone()))
}

/// Takes the project out of an address.
fn take_project(uri: &Uri) -> Result<(Option<String>, Uri), Failure> {
    let of_project = |pair: &str| pair.split_once('=').is_some_and(|(key, _)| key == PROJECT);
    let query = uri.query().unwrap_or_default();
    if !query.split('&').any(of_project) {
        return Ok((None, uri.clone()));
    }
    let (own, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(|pair| of_project(pair));
    let [pair] = own[..] else {
        return Err(Failure::new(Code::Malformed, "project: is given more than once"));
    };
    let name = pair.split_once('=').map_or("", |(_, name)| name).to_owned();
    let address = match rest.is_empty() {
        true => uri.path().to_owned(),
        false => format!("{}?{}", uri.path(), rest.join("&")),
    };
    let mut parts = uri.clone().into_parts();
    let broken = |_| Failure::new(Code::Malformed, "the address cannot be read");
    parts.path_and_query = Some(address.parse().map_err(broken)?);
    let uri = Uri::from_parts(parts)
        .map_err(|_| Failure::new(Code::Malformed, "the address cannot be read"))?;
    Ok((Some(name), uri))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(from: &str, name: Option<&str>, to: &str) {
        let (taken, uri) = take_project(&from.parse().unwrap()).unwrap();
        assert_eq!((taken.as_deref(), uri.to_string().as_str()), (name, to), "{from}");
    }

    #[test]
    fn the_project_is_taken_out_of_an_address() {
        check("/v1/services", None, "/v1/services");
        check("/v1/services?project=blue", Some("blue"), "/v1/services");
        check("/v1/jobs?limit=5&project=blue&cursor=a", Some("blue"), "/v1/jobs?limit=5&cursor=a");
        check("/v1/jobs?projects=blue", None, "/v1/jobs?projects=blue");
        check("/v1/jobs?project=", Some(""), "/v1/jobs");
        assert!(take_project(&"/v1/jobs?project=a&project=b".parse().unwrap()).is_err());
    }
}
