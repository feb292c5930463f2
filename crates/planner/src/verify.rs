//! The validation tables: closed forms and published figures, and how many digits of ours agree.

use crate::chain::{Bound, Chain, ChainError, Family, Replicas, Rule, transient};
use crate::models::{self, Embedded, Mainframe};
use crate::progress::Progress;
use crate::report::Table;
use crate::scenario::{FailureLoses, QueueCounts, Repair};
use crate::sim::Measure;

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Which model.
    pub model: String,
    /// Which figure of it.
    pub figure: String,
    /// What it shall be.
    pub expected: f64,
    /// What it is; not a number when there was no certified answer.
    pub is: f64,
    /// Digits of what is published: more cannot agree.
    pub published: u32,
}

impl Check {
    /// Decimal digits that agree, at most 16.
    pub fn digits(&self) -> u32 {
        let off = (self.is / self.expected - 1.0).abs();
        match off {
            off if off.is_nan() => 0,
            0.0 => 16,
            off => (-off.log10()).floor().clamp(0.0, 16.0) as u32,
        }
    }

    /// Whether all digits that are published agree, up to the last one, which may be rounded.
    pub fn holds(&self) -> bool {
        self.digits() + 1 >= self.published.min(10)
    }
}

/// How much is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// What takes some ten seconds.
    Quick,
    /// Also the large published chains, up to 2.5 million states: minutes, and 4 GiB of memory.
    Long,
}

/// Computes all tables, as far as they come before somebody wishes the end.
pub fn verify(depth: Depth, progress: &Progress) -> Vec<Check> {
    let mut checks = vec![];
    closed_forms(&mut checks);
    migrating_services(&mut checks);
    thresholds(&mut checks);
    transients(&mut checks);
    published(depth, progress, &mut checks);
    checks
}

/// The checks as a table.
pub fn to_table(checks: &[Check]) -> Table {
    let mut table = Table::new(&["model", "figure", "expected", "is", "digits", "holds"]);
    for check in checks {
        table.row([
            check.model.clone(),
            check.figure.clone(),
            format!("{:e}", check.expected),
            format!("{:e}", check.is),
            check.digits().to_string(),
            if check.holds() { "yes" } else { "NO" }.to_owned(),
        ]);
    }
    table
}

fn family(n: u32, l: u32, rates: [f64; 4], replicas: Replicas, loses: FailureLoses) -> Family {
    let [arrival, service, failure, repair] = rates;
    Family {
        nodes: n,
        queue: l,
        bound: Bound::Each,
        counts: QueueCounts::Waiting,
        capacity: 1,
        arrival,
        service,
        failure,
        repair,
        crew: Repair::PerNode,
        loses,
        replicas,
    }
}

fn add(
    checks: &mut Vec<Check>,
    model: &str,
    family: &Family,
    published: u32,
    expect: &[(Measure, f64)],
) {
    let solution = family.solve().ok();
    for (measure, expected) in expect {
        checks.push(Check {
            model: model.to_owned(),
            figure: measure.as_str().to_owned(),
            expected: *expected,
            is: solution.as_ref().map_or(f64::NAN, |it| it.get(*measure)),
            published,
        });
    }
}

fn closed_forms(checks: &mut Vec<Check>) {
    for (lambda, mu, c, k, refusal, throughput, l, w) in [
        (1.5, 3.0, 1, 3, 1.0 / 15.0, 1.4, 11.0 / 15.0, 0.523809523810),
        (0.8, 1.0, 1, 10, 0.023492857580, 0.781205713936, 2.966314266484, 3.797097503983),
        (40.0, 30.0, 3, 7, 0.003931315239, 39.842747390441, 1.454937922939, 0.036517007943),
        (50.0, 10.0, 4, 6, 0.293542993481, 35.322850325950, 4.354205414342, 0.123268801191),
        (4.0, 1.0, 5, 20, 0.003960999701, 3.984156001197, 5.918843676156, 1.485595361823),
    ] {
        let rates = [lambda, mu, 0.0, 1.0];
        let mut queue = family(c, k - c, rates, Replicas::EveryNode, FailureLoses::Nothing);
        queue.bound = Bound::All;
        let expect = [
            (Measure::Refusal, refusal),
            (Measure::Throughput, throughput),
            (Measure::InSystem, l),
            (Measure::TimeInSystem, w),
        ];
        add(checks, &format!("M/M/{c}/{k} {lambda} {mu}"), &queue, 10, &expect);
    }
    for (lambda, mu, fails, repairs, l) in
        [(0.5, 1.0, 0.05, 0.5, 1.424242424242424), (0.3, 1.0, 0.1, 0.2, 1.727272727272727)]
    {
        let rates = [lambda, mu, fails, repairs];
        let mut queue = family(1, 3000, rates, Replicas::EveryNode, FailureLoses::Nothing);
        queue.bound = Bound::All;
        let model = format!("M/M/1 with breakdowns {fails} {repairs}");
        add(checks, &model, &queue, 10, &[(Measure::InSystem, l)]);
    }
}

fn migrating_services(checks: &mut Vec<Check>) {
    use FailureLoses::{Held, InService, Overflow};
    let (a, b) = (Replicas::EveryNode, Replicas::WhenFull);
    let table = [
        (
            2,
            3,
            [1.5, 1.0, 0.05, 0.5],
            &a,
            Overflow,
            "A/L1",
            [
                0.0761555559334525,
                0.0326897226534342,
                1.33673208211967,
                1.81818181818182,
                1.12329396688264,
            ],
        ),
        (
            3,
            2,
            [2.0, 1.0, 0.01, 0.1],
            &a,
            InService,
            "A/L2",
            [
                0.0502963158839360,
                0.0109140926451395,
                1.87757918294185,
                2.72727272727273,
                0.840370294596145,
            ],
        ),
        (
            3,
            2,
            [2.0, 1.0, 0.01, 0.1],
            &b,
            Held,
            "B/L3",
            [
                0.0869264490334995,
                0.0222735390591184,
                1.78160002381476,
                1.80754451816999,
                2.67310778800891,
            ],
        ),
        (
            5,
            3,
            [4.0, 1.0, 0.01, 0.1],
            &a,
            InService,
            "A/L2",
            [
                0.0306304141641745,
                0.0111485559044981,
                3.83288411972531,
                4.54545454545455,
                3.00458270310423,
            ],
        ),
        (
            5,
            3,
            [4.0, 1.0, 0.01, 0.1],
            &b,
            Held,
            "B/L3",
            [
                0.0774785307935634,
                0.0321906978705028,
                3.56132308534373,
                3.56136586837828,
                9.31495606285738,
            ],
        ),
        (
            10,
            10,
            [8.0, 1.0, 0.01, 0.1],
            &a,
            Held,
            "A/L3",
            [
                4.42083247216804e-05,
                0.0161858182872749,
                7.87015978710402,
                9.09090909090910,
                5.07849484271586,
            ],
        ),
    ];
    let measures = [
        Measure::Refusal,
        Measure::Loss,
        Measure::Throughput,
        Measure::Replicas,
        Measure::QueueLength,
    ];
    for (n, l, rates, replicas, loses, name, expect) in table {
        let expect: Vec<_> = measures.into_iter().zip(expect).collect();
        let it = family(n, l, rates, replicas.clone(), loses);
        add(checks, &format!("migrating service {name} n={n} l={l}"), &it, 14, &expect);
    }
    let stiff = family(20, 10, [12.0, 1.0, 1e-6, 1e-3], a, Held);
    let expect =
        [(Measure::Refusal, 3.581118458e-22), (Measure::LostRate, 1.203_696_339_968_51e-5)];
    add(checks, "rare failures A/L3 n=20 l=10", &stiff, 10, &expect);
    let stiff = family(50, 20, [40.0, 1.0, 1e-6, 1e-4], b, Held);
    let expect = [(Measure::Throughput, 39.99916987945), (Measure::LostRate, 8.30004017694e-4)];
    add(checks, "rare failures B/L3 n=50 l=20", &stiff, 10, &expect);
}

fn thresholds(checks: &mut Vec<Check>) {
    for (lambda, up, down, cap, expect) in [
        (2.0, vec![4, 8], vec![1, 4], 12, [2.004044407182, 5.011672021361, 0.127482315881]),
        (0.7, vec![5], vec![2], 10, [1.049927971490, 1.492211343846, 0.016258942101]),
        (
            3.5,
            vec![3, 6, 9, 12],
            vec![0, 3, 6, 9],
            20,
            [3.501483827913, 8.258200312264, 0.268729961553],
        ),
    ] {
        let max = up.len() as u32 + 1;
        let model = format!("thresholds {up:?} {down:?}");
        let rule = Rule::Lists { up, down };
        let replicas = Replicas::Policy { rule, min: 1, max, start: None, each: 1 };
        let mut it = family(max, cap, [lambda, 1.0, 0.0, 1.0], replicas, FailureLoses::Nothing);
        (it.bound, it.counts) = (Bound::All, QueueCounts::InSystem);
        let measures = [Measure::Replicas, Measure::InSystem];
        let mut expected: Vec<_> = measures.into_iter().zip(expect).collect();
        expected.push((Measure::ReplicationRate, expect[2] * 3600.0));
        add(checks, &model, &it, 10, &expected);
    }
}

/// A published figure and how it is computed.
struct Published {
    model: String,
    figure: &'static str,
    digits: u32,
    expected: f64,
    answer: Box<dyn Fn(&Progress) -> Answer>,
}

/// States and figure of a published model.
type Answer = Result<(usize, f64), ChainError>;

fn published(depth: Depth, progress: &Progress, checks: &mut Vec<Check>) {
    let mut all = queues();
    all.extend(productions());
    all.extend(failing());
    if depth == Depth::Long {
        all.extend(long());
    }
    progress.expect(all.len() as u64);
    for it in all {
        let answer = (it.answer)(progress);
        if answer == Err(ChainError::Stopped) || progress.is_stopped() {
            return;
        }
        progress.advance(1);
        checks.push(Check {
            model: it.model,
            figure: it.figure.to_owned(),
            expected: it.expected,
            is: answer.map_or(f64::NAN, |(_, is)| is),
            published: it.digits,
        });
    }
}

/// One row for each size of a model.
fn rows<N: Copy + 'static>(
    (model, figure, digits): (impl Fn(N) -> String, &'static str, u32),
    table: &[(N, f64)],
    answer: impl Fn(N, &Progress) -> Answer + Copy + 'static,
) -> Vec<Published> {
    let row = |(size, expected): &(N, f64)| {
        let (size, expected) = (*size, *expected);
        let answer = Box::new(move |progress: &Progress| answer(size, progress));
        Published { model: model(size), figure, digits, expected, answer }
    };
    table.iter().map(row).collect()
}

/// The QComp set and the PRISM benchmark suite: exact where they give rationals, else by Gauss-Seidel to a flow residual of 1e-15
/// and a second method.
fn queues() -> Vec<Published> {
    let tandem = [
        (5, 5.679249959967679),
        (7, 7.7465621853360425),
        (15, 15.798592927169762),
        (31, 31.81500388515128),
        (63, 63.82261574454194),
        (127, 127.826290837322),
        (255, 255.8280969804193),
    ];
    let polling = [
        (3, 0.1308020365834841),
        (4, 0.14119036379818742),
        (5, 0.14492709367584383),
        (6, 0.14573191126269974),
        (7, 0.14511673457143429),
        (8, 0.14378276964032002),
        (10, 0.1402132814986877),
    ];
    let mut all = rows((|c| format!("tandem c={c}"), "customers", 14), &tandem, models::tandem);
    all.extend(rows(
        (|n| format!("polling n={n}"), "station 1 waits", 14),
        &polling,
        models::polling,
    ));
    all
}

fn productions() -> Vec<Published> {
    let kanban = [(1, 0.0925846346333826), (2, 0.1738717061778497), (3, 0.2330711660098027)];
    let fms = [
        (1, 13.85312833622229),
        (2, 29.154698799657936),
        (3, 44.44366995705245),
        (4, 59.55129145337573),
    ];
    let mut all = rows((|t| format!("kanban t={t}"), "throughput", 12), &kanban, models::kanban);
    all.extend(rows((|n| format!("fms n={n}"), "productivity", 14), &fms, models::fms));
    all
}

/// Systems that fail and are repaired.
fn failing() -> Vec<Published> {
    let cluster = [
        (2, 0.9999615335623628),
        (4, 0.9999212408513793),
        (8, 0.999833069267416),
        (16, 0.999645088860336),
        (32, 0.999283368429753),
        (64, 0.998702780708628),
    ];
    let mut all = rows((|n| format!("cluster n={n}"), "premium", 14), &cluster, models::cluster);
    all.extend(cluster_in_time(&[(2, 0.004659192406)], &[(2, 0.001158395575)]));
    let name = |places: (u8, u8)| format!("mainframe {}/{}", places.0, places.1);
    let available = [((10, 4), 0.966663227256281), ((20, 5), 0.966663227256281)];
    all.extend(rows((name, "available", 14), &available, |places, progress| {
        models::mainframe(places, Mainframe::Available, progress)
    }));
    let throughput = [((10, 4), 0.63925612560734), ((20, 5), 0.63933649849459)];
    all.extend(rows((name, "throughput", 13), &throughput, |places, progress| {
        models::mainframe(places, Mainframe::Throughput, progress)
    }));
    let name = |skipped: u8| format!("embedded {skipped}");
    let up = [(2, 423.8443172811176), (8, 477.55237358361944)];
    all.extend(rows((name, "hours up", 14), &up, |skipped, progress| {
        models::embedded(skipped, Embedded::UpTime, progress)
    }));
    let main = [(2, 0.048417523169789894), (8, 0.05455297955850266)];
    all.extend(rows((name, "main fails", 14), &main, |skipped, progress| {
        models::embedded(skipped, Embedded::MainFailure, progress)
    }));
    all
}

/// What happens to clusters within 2,000 hours, with the digits that Storm's interval of 1e-10 leaves.
fn cluster_in_time(below: &[(u16, f64)], falls: &[(u16, f64)]) -> Vec<Published> {
    let name = |n| format!("cluster n={n}");
    let mut all = rows((name, "hours below minimum", 8), below, |n, progress| {
        models::cluster_below(n, 2000.0, progress)
    });
    all.extend(rows((name, "falls below minimum", 8), falls, |n, progress| {
        models::cluster_falls(n, 2000.0, progress)
    }));
    all
}

/// The large ones. The last digit of kanban 5 is beyond the published bounds: ten digits are compared, as of all.
fn long() -> Vec<Published> {
    let cluster = [(128, 0.997937891093654)];
    let mut all = rows((|n| format!("cluster n={n}"), "premium", 14), &cluster, models::cluster);
    let kanban = [(4, 0.2758897531051024), (5, 0.30712475927)];
    all.extend(rows((|t| format!("kanban t={t}"), "throughput", 11), &kanban, models::kanban));
    let fms = [(5, 74.37348692389251), (6, 88.85191357436382)];
    all.extend(rows((|n| format!("fms n={n}"), "productivity", 14), &fms, models::fms));
    let tandem = [(511, 511.8289923574142)];
    all.extend(rows((|c| format!("tandem c={c}"), "customers", 14), &tandem, models::tandem));
    let polling = [(15, 0.1307341323638209)];
    all.extend(rows(
        (|n| format!("polling n={n}"), "station 1 waits", 14),
        &polling,
        models::polling,
    ));
    let name = |places: (u8, u8)| format!("mainframe {}/{}", places.0, places.1);
    let throughput = [((30, 8), 0.63943569991240), ((40, 10), 0.63945504933145)];
    all.extend(rows((name, "throughput", 13), &throughput, |places, progress| {
        models::mainframe(places, Mainframe::Throughput, progress)
    }));
    let mapk = [(4, 48.49102761)];
    let name = |n| format!("mapk n={n}");
    all.extend(rows((name, "reactions within 30", 10), &mapk, |n, progress| {
        models::mapk(n, 30.0, progress)
    }));
    all.extend(cluster_in_time(
        &[(16, 0.004207094509), (64, 0.00421944377)],
        &[(16, 0.001040951489), (64, 0.001044539673)],
    ));
    let majority = [(2100, 0.05429919316)];
    let name = |secs| format!("majority t={secs}");
    all.extend(rows((name, "changes state", 9), &majority, |secs, progress| {
        models::majority(f64::from(secs), progress)
    }));
    all
}

fn transients(checks: &mut Vec<Check>) {
    let rule = |j: u32, to: &mut dyn FnMut(u32, f64)| {
        if j < 3 {
            to(j + 1, 1.5);
        }
        if (1..3).contains(&j) {
            to(j - 1, 3.0);
        }
    };
    let full = Chain::explore(0, rule)
        .ok()
        .and_then(|(chain, _)| {
            transient(&chain, &[1.0, 0.0, 0.0, 0.0], 7.5, &Progress::default()).ok()
        })
        .map_or(f64::NAN, |x| x[3]);
    checks.push(Check {
        model: "M/M/1/3".to_owned(),
        figure: "full within 7.5".to_owned(),
        expected: 0.6404780884740766,
        is: full,
        published: 14,
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_published_figure_comes_out() {
        let checks = verify(Depth::Quick, &Progress::default());
        assert!(checks.len() > 80, "{}", checks.len());
        let wrong: Vec<&Check> = checks.iter().filter(|check| !check.holds()).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
    }

    #[test]
    fn digits_are_counted() {
        let check = |is, expected| Check {
            model: String::new(),
            figure: String::new(),
            expected,
            is,
            published: 10,
        };
        assert_eq!(check(1.0, 1.0).digits(), 16);
        assert_eq!(check(1.002, 1.0).digits(), 2);
        assert_eq!(check(f64::NAN, 1.0).digits(), 0);
        assert!(!check(f64::NAN, 1.0).holds() && check(1.0 + 1e-10, 1.0).holds());
    }
}
