//! `skein project`.

use crate::Context;
use crate::output::{self, Column, column, wide};
use anyhow::{Result, bail};
use skein_api::{
    Project as ApiProject, ProjectField, ProjectNew, ProjectPatch, ProjectToken, TokenNew,
};
use skein_model::{Exit, NodeName};
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;

/// Projects: tenants with networks, services and machines of their own
#[derive(clap::Subcommand)]
pub(crate) enum Project {
    /// Create a project with its first network, `default`
    Create {
        /// Name of the project
        name: String,
        /// What it is for
        #[arg(long, default_value = "", hide_default_value = true)]
        description: String,
    },
    /// List projects
    Ls,
    /// Show one project
    Show {
        /// Name of the project
        name: String,
    },
    /// Change a project: what it is for, and the address that it has outside
    Set {
        /// Name of the project
        name: String,
        /// What it is for
        #[arg(long)]
        description: Option<String>,
        /// The one node by which its networks of kind nat leave, unless they have an exit of their own
        #[arg(long, value_name = "NODE")]
        exit: Option<NodeName>,
        /// The address that its packets have outside; must be routed to the exit
        #[arg(long, value_name = "ADDRESS", requires = "exit")]
        exit_address: Option<Ipv4Addr>,
        /// Let each machine leave by its own node again
        #[arg(long, conflicts_with = "exit")]
        no_exit: bool,
    },
    /// Remove projects that own nothing any more
    Rm {
        /// Names of projects
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Tokens that open one project and nothing else
    #[command(subcommand)]
    Token(Token),
}

/// Tokens that open one project and nothing else
#[derive(clap::Subcommand)]
pub(crate) enum Token {
    /// Make a token and print its secret, which is shown once
    Create {
        /// Name of the project that it opens
        name: String,
        /// What it is for
        #[arg(long, default_value = "", hide_default_value = true)]
        description: String,
    },
    /// List the tokens of a project, without their secrets
    Ls {
        /// Name of the project
        name: String,
    },
    /// Withdraw tokens
    Rm {
        /// Name of the project
        name: String,
        /// Ids of tokens
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

const COLUMNS: [Column<ApiProject>; 6] = [
    column("NAME", |p: &ApiProject| p.name.clone()),
    column("SERVICES", |p| p.services.to_string()),
    column("MACHINES", |p| p.machines.to_string()),
    column("NETWORKS", |p| p.networks.to_string()),
    column("DESCRIPTION", |p| p.description.clone()),
    wide("CREATED", |p| p.created_at.clone()),
];

impl Project {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        // Projects are not in a project.
        let client = context.client()?.in_project(None);
        let mut out = std::io::stdout();
        match self {
            Self::Create { name, description } => {
                let project = client.create_project(&ProjectNew { name, description }).await?;
                writeln!(out, "{}", project.name)?;
            }
            Self::Ls => output::list(context.output, &client.projects().await?, &COLUMNS)?,
            Self::Show { name } => show(context, &client.project(&name).await?)?,
            Self::Set { name, description, exit, exit_address, no_exit } => {
                let exit = exit.map(|node| Exit { node, address: exit_address });
                let clear = if no_exit { vec![ProjectField::Exit] } else { Vec::new() };
                let patch = ProjectPatch { description, exit, clear };
                if patch == ProjectPatch::default() {
                    bail!("nothing to change: give --description, --exit or --no-exit");
                }
                let project = client.change_project(&name, &patch).await?;
                writeln!(out, "{}", project.name)?;
            }
            Self::Rm { names } => {
                for name in names {
                    client.remove_project(&name).await?;
                    writeln!(out, "{name}")?;
                }
            }
            Self::Token(Token::Create { name, description }) => {
                let token = client.create_token(&name, &TokenNew { description }).await?;
                created(context, &token)?;
            }
            Self::Token(Token::Ls { name }) => {
                tokens(context, &client.project_tokens(&name).await?)?
            }
            Self::Token(Token::Rm { name, ids }) => {
                for id in ids {
                    client.remove_token(&name, &id).await?;
                    writeln!(out, "{id}")?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(context: &Context, p: &ApiProject) -> Result<()> {
    let exit = p.exit.as_ref().map(super::network::exit_text);
    output::one(
        context.output,
        p,
        &[
            ("name", p.name.clone()),
            ("description", p.description.clone()),
            ("exit", output::dash(exit)),
            ("services", p.services.to_string()),
            ("machines", p.machines.to_string()),
            ("networks", p.networks.to_string()),
            ("created", p.created_at.clone()),
        ],
    )
}

/// Prints the secret alone, so that it can be put into a file; the rest goes where people read.
fn created(context: &Context, token: &ProjectToken) -> Result<()> {
    if context.output == output::Format::Json {
        return output::one(context.output, token, &[]);
    }
    eprintln!("token {} opens project {}; its secret is not shown again", token.id, token.project);
    writeln!(std::io::stdout(), "{}", token.secret.as_deref().unwrap_or_default())?;
    Ok(())
}

fn tokens(context: &Context, tokens: &[ProjectToken]) -> Result<()> {
    output::list(
        context.output,
        tokens,
        &[
            column("ID", |t: &ProjectToken| t.id.clone()),
            column("DESCRIPTION", |t| t.description.clone()),
            column("CREATED", |t| t.created_at.clone()),
        ],
    )
}
