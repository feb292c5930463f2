//! `skein plan`: ask beforehand what a system would do. The planner is pure; files, progress and printing are here.

mod live;
mod policies;
mod progress;

use crate::output::Format;
use crate::{Context, commands};
use anyhow::{Context as _, Result, anyhow, bail};
use progress::with_progress;
use serde::Serialize;
use skein_planner::replay::{self, Scene};
use skein_planner::report::{self, Table};
use skein_planner::search::{Goal, Parameter, Vary, search};
use skein_planner::{
    ChainError, Comparison, Recording, Scenario, ScenarioError, SolveError, compare, experiments,
    replicate, simulate, verify,
};
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

/// Between two looks at the progress, and two frames of a replay: ten a second are smooth enough.
const FRAME: Duration = Duration::from_millis(100);

/// `skein plan ...`
#[derive(clap::Subcommand)]
pub(crate) enum Plan {
    /// Simulate a scenario
    Sim(Sim),
    /// Compute the same measures from the Markov chain of a scenario
    Solve(Solve),
    /// Simulate and compute, and with --live also run: side by side
    Compare(Compare),
    /// Compare scaling rules on a scenario
    Policies(policies::Policies),
    /// Find parameters that reach a goal
    Search(Search),
    /// Play a history again
    Replay(Replay),
    /// Write the chain of a scenario for PRISM and Storm
    Export(Export),
    /// Compute the validation tables and count the digits that agree
    Verify(Verify),
    /// Regenerate the experiments E1 to E7 into a folder
    Experiments(Experiments),
}

/// Simulate a scenario
#[derive(clap::Args)]
pub(crate) struct Sim {
    /// The scenario
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// Print comma-separated values, as `-o csv` does
    #[arg(long)]
    csv: bool,
    /// Write the history of the first replication, one event a line
    #[arg(long, value_name = "FILE")]
    history: Option<PathBuf>,
}

/// Compute the same measures from the Markov chain of a scenario
#[derive(clap::Args)]
pub(crate) struct Solve {
    /// The scenario
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// Means over so long from the empty start, instead of the long run
    #[arg(long, value_name = "TIME", value_parser = commands::duration)]
    over: Option<Duration>,
    /// Print comma-separated values, as `-o csv` does
    #[arg(long)]
    csv: bool,
}

/// Simulate and compute, and with --live also run: side by side
#[derive(clap::Args)]
pub(crate) struct Compare {
    /// The scenario
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// Print comma-separated values, as `-o csv` does
    #[arg(long)]
    csv: bool,
    /// Also the speed-up of a batch of requests over 1 to so many replicas of the first service
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=100))]
    speed_up: Option<u32>,
    /// Requests of the batch
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    requests: u32,
    #[command(flatten)]
    live: live::Live,
}

/// Find parameters that reach a goal
#[derive(clap::Args)]
pub(crate) struct Search {
    /// The scenario
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// What is varied, like nodes=2..40 or replicate_above=1..10
    #[arg(long, required = true, value_name = "PARAMETER=LOW..HIGH")]
    vary: Vec<Vary>,
    /// What shall hold of the first service, like 'refusal<1% && p99<2s'
    #[arg(long)]
    goal: Goal,
    /// What shall be least
    #[arg(long, value_name = "PARAMETER")]
    minimise: Parameter,
    /// Print comma-separated values, as `-o csv` does
    #[arg(long)]
    csv: bool,
    /// Write the scenario that was found
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

/// Play a history again
///
/// In the terminal: Enter pauses and continues, s and Enter make one step, + and - change the speed, q ends.
#[derive(clap::Args)]
pub(crate) struct Replay {
    /// The history: one event a line, as `plan sim --history` and `skein events -o json --since 0` write it
    history: PathBuf,
    /// Write one page for a browser instead
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Seconds of the history for one second
    #[arg(long, default_value = "1", value_name = "FACTOR")]
    speed: f64,
}

/// Write the chain of a scenario for PRISM and Storm
#[derive(clap::Args)]
pub(crate) struct Export {
    /// The scenario
    #[arg(value_name = "SCENARIO.toml")]
    scenario: PathBuf,
    /// Folder of the files: SERVICE.tra, .sta, .lab and .srew for PRISM, .drn for Storm, and .prism for both where PRISM's language can say it
    #[arg(long, value_name = "DIR")]
    prism: PathBuf,
}

/// Compute the validation tables and count the digits that agree
#[derive(clap::Args)]
pub(crate) struct Verify {
    /// Also the large published chains, up to 2.5 million states: takes minutes and 4 GiB of memory
    #[arg(long)]
    long: bool,
    /// Print comma-separated values, as `-o csv` does
    #[arg(long)]
    csv: bool,
}

/// Regenerate the experiments E1 to E7 into a folder
#[derive(clap::Args)]
pub(crate) struct Experiments {
    /// The folder: report.md, plots as SVG and PNG, tables and scenarios
    #[arg(long, value_name = "DIR", default_value = "experiments")]
    to: PathBuf,
    /// Factor on all simulated times
    #[arg(long, default_value = "1", value_name = "FACTOR")]
    duration: f64,
}

impl Plan {
    /// Does it.
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let format = context.output;
        match self {
            Self::Sim(it) => it.run(format).await,
            Self::Solve(it) => it.run(format).await,
            Self::Compare(it) => it.run(format).await,
            Self::Policies(it) => it.run(format).await,
            Self::Search(it) => it.run(format).await,
            Self::Replay(it) => it.run(),
            Self::Export(it) => it.run(),
            Self::Verify(it) => it.run(format).await,
            Self::Experiments(it) => it.run().await,
        }
    }
}

/// A scenario and the file that it is in.
struct ScenarioFile<'a> {
    file: &'a Path,
    text: String,
    scenario: Scenario,
}

impl<'a> ScenarioFile<'a> {
    /// Reads it; an error shows the line and the place in it.
    fn read(file: &'a Path) -> Result<Self> {
        let bytes = commands::read_input(file)?;
        let text = String::from_utf8(bytes);
        let text = text.with_context(|| format!("reading {}", file.display()))?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let beside = |name: &str| {
            std::fs::read_to_string(folder.join(name))
                .map_err(|error| format!("cannot be read: {error}"))
        };
        match Scenario::parse_with(&text, &beside) {
            Ok(scenario) => Ok(Self { file, text, scenario }),
            Err(error) => Err(shown(file, &error)),
        }
    }

    /// Why a service of it has no computed figures, with the line.
    fn unsolved(&self, error: SolveError) -> anyhow::Error {
        match error {
            SolveError::Chain { source: ChainError::Stopped, .. } => error.into(),
            error => shown(self.file, &error.in_text(&self.scenario, &self.text)),
        }
    }
}

fn read_scenario(file: &Path) -> Result<Scenario> {
    Ok(ScenarioFile::read(file)?.scenario)
}

/// What is wrong with a scenario, with the line and the place in it.
fn shown(file: &Path, error: &ScenarioError) -> anyhow::Error {
    anyhow!(
        "{}:{}:{}: {}\n  | {}\n  | {:>width$}",
        file.display(),
        error.line,
        error.column,
        error.message,
        error.source_line,
        "^",
        width = error.column
    )
}

fn write(file: &Path, text: &str) -> Result<()> {
    write_bytes(file, text.as_bytes())
}

fn write_bytes(file: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(file, bytes).with_context(|| format!("writing {}", file.display()))
}

/// Prints a table, also as comma-separated values, or the thing itself as JSON.
fn print(format: Format, csv: bool, whole: &impl Serialize, table: &Table) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match format {
        Format::Csv => write!(out, "{}", table.to_csv())?,
        _ if csv => write!(out, "{}", table.to_csv())?,
        Format::Json => writeln!(out, "{}", serde_json::to_string_pretty(whole)?)?,
        Format::Table | Format::Wide | Format::Name => write!(out, "{}", table.to_text())?,
    }
    Ok(())
}

impl Sim {
    async fn run(self, format: Format) -> Result<ExitCode> {
        let scenario = read_scenario(&self.scenario)?;
        if let Some(file) = &self.history {
            let recorded = replicate(&scenario, 0, Recording::On).history;
            write(file, &replay::to_lines(&recorded))?;
        }
        let duration = scenario.run.duration_secs;
        let outcome = with_progress(move |progress| simulate(&scenario, progress)).await?;
        let report = &outcome.value;
        // A cell of the statistics may be a hair shorter than its share.
        if outcome.stopped && report.simulated_secs < 0.999 * duration {
            eprintln!("of {duration:.0} s only {:.0} s were simulated", report.simulated_secs);
        }
        if !self.csv && !matches!(format, Format::Json | Format::Csv) {
            eprintln!(
                "{}: {} replications, {} events, {:.0} s cut off as warm-up, {} % intervals",
                report.scenario,
                report.replications,
                report.events,
                report.cut_secs,
                report.confidence * 100.0
            );
        }
        print(format, self.csv, report, &report::of_simulation(report))?;
        Ok(outcome.exit())
    }
}

impl Solve {
    async fn run(self, format: Format) -> Result<ExitCode> {
        let file = ScenarioFile::read(&self.scenario)?;
        let (scenario, over) = (file.scenario.clone(), self.over);
        let outcome = with_progress(move |progress| match over {
            None => skein_planner::solve(&scenario, progress),
            Some(over) => skein_planner::solve_over(&scenario, over.as_secs_f64(), progress),
        });
        let solved = outcome.await?.value.map_err(|error| file.unsolved(error))?;
        for service in &solved.services {
            let certificate = &service.solution.certificate;
            eprintln!(
                "{}: {} states, flow residual {:.0e}, last change {:.0e}",
                service.service, service.solution.states, certificate.residual, certificate.change
            );
            for what in &service.left_out {
                eprintln!("{}: the chain leaves out {what}", service.service);
            }
        }
        print(format, self.csv, &solved, &report::of_solution(&solved))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Compare {
    async fn run(self, format: Format) -> Result<ExitCode> {
        let mut scenario = read_scenario(&self.scenario)?;
        self.live.shorten(&mut scenario);
        let batches = self.speed_up.map(|replicas| (replicas, self.requests));
        let real = match self.live.wanted() {
            true => self.live.run(&scenario, batches).await?,
            false => live::Measured::default(),
        };
        if real.stopped_secs == Some(0.0) {
            eprintln!("stopped before anything was sent: nothing is known");
            return Ok(progress::exit(true));
        }
        if let Some(secs) = real.stopped_secs {
            eprintln!("stopped after {secs:.0} s: simulated and computed are as many");
            scenario.run.duration_secs = secs.max(1.0);
        }
        let (same, services) = (scenario.clone(), real.services);
        let outcome = with_progress(move |progress| compare(&same, &services, progress)).await?;
        let compared = &outcome.value;
        self.say_what_is_left_out(&scenario, compared, real.start_secs);
        let table = report::of_comparison(compared);
        let stopped = outcome.stopped || real.stopped_secs.is_some();
        // Of batches, those that were measured are known when the user ended it among them.
        let known = |(most, requests): (u32, u32)| match real.batches_stopped {
            true => (real.batches.len() as u32, requests),
            false => (most, requests),
        };
        let Some(batches) = batches.filter(|_| !stopped).map(known).filter(|it| it.0 > 0) else {
            print(format, self.csv, compared, &table)?;
            return Ok(progress::exit(stopped || real.batches_stopped));
        };
        let times = with_progress(move |_| {
            skein_planner::batch_times(&scenario, 0, batches, &real.batches)
        });
        let times = times.await?.value;
        if !self.csv && format == Format::Json {
            let both = serde_json::json!({ "comparison": compared, "speed_up": times });
            print(format, self.csv, &both, &table)?;
        } else {
            print(format, self.csv, compared, &table)?;
            println!();
            print(format, self.csv, &times, &report::of_batches(&times))?;
        }
        Ok(progress::exit(real.batches_stopped))
    }

    /// What chain and live run leave out, and how long machines took to start, on stderr.
    fn say_what_is_left_out(
        &self,
        scenario: &Scenario,
        compared: &Comparison,
        start_secs: Option<f64>,
    ) {
        match &compared.computation {
            Err(why) => eprintln!("nothing computed: {why}"),
            Ok(solved) => {
                if let Some(secs) = solved.over_secs {
                    eprintln!(
                        "computed over the first {secs:.0} s, because nothing is cut off as warm-up"
                    );
                }
                for service in &solved.services {
                    for what in &service.left_out {
                        eprintln!("{}: the chain leaves out {what}", service.service);
                    }
                }
            }
        }
        if self.live.wanted() {
            for what in skein_planner::left_out(scenario) {
                eprintln!("the live run leaves out {what}");
            }
            if let Some(secs) = start_secs {
                let said = scenario.services[0].start_secs.mean();
                eprintln!("machines were ready after {secs:.3} s; the scenario says {said:.3} s");
            }
        }
    }
}

impl Search {
    async fn run(self, format: Format) -> Result<ExitCode> {
        let Self { scenario, vary, goal, minimise, csv, to } = self;
        let scenario = read_scenario(&scenario)?;
        let found =
            with_progress(move |progress| search(&scenario, &vary, &goal, minimise, progress));
        let found = found.await?.value?;
        let mut table = Table::new(&["what", "value"]);
        for (parameter, value) in &found.point {
            table.row([parameter.to_string(), value.to_string()]);
        }
        for (measure, estimate) in &found.measures {
            let (mean, width) =
                (report::figure(estimate.mean), report::figure(estimate.half_width));
            table.row([measure.as_str().to_owned(), format!("{mean} ± {width}")]);
        }
        eprintln!(
            "{} points: {} sorted out by the chain, {} simulated",
            found.points, found.sorted_out, found.simulated
        );
        print(format, csv, &found, &table)?;
        if let Some(file) = to {
            write(&file, &found.scenario.to_toml())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Export {
    fn run(self) -> Result<ExitCode> {
        let source = ScenarioFile::read(&self.scenario)?;
        let scenario = &source.scenario;
        let folder = &self.prism;
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        for service in &scenario.services {
            let family = skein_planner::family_of(scenario, service);
            let (family, left_out) = family.map_err(|error| source.unsolved(error))?;
            for what in left_out {
                eprintln!("{}: the chain leaves out {what}", service.name);
            }
            let name = service.name.to_string();
            let unsolved =
                |error| source.unsolved(SolveError::Chain { service: name, source: error });
            let files = family.to_explicit().map_err(unsolved)?;
            let file = |ending: &str| folder.join(format!("{}.{ending}", service.name));
            write(&file("tra"), &files.transitions)?;
            write(&file("sta"), &files.states)?;
            write(&file("lab"), &files.labels)?;
            write(&file("srew"), &files.rewards)?;
            write(&file("drn"), &files.drn)?;
            if let Some(model) = family.to_prism() {
                write(&file("prism"), &model)?;
            }
            println!("{}", file("tra").display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Verify {
    async fn run(self, format: Format) -> Result<ExitCode> {
        let depth = if self.long { verify::Depth::Long } else { verify::Depth::Quick };
        let outcome = with_progress(move |progress| verify::verify(depth, progress)).await?;
        let checks = &outcome.value;
        let table = verify::to_table(checks);
        print(format, self.csv, &table, &table)?;
        let wrong = checks.iter().filter(|check| !check.holds()).count();
        eprintln!("{} figures, {wrong} wrong", checks.len());
        if wrong > 0 { Ok(ExitCode::FAILURE) } else { Ok(outcome.exit()) }
    }
}

impl Experiments {
    async fn run(self) -> Result<ExitCode> {
        let effort = experiments::Effort { duration: self.duration, ..Default::default() };
        if !(effort.duration > 0.0 && effort.duration <= 1000.0) {
            bail!("--duration {} must be above 0 and at most 1000", self.duration);
        }
        let outcome = with_progress(move |progress| experiments::run_all(effort, progress)).await?;
        let (all, folder) = (&outcome.value, &self.to);
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        write(&folder.join("report.md"), &experiments::to_markdown(all))?;
        for it in all {
            write(&folder.join(format!("{}.toml", it.id.to_lowercase())), it.scenario)?;
            for (number, (_, table)) in it.tables.iter().enumerate() {
                let name = format!("{}-{}.csv", it.id.to_lowercase(), number + 1);
                write(&folder.join(name), &table.to_csv())?;
            }
            for (name, plot) in &it.plots {
                write(&folder.join(format!("{name}.svg")), &plot.to_svg())?;
                write_bytes(&folder.join(format!("{name}.png")), &plot.to_png()?)?;
            }
            for finding in &it.findings {
                let holds = if finding.holds { "confirmed" } else { "not confirmed" };
                println!("{} {holds}: {} ({})", it.id, finding.claim, finding.figures);
            }
        }
        println!("{}", folder.join("report.md").display());
        Ok(outcome.exit())
    }
}

impl Replay {
    fn run(self) -> Result<ExitCode> {
        let bytes = commands::read_input(&self.history)?;
        let text = String::from_utf8(bytes).context("reading the history")?;
        let history = replay::parse(&text)?;
        if let Some(file) = &self.html {
            let title =
                self.history.file_name().map_or("history".into(), |name| name.to_string_lossy());
            write(file, &replay::to_html(&title, &history))?;
            return Ok(ExitCode::SUCCESS);
        }
        if !(self.speed > 0.0 && self.speed.is_finite()) {
            bail!("--speed {} must be above 0", self.speed);
        }
        play(&history, self.speed, &keys())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Lines that the user types.
fn keys() -> Receiver<String> {
    // 16: more than anybody types between two frames.
    let (to, from) = sync_channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if to.send(line).is_err() {
                return;
            }
        }
    });
    from
}

fn play(history: &[skein_model::Event], mut speed: f64, keys: &Receiver<String>) -> Result<()> {
    let (mut scene, mut next, mut plays) = (Scene::default(), 0, true);
    let mut clock = history.first().map_or(0.0, |event| event.at.as_micros() as f64);
    let terminal = std::io::stdout().is_terminal();
    while next < history.len() {
        let mut step = false;
        match keys.recv_timeout(FRAME) {
            Ok(line) => match line.trim() {
                "" => plays = !plays,
                "s" => (plays, step) = (false, true),
                "+" => speed *= 2.0,
                "-" => speed /= 2.0,
                "q" => return Ok(()),
                _ => {}
            },
            Err(RecvTimeoutError::Timeout) if plays => {
                clock += FRAME.as_secs_f64() * 1e6 * speed;
            }
            Err(RecvTimeoutError::Timeout) => continue,
            // Nobody types: it plays to its end, in its own time.
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(FRAME);
                clock += FRAME.as_secs_f64() * 1e6 * speed;
            }
        }
        if step {
            clock = clock.max(history[next].at.as_micros() as f64);
            scene.apply(&history[next]);
            next += 1;
        }
        while next < history.len() && !step && history[next].at.as_micros() as f64 <= clock {
            scene.apply(&history[next]);
            next += 1;
        }
        let mut out = std::io::stdout().lock();
        let clear = if terminal { "\x1b[H\x1b[2J" } else { "" };
        writeln!(out, "{clear}{}", scene.draw(terminal))?;
    }
    Ok(())
}
