//! `skein port`, and publishing, which `skein service` shares.

use crate::Context;
use crate::output::{self, Column, column, wide};
use anyhow::Result;
use skein_api::{Client, Port as ApiPort, PortField, PortPatch, Publication};
use skein_model::{Affinity, Limits, PublicationSpec, PublishTarget, Transport};
use std::io::Write;
use std::process::ExitCode;
use std::str::FromStr;

/// Ports: the machines' plugs in their networks
#[derive(clap::Subcommand)]
pub(crate) enum Port {
    /// List ports
    Ls,
    /// Show the port of a machine
    Show {
        /// Id of the machine
        machine: String,
    },
    /// Change the groups or bounds of a machine's port, while it runs
    Set(Set),
    /// Open ports of the nodes that lead to a machine
    Publish {
        /// Id of the machine
        machine: String,
        /// Port of the nodes and port of the machine, such as 8080:80 or 53:53/udp
        #[arg(short, long = "publish", required = true, value_name = "PORT:PORT[/udp]")]
        ports: Vec<PortMap>,
    },
    /// Close published ports
    Unpublish {
        /// Ports of the nodes, such as 8080 or 53/udp
        #[arg(required = true, value_name = "PORT[/udp]")]
        ports: Vec<PublicPort>,
    },
    /// List published ports
    Published,
}

/// Change the groups or bounds of a machine's port, while it runs
#[derive(clap::Args)]
pub(crate) struct Set {
    /// Id of the machine
    machine: String,
    /// Group of firewall rules; instead of those of its service. May be given several times
    #[arg(long = "group", value_name = "NAME", conflicts_with = "inherit_groups")]
    groups: Vec<String>,
    /// Take the groups of its service again
    #[arg(long)]
    inherit_groups: bool,
    #[command(flatten)]
    limits: LimitArgs,
    /// Take the bounds of its service again
    #[arg(long)]
    inherit_limits: bool,
}

/// Bounds on what a port sends and receives
#[derive(clap::Args, Clone, Copy, Default)]
pub(crate) struct LimitArgs {
    /// Bits per second that it may send, such as 10M
    #[arg(long, value_name = "BITS", value_parser = amount)]
    egress_bits: Option<u64>,
    /// Packets per second that it may send, such as 5k
    #[arg(long, value_name = "PACKETS", value_parser = amount)]
    egress_packets: Option<u64>,
    /// Bits per second that it may receive, such as 10M
    #[arg(long, value_name = "BITS", value_parser = amount)]
    ingress_bits: Option<u64>,
    /// Packets per second that it may receive, such as 5k
    #[arg(long, value_name = "PACKETS", value_parser = amount)]
    ingress_packets: Option<u64>,
}

impl LimitArgs {
    /// The bounds, if any is given.
    pub(crate) fn limits(self) -> Option<Limits> {
        let limits = Limits {
            egress_bits: self.egress_bits,
            egress_packets: self.egress_packets,
            ingress_bits: self.ingress_bits,
            ingress_packets: self.ingress_packets,
        };
        (!limits.is_none()).then_some(limits)
    }
}

/// A number with a decimal unit: `10M`, `5k`, `2G`.
fn amount(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number such as 10M");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

/// `PORT:PORT[/udp]`: a port of the nodes, and one of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PortMap {
    public: PublicPort,
    target: u16,
}

/// `PORT[/udp]`: a port of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublicPort {
    protocol: Transport,
    port: u16,
}

fn number(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| format!("{text:?} is not a port, 1 to 65535"))
}

impl FromStr for PublicPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let protocol = protocol.parse().map_err(|e: skein_model::TransportError| e.to_string())?;
        Ok(Self { protocol, port: number(port)? })
    }
}

impl FromStr for PortMap {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        let parts = ports.split_once(':');
        let (public, target) = parts.ok_or("must be PORT:PORT, such as 8080:80")?;
        let public = format!("{public}/{protocol}").parse()?;
        Ok(Self { public, target: number(target)? })
    }
}

/// Publishes ports that lead to `target`.
pub(crate) async fn publish(
    client: &Client,
    target: &PublishTarget,
    affinity: Affinity,
    ports: &[PortMap],
) -> Result<()> {
    for map in ports {
        let PublicPort { protocol, port } = map.public;
        let (target, target_port) = (target.clone(), map.target);
        let spec = PublicationSpec { protocol, port, target, target_port, affinity };
        client.publish(&spec).await?;
        writeln!(std::io::stdout(), "{port}/{}", protocol.as_str())?;
    }
    Ok(())
}

const COLUMNS: [Column<ApiPort>; 9] = [
    column("MACHINE", |p: &ApiPort| p.machine.clone()),
    column("NETWORK", |p| p.network.clone()),
    column("NODE", |p| p.node.clone()),
    column("IPV4", |p| p.ipv4.clone()),
    column("GROUPS", |p| if p.groups.is_empty() { "-".to_owned() } else { p.groups.join(",") }),
    wide("IPV6", |p| output::dash(p.ipv6.clone())),
    wide("MAC", |p| p.mac.clone()),
    wide("SERVICE", |p| p.service.clone()),
    wide("PUBLISHED", |p| {
        if p.publications.is_empty() { "-".to_owned() } else { p.publications.join(",") }
    }),
];

impl Port {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let client = context.client()?;
        match self {
            Self::Ls => output::list(context.output, &client.ports().await?, &COLUMNS)?,
            Self::Show { machine } => show(context, &client.port(&machine).await?)?,
            Self::Set(set) => set.run(context, &client).await?,
            Self::Publish { machine, ports } => {
                let target = PublishTarget::Machine(machine.parse()?);
                publish(&client, &target, Affinity::None, &ports).await?;
            }
            Self::Unpublish { ports } => {
                for PublicPort { protocol, port } in ports {
                    client.unpublish(protocol, port).await?;
                    writeln!(std::io::stdout(), "{port}/{}", protocol.as_str())?;
                }
            }
            Self::Published => published(context, &client.publications().await?)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Set {
    async fn run(self, context: &Context, client: &Client) -> Result<()> {
        let mut patch = PortPatch {
            groups: (!self.groups.is_empty()).then_some(self.groups),
            limits: self.limits.limits(),
            inherit: Vec::new(),
        };
        patch.inherit.extend(self.inherit_groups.then_some(PortField::Groups));
        patch.inherit.extend(self.inherit_limits.then_some(PortField::Limits));
        show(context, &client.change_port(&self.machine, &patch).await?)
    }
}

fn show(context: &Context, p: &ApiPort) -> Result<()> {
    let own = |own: bool| if own { "" } else { " (of its service)" };
    let bound = |value: Option<u64>, unit: &str| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value} {unit}/s"))
    };
    let limits = &p.limits;
    output::one(
        context.output,
        p,
        &[
            ("machine", p.machine.clone()),
            ("service", p.service.clone()),
            ("network", p.network.clone()),
            ("node", p.node.clone()),
            ("mac", p.mac.clone()),
            ("ipv4", p.ipv4.clone()),
            ("ipv6", output::dash(p.ipv6.clone())),
            ("name", p.dns_name.clone()),
            ("groups", format!("{}{}", p.groups.join(", "), own(p.groups_own))),
            (
                "sends",
                format!(
                    "{}, {}{}",
                    bound(limits.egress_bits, "bit"),
                    bound(limits.egress_packets, "packets"),
                    own(p.limits_own)
                ),
            ),
            (
                "receives",
                format!(
                    "{}, {}{}",
                    bound(limits.ingress_bits, "bit"),
                    bound(limits.ingress_packets, "packets"),
                    own(p.limits_own)
                ),
            ),
            ("published", p.publications.join(", ")),
        ],
    )
}

fn published(context: &Context, publications: &[Publication]) -> Result<()> {
    output::list(
        context.output,
        publications,
        &[
            column("PORT", |p: &Publication| {
                format!("{}/{}", p.spec.port, p.spec.protocol.as_str())
            }),
            column("LEADS TO", |p| p.spec.target.to_string()),
            column("TARGET PORT", |p| p.spec.target_port.to_string()),
            column("BACKENDS", |p| p.backends.len().to_string()),
            wide("AFFINITY", |p| p.spec.affinity.as_str().to_owned()),
            wide("MACHINES", |p| p.backends.join(",")),
            wide("CREATED", |p| p.created_at.clone()),
        ],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_ports_are_read() {
        let check = |text: &str, expect: Option<(u16, u16, Transport)>| {
            let map = text.parse::<PortMap>().ok();
            let map = map.map(|m| (m.public.port, m.target, m.public.protocol));
            assert_eq!(map, expect, "{text}");
        };
        check("8080:80", Some((8080, 80, Transport::Tcp)));
        check("53:5353/udp", Some((53, 5353, Transport::Udp)));
        check("8080:80/tcp", Some((8080, 80, Transport::Tcp)));
        check("8080", None);
        check("0:80", None);
        check("8080:65536", None);
        check("8080:80/sctp", None);
        assert_eq!("53/udp".parse(), Ok(PublicPort { protocol: Transport::Udp, port: 53 }));
    }

    #[test]
    fn amounts_have_decimal_units() {
        let check = |text, expect| assert_eq!(amount(text).ok(), expect, "{text}");
        check("10M", Some(10_000_000));
        check("5k", Some(5_000));
        check("7", Some(7));
        check("99999999999G", None);
        check("1.5M", None);
        check("10X", None);
        check("", None);
    }
}
