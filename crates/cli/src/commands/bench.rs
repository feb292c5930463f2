//! `skein bench`.

use crate::commands::up::Stop;
use crate::image_build::Bundle;
use crate::{Context, output};
use anyhow::{Context as _, Result};
use camino::Utf8PathBuf;
use skein_bench::{Bench as Which, BenchImage, ImageModule, Options, PlanOptions, Report};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure, beside what you would pick instead
///
/// Measures in a cloud or network of its own, in a folder below /var/tmp, and leaves nothing behind. All but `plan` need root; all
/// but `plan`, `net` and `link` need the image of a service that answers POST /
/// (`skein image build guest/services/echo --to target/images/echo`). Exit status 1 when a goal is not reached. Figures of a
/// busy machine say little: compare ratios.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// start: how fast machines start; density: how many a host holds; dispatch: how fast jobs go through; net: how fast
    /// machines talk, and networks change (no image); plan: how fast the planner simulates and solves (no root, no image); link: how fast
    /// programs talk on the link (no image); all: these, and
    /// a report
    #[arg(value_name = "NAME")]
    name: Name,
    /// Print JSON (as -o json does)
    #[arg(long)]
    json: bool,
    /// How many measurements: starts, machines, sequential jobs, runs of the planner
    #[arg(short = 'n', value_name = "COUNT")]
    count: Option<u32>,
    /// Folder of the image, as `skein image build --to` writes it
    #[arg(long, value_name = "DIR", default_value = "target/images/echo")]
    image: PathBuf,
    /// Where `bench all` writes its report: report.md, BENCH.json, CHECK.svg
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    report: PathBuf,
    /// Who runs the guests' instructions; KVM is tried unless given
    #[arg(long, value_parser = crate::commands::up::accel, value_name = "kvm|tcg")]
    accel: Option<skein_vmm::AccelChoice>,
    /// QEMU's program
    #[arg(long, value_name = "PROGRAM")]
    qemu: Option<Utf8PathBuf>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Name {
    Start,
    Density,
    Dispatch,
    Net,
    Plan,
    Link,
    All,
}

impl Name {
    fn benches(self) -> &'static [Which] {
        match self {
            Self::Start => &[Which::Start],
            Self::Density => &[Which::Density],
            Self::Dispatch => &[Which::Dispatch],
            Self::Net => &[Which::Net],
            Self::Plan => &[Which::Plan],
            Self::Link => &[Which::Link],
            Self::All => &Which::ALL,
        }
    }
}

impl Bench {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let json = self.json || context.output == output::Format::Json;
        let mut stop = Stop::new()?;
        let mut reports = Vec::new();
        for &bench in self.name.benches() {
            let progress = |line: &str| eprintln!("{line}");
            let report = match bench {
                Which::Plan => {
                    let options = PlanOptions { count: self.count, cache: cache()? };
                    skein_bench::run_plan(&options, stop.wait(), &progress).await?
                }
                Which::Link => super::link::bench(self.count, Vec::new(), &mut stop).await?,
                Which::Net => skein_bench::run_net(self.count, stop.wait(), &progress).await?,
                Which::Start | Which::Density | Which::Dispatch => {
                    skein_bench::run(bench, &self.options()?, stop.wait(), &progress).await?
                }
            };
            if !json {
                writeln!(std::io::stdout(), "{}", skein_bench::table(&report))?;
            }
            reports.push(report);
        }
        if json {
            writeln!(std::io::stdout(), "{}", self.json(&reports)?)?;
        }
        if matches!(self.name, Name::All) {
            skein_bench::write_folder(&self.report, &reports)?;
            eprintln!("report in {}", self.report.join("report.md").display());
        }
        let good = reports.iter().all(Report::holds);
        Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn options(&self) -> Result<Options> {
        Ok(Options {
            image: image(Bundle::read(&self.image)?),
            count: self.count,
            accel: self.accel.unwrap_or_default(),
            qemu: self.qemu.clone(),
        })
    }

    /// One object for one bench, a list for all.
    fn json(&self, reports: &[Report]) -> Result<String> {
        Ok(match reports {
            [report] if !matches!(self.name, Name::All) => serde_json::to_string_pretty(report)?,
            _ => serde_json::to_string_pretty(reports)?,
        })
    }
}

/// Where things that can be made again are kept.
fn cache() -> Result<PathBuf> {
    let home =
        home::home_dir().context("there is no home folder to keep the peers of the bench in")?;
    let cache = home.join(".cache/skein");
    std::fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    Ok(cache)
}

fn image(bundle: Bundle) -> BenchImage {
    let Bundle { name: _, kernel, modules, memory_mib, capacity, port } = bundle;
    let module = |(path, file)| ImageModule { path, file };
    let modules = modules.into_iter().map(module).collect();
    BenchImage { kernel, modules, memory_mib, capacity, port }
}
