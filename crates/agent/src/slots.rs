//! The user ids of the node's machines: each runs as one that no other has. Who has which is kept in files, so that an
//! agent that comes after a crash gives none away that a machine still has.

use camino::{Utf8Path, Utf8PathBuf};
use skein_model::MachineId;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Folder of the files, below the agent's. No machine is called that.
const FOLDER: &str = ".slots";

/// Every slot is taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SlotError {
    /// More machines than the node may hold.
    #[error("all {count} user ids for machines are taken")]
    Exhausted { count: u32 },
    /// It cannot be written down.
    #[error("writing {path}")]
    Write { path: Utf8PathBuf, source: io::Error },
}

/// The slots of a node: numbers from 0.
#[derive(Debug)]
pub(crate) struct Slots {
    folder: Utf8PathBuf,
    count: u32,
    taken: Mutex<BTreeMap<u32, MachineId>>,
}

impl Slots {
    /// Reads who has which. What belongs to a machine that left no folder is free.
    pub(crate) fn open(dir: &Utf8Path, count: u32) -> io::Result<Self> {
        let folder = dir.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let mut taken = BTreeMap::new();
        for entry in folder.read_dir_utf8()? {
            let path = entry?.into_path();
            let slot = path.file_name().and_then(|name| name.parse::<u32>().ok());
            let machine =
                fs::read_to_string(&path).ok().and_then(|id| id.parse::<MachineId>().ok());
            match slot.zip(machine) {
                Some((slot, machine)) if dir.join(machine.as_str()).exists() => {
                    taken.insert(slot, machine);
                }
                _ => fs::remove_file(&path)?,
            }
        }
        Ok(Self { folder, count, taken: Mutex::new(taken) })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, MachineId>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for a machine; the one that it has, if it has one.
    pub(crate) fn take(&self, machine: &MachineId) -> Result<u32, SlotError> {
        let mut taken = self.lock();
        if let Some((slot, _)) = taken.iter().find(|(_, other)| *other == machine) {
            return Ok(*slot);
        }
        let free = (0..self.count).find(|slot| !taken.contains_key(slot));
        let slot = free.ok_or(SlotError::Exhausted { count: self.count })?;
        let path = self.folder.join(slot.to_string());
        let written = OpenOptions::new().write(true).create(true).truncate(true).open(&path);
        let written = written.and_then(|mut file| file.write_all(machine.as_str().as_bytes()));
        written.map_err(|source| SlotError::Write { path, source })?;
        taken.insert(slot, machine.clone());
        Ok(slot)
    }

    /// The machine has ended: another may have its slot.
    pub(crate) fn give(&self, machine: &MachineId) {
        let mut taken = self.lock();
        taken.retain(|slot, other| {
            let own = other == machine;
            if own {
                // A file that stays is found at the next start, and removed then.
                let _ = fs::remove_file(self.folder.join(slot.to_string()));
            }
            !own
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_one_machines_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(folder.path()).unwrap();
        let [a, b, c] = ["a-1", "b-1", "c-1"].map(|id| id.parse::<MachineId>().unwrap());
        let slots = Slots::open(dir, 2).unwrap();
        assert_eq!(slots.take(&a).unwrap(), 0);
        assert_eq!(slots.take(&b).unwrap(), 1);
        assert_eq!(slots.take(&a).unwrap(), 0);
        assert!(matches!(slots.take(&c), Err(SlotError::Exhausted { count: 2 })));
        // Of a crash, a survives with its folder, and b does not.
        fs::create_dir(dir.join("a-1")).unwrap();
        let slots = Slots::open(dir, 2).unwrap();
        assert_eq!(slots.take(&c).unwrap(), 1);
        assert!(slots.take(&b).is_err());
        slots.give(&a);
        assert_eq!(slots.take(&b).unwrap(), 0);
    }
}
