//! Groups of firewall rules.

use crate::agents::ask;
use crate::app::App;
use crate::error::{Answer, Failure};
use crate::extract::{Json as Body, Path, field, parse};
use crate::scope::Scope;
use crate::usage::Used;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use skein_api::{Code, ErrorBody, Group, GroupCounters, GroupPut, RuleCount};
use skein_fabric::{Compare, Op, Revision, Txn};
use skein_model::{
    EventKind, EventSubject, Generation, GroupName, GroupRecord, NodeState, Peer, ProjectName,
    Rule, RuleId, RuleSpec,
};
use skein_registry::{AgentReply, AgentRequest, RecordKey, Stored, View, groups_of};
use skein_shell::{now, random_u64};
use std::collections::{BTreeMap, BTreeSet};

fn unknown(name: &GroupName) -> Failure {
    Failure::new(Code::GroupUnknown, format!("group {name} does not exist"))
}

fn found(app: &App, project: &ProjectName, name: &str) -> Answer<Stored<GroupRecord>> {
    let name: GroupName = parse(name, Code::GroupUnknown)?;
    let key = (project.clone(), name);
    app.mirror.read(|view| view.groups.get(&key).cloned()).ok_or_else(|| unknown(&key.1))
}

fn describe(view: &View, record: &GroupRecord) -> Group {
    let ports = view.ports.values().map(|stored| &stored.value);
    let members = ports.filter(|port| {
        port.project == record.project && groups_of(view, port).contains(&record.name)
    });
    Group::new(record, members.map(|port| port.machine.to_string()).collect())
}

/// List groups of firewall rules
#[utoipa::path(get, path = "/v1/groups", tag = "firewall",
    responses((status = 200, body = [Group]), (status = 401, body = ErrorBody)))]
pub(crate) async fn list(State(app): State<App>, scope: Scope) -> Json<Vec<Group>> {
    Json(app.mirror.read(|view| {
        let all = view.groups.values().map(|stored| &stored.value);
        let own = all.filter(|group| group.project == scope.project);
        own.map(|group| describe(view, group)).collect()
    }))
}

/// Show one group, its rules and members
#[utoipa::path(get, path = "/v1/groups/{group}", tag = "firewall", params(("group" = String, Path, description = "Name")),
    responses((status = 200, body = Group), (status = 404, description = "GROUP_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn show(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<Json<Group>> {
    let record = found(&app, &scope.project, &name)?.value;
    Ok(Json(app.mirror.read(|view| describe(view, &record))))
}

/// A rule with a name that no other of the group has.
fn named(spec: RuleSpec, others: &[Rule]) -> Rule {
    loop {
        let id = RuleId::new(random_u64() as u32);
        if others.iter().all(|rule| rule.id != id) {
            return Rule { id, spec };
        }
    }
}

/// The rules wanted: each once; one that is there keeps its name, and so its counters.
fn rules(wanted: Vec<RuleSpec>, there: &[Rule]) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::with_capacity(wanted.len());
    for spec in wanted {
        if rules.iter().any(|rule| rule.spec == spec) {
            continue;
        }
        let kept = there.iter().find(|rule| rule.spec == spec).cloned();
        let rule = kept.unwrap_or_else(|| named(spec, &[there, &rules].concat()));
        rules.push(rule);
    }
    rules
}

/// Writes a group if it was last written at `expected` and the groups that it names exist; whether it did. If not, the
/// mirror has seen what was written instead.
async fn write(app: &App, record: &GroupRecord, expected: Revision) -> Answer<bool> {
    record.check().map_err(|error| Failure::new(Code::Invalid, error.to_string()))?;
    let project = &record.project;
    let key = RecordKey::Group(project.clone(), record.name.clone());
    // A group may name itself: its members may talk to each other.
    let peers: BTreeSet<&GroupName> = record.peers().filter(|peer| **peer != record.name).collect();
    let mut txn = Txn::new()
        .when(Compare::unchanged(key.key(), expected))
        .when(Compare::exists(RecordKey::Project(project.clone()).key()))
        .then(key.put(record)?)
        .then(Used::Project(project).mark())
        .otherwise(Op::get(key.key()));
    if peers.len() > 100 {
        let message = "rules: must name at most 100 different groups";
        return Err(Failure::new(Code::Invalid, message));
    }
    for peer in &peers {
        let key = RecordKey::Group(project.clone(), (*peer).clone()).key();
        txn = txn
            .when(Compare::exists(key.clone()))
            .then(Used::Group(project, peer).mark())
            .otherwise(Op::get(key));
    }
    let reply = app.state.txn(txn).await?;
    if reply.succeeded {
        app.mirror.reach(reply.revision).await;
        tell(app, record, record.rules.len());
        return Ok(true);
    }
    let mut entries = reply.ranges().map(|range| range.entries.into_iter().next());
    let there = entries.next().flatten();
    for peer in peers {
        if entries.next().flatten().is_none() {
            return Err(unknown(peer));
        }
    }
    match there {
        Some(entry) => drop(app.mirror.reach(entry.mod_revision).await),
        None => return Err(unknown(&record.name)),
    }
    Ok(false)
}

fn tell(app: &App, record: &GroupRecord, rules: usize) {
    let subject = EventSubject { project: Some(record.project.clone()), ..EventSubject::default() };
    let rules = u32::try_from(rules).unwrap_or(u32::MAX);
    app.events.emit(subject, EventKind::FirewallChanged { group: record.name.to_string(), rules });
}

/// Create a group of firewall rules. The same again is no error
#[utoipa::path(post, path = "/v1/groups", tag = "firewall", request_body = GroupPut,
    responses((status = 201, description = "Created", body = Group), (status = 200, description = "It was there", body = Group),
        (status = 404, description = "GROUP_UNKNOWN: a rule names a group that does not exist", body = ErrorBody),
        (status = 409, description = "GROUP_EXISTS", body = ErrorBody), (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn create(
    State(app): State<App>,
    scope: Scope,
    Body(put): Body<GroupPut>,
) -> Answer<(StatusCode, Json<Group>)> {
    let record = GroupRecord {
        project: scope.project.clone(),
        name: field("name", &put.name)?,
        description: put.description,
        rules: rules(put.rules, &[]),
        generation: Generation(1),
        created_at: now(),
    };
    if write(&app, &record, Revision::ZERO).await? {
        let group = app.mirror.read(|view| describe(view, &record));
        return Ok((StatusCode::CREATED, Json(group)));
    }
    let there = found(&app, &scope.project, record.name.as_str())?.value;
    let said = |group: &GroupRecord| {
        let specs: BTreeSet<RuleSpec> = group.rules.iter().map(|rule| rule.spec.clone()).collect();
        (group.description.clone(), specs)
    };
    if said(&there) == said(&record) {
        let group = app.mirror.read(|view| describe(view, &there));
        return Ok((StatusCode::OK, Json(group)));
    }
    let message = format!("group {} exists with other rules", record.name);
    Err(Failure::new(Code::GroupExists, message))
}

/// Applies a change to a group until no other change came between.
async fn change(
    app: &App,
    scope: &Scope,
    name: &str,
    apply: impl Fn(&mut GroupRecord) -> Answer<()>,
) -> Answer<Json<Group>> {
    loop {
        let Stored { value: there, revision } = found(app, &scope.project, name)?;
        let mut record = (*there).clone();
        apply(&mut record)?;
        if record == *there {
            return Ok(Json(app.mirror.read(|view| describe(view, &there))));
        }
        record.generation = record.generation.next();
        if write(app, &record, revision).await? {
            return Ok(Json(app.mirror.read(|view| describe(view, &record))));
        }
    }
}

/// Replace what a group says, at once on all nodes. Connections that no rule allows any more are cut
#[utoipa::path(put, path = "/v1/groups/{group}", tag = "firewall", params(("group" = String, Path, description = "Name")),
    request_body = GroupPut,
    responses((status = 200, body = Group), (status = 404, description = "GROUP_UNKNOWN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn put(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Body(put): Body<GroupPut>,
) -> Answer<Json<Group>> {
    if put.name != name {
        let message = format!("name: is {}, and the path says {name}", put.name);
        return Err(Failure::new(Code::Invalid, message));
    }
    change(&app, &scope, &name, |record| {
        record.description.clone_from(&put.description);
        record.rules = rules(put.rules.clone(), &record.rules);
        Ok(())
    })
    .await
}

/// Add a rule to a group. The same rule again changes nothing
#[utoipa::path(post, path = "/v1/groups/{group}/rules", tag = "firewall", params(("group" = String, Path, description = "Name")),
    request_body = RuleSpec,
    responses((status = 200, body = Group), (status = 404, description = "GROUP_UNKNOWN", body = ErrorBody),
        (status = 422, description = "INVALID", body = ErrorBody)))]
pub(crate) async fn add_rule(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
    Body(spec): Body<RuleSpec>,
) -> Answer<Json<Group>> {
    change(&app, &scope, &name, |record| {
        if record.rules.iter().all(|rule| rule.spec != spec) {
            let rule = named(spec.clone(), &record.rules);
            record.rules.push(rule);
        }
        Ok(())
    })
    .await
}

/// Take a rule out of a group. Connections that only it allowed are cut
#[utoipa::path(delete, path = "/v1/groups/{group}/rules/{rule}", tag = "firewall",
    params(("group" = String, Path, description = "Name"), ("rule" = String, Path, description = "Id of the rule")),
    responses((status = 204, description = "Removed"),
        (status = 404, description = "GROUP_UNKNOWN, RULE_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn remove_rule(
    State(app): State<App>,
    scope: Scope,
    Path((name, rule)): Path<(String, String)>,
) -> Answer<StatusCode> {
    let id: RuleId = parse(&rule, Code::RuleUnknown)?;
    let _ = change(&app, &scope, &name, |record| {
        let before = record.rules.len();
        record.rules.retain(|rule| rule.id != id);
        if record.rules.len() == before {
            let message = format!("rule {id} does not exist in group {name}");
            return Err(Failure::new(Code::RuleUnknown, message));
        }
        Ok(())
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What uses a group, in words.
fn user(view: &View, project: &ProjectName, name: &GroupName) -> Option<String> {
    let service =
        view.services.values().map(|stored| &stored.value).find(|service| {
            service.project == *project && service.spec.network.groups.contains(name)
        });
    let port = view.ports.values().map(|stored| &stored.value).find(|port| {
        let own = port.groups.as_ref().is_some_and(|groups| groups.contains(name));
        port.project == *project && own
    });
    let peer = Peer::Group(name.clone());
    let group = view.groups.values().map(|stored| &stored.value).find(|group| {
        let names_it = group.rules.iter().any(|rule| rule.spec.peer == peer);
        group.project == *project && group.name != *name && names_it
    });
    service
        .map(|service| format!("service {}", service.spec.name))
        .or_else(|| port.map(|port| format!("the port of machine {}", port.machine)))
        .or_else(|| group.map(|group| format!("a rule of group {}", group.name)))
}

/// Remove a group that no service, port or other group's rule names
#[utoipa::path(delete, path = "/v1/groups/{group}", tag = "firewall", params(("group" = String, Path, description = "Name")),
    responses((status = 204, description = "Removed"), (status = 404, description = "GROUP_UNKNOWN", body = ErrorBody),
        (status = 409, description = "GROUP_IN_USE", body = ErrorBody)))]
pub(crate) async fn remove(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<StatusCode> {
    let Stored { value: group, revision } = found(&app, &scope.project, &name)?;
    let unused = Used::Group(&scope.project, &group.name).look(&app).await?;
    if let Some(user) = app.mirror.read(|view| user(view, &scope.project, &group.name)) {
        let message = format!("group {name} is used by {user}");
        return Err(Failure::new(Code::GroupInUse, message));
    }
    let key = RecordKey::Group(scope.project.clone(), group.name.clone()).key();
    let reply = app.state.txn(unused.removal(Txn::new(), &key, revision)).await?;
    if !reply.succeeded {
        let message = format!("group {name} was changed or taken into use at the same time");
        return Err(Failure::new(Code::GroupInUse, message));
    }
    app.mirror.reach(reply.revision).await;
    tell(&app, &group, 0);
    Ok(StatusCode::NO_CONTENT)
}

/// What the rules of a group let through, over all nodes, since each node has the group
#[utoipa::path(get, path = "/v1/groups/{group}/counters", tag = "firewall", params(("group" = String, Path, description = "Name")),
    responses((status = 200, body = GroupCounters), (status = 404, description = "GROUP_UNKNOWN", body = ErrorBody)))]
pub(crate) async fn counters(
    State(app): State<App>,
    scope: Scope,
    Path(name): Path<String>,
) -> Answer<Json<GroupCounters>> {
    let group = found(&app, &scope.project, &name)?.value;
    let nodes = app.mirror.read(|view| {
        let of_project = view.ports.values().filter(|p| p.value.project == scope.project);
        let mut nodes: BTreeSet<_> = of_project.map(|port| port.value.node.clone()).collect();
        // Each node judges whom it lets in by a published port, wherever the machine is.
        if view.publications.values().any(|p| p.value.project == scope.project) {
            let alive = view.nodes.keys().filter(|node| view.node_state(node) != NodeState::Lost);
            nodes.extend(alive.cloned());
        }
        let (there, lost): (Vec<_>, Vec<_>) =
            nodes.into_iter().partition(|node| view.node_state(node) != NodeState::Lost);
        (there, lost)
    });
    let (asked, mut silent) = nodes;
    let request =
        AgentRequest::Counters { project: scope.project.clone(), group: group.name.clone() };
    let answers = asked.iter().map(async |node| (node.clone(), ask(&app, node, &request).await));
    let mut sums: BTreeMap<RuleId, (u64, u64)> =
        group.rules.iter().map(|rule| (rule.id, (0, 0))).collect();
    for (node, answer) in futures_util::future::join_all(answers).await {
        let Ok(AgentReply::Counters { rules }) = answer else {
            silent.push(node);
            continue;
        };
        for figures in rules {
            if let Some((packets, bytes)) = sums.get_mut(&figures.rule) {
                *packets += figures.packets;
                *bytes += figures.bytes;
            }
        }
    }
    let rules = group.rules.iter().map(|rule| {
        let (packets, bytes) = sums.get(&rule.id).copied().unwrap_or_default();
        RuleCount { id: rule.id.to_string(), packets, bytes }
    });
    Ok(Json(GroupCounters {
        name,
        rules: rules.collect(),
        silent: silent.iter().map(ToString::to_string).collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skein_model::{Direction, Protocol, RuleLog};

    fn spec(port: &str) -> RuleSpec {
        RuleSpec {
            direction: Direction::Ingress,
            protocol: Protocol::Tcp,
            ports: Some(port.parse().unwrap()),
            peer: Peer::Any,
            log: RuleLog::Off,
        }
    }

    #[test]
    fn a_rule_that_stays_keeps_its_name_and_none_is_there_twice() {
        let before = rules(vec![spec("80"), spec("443")], &[]);
        let after = rules(vec![spec("22"), spec("443"), spec("22")], &before);
        assert_eq!(after.len(), 2);
        assert_eq!(after[1], before[1]);
        assert!(before.iter().all(|rule| rule.id != after[0].id));
    }
}
