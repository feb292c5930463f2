//! What a cloud may leave on its host, found where the host keeps it and not where the cloud says it is.

use camino::{Utf8Path, Utf8PathBuf};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Looks for what a cloud has on the host.
#[derive(Debug, Clone)]
pub struct Leaks {
    folder: Utf8PathBuf,
    cloud: String,
}

impl Leaks {
    /// Of the cloud with this id, on this state folder.
    pub fn of(cloud: &str, folder: &Utf8Path) -> Self {
        Self { folder: folder.to_owned(), cloud: cloud.to_owned() }
    }

    /// Process ids of its QEMUs: their error output goes to a file below the cloud's folder, wherever they are in the tree
    /// of processes.
    pub fn processes(&self) -> BTreeSet<i32> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            let output = fs::read_link(entry.path().join("fd/2")).unwrap_or_default();
            let ours = output.to_string_lossy().starts_with(self.folder.as_str());
            if ours && is_qemu(&entry.path()) {
                found.insert(pid);
            }
        }
        found
    }

    /// Process id of one machine's QEMU.
    pub fn process_of(&self, machine: &str) -> Option<i32> {
        let wanted = format!("guest={machine},");
        self.processes().into_iter().find(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|b| *b == 0).any(|word| word.starts_with(wanted.as_bytes()))
        })
    }

    /// Its network namespaces.
    pub fn namespaces(&self) -> Vec<String> {
        let prefix = format!("skein-{}", self.cloud);
        let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name.starts_with(&prefix)).collect()
    }

    /// Names of the taps in the namespaces of one node's networks.
    ///
    /// # Panics
    /// When a thread cannot be started.
    pub fn taps(&self, node: &str) -> Vec<String> {
        let prefix = format!("skein-{}-{node}-", self.cloud);
        let mut own = self.namespaces();
        own.retain(|name| name.starts_with(&prefix));
        own.iter().flat_map(|name| Self::taps_in(name)).collect()
    }

    fn taps_in(namespace: &str) -> Vec<String> {
        let path = format!("/run/netns/{namespace}");
        // A thread of its own: a namespace belongs to a thread.
        let look = move || {
            let namespace = fs::File::open(path).ok()?;
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).ok()?;
            fs::read_to_string("/proc/thread-self/net/dev").ok()
        };
        let text = std::thread::spawn(look).join().expect("the look at a namespace");
        let names = text.unwrap_or_default();
        let names =
            names.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim());
        // The bridge, the tunnel and the way to the host have names with a number at their end that no tap has.
        let own = ["skbr0", "skvx0", "skup0"];
        names
            .filter(|name| name.starts_with("sk") && !own.contains(name))
            .map(str::to_owned)
            .collect()
    }

    /// Everything that is left, in words; empty when nothing is.
    pub fn all(&self) -> Vec<String> {
        let mut left: Vec<String> =
            self.processes().iter().map(|pid| format!("QEMU process {pid}")).collect();
        left.extend(self.namespaces().iter().map(|name| format!("namespace {name}")));
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let of_network = format!("skein-{}", self.cloud);
        left.extend(
            mounts.lines().filter(|l| l.contains(&of_network)).map(|line| format!("mount {line}")),
        );
        left
    }

    /// Ends and removes all of it by force: after a test that failed, so that the next one finds a clean host.
    pub fn remove(&self) {
        for pid in self.processes() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        for name in self.namespaces() {
            let path = Path::new("/run/netns").join(name);
            let _ = nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH);
            let _ = fs::remove_file(path);
        }
    }
}

/// A zombie has no files, so what has some runs.
fn is_qemu(process: &Path) -> bool {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    line.split(|b| *b == 0).any(|word| word.starts_with(b"guest="))
}
