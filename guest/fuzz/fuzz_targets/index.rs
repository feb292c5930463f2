//! Damaged city data give wrong answers, never a fault.

#![no_main]

use libfuzzer_sys::fuzz_target;
use search::Index;

fuzz_target!(|data: &[u8]| {
    let Ok(index) = Index::new(data) else { return };
    for number in 0..index.len().min(64) {
        let _ = index.city(number);
    }
    let _ = index.fold("São Ž");
    for word in index.words("a").take(64) {
        let _ = word.cities().take(64).count();
    }
});
