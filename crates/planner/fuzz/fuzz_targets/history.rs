//! Histories: whatever happened, a scene can be drawn, and the measures are numbers or say that they are none.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_planner::measure_history;
use skein_planner::replay::{self, Scene};

fuzz_target!(|text: &str| {
    let Ok(history) = replay::parse(text) else { return };
    let mut scene = Scene::default();
    for event in &history {
        scene.apply(event);
    }
    let _ = scene.draw(false);
    assert_eq!(measure_history(&history, "s", (0, 60.0), 0.95).len(), 19);
});
