//! What a machine is launched with.

use camino::Utf8PathBuf;
use skein_model::{Generation, MachineId, MemoryMib};
use skein_wire::{BootConfig, Ipv4Network, LogLevel, Seed};
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::str::FromStr;

/// Everything a driver needs to start one machine. Consumed by the launch, with the descriptors in
/// it.
#[derive(Debug)]
pub struct LaunchSpec {
    /// Which machine.
    pub id: MachineId,
    /// Version of the record it is launched from; kept in the run directory for whoever adopts the
    /// machine.
    pub generation: Generation,
    /// Its run directory. Made with mode 0700 if absent; what an earlier machine left in it is
    /// replaced. Its path must leave room for `/control.sock` in the 107 bytes of a Unix socket's
    /// path.
    pub dir: Utf8PathBuf,
    /// The kernel: an ELF file with a PVH note, readable by others when `run_as` is given. Others
    /// reach it only through the descriptor they are handed, so the directory above it may (and
    /// should) be closed to them.
    pub kernel: Utf8PathBuf,
    /// The archive of its data modules; see [`crate::ImageStore::files`]. The same permissions as
    /// `kernel`.
    pub modules: Option<Utf8PathBuf>,
    /// Its memory.
    pub memory: MemoryMib,
    /// Its network card; `None` for a machine without network.
    pub nic: Option<Nic>,
    /// What the guest is told.
    pub guest: GuestConfig,
    /// Whom QEMU runs as; `None` for the driver's own user. Needs root.
    pub run_as: Option<RunAs>,
}

/// A network card.
#[derive(Debug)]
pub struct Nic {
    /// Its address.
    pub mac: MacAddress,
    /// The largest packet that the guest shall send, bytes; the guest's own choice unless given.
    pub mtu: Option<u16>,
    /// An open queue of the tap device; the machine holds it until it ends. QEMU needs neither the
    /// network namespace of the tap nor any privilege.
    pub tap: OwnedFd,
}

/// User and group of a QEMU process: one of its own for each machine, so that a guest that took
/// over its QEMU can touch no other machine's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunAs {
    /// User id, not 0.
    pub uid: u32,
    /// Group id, not 0.
    pub gid: u32,
}

/// What the guest is told on its command line (`docs/guest-abi.md`).
#[derive(Debug, Clone)]
pub struct GuestConfig {
    /// Its address; `None` for DHCP.
    pub address: Option<GuestAddress>,
    /// TCP port of its HTTP server, not 0.
    pub port: u16,
    /// Requests served at a time, 1 to 1,024.
    pub capacity: u32,
    /// Largest request or response body, bytes; `None` for the guest's default of 4 MiB.
    pub body_bytes_max: Option<u64>,
    /// Least important messages it logs.
    pub log: GuestLog,
    /// Parameters of the service. Not secret: any user of the host can read a process's command
    /// line.
    pub parameters: BTreeMap<String, String>,
}

impl Default for GuestConfig {
    fn default() -> Self {
        Self {
            address: None,
            port: 80,
            capacity: 1,
            body_bytes_max: None,
            log: GuestLog::Info,
            parameters: BTreeMap::new(),
        }
    }
}

/// A static address of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestAddress {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Leading bits shared by its network, 0 to 32.
    pub prefix: u8,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Resolver.
    pub dns: Option<Ipv4Addr>,
}

/// The least important messages a guest logs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum GuestLog {
    /// Errors.
    Error,
    /// And warnings.
    Warn,
    /// And changes of state.
    #[default]
    Info,
    /// And what helps the service's author.
    Debug,
    /// And every step.
    Trace,
}

impl From<GuestLog> for LogLevel {
    fn from(log: GuestLog) -> Self {
        match log {
            GuestLog::Error => Self::Error,
            GuestLog::Warn => Self::Warn,
            GuestLog::Info => Self::Info,
            GuestLog::Debug => Self::Debug,
            GuestLog::Trace => Self::Trace,
        }
    }
}

/// A specification that no machine can be launched with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A value is outside its range.
    #[error("{field} {value} is out of range: {range}")]
    Range {
        /// Which value.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is possible.
        range: &'static str,
    },
    /// The guest's command line cannot say it.
    #[error("what the guest is told does not fit its command line")]
    CommandLine(#[from] skein_wire::CommandLineError),
}

impl SpecError {
    /// Stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Range { .. } => "MACHINE_SPEC_INVALID",
            Self::CommandLine(error) => error.code(),
        }
    }
}

impl GuestConfig {
    /// The guest's command line. `clock_ns` is nanoseconds since the Unix epoch.
    ///
    /// # Errors
    /// [`SpecError`]
    pub(crate) fn command_line(
        &self,
        id: &MachineId,
        clock_ns: u64,
        seed: [u8; 32],
    ) -> Result<String, SpecError> {
        let range = |field, value: &dyn fmt::Display, range| SpecError::Range {
            field,
            value: value.to_string(),
            range,
        };
        let mut boot = BootConfig {
            host: id.as_str().to_owned(),
            port: NonZeroU16::new(self.port).ok_or_else(|| range("port", &0, "1 to 65535"))?,
            capacity: u16::try_from(self.capacity)
                .ok()
                .filter(|n| (1..=skein_wire::CAPACITY_MAX).contains(n))
                .ok_or_else(|| range("capacity", &self.capacity, "1 to 1024"))?,
            clock: clock_ns,
            seed: Some(Seed(seed)),
            log: self.log.into(),
            env: self.parameters.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            ..BootConfig::default()
        };
        if let Some(bytes) = self.body_bytes_max {
            boot.body = usize::try_from(bytes)
                .map_err(|_| range("body", &bytes, "what fits the machine's memory"))?;
        }
        if let Some(address) = self.address {
            let GuestAddress { ip, prefix, gateway, dns } = address;
            let unusable = || range("address", &format_args!("{ip}/{prefix}"), "a machine's own");
            boot.ip = Some(Ipv4Network::new(ip, prefix).ok_or_else(unusable)?);
            boot.gw = gateway;
            boot.dns = dns;
        }
        Ok(boot.encode()?)
    }
}

/// A network card's address: unicast, not all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

/// Not the address of a network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a card's address: six hexadecimal bytes separated by ':', unicast and not all zero")]
pub struct MacAddressError;

impl MacAddress {
    /// Checked constructor.
    ///
    /// # Errors
    /// [`MacAddressError`] for a group address and for all zero.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacAddressError> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes)).ok_or(MacAddressError)
    }

    /// The address.
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;
    fn from_str(text: &str) -> Result<Self, MacAddressError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(MacAddressError)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacAddressError)?;
        }
        if parts.next().is_some() || text.contains('+') {
            return Err(MacAddressError);
        }
        Self::new(bytes)
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: &GuestConfig, expect: Result<&str, &str>) {
        let id = "m1".parse().expect("id");
        let line = config.command_line(&id, 5, [0xab; 32]);
        let line = line.map(|line| line.replace(&format!(" seed={}", "ab".repeat(32)), ""));
        match expect {
            Ok(expect) => assert_eq!(line.as_deref(), Ok(expect)),
            Err(code) => assert_eq!(line.expect_err(code).code(), code),
        }
    }

    #[test]
    fn a_guest_is_told_who_it_is() {
        check(&GuestConfig::default(), Ok("host=m1 clock=5"));
        let address = GuestAddress {
            ip: Ipv4Addr::new(10, 0, 0, 2),
            prefix: 24,
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            dns: None,
        };
        let full = GuestConfig {
            address: Some(address),
            port: 8080,
            capacity: 4,
            body_bytes_max: Some(64),
            log: GuestLog::Debug,
            parameters: BTreeMap::from([("A".into(), "x y".into())]),
        };
        let line = "ip=10.0.0.2/24 gw=10.0.0.1 host=m1 port=8080 capacity=4 body=64 clock=5 log=debug \
                    env.A=x%20y";
        check(&full, Ok(line));
        let bad = |change: fn(&mut GuestConfig)| {
            let mut config = full.clone();
            change(&mut config);
            config
        };
        check(&bad(|c| c.port = 0), Err("MACHINE_SPEC_INVALID"));
        check(&bad(|c| c.capacity = 0), Err("MACHINE_SPEC_INVALID"));
        check(&bad(|c| c.capacity = 1025), Err("MACHINE_SPEC_INVALID"));
        check(&bad(|c| c.address.as_mut().expect("set").prefix = 33), Err("MACHINE_SPEC_INVALID"));
        let long = bad(|c| drop(c.parameters.insert("B".into(), "x".repeat(3000))));
        check(&long, Err("COMMAND_LINE_TOO_LONG"));
        let key = bad(|c| drop(c.parameters.insert("B C".into(), "x".into())));
        check(&key, Err("COMMAND_LINE_MALFORMED"));
    }

    #[test]
    fn a_mac_address_is_a_cards() {
        let mac: Result<MacAddress, _> = "52:54:00:aB:00:01".parse();
        assert_eq!(mac.map(|mac| mac.to_string()), Ok("52:54:00:ab:00:01".into()));
        for bad in [
            "",
            "52:54:00:ab:00",
            "52:54:00:ab:00:01:02",
            "01:00:5e:00:00:01",
            "00:00:00:00:00:00",
            "5:54:00:ab:00:001",
            "+2:54:00:ab:00:01",
            "xx:54:00:ab:00:01",
        ] {
            assert_eq!(bad.parse::<MacAddress>(), Err(MacAddressError), "{bad}");
        }
    }
}
