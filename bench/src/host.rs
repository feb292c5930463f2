//! The host, as a report names it.

use crate::report::Host;
use skein_vmm::Accel;

/// The host; guests are run by `accel`.
pub(crate) fn host(accel: Accel) -> Host {
    Host { cpu: cpu(), cores: cores(), accel: accel.to_string() }
}

/// Name of the processor.
pub(crate) fn cpu() -> String {
    cpu_name(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

/// Cores this process may use.
pub(crate) fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
}

fn cpu_name(cpuinfo: &str) -> String {
    let name = cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_processor() {
        assert_eq!(cpu_name("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n"), "A CPU @ 2 GHz");
        assert_eq!(cpu_name(""), std::env::consts::ARCH);
    }
}
