//! Which processes hold which tap, as `/proc` tells it.

use crate::tap::TUN_DEVICE;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Process ids by the name of the tap they hold, over all processes this one may look at. A process
/// that ends meanwhile is left out. Names of our taps differ between namespaces. Blocks, for about
/// 10 microseconds a process.
pub(crate) fn scan() -> BTreeMap<String, Vec<u32>> {
    let mut holders: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return holders };
    for process in processes.flatten() {
        let pid = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        for tap in taps_of(&process.path()) {
            let pids = holders.entry(tap).or_default();
            if pids.last() != Some(&pid) {
                pids.push(pid);
            }
        }
    }
    holders
}

fn taps_of(process: &Path) -> Vec<String> {
    let Ok(descriptors) = fs::read_dir(process.join("fd")) else { return Vec::new() };
    let is_tun = |link: &Path| fs::read_link(link).is_ok_and(|to| to == Path::new(TUN_DEVICE));
    let mut taps = Vec::new();
    for descriptor in descriptors.flatten().filter(|descriptor| is_tun(&descriptor.path())) {
        let info = fs::read_to_string(process.join("fdinfo").join(descriptor.file_name()));
        taps.extend(info.ok().as_deref().and_then(parse_fdinfo).map(str::to_owned));
    }
    taps
}

/// The interface in the `fdinfo` of a tap: the word after `iff:`. `None` if it is attached to none.
fn parse_fdinfo(text: &str) -> Option<&str> {
    let name = text.lines().find_map(|line| line.strip_prefix("iff:"))?.trim();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_interface() {
        let text = "pos:\t0\nflags:\t02104002\nmnt_id:\t26\nino:\t9\niff:\tskpumix0a000002\n";
        assert_eq!(parse_fdinfo(text), Some("skpumix0a000002"));
        assert_eq!(parse_fdinfo("pos:\t0\niff:\t\n"), None);
        assert_eq!(parse_fdinfo("pos:\t0\n"), None);
    }

    proptest! {
        #[test]
        fn any_text_is_answered(text in "(iff:|\\PC|\n|\t){0,40}") {
            if let Some(name) = parse_fdinfo(&text) {
                prop_assert!(!name.is_empty() && !name.contains('\n'));
            }
        }
    }
}
