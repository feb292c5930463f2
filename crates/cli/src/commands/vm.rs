//! `skein vm`, `skein ps`.

use crate::Context;
use crate::output::{self, column, dash, wide};
use anyhow::{Context as _, Result};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use skein_api::{Client, Machine};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use tokio::io::AsyncReadExt;

/// Ctrl-] leaves a console, as in telnet.
const ESCAPE: u8 = 0x1d;

/// Machines
#[derive(clap::Subcommand)]
pub(crate) enum Vm {
    /// List machines
    Ls(List),
    /// Show one machine
    Show {
        /// Id of the machine
        machine: String,
    },
    /// Print what a machine has written to its console
    Logs {
        /// Id of the machine
        machine: String,
        /// Go on as more is written
        #[arg(short, long)]
        follow: bool,
    },
    /// Attach to a machine's console; Ctrl-] leaves
    Console {
        /// Id of the machine
        machine: String,
    },
    /// Stop a machine: orderly, then hard
    Stop {
        /// Ids of machines
        #[arg(required = true)]
        machines: Vec<String>,
        /// Hard at once
        #[arg(long)]
        now: bool,
    },
}

/// List machines
#[derive(clap::Args)]
pub(crate) struct List {
    /// Also those that ended lately
    #[arg(short, long)]
    all: bool,
    /// Only those of a service
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Only those on a node
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
}

impl List {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let mut machines = context.client()?.machines(self.all).await?;
        machines.retain(|m| self.service.as_ref().is_none_or(|s| *s == m.service));
        machines.retain(|m| self.node.as_ref().is_none_or(|n| *n == m.node));
        output::list(
            context.output,
            &machines,
            &[
                column("ID", |m: &Machine| m.id.clone()),
                column("SERVICE", |m| m.service.clone()),
                column("NODE", |m| m.node.clone()),
                column("STATE", |m| m.state.as_str().to_owned()),
                column("CPU", |m| dash(m.cpu_used.map(|c| format!("{:.1} %", c * 100.0)))),
                column("RAM", |m| {
                    dash(m.memory_resident_mib.map(|r| format!("{r:.1}/{} MiB", m.memory_mib)))
                }),
                column("IP", |m| dash(m.ip.clone())),
                column("PORT", |m| m.port.to_string()),
                column("JOBS", |m| format!("{}/{}", m.in_service, m.capacity)),
                wide("GUEST RAM", |m| dash(m.memory_guest_mib.map(|r| format!("{r:.1} MiB")))),
                wide("BOOT", |m| dash(m.boot_us.map(|us| format!("{:.1} ms", us as f64 / 1e3)))),
                wide("START", |m| dash(m.start_us.map(|us| format!("{:.1} ms", us as f64 / 1e3)))),
                wide("CREATED", |m| m.created_at.clone()),
                wide("ENDED", |m| dash(m.exit.clone())),
                wide("WHY", |m| m.reason.clone()),
            ],
        )?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Vm {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        match self {
            Self::Ls(list) => return list.run(context).await,
            Self::Show { machine } => {
                let machine = context.client()?.machine(&machine).await?;
                show(context, &machine)?;
            }
            Self::Logs { machine, follow } => logs(&context.client()?, &machine, follow).await?,
            Self::Console { machine } => console(&context.client()?, &machine).await?,
            Self::Stop { machines, now } => {
                let client = context.client()?;
                for machine in machines {
                    let machine = client.stop_machine(&machine, now).await?;
                    writeln!(std::io::stdout(), "{}", machine.id)?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn show(context: &Context, m: &Machine) -> Result<()> {
    output::one(
        context.output,
        m,
        &[
            ("id", m.id.clone()),
            ("service", m.service.clone()),
            ("node", m.node.clone()),
            ("state", m.state.as_str().to_owned()),
            ("address", format!("{}:{}", dash(m.ip.clone()), m.port)),
            ("memory", format!("{} MiB", m.memory_mib)),
            ("resident", dash(m.memory_resident_mib.map(|r| format!("{r:.1} MiB")))),
            ("guest uses", dash(m.memory_guest_mib.map(|r| format!("{r:.1} MiB")))),
            ("cpu", dash(m.cpu_seconds.map(|c| format!("{c:.2} s")))),
            ("jobs", format!("{} of {} at a time", m.in_service, m.capacity)),
            ("requests", dash(m.requests)),
            ("boot", dash(m.boot_us.map(|us| format!("{:.1} ms", us as f64 / 1e3)))),
            ("start", dash(m.start_us.map(|us| format!("{:.1} ms", us as f64 / 1e3)))),
            ("created", m.created_at.clone()),
            ("why", m.reason.clone()),
            ("ended", dash(m.exit.clone())),
        ],
    )
}

async fn logs(client: &Client, machine: &str, follow: bool) -> Result<()> {
    if !follow {
        std::io::stdout().write_all(&client.machine_log(machine).await?)?;
        return Ok(());
    }
    let mut console = client.console(machine).await?;
    while let Some(bytes) = console.read().await? {
        let mut out = std::io::stdout().lock();
        out.write_all(&bytes)?;
        out.flush()?;
    }
    Ok(())
}

/// The terminal in raw mode, and back when dropped.
struct Raw(Option<rustix::termios::Termios>);

impl Raw {
    fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(&stdin).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).context("setting the terminal's mode")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

async fn console(client: &Client, machine: &str) -> Result<()> {
    let mut console = client.console(machine).await?;
    eprintln!("console of {machine}; Ctrl-] leaves");
    let raw = Raw::enter()?;
    let mut input = tokio::io::stdin();
    let mut buffer = [0; 256];
    let mut open = true;
    loop {
        tokio::select! {
            read = console.read() => match read? {             // cancel-safe: frames are whole
                None => break,
                Some(bytes) => {
                    let mut out = std::io::stdout().lock();
                    out.write_all(&bytes)?;
                    out.flush()?;
                }
            },
            count = input.read(&mut buffer), if open => {     // cancel-safe: tokio's stdin keeps what it read
                let typed = &buffer[..count?];
                open = !typed.is_empty();
                if typed.contains(&ESCAPE) {
                    break;
                }
                if open {
                    console.write(bytes::Bytes::copy_from_slice(typed)).await?;
                }
            }
        }
    }
    drop(raw);
    eprintln!();
    // A read of standard input may still be under way in the runtime; main does not wait for its key.
    Ok(())
}
