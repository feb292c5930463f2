//! The policy's last decisions, for `skein service show`.

use skein_api::{Decision, time_text};
use skein_model::Timestamp;
use skein_policy::{Plan, ServiceKey, Step};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};

/// Decisions kept for each service.
const KEPT: usize = 20;

#[derive(Debug)]
struct Kept {
    code: &'static str,
    decision: Decision,
}

/// The policy's last decisions. One that says the same as the one before renews its words and is not kept again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Decisions(Arc<RwLock<BTreeMap<ServiceKey, VecDeque<Kept>>>>);

impl Decisions {
    /// Keeps the decisions of one plan, and forgets services that were not planned.
    pub(crate) fn put(&self, at: Timestamp, plan: &Plan) {
        let decisions = &plan.decisions;
        let mut kept = self.0.write().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|key, _| decisions.iter().any(|decision| decision.service == *key));
        for decision in decisions {
            let list = kept.entry(decision.service.clone()).or_default();
            let code = decision.reason.code();
            let new = Decision {
                at: time_text(at),
                current: decision.current,
                wanted: decision.wanted,
                reason: words(at, decision, &plan.steps),
            };
            match list.front_mut() {
                Some(last)
                    if last.code == code
                        && (last.decision.current, last.decision.wanted)
                            == (new.current, new.wanted) =>
                {
                    last.decision.reason = new.reason;
                }
                Some(_) | None => {
                    list.push_front(Kept { code, decision: new });
                    list.truncate(KEPT);
                }
            }
        }
    }

    /// Newest first.
    pub(crate) fn of(&self, key: &ServiceKey) -> Vec<Decision> {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        kept.get(key)
            .map(|list| list.iter().map(|k| k.decision.clone()).collect())
            .unwrap_or_default()
    }
}

/// Why so many machines; and if they cannot be had now, why not.
fn words(at: Timestamp, decision: &skein_policy::Decision, steps: &[Step]) -> String {
    let why = decision.reason.text(at).to_string();
    let held = steps.iter().find_map(|step| match step {
        Step::Hold { service, reason, .. } if *service == decision.service => Some(reason),
        Step::Hold { .. } | Step::Boot { .. } | Step::Drain { .. } | Step::Stop { .. } => None,
    });
    match held {
        Some(held) => format!("{why}; {held}"),
        None => why,
    }
}
