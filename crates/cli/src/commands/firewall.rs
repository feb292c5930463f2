//! `skein firewall`.

use crate::Context;
use crate::output::{self, column, wide};
use anyhow::{Context as _, Result};
use skein_api::{Client, Code, Group, GroupPut, Rule};
use skein_model::{
    AddressRange, Direction, GroupName, Peer, PortRange, Protocol, RuleLog, RuleSpec,
};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Firewall: groups of rules that ports belong to
///
/// Inwards a port is closed but for what a rule of one of its groups allows. Outwards it is open, until one of its groups has
/// a rule for that direction. Rules are stateful: what answers is let through.
#[derive(clap::Subcommand)]
pub(crate) enum Firewall {
    /// Create a group
    Create {
        /// Name of the group
        name: String,
        /// What it is for
        #[arg(long, default_value = "", hide_default_value = true)]
        description: String,
    },
    /// Create or replace a group from a JSON or TOML file, at once on all nodes
    Apply {
        /// The file, or - for standard input
        file: PathBuf,
    },
    /// List groups
    Ls,
    /// Show a group, its rules and what they let through
    Show {
        /// Name of the group
        name: String,
    },
    /// Remove groups that nothing uses
    Rm {
        /// Names of groups
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Allow something: add a rule to a group
    Allow(Allow),
    /// Take rules out of a group
    Revoke {
        /// Name of the group
        group: String,
        /// Ids of rules
        #[arg(required = true)]
        rules: Vec<String>,
    },
}

/// Allow something: add a rule to a group
#[derive(clap::Args)]
pub(crate) struct Allow {
    /// Name of the group
    group: String,
    /// Way that connections are opened, seen from the machine
    #[arg(value_parser = direction, value_name = "ingress|egress")]
    direction: Direction,
    /// Protocol: any, tcp, udp or icmp
    #[arg(long, value_parser = super::network::protocol, value_name = "NAME")]
    protocol: Option<Protocol>,
    /// Destination ports, such as 80 or 8000-8099; of tcp unless --protocol says udp
    #[arg(long, value_name = "PORTS")]
    ports: Option<PortRange>,
    /// Addresses at the other end, such as 10.0.0.0/8; everybody unless given
    #[arg(long, value_name = "RANGE", conflicts_with = "peer_group")]
    cidr: Option<AddressRange>,
    /// Group at the other end
    #[arg(long, value_name = "GROUP")]
    peer_group: Option<GroupName>,
    /// Log each connection that it lets through, on the machine's node
    #[arg(long)]
    log_connections: bool,
}

fn direction(text: &str) -> Result<Direction, String> {
    match text {
        "ingress" => Ok(Direction::Ingress),
        "egress" => Ok(Direction::Egress),
        _ => Err("ingress or egress".to_owned()),
    }
}

impl Allow {
    fn spec(self) -> Result<(String, RuleSpec)> {
        let of_ports = if self.ports.is_some() { Protocol::Tcp } else { Protocol::Any };
        let peer = match (self.cidr, self.peer_group) {
            (Some(range), _) => Peer::Cidr(range),
            (None, Some(group)) => Peer::Group(group),
            (None, None) => Peer::Any,
        };
        let spec = RuleSpec {
            direction: self.direction,
            protocol: self.protocol.unwrap_or(of_ports),
            ports: self.ports,
            peer,
            log: if self.log_connections { RuleLog::Connections } else { RuleLog::Off },
        };
        spec.check()?;
        Ok((self.group, spec))
    }
}

impl Firewall {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let client = context.client()?;
        let mut out = std::io::stdout();
        match self {
            Self::Create { name, description } => {
                let put = GroupPut { name, description, rules: Vec::new() };
                writeln!(out, "{}", client.create_group(&put).await?.name)?;
            }
            Self::Apply { file } => {
                let put = read(&file)?;
                let group = match client.put_group(&put).await {
                    Err(error) if error.code() == Some(Code::GroupUnknown) => {
                        client.create_group(&put).await?
                    }
                    other => other?,
                };
                writeln!(out, "{}", group.name)?;
            }
            Self::Ls => list(context, &client.groups().await?)?,
            Self::Show { name } => show(context, &client, &name).await?,
            Self::Rm { names } => {
                for name in names {
                    client.remove_group(&name).await?;
                    writeln!(out, "{name}")?;
                }
            }
            Self::Allow(allow) => {
                let (group, spec) = allow.spec()?;
                let group = client.add_rule(&group, &spec).await?;
                let rule = group.rules.iter().find(|rule| rule.spec == spec);
                writeln!(out, "{}", rule.map_or("", |rule| &rule.id))?;
            }
            Self::Revoke { group, rules } => {
                for rule in rules {
                    client.remove_rule(&group, &rule).await?;
                    writeln!(out, "{rule}")?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn read(file: &std::path::Path) -> Result<GroupPut> {
    let text = String::from_utf8(super::read_input(file)?).context("the file is not UTF-8")?;
    let failed = || format!("reading {}", file.display());
    if text.trim_start().starts_with('{') {
        serde_json::from_str(&text).with_context(failed)
    } else {
        toml::from_str(&text).with_context(failed)
    }
}

fn list(context: &Context, groups: &[Group]) -> Result<()> {
    output::list(
        context.output,
        groups,
        &[
            column("NAME", |g: &Group| g.name.clone()),
            column("RULES", |g| g.rules.len().to_string()),
            column("MEMBERS", |g| g.members.len().to_string()),
            column("DESCRIPTION", |g| g.description.clone()),
            wide("MACHINES", |g| g.members.join(",")),
            wide("CREATED", |g| g.created_at.clone()),
        ],
    )
}

async fn show(context: &Context, client: &Client, name: &str) -> Result<()> {
    let group = client.group(name).await?;
    if context.output != output::Format::Table && context.output != output::Format::Wide {
        return output::one(context.output, &group, &[("name", group.name.clone())]);
    }
    let counters = client.group_counters(name).await?;
    let counts: BTreeMap<&str, (u64, u64)> =
        counters.rules.iter().map(|c| (c.id.as_str(), (c.packets, c.bytes))).collect();
    let lines = [
        ("name", group.name.clone()),
        ("description", group.description.clone()),
        ("members", group.members.join(", ")),
    ];
    output::one(context.output, &group, &lines)?;
    let mut out = std::io::stdout().lock();
    for Rule { id, spec } in &group.rules {
        let (connections, _) = counts.get(id.as_str()).copied().unwrap_or_default();
        let log = if spec.log == RuleLog::Connections { ", logged" } else { "" };
        writeln!(out, "{id}  {spec}{log}  ({connections} connections)")?;
    }
    if !counters.silent.is_empty() {
        eprintln!("not counted: {} did not answer", counters.silent.join(", "));
    }
    Ok(())
}
