//! The light protocol between two hosts, beside TCP, TCP in VXLAN and page shipping, on the same wire.
//!
//! The hosts are network namespaces joined by a pair of virtual interfaces; the wire is a token bucket of 1 Gbit/s in each
//! direction, which counts a frame from its Ethernet header on. (On copper 24 bytes more pass for each frame: preamble,
//! check and gap. They are the same for everybody here, since all send full frames, and so is the ratio.) Ours and the
//! baselines run in turn, so that what else the machine does hits all of them.

mod light;
mod pages;
mod run;
mod tcp;

use super::LinkPart;
use super::ground::{Ground, Hosts, Link};
use super::peer::Traffic;
use crate::error::BenchError;
use crate::options::Progress;
use crate::report::{Baseline, Check, Goal};
use crate::stats::Sample;
use light::{By, Waits};
use run::Stream;
use skein_link::testbed::{Host, Testbed};
use std::io;
use std::time::Duration;

/// The wire, Mbit/s, and the bytes that may pass it at once.
const WIRE_MEGABITS: u32 = 1000;
const WIRE_BURST: u32 = 32 * 1024;
/// A bucket of one frame: each waits until the one before it has passed, as on a wire. The timer that opens the bucket costs
/// a quarter of the rate, for everybody; so only what depends on the spacing of frames is measured with it.
const FRAME_BURST: u32 = 1600;
/// How long a stream is counted.
const SPAN: Duration = Duration::from_secs(1);
/// How long those are whose difference is a few parts in a hundred: what lies in queues when it begins and when it ends is a
/// part in a hundred of a second, more or less.
const LONG_SPAN: Duration = Duration::from_secs(3);
/// A stream of programs where nothing limits: two seconds or four. It begins long enough before for the link to have chosen.
const FREE: Traffic = Traffic::Stream { write: 64 << 10, before: 2 << 30, bytes: 4 << 30 };
const FREE_LIMIT: Duration = Duration::from_secs(40);
/// Round trips of one run.
const PINGS: usize = 20_000;
/// Bytes of a burst: 43 full frames, four rounds of TCP's slow start from ten segments.
const BURST: usize = 64_000;
const BURSTS: usize = 100;
/// Pages under way in the second form of page shipping: 128 KiB.
const PAGES: usize = 32;
/// One frame in so many is lost.
const LOSS_ONE_IN: u32 = 1000;

/// Measures everything between two hosts, `rounds` times each. A part that fails is tried again in the next round; a check
/// without any figure tells the last problem of its part.
///
/// # Errors
/// Only [`BenchError::Interrupted`].
pub(super) fn measure(
    ground: &Ground<'_>,
    progress: Progress<'_>,
    wanted: &dyn Fn(LinkPart) -> bool,
) -> Result<Vec<Check>, BenchError> {
    let mut found = Found::default();
    let rounds = ground.count;
    if !PARTS.iter().any(|(part, ..)| wanted(*part)) {
        return Ok(Vec::new());
    }
    for round in 1..=rounds {
        if let Err(error) = found.round(ground, wanted) {
            ground.check_stop()?;
            found.problem = Some(super::chain(&BenchError::io("making two hosts")(error)));
            continue;
        }
        progress(&format!(
            "link.wire {round}/{rounds}: light {:.0}, TCP {:.0}, TCP in VXLAN {:.0} Mbit/s; unlimited: link {:.0}, TCP {:.0} Mbit/s",
            last(&found.light),
            last(&found.tcp),
            last(&found.vxlan),
            last(&found.free_link),
            last(&found.free_plain),
        ));
    }
    Ok(found.checks(wanted))
}

fn last(values: &[f64]) -> f64 {
    values.last().copied().unwrap_or_default()
}

#[derive(Default)]
struct Found {
    light: Vec<f64>,
    light_cpu: Vec<f64>,
    tcp: Vec<f64>,
    tcp_cpu: Vec<f64>,
    vxlan: Vec<f64>,
    light_spaced: Vec<f64>,
    pages: Vec<f64>,
    window_of_pages: Vec<f64>,
    lossy: Vec<f64>,
    lossy_tcp: Vec<f64>,
    shared: Vec<f64>,
    shared_tcp: Vec<f64>,
    burst: Vec<f64>,
    burst_tcp: Vec<f64>,
    ping: Vec<f64>,
    ping_tcp: Vec<f64>,
    free_link: Vec<f64>,
    free_plain: Vec<f64>,
    free_udp: Vec<f64>,
    free_udp_cpu: Vec<f64>,
    free_ethernet: Vec<f64>,
    free_tcp: Vec<f64>,
    free_tcp_cpu: Vec<f64>,
    /// What went wrong last.
    problem: Option<String>,
}

type Measure = fn(&mut Found, &Ground<'_>, &Testbed) -> io::Result<()>;

/// What a round measures, and the burst of its wire if that has a limit.
const PARTS: [(LinkPart, &str, Option<u32>, Measure); 8] = [
    (LinkPart::Unlimited, "programs on an unlimited wire", None, Found::programs),
    (LinkPart::Unlimited, "an unlimited wire", None, Found::unlimited),
    (LinkPart::Wire, "round trips", None, Found::pings),
    (LinkPart::Wire, "a wire of 1 Gbit/s", Some(WIRE_BURST), Found::wire),
    (LinkPart::Wire, "a wire frame by frame", Some(FRAME_BURST), Found::spaced),
    (LinkPart::Wire, "bursts", Some(FRAME_BURST), Found::bursts),
    (LinkPart::Wire, "a shared wire", Some(WIRE_BURST), Found::share),
    (LinkPart::Wire, "a lossy wire", Some(WIRE_BURST), Found::lossy),
];

impl Found {
    /// Measures everything once. An error is one of the hosts; what fails on them is noted.
    fn round(&mut self, ground: &Ground<'_>, wanted: &dyn Fn(LinkPart) -> bool) -> io::Result<()> {
        let bed = Testbed::new()?;
        for (_, what, burst, measure) in PARTS.into_iter().filter(|(part, ..)| wanted(*part)) {
            ground.check_stop().map_err(io::Error::other)?;
            if let Some(burst) = burst {
                bed.limit(WIRE_MEGABITS, burst)?;
            }
            if let Err(error) = measure(self, ground, &bed) {
                let error = BenchError::io(format!("measuring {what}"))(error);
                self.problem = Some(super::chain(&error));
            }
        }
        Ok(())
    }

    /// Programs, without a limit: the processor is what limits.
    fn programs(&mut self, ground: &Ground<'_>, bed: &Testbed) -> io::Result<()> {
        let rate = |found: &super::peer::Found| found.bytes as f64 * 8.0 / found.seconds / 1e6;
        let hosts = Hosts::new(bed).map_err(io::Error::other)?;
        let run = |link| ground.far_pair(&hosts, FREE, link, FREE_LIMIT).map_err(io::Error::other);
        let (link, tcp) =
            in_turn(|| Ok(rate(&run(Link::Ring)?)), || Ok(rate(&run(Link::Tcp)?)), mean)?;
        if hosts.light_bytes() == 0 {
            return Err(io::Error::other("the programs never took the light protocol"));
        }
        self.free_link.push(link);
        self.free_plain.push(tcp);
        Ok(())
    }

    /// The protocol alone, on the same wire.
    fn unlimited(&mut self, _: &Ground<'_>, bed: &Testbed) -> io::Result<()> {
        let light = run::light_stream(bed, By::Udp, SPAN)?;
        self.free_udp.push(light.megabits);
        self.free_udp_cpu.push(light.cpu_per_gigabyte);
        let tcp = run::tcp_stream(bed, Host::B.address(), SPAN)?;
        self.free_tcp.push(tcp.megabits);
        self.free_tcp_cpu.push(tcp.cpu_per_gigabyte);
        self.free_ethernet.push(run::light_stream(bed, By::Ethernet, SPAN)?.megabits);
        Ok(())
    }

    fn pings(&mut self, _: &Ground<'_>, bed: &Testbed) -> io::Result<()> {
        let light = run::light_ping(bed, By::Ethernet, Waits::Spinning, PINGS)?;
        self.ping.push(median_micros(light));
        let tcp = run::tcp_ping(bed, Waits::Spinning, PINGS)?;
        self.ping_tcp.push(median_micros(tcp));
        Ok(())
    }

    fn wire(&mut self, _: &Ground<'_>, bed: &Testbed) -> io::Result<()> {
        let (light, tcp) = in_turn(
            || run::light_stream(bed, By::Ethernet, LONG_SPAN),
            || run::tcp_stream(bed, Host::B.address(), LONG_SPAN),
            |first, second| Stream {
                megabits: mean(first.megabits, second.megabits),
                cpu_per_gigabyte: mean(first.cpu_per_gigabyte, second.cpu_per_gigabyte),
            },
        )?;
        self.light.push(light.megabits);
        self.light_cpu.push(light.cpu_per_gigabyte);
        self.tcp.push(tcp.megabits);
        self.tcp_cpu.push(tcp.cpu_per_gigabyte);
        bed.overlay()?;
        let vxlan = run::tcp_stream(bed, Host::B.overlay_address(), LONG_SPAN)?;
        self.vxlan.push(vxlan.megabits);
        Ok(())
    }

    /// What depends on the spacing of frames.
    fn spaced(&mut self, _: &Ground<'_>, bed: &Testbed) -> io::Result<()> {
        self.light_spaced.push(run::light_stream(bed, By::Ethernet, SPAN)?.megabits);
        self.pages.push(run::page_stream(bed, 1, SPAN)?.megabits);
        self.window_of_pages.push(run::page_stream(bed, PAGES, SPAN)?.megabits);
        Ok(())
    }

    fn bursts(&mut self, _: &Ground<'_>, bed: &Testbed) -> io::Result<()> {
        self.burst.push(median_micros(run::light_bursts(bed, BURST, BURSTS)?));
        self.burst_tcp.push(median_micros(run::tcp_bursts(bed, BURST, BURSTS)?));
        Ok(())
    }

    fn share(&mut self, _: &Ground<'_>, bed: &Testbed) -> io::Result<()> {
        let (light, tcp) = run::together(bed, By::Ethernet, SPAN * 2)?;
        self.shared.push(light.megabits);
        self.shared_tcp.push(tcp.megabits);
        Ok(())
    }

    fn lossy(&mut self, _: &Ground<'_>, bed: &Testbed) -> io::Result<()> {
        bed.lose(LOSS_ONE_IN)?;
        self.lossy.push(run::light_stream(bed, By::Ethernet, SPAN)?.megabits);
        self.lossy_tcp.push(run::tcp_stream(bed, Host::B.address(), SPAN)?.megabits);
        Ok(())
    }

    fn checks(self, wanted: &dyn Fn(LinkPart) -> bool) -> Vec<Check> {
        let problem = self.problem.unwrap_or_else(|| "nothing was measured".to_owned());
        let check = |id, unit, ours: &[f64], name, baseline: &[f64], about| {
            if ours.is_empty() || baseline.is_empty() {
                return Check::without_figure(id, unit, about, problem.clone());
            }
            let sample = |values: &[f64]| Sample::new(values.iter().copied());
            Check::new(id, unit, sample(ours), about)
                .beside(Baseline { name, sample: sample(baseline) })
        };
        let turns = |id, unit, ours: &[f64], name, baseline: &[f64], about| {
            let made: Check = check(id, unit, ours, name, baseline, about);
            if made.problem.is_some() {
                return made;
            }
            let ratios = ours.iter().zip(baseline).map(|(ours, baseline)| ours / baseline);
            let sample = Sample::new(baseline.iter().copied());
            made.beside_in_turn(Baseline { name, sample }, &Sample::new(ratios))
        };
        let at_least = Goal::RatioAtLeast;
        let rate = "Mbit/s";
        let wire = vec![
            turns("link.wire_goodput", rate, &self.light, "TCP", &self.tcp, GOODPUT)
                .with_goal(at_least(1.024)),
            check("link.wire_vxlan", rate, &self.light, "TCP in VXLAN", &self.vxlan, VXLAN)
                .with_goal(at_least(1.05)),
            check(
                "link.wire_pages",
                rate,
                &self.light_spaced,
                "page by page",
                &self.pages,
                ONE_PAGE,
            )
            .with_goal(at_least(1.079)),
            check(
                "link.wire_pages_windowed",
                rate,
                &self.light_spaced,
                "32 pages",
                &self.window_of_pages,
                PAGES_ABOUT,
            ),
            check("link.wire_burst", "us", &self.burst, "TCP", &self.burst_tcp, BURST_ABOUT)
                .with_goal(Goal::RatioAtMost(1.0)),
            check("link.wire_loss", rate, &self.lossy, "light, no loss", &self.light, LOSS_ABOUT)
                .with_goal(at_least(0.9)),
            check(
                "link.wire_loss_tcp",
                rate,
                &self.lossy,
                "TCP, same loss",
                &self.lossy_tcp,
                LOSS_TCP,
            ),
            check("link.wire_share", rate, &self.shared, "TCP beside it", &self.shared_tcp, SHARE),
            check("link.wire_rtt", "us", &self.ping, "TCP", &self.ping_tcp, RTT)
                .with_goal(Goal::RatioAtMost(0.7)),
            check("link.wire_cpu", "s/GB", &self.light_cpu, "TCP", &self.tcp_cpu, CPU),
        ];
        let unlimited = vec![
            turns(
                "link.unlimited",
                rate,
                &self.free_link,
                "plain TCP",
                &self.free_plain,
                UNLIMITED,
            )
            .with_goal(at_least(1.0)),
            check("link.unlimited_udp", rate, &self.free_udp, "TCP", &self.free_tcp, FREE_UDP),
            check("link.unlimited_cpu", "s/GB", &self.free_udp_cpu, "TCP", &self.free_tcp_cpu, CPU),
            check(
                "link.unlimited_ethernet",
                rate,
                &self.free_ethernet,
                "TCP",
                &self.free_tcp,
                FREE_ETHERNET,
            ),
        ];
        let parts = [(LinkPart::Wire, wire), (LinkPart::Unlimited, unlimited)];
        parts.into_iter().filter(|(part, _)| wanted(*part)).flat_map(|(_, checks)| checks).collect()
    }
}

/// Theirs, ours, ours, theirs: what makes a host slower or faster all the while is the same for both. What `both` makes of the two of
/// ours, and of the two of theirs.
fn in_turn<T>(
    ours: impl Fn() -> io::Result<T>,
    theirs: impl Fn() -> io::Result<T>,
    both: impl Fn(T, T) -> T,
) -> io::Result<(T, T)> {
    let before = theirs()?;
    let ours = both(ours()?, ours()?);
    Ok((ours, both(before, theirs()?)))
}

fn mean(first: f64, second: f64) -> f64 {
    f64::midpoint(first, second)
}

fn median_micros(times: Vec<Duration>) -> f64 {
    Sample::new(times.into_iter().map(|time| time.as_secs_f64() * 1e6)).median()
}

const GOODPUT: &str = "One stream over a wire of 1 Gbit/s, straight on Ethernet, beside one TCP connection with the \
    system's defaults on the same wire. Fourteen header bytes leave at most 2.62 % (docs/link.md). TCP, light, light, TCP make a turn; the ratio is the median of those of the turns.";
const VXLAN: &str = "The same beside TCP between the same hosts inside VXLAN, which is what machines of two hosts use \
    without the link.";
const ONE_PAGE: &str = "One stream through a bucket of one frame, so that frames are spaced as on a wire, beside pages of 4 KiB, each a train of three frames and acknowledged before the next is \
    sent, with our header and carrier.";
const PAGES_ABOUT: &str = "The same beside 32 such pages under way at a time. A page of 4096 bytes does not fill its \
    third frame.";
const BURST_ABOUT: &str = "64,000 bytes over a fresh channel through a bucket of one frame, from the first write to the answer that all came. Beside \
    it: the same over a fresh TCP connection, counted after its handshake.";
const LOSS_ABOUT: &str = "The stream with one frame in 1,000 lost at random in both directions, beside the same without \
    loss.";
const LOSS_TCP: &str = "The same beside TCP with the same loss.";
const SHARE: &str =
    "A light stream and a TCP connection through the same bucket at the same time: who gets what.";
const RTT: &str = "64 bytes there and back straight on Ethernet, both ends looking without sleep; an end is one thread that \
    runs protocol and program. Beside it: non-blocking TCP, both ends looking without sleep.";
const CPU: &str = "Processor time of the whole machine for a gigabyte; on a machine that does other things as well, theirs \
    is in it.";
const UNLIMITED: &str = "One stream between two programs on two hosts, over the same interfaces without a limit, after 2 GiB that do not \
    count: the link measures the light protocol and TCP with the program's own bytes, and takes what brings more. Beside it: \
    the same programs without the link, on TCP with its offloads, before and after. The ratio is the median of those of the turns.";
const FREE_UDP: &str = "One stream of the protocol alone, in UDP with segmentation offload, which the node chooses here. Beside it: \
    TCP with its offloads, between the same two threads.";
const FREE_ETHERNET: &str = "The same straight on Ethernet: why the node does not choose it here.";
