//! Streams of writes of many sizes, at several intervals, as netperf sends them.

use super::ground::{Ground, Link};
use super::peer::Traffic;
use super::{Outcome, chain};
use crate::error::BenchError;
use crate::options::Progress;
use crate::report::{Check, Curve, Plot};
use std::time::Duration;

/// Bytes of a write.
const SIZES: [usize; 7] = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10];
/// Microseconds from one write to the next.
const INTERVALS_US: [u32; 3] = [0, 20, 200];
/// Of one run.
const SPAN_MILLIS: u32 = 250;
const LIMIT: Duration = Duration::from_secs(10);

pub(super) fn measure(
    ground: &Ground<'_>,
    progress: Progress<'_>,
    outcome: &mut Outcome,
) -> Result<(), BenchError> {
    let (mut rates, mut costs) = (Vec::new(), Vec::new());
    for interval_us in INTERVALS_US {
        progress(&format!("link: one host, a write every {interval_us} us"));
        for (link, name) in [(Link::Ring, "link"), (Link::Tcp, "TCP")] {
            let name = format!("{name}, every {interval_us} us");
            match curves(ground, interval_us, link) {
                Ok([rate, cost]) => {
                    rates.push(Curve { name: name.clone(), points: rate });
                    costs.push(Curve { name, points: cost });
                }
                Err(error) => {
                    ground.check_stop()?;
                    let problem = format!("{name}: {}", chain(&error));
                    outcome.checks.push(Check::without_figure(ID, "MB/s", ABOUT, problem));
                }
            }
        }
    }
    let x = "bytes of a write";
    let plot = |id, y, curves, about| Plot { id, about, x, y, curves };
    outcome.plots.push(plot(ID, "MB/s", rates, ABOUT));
    outcome.plots.push(plot("link.sweep_cpu", "CPU s/GB", costs, ABOUT_CPU));
    Ok(())
}

type Points = Vec<(f64, f64)>;

/// Rates, and processor time, over the sizes.
fn curves(ground: &Ground<'_>, interval_us: u32, link: Link) -> Result<[Points; 2], BenchError> {
    let mut points = [Vec::new(), Vec::new()];
    for write in SIZES {
        let traffic = Traffic::Paced { write, interval_us, millis: SPAN_MILLIS };
        let found = ground.pair(traffic, link, LIMIT)?;
        let bytes = found.bytes as f64;
        points[0].push((write as f64, bytes / found.seconds / 1e6));
        points[1].push((write as f64, found.cpu_seconds / (bytes / 1e9)));
    }
    Ok(points)
}

const ID: &str = "link.sweep";
const ABOUT: &str = "A quarter of a second of writes of one size, at one interval, from one program to another on this \
    host; until all have been read.";
const ABOUT_CPU: &str = "Processor time of both programs for a gigabyte of the same. A sender that waits for its time looks at \
    the clock.";
