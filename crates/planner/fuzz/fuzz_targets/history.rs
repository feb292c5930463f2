//! Histories: whatever happened, a scene can be drawn, and the measures are numbers or say that they are none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_planner::replay::{self, Scene};
use skein_planner::{Measure, measure_history};

fuzz_target!(|text: &str| {
    let Ok(history) = replay::parse(text) else { return };
    let mut scene = Scene::default();
    for event in &history {
        scene.apply(event);
    }
    let _ = scene.draw(false);
    let measures = measure_history(&history, "s", (0, 60.0), 0.95);
    // Each measure once, none below nothing, and no share of refusals above one.
    assert!(measures.iter().enumerate().all(|(at, (of, _))| measures[..at].iter().all(|it| it.0 != *of)));
    for (measure, estimate) in &measures {
        let most = if *measure == Measure::Refusal { 1.0 } else { f64::INFINITY };
        // What is served is a difference, and a request may be lost that was sent before.
        let bounded = *measure == Measure::Service || (0.0..=most).contains(&estimate.mean);
        assert!(estimate.mean.is_nan() || bounded, "{measure:?} {estimate:?}");
    }
});
