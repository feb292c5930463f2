//! How much an interface has sent for everybody.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// The counters of one interface (proc_net(5), `dev`).
#[derive(Debug)]
pub(super) struct Traffic {
    /// Of the network namespace in which it was opened. `None`: this host does not say.
    counters: Option<File>,
    name: String,
}

impl Traffic {
    /// Those of an interface of the calling thread's network namespace.
    pub(super) fn of(name: &str) -> Self {
        let counters = File::open("/proc/thread-self/net/dev").ok();
        Self { counters, name: name.to_owned() }
    }

    /// Bytes that it has sent since it is there; `None` if that is not known.
    pub(super) fn sent(&self) -> Option<u64> {
        let file = self.counters.as_ref()?;
        let mut text = vec![];
        loop {
            let mut part = [0; 8192];
            match file.read_at(&mut part, text.len() as u64).ok()? {
                0 => break,
                length => text.extend_from_slice(&part[..length]),
            }
        }
        sent_of(&self.name, std::str::from_utf8(&text).ok()?)
    }
}

/// The ninth number of the interface's line: eight are about what it received.
fn sent_of(name: &str, counters: &str) -> Option<u64> {
    let of = |line: &str| {
        let numbers = line.trim_start().strip_prefix(name)?.strip_prefix(':')?;
        numbers.split_ascii_whitespace().nth(8)?.parse().ok()
    };
    counters.lines().find_map(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_sent_are_in_the_line_of_the_interface() {
        let counters = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1 2 0 0 0 0 0 0 3 2 0 0 0 0 0 0
 eth0:18446744073709551615 7 0 0 0 0 0 0 18446744073709551614 9 0 0 0 0 0 0
";
        assert_eq!(sent_of("lo", counters), Some(3));
        assert_eq!(sent_of("eth0", counters), Some(u64::MAX - 1));
        assert_eq!(sent_of("eth", counters), None);
        assert_eq!(sent_of("lo", "lo: 1 2"), None);
        assert!(Traffic::of("lo").sent().is_some());
        assert_eq!(Traffic::of("no such one").sent(), None);
    }
}
