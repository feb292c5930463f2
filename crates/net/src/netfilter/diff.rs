//! From one ruleset to another, in an order that the kernel accepts.

use super::ruleset::{Chain, Element, Family, Limit, RuleText, Ruleset, Set, Table};
use std::collections::{BTreeMap, BTreeSet};

/// One message, or several of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    AddTable(Place<'a>),
    /// With everything in it.
    RemoveTable(Place<'a>),
    AddLimit(Place<'a>, &'a str, Limit),
    RemoveLimit(Place<'a>, &'a str),
    AddSet(Place<'a>, &'a str, &'a Set),
    RemoveSet(Place<'a>, &'a str),
    AddElements(Place<'a>, &'a str, &'a Set, Vec<(&'a [u8], &'a Element)>),
    RemoveElements(Place<'a>, &'a str, &'a Set, Vec<&'a [u8]>),
    /// Removes all elements of a set.
    ClearSet(Place<'a>, &'a str),
    AddChain(Place<'a>, &'a str, &'a Chain),
    RemoveChain(Place<'a>, &'a str),
    /// Removes all rules of a chain.
    Flush(Place<'a>, &'a str),
    AddRule(Place<'a>, &'a str, &'a RuleText),
}

/// A table.
pub(crate) type Place<'a> = (Family, &'a str);

/// What makes `old` into `new`.
pub(crate) fn diff<'a>(old: &'a Ruleset, new: &'a Ruleset) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    for ((family, name), table) in new {
        let place = (*family, name.as_str());
        match old.get(&(*family, name.clone())) {
            Some(before) if before == table => {}
            Some(before) if can_become(before, table) => {
                diff_table(place, before, table, &mut changes);
            }
            Some(_) => {
                changes.push(Change::RemoveTable(place));
                add_table(place, table, &mut changes);
            }
            None => add_table(place, table, &mut changes),
        }
    }
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    changes.extend(gone.map(|(family, name)| Change::RemoveTable((*family, name))));
    changes
}

/// What makes anything that is in the tables of `new` into `new`: nothing is known of what is there.
pub(crate) fn replace<'a>(new: &'a Ruleset, stale: &'a Ruleset) -> Vec<Change<'a>> {
    let mut changes = Vec::new();
    let names: BTreeSet<_> = new.keys().chain(stale.keys()).collect();
    for (family, name) in names {
        let place = (*family, name.as_str());
        // A table must exist to be removed.
        changes.extend([Change::AddTable(place), Change::RemoveTable(place)]);
        if let Some(table) = new.get(&(*family, name.clone())) {
            add_table(place, table, &mut changes);
        }
    }
    changes
}

/// A chain cannot change its hook, nor a set its type, while something refers to it.
fn can_become(old: &Table, new: &Table) -> bool {
    let hooks = new
        .chains
        .iter()
        .all(|(name, chain)| old.chains.get(name).is_none_or(|before| before.hook == chain.hook));
    let sets = new
        .sets
        .iter()
        .all(|(name, set)| old.sets.get(name).is_none_or(|before| before.same_kind(set)));
    let limits = new
        .limits
        .iter()
        .all(|(name, limit)| old.limits.get(name).is_none_or(|before| before == limit));
    hooks && sets && limits
}

fn add_table<'a>(place: Place<'a>, table: &'a Table, changes: &mut Vec<Change<'a>>) {
    changes.push(Change::AddTable(place));
    static EMPTY: Table =
        Table { sets: BTreeMap::new(), limits: BTreeMap::new(), chains: BTreeMap::new() };
    diff_table(place, &EMPTY, table, changes);
}

fn diff_table<'a>(place: Place<'a>, old: &'a Table, new: &'a Table, changes: &mut Vec<Change<'a>>) {
    let fresh = new.limits.iter().filter(|(name, _)| !old.limits.contains_key(*name));
    changes.extend(fresh.map(|(name, limit)| Change::AddLimit(place, name, *limit)));
    let fresh = new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name));
    changes.extend(fresh.map(|(name, set)| Change::AddSet(place, name, set)));
    let fresh = new.chains.iter().filter(|(name, _)| !old.chains.contains_key(*name));
    changes.extend(fresh.map(|(name, chain)| Change::AddChain(place, name, chain)));
    // Chains exist now, so elements may lead to them; elements and rules that lead to chains which
    // go are removed before those.
    for (name, set) in &new.sets {
        diff_elements(place, name, old.sets.get(name), set, changes);
    }
    for (name, chain) in &new.chains {
        let before = old.chains.get(name).map_or(&[][..], |chain| &chain.rules);
        diff_rules(place, name, before, &chain.rules, changes);
    }
    let gone = |name: &&String| !new.chains.contains_key(*name);
    let gone: Vec<_> = old.chains.keys().filter(gone).collect();
    changes.extend(gone.iter().map(|name| Change::Flush(place, name)));
    changes.extend(gone.iter().map(|name| Change::RemoveChain(place, name)));
    let gone = old.sets.keys().filter(|name| !new.sets.contains_key(*name));
    changes.extend(gone.map(|name| Change::RemoveSet(place, name)));
    let gone = old.limits.keys().filter(|name| !new.limits.contains_key(*name));
    changes.extend(gone.map(|name| Change::RemoveLimit(place, name)));
}

fn diff_elements<'a>(
    place: Place<'a>,
    name: &'a str,
    old: Option<&'a Set>,
    new: &'a Set,
    changes: &mut Vec<Change<'a>>,
) {
    let before = |key: &[u8]| old.and_then(|set| set.elements.get(key));
    let stale = old.into_iter().flat_map(|set| &set.elements);
    let stale = stale.filter(|(key, element)| new.elements.get(*key) != Some(element));
    let stale: Vec<_> = stale.map(|(key, _)| key.as_slice()).collect();
    if !stale.is_empty() {
        changes.push(Change::RemoveElements(place, name, new, stale));
    }
    let fresh = new.elements.iter().filter(|(key, element)| before(key) != Some(element));
    let fresh: Vec<_> = fresh.map(|(key, element)| (key.as_slice(), element)).collect();
    if !fresh.is_empty() {
        changes.push(Change::AddElements(place, name, new, fresh));
    }
}

fn diff_rules<'a>(
    place: Place<'a>,
    chain: &'a str,
    old: &[RuleText],
    new: &'a [RuleText],
    changes: &mut Vec<Change<'a>>,
) {
    if old == new {
        return;
    }
    // What is only appended keeps the counters of the rest.
    let kept = if new.starts_with(old) { old.len() } else { 0 };
    if kept == 0 && !old.is_empty() {
        changes.push(Change::Flush(place, chain));
    }
    changes.extend(new[kept..].iter().map(|rule| Change::AddRule(place, chain, rule)));
}
