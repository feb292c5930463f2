//! The experiments of the source show what the source says.

use skein_planner::Progress;
use skein_planner::experiments::{Effort, run_all, to_markdown};

#[test]
fn every_finding_is_confirmed() {
    let all = run_all(Effort { duration: 0.1, points: 12 }, &Progress::default());
    let ids: Vec<&str> = all.iter().map(|it| it.id).collect();
    assert_eq!(ids, ["E1", "E2", "E3", "E4", "E5", "E6", "E7"]);
    let text = to_markdown(&all);
    for it in &all {
        for finding in &it.findings {
            assert!(finding.holds, "{}: {finding:?}\n{text}", it.id);
        }
        assert!(!it.findings.is_empty() && !it.tables.is_empty());
        for (name, plot) in &it.plots {
            assert!(text.contains(&format!("({name}.svg)")));
            assert!(plot.lines.iter().all(|line| line.points.len() >= 3), "{name}");
        }
    }
}
