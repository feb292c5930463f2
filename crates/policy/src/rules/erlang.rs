//! The queue M/M/m: how long jobs wait (Erlang 1917; Allen 1990 for the correction).

/// Probability that a job has to wait at `places` places when the offered load is `load` (arrival rate times service
/// time): Erlang's C, from the probability that it would be blocked if it could not wait (Erlang's B). 1 when the places
/// cannot carry the load.
fn waits(blocking: f64, places: u64, load: f64) -> f64 {
    let places = places as f64;
    if load >= places { 1.0 } else { blocking / (1.0 - load / places * (1.0 - blocking)) }
}

/// What is promised of the wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    /// Seconds, 0 or more.
    pub(crate) wait: f64,
    /// Share of the jobs that may wait longer, above 0.
    pub(crate) late: f64,
    /// Factor on the tail of the wait: 1 for exponential intervals and service.
    pub(crate) variability: f64,
}

/// The fewest machines of `capacity` places, at most `most`, that keep a promise at the offered load of jobs that take
/// `service` seconds; none when even `most` do not.
pub(crate) fn fewest_machines(
    load: f64,
    service: f64,
    capacity: u32,
    most: u32,
    promise: Promise,
) -> Option<u32> {
    let (capacity, mut blocking, mut places) = (u64::from(capacity.max(1)), 1.0, 0u64);
    for machines in 1..=most {
        while places < u64::from(machines) * capacity {
            places += 1;
            blocking = load * blocking / (places as f64 + load * blocking);
        }
        let spare = places as f64 - load;
        if spare <= 0.0 {
            continue;
        }
        let tail = libm::exp(-spare * promise.wait / (promise.variability * service.max(1e-9)));
        if waits(blocking, places, load) * tail <= promise.late {
            return Some(machines);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn must_wait(places: u64, load: f64) -> f64 {
        let next = |blocking: f64, place: u64| load * blocking / (place as f64 + load * blocking);
        waits((1..=places).fold(1.0, next), places, load)
    }

    #[test]
    fn erlangs_c_is_the_published_one() {
        for (places, load, expect) in [
            (10, 8.0, 0.409180150796444),
            (1, 0.8, 0.8),
            (2, 1.0, 1.0 / 3.0),
            (3, 3.0, 1.0),
            (4, 0.0, 0.0),
        ] {
            let is: f64 = must_wait(places, load);
            assert!((is - expect).abs() < 1e-12, "C({places}, {load}) = {is}");
        }
    }

    #[test]
    fn as_many_machines_as_the_promise_takes_and_no_more() {
        let promise = |wait, late| Promise { wait, late, variability: 1.0 };
        // One place: P(W > t) = rho exp(-(1 - rho) t / S).
        let fewest = |load, promise| fewest_machines(load, 1.0, 1, 100, promise);
        assert_eq!(fewest(0.5, promise(0.0, 0.5)), Some(1));
        assert_eq!(fewest(0.51, promise(0.0, 0.5)), Some(2));
        assert_eq!(fewest(8.0, promise(0.0, 0.41)), Some(10));
        assert_eq!(fewest(8.0, promise(0.0, 0.40)), Some(11));
        assert_eq!(fewest(8.0, promise(10.0, 0.40)), Some(9));
        assert_eq!(fewest(0.0, promise(0.0, 0.01)), Some(1));
        assert_eq!(fewest_machines(8.0, 1.0, 1, 8, promise(0.0, 0.5)), None);
        // Machines of four places.
        assert_eq!(fewest_machines(8.0, 1.0, 4, 100, promise(0.0, 0.41)), Some(3));
        // A regular service needs less than an exponential one.
        let regular = Promise { variability: 0.5, ..promise(1.0, 0.05) };
        assert!(fewest(8.0, regular).unwrap() <= fewest(8.0, promise(1.0, 0.05)).unwrap());
    }
}
