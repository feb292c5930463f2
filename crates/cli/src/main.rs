//! `skein`: the one binary. Server and agents (`skein up`), and every tool that talks to them.
//!
//! Only this crate reads flags, environment and files of the user. Data go to stdout, progress and errors to
//! stderr; exit status 0 ok, 1 error, 2 cannot be placed.

mod access;
mod commands;
mod image_build;
mod output;

use clap::{CommandFactory, Parser, Subcommand};
use skein_api::ClientError;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// A cloud of lightweight virtual machines.
#[derive(Parser)]
#[command(name = "skein", version, about, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

/// What every command knows.
#[derive(clap::Args)]
struct Context {
    #[command(flatten)]
    access: access::AccessArgs,
    /// Project that the command is about; that of the token, or `default`, unless given
    #[arg(
        long,
        global = true,
        env = "SKEIN_PROJECT",
        value_name = "NAME",
        help_heading = "Server"
    )]
    project: Option<String>,
    /// How to print the answer
    #[arg(short, long, global = true, value_enum, default_value = "table", value_name = "FORM")]
    output: output::Format,
    /// Folder of the cloud's state
    #[arg(
        long,
        global = true,
        env = "SKEIN_STATE",
        default_value = "/var/lib/skein",
        value_name = "DIR"
    )]
    state: PathBuf,
    /// What to log on stderr: error, warn, info, debug, or a filter such as skein_agent=debug
    #[arg(long, global = true, env = "SKEIN_LOG", default_value = "warn", value_name = "FILTER")]
    log: String,
}

impl Context {
    fn client(&self) -> anyhow::Result<skein_api::Client> {
        let client = skein_api::Client::new(self.access.target(&self.state)?);
        Ok(client.in_project(self.project.clone()))
    }
}

#[derive(Subcommand)]
enum Command {
    /// Run a cloud on this machine: server and nodes in one process, until Ctrl-C
    Up(commands::up::Up),
    /// Show what Skein does: a cloud, a service, a batch of queries
    Demo(commands::demo::Demo),
    /// Projects: tenants with networks, services and machines of their own
    #[command(subcommand)]
    Project(commands::project::Project),
    /// Networks: isolated segments of a project
    #[command(subcommand)]
    Network(commands::network::Network),
    /// Ports: the machines' plugs in their networks
    #[command(subcommand)]
    Port(commands::port::Port),
    /// Firewall: groups of rules that ports belong to
    #[command(subcommand)]
    Firewall(commands::firewall::Firewall),
    /// Nodes: the hosts that run machines
    #[command(subcommand)]
    Node(commands::node::Node),
    /// Images: what machines boot
    #[command(subcommand)]
    Image(commands::image::Image),
    /// Services: an image, a scaling policy and a queue
    #[command(subcommand)]
    Service(commands::service::Service),
    /// Jobs: units of work for a service
    #[command(subcommand)]
    Job(commands::job::Job),
    /// Call a service and print its answer
    Call(commands::job::Call),
    /// Machines
    #[command(subcommand)]
    Vm(commands::vm::Vm),
    /// List machines (short for `vm ls`)
    Ps(commands::vm::List),
    /// What happened
    Events(commands::events::Events),
    /// Measure, beside what you would pick instead
    Bench(commands::bench::Bench),
    /// Ask beforehand what a system would do
    #[command(subcommand)]
    Plan(commands::plan::Plan),
    /// The link: sockets between programs that skip TCP/IP where they can
    #[command(subcommand)]
    Link(commands::link::Link),
    /// Any request to the API
    Api(commands::api::Api),
    /// Print a completion script for your shell
    Completion {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // clap would exit with 2, which here means "cannot be placed".
            return ExitCode::from(u8::from(error.use_stderr()));
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.context.log);
    let filter = match filter {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: --log {}: {error}", cli.context.log);
            return ExitCode::FAILURE;
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: starting the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run(cli)).and_then(|code| {
        std::io::stdout().flush()?;
        Ok(code)
    });
    // Dropping the runtime would wait for a read of standard input that `vm console` left behind.
    runtime.shutdown_background();
    match ended {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

/// Prints an error with its causes, once each, and finds its exit status.
fn fail(error: &anyhow::Error) -> ExitCode {
    if error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
    }) {
        // Whoever read our output has seen enough.
        return ExitCode::SUCCESS;
    }
    eprintln!("error: {}", skein_shell::report::chain(error.as_ref()));
    let code = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()?.code());
    ExitCode::from(code.map_or(1, skein_api::Code::exit))
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let context = &cli.context;
    match cli.command {
        Command::Up(up) => up.run(context).await,
        Command::Demo(demo) => demo.run(context).await,
        Command::Project(project) => project.run(context).await,
        Command::Network(network) => network.run(context).await,
        Command::Port(port) => port.run(context).await,
        Command::Firewall(firewall) => firewall.run(context).await,
        Command::Node(node) => node.run(context).await,
        Command::Image(image) => image.run(context).await,
        Command::Service(service) => service.run(context).await,
        Command::Job(job) => job.run(context).await,
        Command::Call(call) => call.run(context).await,
        Command::Vm(vm) => vm.run(context).await,
        Command::Ps(list) => list.run(context).await,
        Command::Events(events) => events.run(context).await,
        Command::Bench(bench) => bench.run(context).await,
        Command::Plan(plan) => plan.run(context).await,
        Command::Link(link) => link.run(context).await,
        Command::Api(api) => api.run(context).await,
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skein", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clap would give a command's own flag the value of the global one, or panic over its type.
    #[test]
    fn no_command_has_a_flag_of_its_own_that_is_global() {
        fn walk(command: &clap::Command, global: &[String]) {
            for sub in command.get_subcommands() {
                for flag in sub.get_arguments() {
                    let id = flag.get_id().to_string();
                    assert!(!global.contains(&id), "{}: --{id}", sub.get_name());
                }
                walk(sub, global);
            }
        }
        let command = Cli::command();
        let global = command.get_arguments().filter(|flag| flag.is_global_set());
        let global: Vec<String> = global.map(|flag| flag.get_id().to_string()).collect();
        assert!(global.iter().any(|id| id == "token") && global.iter().any(|id| id == "state"));
        walk(&command, &global);
    }
}
