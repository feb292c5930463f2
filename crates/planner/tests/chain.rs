//! The chain against closed forms and published figures.

use skein_planner::{
    Bound, Chain, FailureLoses, Family, Measure, Progress, QueueCounts, Repair, Replicas, Rule,
    Solution, steady_state,
};

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

fn close(is: f64, exact: f64, relative: f64, what: &str) {
    assert!((is / exact - 1.0).abs() <= relative, "{what}: {is}, not {exact}");
}

/// The identities that every solution keeps.
fn identities(solution: &Solution, family: &Family) {
    let get = |measure| solution.get(measure);
    let lambda = family.arrival;
    let balance =
        get(Measure::Throughput) + get(Measure::LostRate) + lambda * get(Measure::Refusal);
    close(balance, lambda, 1e-10, "what comes goes");
    if family.failure > 0.0 && family.crew == Repair::PerNode {
        let working = f64::from(family.nodes) * family.repair / (family.repair + family.failure);
        close(get(Measure::WorkingNodes), working, 1e-10, "working nodes");
    }
    if family.loses == FailureLoses::Held && family.failure > 0.0 {
        close(get(Measure::LostRate), family.failure * get(Measure::InSystem), 1e-10, "lost rate");
    }
}

/// Refusal, loss, throughput, replicas, waiting.
fn check(family: &Family, expect: [f64; 5]) {
    let solution = family.solve().unwrap();
    identities(&solution, family);
    let measures = [
        Measure::Refusal,
        Measure::Loss,
        Measure::Throughput,
        Measure::Replicas,
        Measure::QueueLength,
    ];
    for (measure, expect) in measures.into_iter().zip(expect) {
        close(solution.get(measure), expect, 1e-9, &format!("{measure:?} of {family:?}"));
    }
}

#[test]
fn the_migrating_service_has_its_reference_figures() {
    use FailureLoses::{Held, InService, Overflow};
    let a = || Replicas::EveryNode;
    let b = || Replicas::WhenFull;
    for (loses, replicas) in [(Overflow, a()), (InService, a()), (Held, a()), (Held, b())] {
        check(
            &family(1, 9, [0.8, 1.0, 0.01, 0.1], replicas, loses),
            [
                0.10846574059289,
                0.0309219078426536,
                0.688489881251565,
                0.909090909090909,
                1.78526274616073,
            ],
        );
    }
    check(
        &family(2, 3, [1.5, 1.0, 0.05, 0.5], a(), Overflow),
        [
            0.0761555559334525,
            0.0326897226534342,
            1.33673208211967,
            1.81818181818182,
            1.12329396688264,
        ],
    );
    check(
        &family(3, 2, [2.0, 1.0, 0.01, 0.1], a(), InService),
        [
            0.0502963158839360,
            0.0109140926451395,
            1.87757918294185,
            2.72727272727273,
            0.840370294596145,
        ],
    );
    check(
        &family(3, 2, [2.0, 1.0, 0.01, 0.1], b(), Held),
        [
            0.0869264490334995,
            0.0222735390591184,
            1.78160002381476,
            1.80754451816999,
            2.67310778800891,
        ],
    );
    check(
        &family(5, 3, [4.0, 1.0, 0.01, 0.1], a(), InService),
        [
            0.0306304141641745,
            0.0111485559044981,
            3.83288411972531,
            4.54545454545455,
            3.00458270310423,
        ],
    );
    check(
        &family(5, 3, [4.0, 1.0, 0.01, 0.1], b(), Held),
        [
            0.0774785307935634,
            0.0321906978705028,
            3.56132308534373,
            3.56136586837828,
            9.31495606285738,
        ],
    );
    check(
        &family(10, 10, [8.0, 1.0, 0.01, 0.1], a(), Held),
        [
            4.42083247216804e-05,
            0.0161858182872749,
            7.87015978710402,
            9.09090909090910,
            5.07849484271586,
        ],
    );
}

#[test]
fn rare_failures_keep_their_digits() {
    let stiff = family(20, 10, [12.0, 1.0, 1e-6, 1e-3], Replicas::EveryNode, FailureLoses::Held);
    let solution = stiff.solve().unwrap();
    identities(&solution, &stiff);
    close(solution.get(Measure::Refusal), 3.581118458e-22, 1e-9, "refusal");
    close(solution.get(Measure::LostRate), 1.20369633996851e-5, 1e-9, "lost rate");
    let stiff = family(50, 20, [40.0, 1.0, 1e-6, 1e-4], Replicas::WhenFull, FailureLoses::Held);
    let solution = stiff.solve().unwrap();
    identities(&solution, &stiff);
    close(solution.get(Measure::Refusal), 2.911979e-9, 1e-6, "refusal");
    close(solution.get(Measure::Throughput), 39.99916987945, 1e-10, "throughput");
    close(solution.get(Measure::LostRate), 8.30004017694e-4, 1e-9, "lost rate");
}

#[test]
fn queues_of_several_servers_have_their_closed_forms() {
    for (lambda, mu, c, k, refusal, throughput, l, w) in [
        (1.5, 3.0, 1, 3, 1.0 / 15.0, 1.4, 11.0 / 15.0, 0.523809523810),
        (0.8, 1.0, 1, 10, 0.023492857580, 0.781205713936, 2.966314266484, 3.797097503983),
        (40.0, 30.0, 3, 7, 0.003931315239, 39.842747390441, 1.454937922939, 0.036517007943),
        (50.0, 10.0, 4, 6, 0.293542993481, 35.322850325950, 4.354205414342, 0.123268801191),
        (4.0, 1.0, 5, 20, 0.003960999701, 3.984156001197, 5.918843676156, 1.485595361823),
    ] {
        let mut queue =
            family(c, k - c, [lambda, mu, 0.0, 1.0], Replicas::EveryNode, FailureLoses::Overflow);
        queue.bound = Bound::All;
        let solution = queue.solve().unwrap();
        identities(&solution, &queue);
        for (measure, exact) in [
            (Measure::Refusal, refusal),
            (Measure::Throughput, throughput),
            (Measure::InSystem, l),
            (Measure::TimeInSystem, w),
        ] {
            close(solution.get(measure), exact, 2e-9, &format!("{measure:?} of M/M/{c}/{k}"));
        }
    }
}

#[test]
fn a_server_that_breaks_down_has_its_closed_form() {
    for (lambda, mu, fails, repairs) in [(0.5, 1.0, 0.05, 0.5), (0.3, 1.0, 0.1, 0.2)] {
        let mut queue = family(
            1,
            3000,
            [lambda, mu, fails, repairs],
            Replicas::EveryNode,
            FailureLoses::Nothing,
        );
        queue.bound = Bound::All;
        let (sum, solution) = (fails + repairs, queue.solve().unwrap());
        identities(&solution, &queue);
        let l = lambda * (sum * sum + mu * fails) / (sum * (mu * repairs - lambda * sum));
        close(solution.get(Measure::InSystem), l, 1e-9, "in system");
    }
}

#[test]
fn thresholds_with_hysteresis_have_their_published_figures() {
    for (lambda, up, down, cap, expect) in [
        (
            2.0,
            vec![4, 8],
            vec![1, 4],
            12,
            [2.004044407182, 5.011672021361, 3.040826133940, 0.014577056289, 0.127482315881],
        ),
        (
            0.7,
            vec![5],
            vec![2],
            10,
            [1.049927971490, 1.492211343846, 0.792340749313, 0.000184864953, 0.016258942101],
        ),
        (
            3.5,
            vec![3, 6, 9, 12],
            vec![0, 3, 6, 9],
            20,
            [3.501483827913, 8.258200312264, 4.769250074780, 0.003157075005, 0.268729961553],
        ),
    ] {
        let max = up.len() as u32 + 1;
        let rule = Rule::Lists { up, down };
        let replicas = Replicas::Policy { rule, min: 1, max, start: None, each: 1 };
        let mut chain = family(max, cap, [lambda, 1.0, 0.0, 1.0], replicas, FailureLoses::Nothing);
        (chain.bound, chain.counts) = (Bound::All, QueueCounts::InSystem);
        let solution = chain.solve().unwrap();
        let get = |measure| solution.get(measure);
        let [replicas, l, waiting, refusal, replications] = expect;
        close(get(Measure::Replicas), replicas, 1e-9, "replicas");
        close(get(Measure::InSystem), l, 1e-9, "in system");
        close(get(Measure::QueueLength), waiting, 1e-9, "waiting");
        close(get(Measure::Refusal), refusal, 1e-7, "refusal");
        close(get(Measure::ReplicationRate) / 3600.0, replications, 1e-9, "replications");
    }
}

#[test]
fn a_big_chain_is_certified() {
    let big = family(100, 50, [70.0, 1.0, 0.001, 0.01], Replicas::WhenFull, FailureLoses::Held);
    assert_eq!(big.states_expected(), Some(257_651));
    let solution = big.solve().unwrap();
    assert_eq!(solution.states, 257_651);
    identities(&solution, &big);
}

/// A tandem of an M/Cox2/1 and an M/M/1 queue, both of `c` places: a published benchmark.
fn tandem(c: u32) -> f64 {
    let rule = |(n, phase, m): (u32, u32, u32), to: &mut dyn FnMut((u32, u32, u32), f64)| {
        let (lambda, mu1a, mu1b, mu2, kappa) = (4.0 * f64::from(c), 0.2, 1.8, 2.0, 4.0);
        if n < c {
            to((n + 1, phase, m), lambda);
        }
        if n > 0 && phase == 1 {
            to((n, 2, m), mu1a);
            if m < c {
                to((n - 1, 1, m + 1), mu1b);
            }
        }
        if n > 0 && phase == 2 && m < c {
            to((n - 1, 1, m + 1), mu2);
        }
        if m > 0 {
            to((n, phase, m - 1), kappa);
        }
    };
    let (chain, states) = Chain::explore((0, 1, 0), rule).unwrap();
    assert_eq!(chain.len() as u32, (c + 1) * (2 * c + 1));
    let customers = |x: &[f64]| {
        let sum: f64 = states.iter().zip(x).map(|(s, x)| f64::from(s.0 + s.2) * x).sum();
        vec![sum]
    };
    customers(&steady_state(&chain, &[], customers, &Progress::default()).unwrap().x)[0]
}

#[test]
fn the_tandem_benchmark_agrees() {
    close(tandem(5), 5.679249959967679, 1e-12, "tandem 5");
    close(tandem(15), 15.798592927169762, 1e-12, "tandem 15");
    close(tandem(31), 31.81500388515128, 1e-12, "tandem 31");
    close(tandem(63), 63.82261574454194, 1e-11, "tandem 63");
}
