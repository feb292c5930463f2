//! The kernel command line: how the host tells a guest who it is.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::net::Ipv4Addr;
use core::num::NonZeroU16;

use crate::percent::{percent_decode, percent_encode};
use crate::words;

/// 2,048: QEMU hands over longer lines, but then a guest pays for copying them at every start.
pub const COMMAND_LINE_MAX: usize = 2048;

/// Most requests that one machine may declare to serve at a time.
pub const CAPACITY_MAX: u16 = 1024;

/// Largest request or response body when the host names none: 4 MiB.
pub const BODY_DEFAULT: usize = 4 << 20;

/// An address with the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Network {
    address: Ipv4Addr,
    prefix: u8,
}

impl Ipv4Network {
    /// `None` when `prefix` is more than 32 bits or the address cannot be a machine's own
    /// (unspecified, loopback, multicast or broadcast).
    #[must_use]
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        let own = !(address.is_unspecified()
            || address.is_loopback()
            || address.is_multicast()
            || address.is_broadcast());
        (prefix <= 32 && own).then_some(Self { address, prefix })
    }

    /// The machine's own address.
    #[must_use]
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Leading bits shared by the network, 0..=32.
    #[must_use]
    pub fn prefix(self) -> u8 {
        self.prefix
    }
}

impl fmt::Display for Ipv4Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// 32 bytes of entropy from the host. `Debug` does not show them.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(pub [u8; 32]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The least important messages that a guest writes to its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Someone must look.
    Error,
    /// Heals itself.
    Warn,
    /// Changes of state.
    #[default]
    Info,
    /// For the service's author.
    Debug,
    /// Every step.
    Trace,
}

impl LogLevel {
    const NAMES: [(Self, &'static str); 5] = [
        (Self::Error, "error"),
        (Self::Warn, "warn"),
        (Self::Info, "info"),
        (Self::Debug, "debug"),
        (Self::Trace, "trace"),
    ];

    /// The word that stands for this level on a command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize].1
    }

    /// The level of that name, in lower case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| *known == name).map(|(level, _)| *level)
    }
}

/// Everything a command line says, defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootConfig {
    /// Static address; `None` asks DHCP.
    pub ip: Option<Ipv4Network>,
    /// Default gateway.
    pub gw: Option<Ipv4Addr>,
    /// Resolver.
    pub dns: Option<Ipv4Addr>,
    /// Host name, 1..=63 characters.
    pub host: String,
    /// HTTP port.
    pub port: NonZeroU16,
    /// Requests served at a time, 1..=[`CAPACITY_MAX`].
    pub capacity: u16,
    /// Largest request or response body, bytes.
    pub body: usize,
    /// Nanoseconds since the Unix epoch when the host launched the machine; 0 when unknown.
    pub clock: u64,
    /// Entropy from the host.
    pub seed: Option<Seed>,
    /// Least important level that is logged.
    pub log: LogLevel,
    /// Service parameters in the order given; a key that occurs twice keeps its last value.
    pub env: Vec<(String, String)>,
}

impl Default for BootConfig {
    fn default() -> Self {
        Self {
            ip: None,
            gw: None,
            dns: None,
            host: "machine".to_owned(),
            port: const { NonZeroU16::new(80).unwrap() },
            capacity: 1,
            body: BODY_DEFAULT,
            clock: 0,
            seed: None,
            log: LogLevel::Info,
            env: Vec::new(),
        }
    }
}

/// Why a command line cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandLineError {
    /// Longer than [`COMMAND_LINE_MAX`].
    #[error("command line of {length} bytes, {COMMAND_LINE_MAX} are allowed")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// Not UTF-8.
    #[error("command line is not UTF-8")]
    NotText,
    /// A known key with a value outside its range.
    #[error("command line: value of {key} is malformed or out of range")]
    Value {
        /// The key.
        key: String,
    },
}

impl CommandLineError {
    /// Stable name of the failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "COMMAND_LINE_TOO_LONG",
            Self::NotText | Self::Value { .. } => "COMMAND_LINE_MALFORMED",
        }
    }
}

impl BootConfig {
    /// Reads a command line. Unknown keys and words without `=` are ignored; of a repeated key the
    /// last counts. Bytes from the first NUL on are ignored.
    ///
    /// # Errors
    /// [`CommandLineError`] when the line is too long, is not UTF-8, or gives a known key a bad
    /// value.
    pub fn parse(line: &[u8]) -> Result<Self, CommandLineError> {
        let line = line.split(|byte| *byte == 0).next().unwrap_or_default();
        if line.len() > COMMAND_LINE_MAX {
            return Err(CommandLineError::TooLong { length: line.len() });
        }
        let line = core::str::from_utf8(line).map_err(|_| CommandLineError::NotText)?;
        let mut config = Self::default();
        for (key, value) in words::pairs(line) {
            config
                .set(key, value)
                .ok_or_else(|| CommandLineError::Value { key: key.to_owned() })?;
        }
        Ok(config)
    }

    /// `None` when the value is bad.
    fn set(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "ip" => self.ip = Some(words::network(value)?),
            "gw" => self.gw = Some(words::address(value)?),
            "dns" => self.dns = Some(words::address(value)?),
            "host" => words::host_name(value)?.clone_into(&mut self.host),
            "port" => self.port = NonZeroU16::new(words::number(value)?)?,
            "capacity" => {
                self.capacity = words::number(value).filter(|n| (1..=CAPACITY_MAX).contains(n))?;
            }
            "body" => self.body = words::number(value)?,
            "clock" => self.clock = words::number(value)?,
            "seed" => self.seed = Some(words::seed(value)?),
            "log" => self.log = LogLevel::from_name(value)?,
            _ => {
                if let Some(name) = key.strip_prefix("env.") {
                    self.set_env(name, percent_decode(value)?)?;
                }
            }
        }
        Some(())
    }

    fn set_env(&mut self, name: &str, value: String) -> Option<()> {
        if name.is_empty() {
            return None;
        }
        match self.env.iter_mut().find(|(known, _)| known == name) {
            Some(pair) => pair.1 = value,
            None => self.env.push((name.to_owned(), value)),
        }
        Some(())
    }

    /// The value of service parameter `key`.
    #[must_use]
    pub fn param(&self, key: &str) -> Option<&str> {
        self.env.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// Writes the command line that [`BootConfig::parse`] reads back as `self`. Keys that have
    /// their default value are left out.
    ///
    /// # Errors
    /// [`CommandLineError::TooLong`], or [`CommandLineError::Value`] when a field holds what no
    /// command line can say (a parameter's key with a blank or `=`, a host name with other
    /// characters, a capacity of 0).
    pub fn encode(&self) -> Result<String, CommandLineError> {
        let default = Self::default();
        let mut line = String::new();
        let mut put = |key: &str, value: &dyn fmt::Display| {
            let blank = if line.is_empty() { "" } else { " " };
            // Writing to a String cannot fail.
            let _ = write!(line, "{blank}{key}={value}");
        };
        if let Some(ip) = self.ip {
            put("ip", &ip);
        }
        if let Some(gw) = self.gw {
            put("gw", &gw);
        }
        if let Some(dns) = self.dns {
            put("dns", &dns);
        }
        if self.host != default.host {
            put("host", &self.host);
        }
        if self.port != default.port {
            put("port", &self.port);
        }
        if self.capacity != default.capacity {
            put("capacity", &self.capacity);
        }
        if self.body != default.body {
            put("body", &self.body);
        }
        if self.clock != default.clock {
            put("clock", &self.clock);
        }
        if let Some(seed) = &self.seed {
            put("seed", seed);
        }
        if self.log != default.log {
            put("log", &self.log.as_str());
        }
        for (key, value) in &self.env {
            put(&alloc::format!("env.{key}"), &percent_encode(value));
        }
        self.checked(line)
    }

    /// What was written must read back: one check that covers every field.
    fn checked(&self, line: String) -> Result<String, CommandLineError> {
        let read = Self::parse(line.as_bytes())?;
        if read == *self {
            return Ok(line);
        }
        let key = if read.env == self.env { "host" } else { "env" };
        Err(CommandLineError::Value { key: key.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use proptest::prelude::*;

    fn check(line: &str, expect: impl FnOnce(&mut BootConfig)) {
        let mut config = BootConfig::default();
        expect(&mut config);
        assert_eq!(BootConfig::parse(line.as_bytes()), Ok(config), "{line}");
    }

    #[test]
    fn reads_every_key() {
        check("", |_| {});
        check("ip=10.1.2.3/24 gw=10.1.2.1 dns=10.1.2.2", |c| {
            c.ip = Ipv4Network::new(Ipv4Addr::new(10, 1, 2, 3), 24);
            c.gw = Some(Ipv4Addr::new(10, 1, 2, 1));
            c.dns = Some(Ipv4Addr::new(10, 1, 2, 2));
        });
        check("host=echo-7 port=8080  capacity=1024\tbody=0 clock=18446744073709551615", |c| {
            c.host = "echo-7".into();
            c.port = NonZeroU16::new(8080).unwrap();
            c.capacity = 1024;
            c.body = 0;
            c.clock = u64::MAX;
        });
        check("log=trace env.A=x%20y env.B= env.A=z", |c| {
            c.log = LogLevel::Trace;
            c.env = alloc::vec![("A".into(), "z".into()), ("B".into(), "".into())];
        });
        let seed = "0f".repeat(32);
        check(&alloc::format!("seed={seed}"), |c| c.seed = Some(Seed([15; 32])));
    }

    #[test]
    fn ignores_unknown_words() {
        check("console=ttyS0 quiet virtio_mmio.device=512@0xfeb00000:5 =x", |_| {});
        check("port=81\0port=82", |c| c.port = NonZeroU16::new(81).unwrap());
    }

    #[test]
    fn refuses_bad_values() {
        for line in [
            "ip=10.1.2.3",
            "ip=10.1.2.3/33",
            "ip=0.0.0.0/8",
            "ip=127.0.0.1/8",
            "ip=10.1.2/24",
            "gw=1",
            "dns=",
            "host=",
            "host=a%20b",
            "host=-a",
            "port=0",
            "port=65536",
            "port=+1",
            "capacity=0",
            "capacity=1025",
            "body=-1",
            "clock=1.5",
            "seed=00",
            "log=INFO",
            "env.=x",
            "env.A=%zz",
        ] {
            let error = BootConfig::parse(line.as_bytes()).expect_err(line);
            assert_eq!(error.code(), "COMMAND_LINE_MALFORMED", "{line}");
        }
        assert_eq!(BootConfig::parse(&[0xff]), Err(CommandLineError::NotText));
        let long = "x".repeat(COMMAND_LINE_MAX + 1);
        assert_eq!(BootConfig::parse(long.as_bytes()).unwrap_err().code(), "COMMAND_LINE_TOO_LONG");
    }

    #[test]
    fn does_not_encode_what_cannot_be_read_back() {
        let mut config = BootConfig::default();
        config.env.push(("A B".to_string(), String::new()));
        assert_eq!(config.encode().unwrap_err().code(), "COMMAND_LINE_MALFORMED");
        let injected = BootConfig { host: "a port=1".into(), ..BootConfig::default() };
        assert!(injected.encode().is_err());
        let shut = BootConfig { capacity: 0, ..BootConfig::default() };
        assert!(shut.encode().is_err());
    }

    prop_compose! {
        fn any_config()(
            ip in proptest::option::of((1u8..=223, any::<[u8; 3]>(), 0u8..=32)),
            gw in proptest::option::of(any::<[u8; 4]>()),
            host in "[a-z0-9][a-z0-9-]{0,20}",
            port in 1u16.., capacity in 1..=CAPACITY_MAX, body in any::<usize>(), clock in any::<u64>(),
            seed in proptest::option::of(any::<[u8; 32]>()),
            log in 0usize..5,
            env in proptest::collection::btree_map("[A-Z_]{1,8}", ".{0,20}", 0..4),
        ) -> BootConfig {
            BootConfig {
                ip: ip.and_then(|(a, [b, c, d], p)| Ipv4Network::new(Ipv4Addr::new(a, b, c, d), p)),
                gw: gw.map(Ipv4Addr::from),
                dns: None,
                host,
                port: NonZeroU16::new(port).unwrap(),
                capacity, body, clock,
                seed: seed.map(Seed),
                log: LogLevel::NAMES[log].0,
                env: env.into_iter().collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn reading_undoes_writing(config in any_config()) {
            let line = config.encode().unwrap();
            prop_assert_eq!(BootConfig::parse(line.as_bytes()), Ok(config));
        }

        #[test]
        fn any_bytes_are_answered(line in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = BootConfig::parse(&line);
        }

        #[test]
        fn any_words_are_answered(line in "((ip|gw|port|capacity|seed|env\\.[A-Z]|log)=[0-9a-f./%]{0,12} ){0,5}") {
            let _ = BootConfig::parse(line.as_bytes());
        }
    }
}
