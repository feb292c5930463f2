//! Module archives: every file lies inside the archive.

#![no_main]

use libfuzzer_sys::fuzz_target;
use skein_wire::Archive;

fuzz_target!(|data: &[u8]| {
    let Ok(archive) = Archive::new(data) else { return };
    for module in archive.modules() {
        assert!(archive.get(module.path).is_some());
        assert!(data.as_ptr_range().contains(&module.data.as_ptr()) || module.data.is_empty());
    }
});
