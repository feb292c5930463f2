//! Projects, and the tokens that open them.

use super::networks::{check_exit, leaving_by};
use crate::app::App;
use crate::auth::Token;
use crate::bootstrap::{Created, create_project};
use crate::error::{Answer, Failure};
use crate::extract::{Json as Body, Path, field, parse};
use crate::scope::{Admin, Scope};
use crate::usage::Used;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use skein_api::{
    Code, ErrorBody, Project, ProjectField, ProjectNew, ProjectPatch, ProjectToken, TokenNew,
};
use skein_fabric::{Compare, KeySpan, Op, Txn};
use skein_model::{
    EventKind, EventSubject, PhaseName, ProjectName, ProjectRecord, TokenId, TokenRecord,
    check_description,
};
use skein_registry::{RecordKey, Stored, View};
use skein_shell::{now, random_u64};

fn unknown(name: &str) -> Failure {
    let shown: String = name.chars().take(80).collect();
    Failure::new(Code::ProjectUnknown, format!("project {shown:?} does not exist"))
}

/// A project that the request may see.
fn found(app: &App, scope: &Scope, name: &str) -> Answer<Stored<ProjectRecord>> {
    let key: ProjectName = parse(name, Code::ProjectUnknown)?;
    if !scope.is_admin() && scope.project != key {
        return Err(unknown(name));
    }
    app.mirror.read(|view| view.projects.get(&key).cloned()).ok_or_else(|| unknown(name))
}

fn describe(view: &View, record: &ProjectRecord) -> Project {
    let name = &record.name;
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let services = view.services.keys().filter(|(project, _)| project == name).count();
    let networks = view.networks.keys().filter(|(project, _)| project == name).count();
    let machines = view
        .machines
        .values()
        .filter(|machine| machine.value.project == *name && !ended(view, &machine.value.id));
    Project::new(record, (count(services), count(machines.count()), count(networks)))
}

fn ended(view: &View, machine: &skein_model::MachineId) -> bool {
    let status = view.statuses.get(machine).map(|status| &*status.value);
    crate::observe::phase(status) == PhaseName::Gone
}

fn subject(project: &ProjectName) -> EventSubject {
    EventSubject { project: Some(project.clone()), ..EventSubject::default() }
}

/// List projects: all, or with a project's token that one
#[utoipa::path(get, path = "/v1/projects", tag = "projects",
    responses((status = 200, body = [Project]), (status = 401, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, scope: Scope) -> Json<Vec<Project>> {
    Json(app.mirror.read(|view| {
        let all = view.projects.values().map(|stored| &stored.value);
        let mine = all.filter(|record| scope.is_admin() || record.name == scope.project);
        mine.map(|record| describe(view, record)).collect()
    }))
}

/// Show one project
#[utoipa::path(get, path = "/v1/projects/{name}", tag = "projects", params(("name" = String, Path, description = "Name")),
    responses((status = 200, body = Project), (status = 404, description = "PROJECT_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<Json<Project>> {
    let record = found(&app, &scope, &name)?.value;
    Ok(Json(app.mirror.read(|view| describe(view, &record))))
}

/// Create a project with its first network, `default`. The same again is no error
#[utoipa::path(post, path = "/v1/projects", tag = "projects", request_body = ProjectNew,
    responses((status = 201, description = "Created", body = Project), (status = 200, description = "It was there", body = Project),
        (status = 403, description = "FORBIDDEN", body = ErrorBody), (status = 409, description = "PROJECT_EXISTS", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody), (status = 503, description = "VNI_EXHAUSTED", body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    scope: Scope,
    _: Admin,
    Body(new): Body<ProjectNew>,
) -> Answer<(StatusCode, Json<Project>)> {
    let name: ProjectName = field("name", &new.name)?;
    check_description(&new.description)
        .map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
    let description = new.description;
    let record = ProjectRecord { name, description, exit: None, created_at: now() };
    let status = match create_project(&app, &record).await? {
        Created::Now => {
            app.events.emit(subject(&record.name), EventKind::ProjectCreated);
            StatusCode::CREATED
        }
        Created::Before => {
            let there = found(&app, &scope, record.name.as_str())?.value;
            if there.description != record.description {
                let message = format!("project {} exists with another description", record.name);
                return Err(Failure::new(Code::ProjectExists, message));
            }
            StatusCode::OK
        }
    };
    let there = found(&app, &scope, record.name.as_str())?.value;
    Ok((status, Json(app.mirror.read(|view| describe(view, &there)))))
}

/// Change a project: what it is for, and the address that its networks of kind nat have outside
#[utoipa::path(patch, path = "/v1/projects/{name}", tag = "projects", params(("name" = String, Path, description = "Name")),
    request_body = ProjectPatch,
    responses((status = 200, body = Project), (status = 403, description = "FORBIDDEN", body = ErrorBody),
        (status = 404, description = "PROJECT_UNKNOWN, NODE_UNKNOWN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn change(
    State(app): State<App>,
    scope: Scope,
    _: Admin,
    Path(name): Path<String>,
    Body(patch): Body<ProjectPatch>,
) -> Answer<Json<Project>> {
    loop {
        check_exit(&app, patch.exit.as_ref())?;
        let Stored { value: project, revision } = found(&app, &scope, &name)?;
        let mut next = (*project).clone();
        for part in &patch.clear {
            match part {
                ProjectField::Exit => next.exit = None,
            }
        }
        next.exit = patch.exit.clone().or(next.exit);
        next.description = patch.description.clone().unwrap_or(next.description);
        check_description(&next.description)
            .map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
        if next != *project {
            let key = RecordKey::Project(project.name.clone());
            let txn = Txn::new().when(Compare::unchanged(key.key(), revision));
            let txn = leaving_by(patch.exit.as_ref(), txn.then(key.put(&next)?));
            let reply = app.state.txn(txn).await?;
            app.mirror.reach(reply.revision).await;
            if !reply.succeeded {
                continue;
            }
            app.events.emit(subject(&next.name), EventKind::ProjectChanged);
        }
        return Ok(Json(app.mirror.read(|view| describe(view, &next))));
    }
}

/// The first thing that a project owns, in words. Its first network goes with it.
fn owned(view: &View, project: &ProjectName) -> Option<String> {
    let first = |what: &str, name: Option<&dyn std::fmt::Display>| {
        name.map(|name| format!("{what} {name}"))
    };
    let service = view.services.keys().find(|(owner, _)| owner == project);
    let machine = view.machines.values().map(|stored| &stored.value);
    let machine = machine.into_iter().find(|m| m.project == *project && !ended(view, &m.id));
    let publication = view.publications.iter().find(|(_, p)| p.value.project == *project);
    let publication =
        publication.map(|((transport, port), _)| format!("{}/{port}", transport.as_str()));
    let group = view.groups.keys().find(|(owner, _)| owner == project);
    let image = view.images.keys().find(|(owner, _)| owner == project);
    let first_network = skein_model::NetworkName::default();
    let network =
        view.networks.keys().find(|(owner, name)| owner == project && *name != first_network);
    first("service", service.map(|(_, name)| name as _))
        .or_else(|| first("machine", machine.map(|m| &m.id as _)))
        .or_else(|| first("publication", publication.as_ref().map(|p| p as _)))
        .or_else(|| first("group", group.map(|(_, name)| name as _)))
        .or_else(|| first("image", image.map(|(_, name)| name as _)))
        .or_else(|| first("network", network.map(|(_, name)| name as _)))
}

/// Remove a project that owns nothing any more but its first network and tokens, which go with it. `default` stays
#[utoipa::path(delete, path = "/v1/projects/{name}", tag = "projects", params(("name" = String, Path, description = "Name")),
    responses((status = 204, description = "Removed"), (status = 403, description = "FORBIDDEN", body = ErrorBody),
        (status = 404, description = "PROJECT_UNKNOWN", body = ErrorBody), (status = 409, description = "PROJECT_IN_USE", body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<App>,
    scope: Scope,
    _: Admin,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    let Stored { value: project, revision } = found(&app, &scope, &name)?;
    let in_use = |why: String| Failure::new(Code::ProjectInUse, format!("project {name} {why}"));
    if project.name == ProjectName::default() {
        return Err(in_use("is everybody's and stays".to_owned()));
    }
    let unused = Used::Project(&project.name).look(&app).await?;
    if let Some(thing) = app.mirror.read(|view| owned(view, &project.name)) {
        return Err(in_use(format!("owns {thing}")));
    }
    let (first, tokens) = app.mirror.read(|view| {
        let networks = view.networks.values().filter(|n| n.value.project == project.name);
        let tokens = view.tokens.iter().filter(|(_, token)| token.value.project == project.name);
        (
            networks.map(|n| (n.value.clone(), n.revision)).next(),
            tokens.map(|(digest, _)| *digest).collect::<Vec<_>>(),
        )
    });
    let key = RecordKey::Project(project.name.clone()).key();
    let mut txn = unused.removal(Txn::new(), &key, revision);
    if let Some((network, revision)) = first {
        let unused = Used::Network(network.vni).look(&app).await?;
        let key = RecordKey::Network(project.name.clone(), network.spec.name.clone()).key();
        let addresses = KeySpan::prefix(&format!("r/address/{}/", network.vni))?;
        txn = unused.removal(txn, &key, revision).then(Op::Delete(addresses));
        txn = txn.then(Used::Choices(network.vni).forget());
    }
    for digest in tokens {
        txn = txn.then(Op::delete(&RecordKey::Token(digest).key()));
    }
    let reply = app.state.txn(txn).await?;
    if !reply.succeeded {
        return Err(in_use("was taken into use at the same time".to_owned()));
    }
    app.mirror.reach(reply.revision).await;
    app.events.emit(subject(&project.name), EventKind::ProjectRemoved);
    Ok(StatusCode::NO_CONTENT)
}

/// Tokens of one project: with more, and what goes with the project, its removal would not fit one transaction.
const TOKENS_MAX: usize = 100;

/// List the tokens of a project, without their secrets
#[utoipa::path(get, path = "/v1/projects/{name}/tokens", tag = "projects", params(("name" = String, Path, description = "Name")),
    responses((status = 200, body = [ProjectToken]), (status = 403, description = "FORBIDDEN", body = ErrorBody),
        (status = 404, description = "PROJECT_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn tokens(
    State(app): State<App>,
    scope: Scope,
    _: Admin,
    Path(name): Path<String>,
) -> Answer<Json<Vec<ProjectToken>>> {
    let project = found(&app, &scope, &name)?.value.name.clone();
    Ok(Json(app.mirror.read(|view| {
        let all = view.tokens.values().map(|stored| &stored.value);
        all.filter(|token| token.project == project).map(|t| ProjectToken::new(t, None)).collect()
    })))
}

/// Make a token that opens one project. Its secret is in this answer and nowhere else
#[utoipa::path(post, path = "/v1/projects/{name}/tokens", tag = "projects", params(("name" = String, Path, description = "Name")),
    request_body = TokenNew,
    responses((status = 201, body = ProjectToken), (status = 403, description = "FORBIDDEN", body = ErrorBody),
        (status = 404, description = "PROJECT_UNKNOWN", body = ErrorBody), (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn create_token(
    State(app): State<App>,
    scope: Scope,
    _: Admin,
    Path(name): Path<String>,
    Body(new): Body<TokenNew>,
) -> Answer<(StatusCode, Json<ProjectToken>)> {
    let project = found(&app, &scope, &name)?.value.name.clone();
    check_description(&new.description)
        .map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
    let own = |view: &View| view.tokens.values().filter(|t| t.value.project == project).count();
    if app.mirror.read(own) >= TOKENS_MAX {
        let message = format!("project {project} has {TOKENS_MAX} tokens: withdraw some");
        return Err(Failure::new(Code::Invalid, message));
    }
    let token = Token::random();
    let record = TokenRecord {
        id: TokenId::new(random_u64() as u32),
        project: project.clone(),
        description: new.description,
        digest: Token::digest(token.secret()),
        created_at: now(),
    };
    let key = RecordKey::Token(record.digest);
    let txn = Txn::new()
        .when(Compare::exists(RecordKey::Project(project.clone()).key()))
        .then(key.put(&record)?)
        // Bars a removal of the project that has not seen this token.
        .then(Used::Project(&project).mark());
    let reply = app.state.txn(txn).await?;
    if !reply.succeeded {
        return Err(unknown(&name));
    }
    app.mirror.reach(reply.revision).await;
    let token = ProjectToken::new(&record, Some(token.secret().to_owned()));
    Ok((StatusCode::CREATED, Json(token)))
}

/// Withdraw a token: it opens nothing from now on
#[utoipa::path(delete, path = "/v1/projects/{name}/tokens/{token}", tag = "projects",
    params(("name" = String, Path, description = "Name"), ("token" = String, Path, description = "Id of the token")),
    responses((status = 204, description = "Withdrawn"), (status = 403, description = "FORBIDDEN", body = ErrorBody),
        (status = 404, description = "PROJECT_UNKNOWN, TOKEN_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn remove_token(
    State(app): State<App>,
    scope: Scope,
    _: Admin,
    Path((name, id)): Path<(String, String)>,
) -> Answer<StatusCode> {
    let project = found(&app, &scope, &name)?.value.name.clone();
    let id: TokenId = parse(&id, Code::TokenUnknown)?;
    let digest = app.mirror.read(|view| {
        let own = |t: &TokenRecord| t.project == project && t.id == id;
        view.tokens.iter().find(|(_, t)| own(&t.value)).map(|(digest, _)| *digest)
    });
    let unknown = || Failure::new(Code::TokenUnknown, format!("token {id} does not exist"));
    let key = RecordKey::Token(digest.ok_or_else(unknown)?).key();
    let txn = Txn::new().when(Compare::exists(key.clone())).then(Op::delete(&key));
    let reply = app.state.txn(txn).await?;
    if !reply.succeeded {
        return Err(unknown());
    }
    app.mirror.reach(reply.revision).await;
    Ok(StatusCode::NO_CONTENT)
}
