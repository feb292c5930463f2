//! Whatever a file says, the answer is a scenario or the place of an error.

use proptest::prelude::*;
use skein_planner::{Scenario, parse_trace, replay};

const GOOD: &str = include_str!("../scenarios/e6-fifteen.toml");

fn check(text: &str) {
    match Scenario::parse(text) {
        Ok(scenario) => assert_eq!(Scenario::parse(&scenario.to_toml()), Ok(scenario)),
        Err(error) => {
            assert!(error.line >= 1 && error.column >= 1 && !error.message.is_empty());
            assert_eq!(error.code(), "SCENARIO_INVALID");
        }
    }
}

#[test]
fn every_scenario_of_the_folder_is_one() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        Scenario::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        count += 1;
    }
    assert!(count >= 9, "{count}");
    let guide = include_str!("../../../docs/planner.md");
    let example = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    Scenario::parse(example.expect("an example")).expect("the guide's example is a scenario");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_answered(text in "\\PC{0,200}") {
        check(&text);
        let _ = (parse_trace(&text), replay::parse(&text));
    }

    #[test]
    fn a_scenario_with_a_piece_changed_is_answered(
        at in 0usize..4000, length in 0usize..12, piece in "[-a-z0-9_=\\[\\]{}\".,\n é]{0,10}",
    ) {
        let at = (0..=at.min(GOOD.len())).rev().find(|at| GOOD.is_char_boundary(*at)).unwrap_or(0);
        let end = (at + length).min(GOOD.len());
        let end = (end..=GOOD.len()).find(|end| GOOD.is_char_boundary(*end)).unwrap_or(GOOD.len());
        check(&format!("{}{piece}{}", &GOOD[..at], &GOOD[end..]));
    }
}
