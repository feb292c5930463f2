//! `skein bench`.

use crate::commands::up::Stop;
use crate::image_build::Bundle;
use crate::{Context, output};
use anyhow::Result;
use camino::Utf8PathBuf;
use skein_bench::{Bench as Which, BenchImage, ImageModule, Options, Report};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure, beside what you would pick instead
///
/// Starts a cloud in a folder of its own below /var/tmp, measures, and leaves nothing behind. Needs root, and the image of a service
/// that answers POST / (`skein image build guest/services/echo --to target/images/echo`). Exit status 1 when a goal is not
/// reached. Figures of a busy machine say little: compare ratios.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// start: how fast machines start; density: how many a host holds; dispatch: how fast jobs go through; net: how fast machines talk; all: these, and a report
    #[arg(value_name = "NAME")]
    name: Name,
    /// Print JSON (as -o json does)
    #[arg(long)]
    json: bool,
    /// How many measurements: starts, machines, sequential jobs
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
    All,
}

impl Name {
    fn benches(self) -> &'static [Which] {
        match self {
            Self::Start => &[Which::Start],
            Self::Density => &[Which::Density],
            Self::Dispatch => &[Which::Dispatch],
            Self::Net => &[Which::Net],
            Self::All => &Which::ALL,
        }
    }
}

impl Bench {
    pub(crate) async fn run(self, context: &Context) -> Result<ExitCode> {
        let options = Options {
            image: image(Bundle::read(&self.image)?),
            count: self.count,
            accel: self.accel.unwrap_or_default(),
            qemu: self.qemu.clone(),
        };
        let json = self.json || context.output == output::Format::Json;
        let mut stop = Stop::new()?;
        let mut reports = Vec::new();
        for &bench in self.name.benches() {
            let report =
                skein_bench::run(bench, &options, stop.wait(), &|line| eprintln!("{line}")).await?;
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

    /// One object for one bench, a list for all.
    fn json(&self, reports: &[Report]) -> Result<String> {
        Ok(match (self.name, reports) {
            (Name::Start | Name::Density | Name::Dispatch, [report]) => {
                serde_json::to_string_pretty(report)?
            }
            _ => serde_json::to_string_pretty(reports)?,
        })
    }
}

fn image(bundle: Bundle) -> BenchImage {
    let Bundle { name: _, kernel, modules, memory_mib, capacity, port } = bundle;
    let module = |(path, file)| ImageModule { path, file };
    let modules = modules.into_iter().map(module).collect();
    BenchImage { kernel, modules, memory_mib, capacity, port }
}
