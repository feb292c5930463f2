//! `skein network`.

use crate::Context;
use crate::output::{self, Column, column, wide};
use anyhow::{Context as _, Result, anyhow, bail};
use skein_api::{
    Network as ApiNetwork, NetworkField, NetworkPatch, Trace as ApiTrace, TraceRequest,
};
use skein_model::{Exit, NetworkKind, NetworkSpec, NodeName, Prefix6, Protocol, Route, Subnet};
use std::io::{IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Networks: isolated segments of a project
#[derive(clap::Subcommand)]
pub(crate) enum Network {
    /// Create a network
    Create(Create),
    /// List networks
    Ls,
    /// Show one network, and where it is
    Show {
        /// Name of the network
        name: String,
    },
    /// Change a network while machines are in it; they hear of it with their next lease
    Set(Set),
    /// Remove networks that nothing uses
    Rm {
        /// Names of networks
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Record what a machine sends and receives, as a file of libpcap
    Capture(Capture),
    /// Say what would happen to a packet, and which rule decides
    Trace(Trace),
}

/// Create a network
#[derive(clap::Args)]
pub(crate) struct Create {
    /// Name of the network
    name: String,
    /// Its addresses, such as 10.20.0.0/24
    #[arg(long, value_name = "A.B.C.D/P")]
    cidr: Subnet,
    /// How it meets the world outside
    #[arg(long, value_parser = kind, value_name = "nat|isolated|bridged")]
    kind: Option<NetworkKind>,
    /// Its IPv6 addresses, such as fd00:20::/64
    #[arg(long, value_name = "PREFIX/64")]
    ipv6: Option<Prefix6>,
    /// Largest packet, bytes
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
    /// Resolver that machines are told instead of the gateway; may be given three times
    #[arg(long, value_name = "ADDRESS")]
    resolver: Vec<Ipv4Addr>,
    /// Way that machines are told by DHCP besides the gateway's; may be given several times
    #[arg(long = "route", value_name = "RANGE=ADDRESS", value_parser = route)]
    routes: Vec<Route>,
    /// Interface of the nodes that a bridged network is attached to
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// The one node by which it meets the world outside; each machine's own unless given
    #[arg(long, value_name = "NODE")]
    exit: Option<NodeName>,
    /// The address that its packets have outside; must be routed to the exit
    #[arg(long, value_name = "ADDRESS", requires = "exit")]
    exit_address: Option<Ipv4Addr>,
}

/// Change a network while machines are in it; they hear of it with their next lease
#[derive(clap::Args)]
pub(crate) struct Set {
    /// Name of the network
    name: String,
    /// Resolver that machines are told instead of the gateway; may be given three times
    #[arg(long, value_name = "ADDRESS")]
    resolver: Vec<Ipv4Addr>,
    /// Let the gateway be the resolver again
    #[arg(long, conflicts_with = "resolver")]
    no_resolvers: bool,
    /// Way that machines are told by DHCP besides the gateway's, instead of those there were; may be given several times
    #[arg(long = "route", value_name = "RANGE=ADDRESS", value_parser = route)]
    routes: Vec<Route>,
    /// Tell no way but the gateway's
    #[arg(long, conflicts_with = "routes")]
    no_routes: bool,
    /// Largest packet, bytes; less than it was only while no machine is in the network
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
    /// The one node by which it meets the world outside
    #[arg(long, value_name = "NODE")]
    exit: Option<NodeName>,
    /// The address that its packets have outside; must be routed to the exit
    #[arg(long, value_name = "ADDRESS", requires = "exit")]
    exit_address: Option<Ipv4Addr>,
    /// Let it leave as its project does, or each machine by its own node
    #[arg(long, conflicts_with = "exit")]
    no_exit: bool,
}

impl Set {
    fn patch(self) -> Result<NetworkPatch> {
        let wanted = [
            (self.no_exit, NetworkField::Exit),
            (self.no_resolvers, NetworkField::Resolvers),
            (self.no_routes, NetworkField::Routes),
        ];
        let patch = NetworkPatch {
            resolvers: Some(self.resolver).filter(|given| !given.is_empty()),
            routes: Some(self.routes).filter(|given| !given.is_empty()),
            exit: self.exit.map(|node| Exit { node, address: self.exit_address }),
            mtu: self.mtu,
            clear: wanted.into_iter().filter_map(|(is, field)| is.then_some(field)).collect(),
        };
        if patch == NetworkPatch::default() {
            bail!("nothing to change: give --resolver, --route, --mtu, --exit or their opposites");
        }
        Ok(patch)
    }
}

/// A route as it is written on the command line.
fn route(text: &str) -> Result<Route, String> {
    let (to, via) = text.split_once('=').ok_or("write it as 10.0.0.0/8=10.20.0.5")?;
    let to = to.parse().map_err(|error: skein_model::AddressError| error.to_string())?;
    let via = via.parse().map_err(|_| format!("{via:?} is no IPv4 address"))?;
    Ok(Route { to, via })
}

/// Where something leaves, in a line.
pub(crate) fn exit_text(exit: &Exit) -> String {
    let address = exit.address.map_or_else(String::new, |address| format!(" as {address}"));
    format!("{}{address}", exit.node)
}

fn kind(text: &str) -> Result<NetworkKind, String> {
    match text {
        "nat" => Ok(NetworkKind::Nat),
        "isolated" => Ok(NetworkKind::Isolated),
        "bridged" => Ok(NetworkKind::Bridged),
        _ => Err("nat, isolated or bridged".to_owned()),
    }
}

impl Create {
    fn spec(self) -> Result<NetworkSpec> {
        let mut spec = NetworkSpec::new(self.name.parse()?, self.cidr);
        spec.kind = self.kind.unwrap_or_default();
        spec.ipv6 = self.ipv6;
        spec.mtu = self.mtu.unwrap_or(spec.mtu);
        spec.resolvers = self.resolver;
        spec.routes = self.routes;
        spec.interface = self.interface;
        spec.exit = self.exit.map(|node| Exit { node, address: self.exit_address });
        spec.check()?;
        Ok(spec)
    }
}

/// Record what a machine sends and receives, as a file of libpcap
#[derive(clap::Args)]
pub(crate) struct Capture {
    /// Id of the machine
    machine: String,
    /// File to write; - for standard output
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// For how long; Ctrl-C ends it before
    #[arg(long, default_value = "1m", value_name = "TIME", value_parser = super::duration)]
    time: Duration,
    /// Bytes of each packet
    #[arg(long, default_value_t = 65_535, value_name = "BYTES")]
    snap: u32,
}

/// Say what would happen to a packet, and which rule decides
#[derive(clap::Args)]
pub(crate) struct Trace {
    /// The machine that sends it
    source: String,
    /// Where to: MACHINE:PORT or ADDRESS:PORT, with /udp behind it for UDP; MACHINE/icmp or ADDRESS/icmp
    destination: String,
    /// Protocol: tcp, udp or icmp; tcp unless the destination names one
    #[arg(long, value_parser = protocol, value_name = "NAME")]
    protocol: Option<Protocol>,
}

/// A protocol as it is written on the command line.
pub(crate) fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "any" => Ok(Protocol::Any),
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        "icmp" => Ok(Protocol::Icmp),
        _ => Err("any, tcp, udp or icmp".to_owned()),
    }
}

const COLUMNS: [Column<ApiNetwork>; 10] = [
    column("NAME", |n: &ApiNetwork| n.spec.name.to_string()),
    column("CIDR", |n| n.spec.cidr.to_string()),
    column("KIND", |n| n.spec.kind.as_str().to_owned()),
    column("PORTS", |n| n.ports.to_string()),
    column("NODES", |n| if n.nodes.is_empty() { "-".to_owned() } else { n.nodes.join(",") }),
    wide("IPV6", |n| output::dash(n.spec.ipv6)),
    wide("GATEWAY", |n| n.gateway.clone()),
    wide("MTU", |n| n.spec.mtu.to_string()),
    wide("VNI", |n| n.vni.to_string()),
    wide("CREATED", |n| n.created_at.clone()),
];

impl Network {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let client = context.client()?;
        let mut out = std::io::stdout();
        match self {
            Self::Create(create) => {
                let network = client.create_network(&create.spec()?).await?;
                writeln!(out, "{}", network.spec.name)?;
            }
            Self::Ls => output::list(context.output, &client.networks().await?, &COLUMNS)?,
            Self::Show { name } => show(context, &client.network(&name).await?)?,
            Self::Set(set) => {
                let name = set.name.clone();
                let network = client.change_network(&name, &set.patch()?).await?;
                writeln!(out, "{}", network.spec.name)?;
            }
            Self::Rm { names } => {
                for name in names {
                    client.remove_network(&name).await?;
                    writeln!(out, "{name}")?;
                }
            }
            Self::Capture(capture) => capture.run(&client).await?,
            Self::Trace(trace) => return trace.run(context, &client).await,
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(context: &Context, n: &ApiNetwork) -> Result<()> {
    let spec = &n.spec;
    let mut lines = vec![
        ("name", spec.name.to_string()),
        ("project", n.project.clone()),
        ("kind", spec.kind.as_str().to_owned()),
        ("cidr", spec.cidr.to_string()),
        ("gateway", n.gateway.clone()),
        ("ipv6", output::dash(spec.ipv6)),
        ("mtu", spec.mtu.to_string()),
        ("vni", n.vni.to_string()),
        ("ports", format!("{} of {}", n.ports, n.addresses)),
        ("nodes", if n.nodes.is_empty() { "-".to_owned() } else { n.nodes.join(", ") }),
    ];
    if !spec.resolvers.is_empty() {
        let resolvers: Vec<String> = spec.resolvers.iter().map(ToString::to_string).collect();
        lines.push(("resolvers", resolvers.join(", ")));
    }
    if !spec.routes.is_empty() {
        let routes = spec.routes.iter().map(|route| format!("{} by {}", route.to, route.via));
        lines.push(("routes", routes.collect::<Vec<_>>().join(", ")));
    }
    if let Some(interface) = &spec.interface {
        lines.push(("interface", interface.clone()));
    }
    if let Some(exit) = &spec.exit {
        lines.push(("exit", exit_text(exit)));
    }
    lines.push(("created", n.created_at.clone()));
    output::one(context.output, n, &lines)
}

impl Capture {
    async fn run(self, client: &skein_api::Client) -> Result<()> {
        let to_stdout = self.write == Path::new("-");
        if to_stdout && std::io::stdout().is_terminal() {
            bail!(
                "a capture is not text: write it to a file, or into a program such as tcpdump -r -"
            );
        }
        let mut capture = client.capture(&self.machine, self.time, self.snap).await?;
        let mut out: Box<dyn Write> = match to_stdout {
            true => Box::new(std::io::stdout()),
            false => {
                let file = std::fs::File::create(&self.write);
                Box::new(file.with_context(|| format!("creating {}", self.write.display()))?)
            }
        };
        let mut stop = super::up::Stop::new()?;
        let mut bytes = 0;
        loop {
            tokio::select! {
                () = stop.wait() => break,                // cancel-safe: signals are kept
                piece = capture.next() => match piece? {  // cancel-safe: as documented
                    Some(piece) => {
                        bytes += piece.len();
                        out.write_all(&piece)?;
                        out.flush()?;
                    }
                    None => break,
                },
            }
        }
        eprintln!("{bytes} bytes");
        Ok(())
    }
}

impl Trace {
    fn request(self) -> Result<TraceRequest> {
        let (at, named) = match self.destination.rsplit_once('/') {
            Some((at, name)) => {
                let named = protocol(name).map_err(|names| anyhow!("{name:?} is not {names}"))?;
                (at, Some(named))
            }
            None => (self.destination.as_str(), None),
        };
        let protocol = match (self.protocol, named) {
            (Some(one), Some(other)) if one != other => {
                bail!("the destination names one protocol and --protocol another")
            }
            (one, other) => one.or(other).unwrap_or(Protocol::Tcp),
        };
        let (destination, port) = match protocol.has_ports() {
            false => (at.to_owned(), None),
            true => match at.parse::<SocketAddr>() {
                Ok(at) => (at.ip().to_string(), Some(at.port())),
                Err(_) => {
                    let parts = at.rsplit_once(':');
                    let (host, port) = parts.context("the destination needs a port: HOST:PORT")?;
                    let port = port.parse().with_context(|| format!("{port:?} is not a port"))?;
                    (host.to_owned(), Some(port))
                }
            },
        };
        Ok(TraceRequest { source: self.source, destination, protocol, port })
    }

    /// Exit status 0 when the packet would arrive, 1 when not.
    async fn run(self, context: &Context, client: &skein_api::Client) -> Result<ExitCode> {
        let trace = client.trace(&self.request()?).await?;
        if context.output == output::Format::Json {
            output::one(context.output, &trace, &[])?;
        } else {
            tell(&trace)?;
        }
        Ok(if trace.arrives { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn tell(trace: &ApiTrace) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let width = trace.hops.iter().map(|hop| hop.place.len()).max().unwrap_or(0);
    for hop in &trace.hops {
        let rule = match (&hop.group, &hop.rule) {
            (Some(group), Some(rule)) => format!("  [group {group}, rule {rule}]"),
            _ => String::new(),
        };
        writeln!(out, "{:width$}  {}{rule}", hop.place, hop.what)?;
    }
    writeln!(out, "{}", if trace.arrives { "it arrives" } else { "it does not arrive" })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read() {
        let good = route("10.0.0.0/8=10.20.0.5").unwrap();
        assert_eq!(
            (good.to.to_string(), good.via.to_string()),
            ("10.0.0.0/8".into(), "10.20.0.5".into())
        );
        for bad in ["10.0.0.0/8", "10.0.0.1/8=10.20.0.5", "=10.20.0.5", "10.0.0.0/8=", ""] {
            assert!(route(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn destinations_are_read() {
        use Protocol::{Icmp, Tcp, Udp};
        type Read<'a> = Option<(&'a str, Option<u16>, Protocol)>;
        let check = |destination: &str, protocol: Option<Protocol>, expect: Read<'_>| {
            let trace =
                Trace { source: "web-1".to_owned(), destination: destination.to_owned(), protocol };
            let read = trace.request().ok().map(|r| (r.destination, r.port, r.protocol));
            let expect = expect.map(|(host, port, of)| (host.to_owned(), port, of));
            assert_eq!(read, expect, "{destination}");
        };
        check("web-2:80", None, Some(("web-2", Some(80), Tcp)));
        check("web-2:80/tcp", Some(Tcp), Some(("web-2", Some(80), Tcp)));
        check("10.0.0.1:53", Some(Udp), Some(("10.0.0.1", Some(53), Udp)));
        check("10.0.0.1:53/udp", None, Some(("10.0.0.1", Some(53), Udp)));
        check("[fd00::1]:80", None, Some(("fd00::1", Some(80), Tcp)));
        check("[fd00::1]:53/udp", None, Some(("fd00::1", Some(53), Udp)));
        check("10.0.0.1", Some(Icmp), Some(("10.0.0.1", None, Icmp)));
        check("web-2/icmp", None, Some(("web-2", None, Icmp)));
        check("web-2:53/udp", Some(Tcp), None);
        check("web-2:53/dns", None, None);
        check("web-2", None, None);
        check("web-2:http", None, None);
    }
}
