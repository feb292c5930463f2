//! Scenarios: what is understood means the same when written and read again, and what is not has a place in the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_planner::Scenario;

fuzz_target!(|text: &str| {
    match Scenario::parse(text) {
        Ok(scenario) => assert_eq!(Scenario::parse(&scenario.to_toml()), Ok(scenario)),
        Err(error) => {
            assert!(error.line >= 1 && error.column >= 1 && !error.message.is_empty());
            assert!(error.line <= text.lines().count().max(1) + 1);
        }
    }
});
