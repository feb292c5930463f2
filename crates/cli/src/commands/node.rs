//! `skein node`.

use crate::Context;
use crate::output::{self, column, wide};
use anyhow::Result;
use skein_api::Node as ApiNode;
use std::process::ExitCode;

/// Nodes: the hosts that run machines
#[derive(clap::Subcommand)]
pub(crate) enum Node {
    /// List nodes
    Ls,
    /// Place nothing new on a node
    Cordon {
        /// Name of the node
        node: String,
    },
    /// Place machines on a node again
    Uncordon {
        /// Name of the node
        node: String,
    },
    /// Take a node that is gone for good out of the cloud: its agent has ended, and no machine is on it
    Rm {
        /// Name of the node
        node: String,
    },
    /// Give a node another key for what it sends to other nodes (`skein up --encrypt`)
    RenewKey {
        /// Name of the node
        node: String,
    },
}

impl Node {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let client = context.client()?;
        match self {
            Self::Ls => {}
            Self::Cordon { node } => return change(&client, &node, "cordon").await,
            Self::Uncordon { node } => return change(&client, &node, "uncordon").await,
            Self::Rm { node } => {
                client.remove_node(&node).await?;
                return Ok(ExitCode::SUCCESS);
            }
            Self::RenewKey { node } => return change(&client, &node, "renew-key").await,
        }
        output::list(
            context.output,
            &client.nodes().await?,
            &[
                column("NAME", |n: &ApiNode| n.name.clone()),
                column("STATE", |n| format!("{:?}", n.state).to_lowercase()),
                column("MACHINES", |n| format!("{}/{}", n.machines, n.machines_max)),
                column("MEMORY", |n| {
                    format!("{}/{} MiB reserved", n.memory_reserved_mib, n.memory_mib)
                }),
                column("CPU", |n| format!("{:.0} %", n.cpu_used * 100.0)),
                column("IN SERVICE", |n| n.in_service.to_string()),
                column("ACCEL", |n| n.accel.clone()),
                wide("VMM", |n| n.vmm.clone()),
                wide("UNDERLAY", |n| n.underlay.clone()),
                wide("ENCRYPTED AS", |n| n.wire_address.clone().unwrap_or_default()),
                wide("KEY", |n| n.wire_key.clone().unwrap_or_default()),
                wide("JOINED", |n| n.joined_at.clone()),
            ],
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn change(client: &skein_api::Client, node: &str, verb: &str) -> Result<ExitCode> {
    let path = format!("/v1/nodes/{node}/{verb}");
    client.raw(http::Method::POST, &path, bytes::Bytes::new()).await?;
    Ok(ExitCode::SUCCESS)
}
