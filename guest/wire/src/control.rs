//! The control channel: lines of a verb and `key=value` words, both ways.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::net::Ipv4Addr;

use crate::cmdline::{Ipv4Network, Seed};
use crate::words;

/// 1,024 bytes with the line end: an `identity` with every key needs less than 300.
pub const CONTROL_LINE_MAX: usize = 1024;

/// Why a line was not understood. Whoever reads drops the line and counts it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Longer than [`CONTROL_LINE_MAX`].
    #[error("control line is longer than {CONTROL_LINE_MAX} bytes")]
    TooLong,
    /// Not UTF-8.
    #[error("control line is not UTF-8")]
    NotText,
    /// A known key is malformed, or one that the verb needs is missing.
    #[error("control line {verb}: value of {key} is missing or malformed")]
    Value {
        /// The line's verb.
        verb: &'static str,
        /// The key.
        key: &'static str,
    },
}

impl ControlError {
    /// Stable name of the failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLong => "CONTROL_LINE_TOO_LONG",
            Self::NotText | Self::Value { .. } => "CONTROL_LINE_MALFORMED",
        }
    }
}

/// What a guest reports about itself. Counters begin at boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Heap the machine has, bytes.
    pub mem_total: u64,
    /// Heap in use, bytes.
    pub mem_used: u64,
    /// Time not spent in `hlt`, microseconds.
    pub busy_us: u64,
    /// Requests answered by the service.
    pub requests: u64,
    /// Requests inside the service now.
    pub in_service: u64,
    /// Answers with status 400 and above, and connections broken in mid-request.
    pub errors: u64,
    /// Time since kernel entry, microseconds.
    pub uptime_us: u64,
}

/// A line from guest to host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestLine {
    /// The service listens.
    Ready {
        /// HTTP port.
        port: u16,
        /// Requests served at a time.
        capacity: u16,
        /// From kernel entry to listening, microseconds.
        boot_us: u64,
    },
    /// The answer to `stats`.
    Stats(Stats),
    /// The machine is about to end.
    Stopping {
        /// The byte it will write to the exit port.
        code: u8,
    },
}

/// Who a machine is from now on. A key that is absent keeps its value; without `ip`, a machine that
/// got its address by DHCP asks anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// MAC address, a unicast one; absent: read again from the device. A device restored from saved
    /// state shows the address it was saved with.
    pub mac: Option<[u8; 6]>,
    /// Static address.
    pub ip: Option<Ipv4Network>,
    /// Default gateway.
    pub gw: Option<Ipv4Addr>,
    /// Resolver.
    pub dns: Option<Ipv4Addr>,
    /// Host name.
    pub host: Option<String>,
    /// Nanoseconds since the Unix epoch, now.
    pub clock: Option<u64>,
    /// Fresh entropy, so that two machines of one saved state do not draw the same numbers.
    pub seed: Option<Seed>,
}

/// A line from host to guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostLine {
    /// Asks for one `stats` line.
    Stats,
    /// Orderly stop.
    Stop,
    /// A new identity. Boxed: it is larger than the other lines together.
    Identity(alloc::boxed::Box<Identity>),
}

impl fmt::Display for GuestLine {
    /// The line without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready { port, capacity, boot_us } => {
                write!(f, "ready port={port} capacity={capacity} boot_us={boot_us}")
            }
            Self::Stats(s) => write!(
                f,
                "stats mem_total={} mem_used={} busy_us={} requests={} in_service={} errors={} uptime_us={}",
                s.mem_total, s.mem_used, s.busy_us, s.requests, s.in_service, s.errors, s.uptime_us
            ),
            Self::Stopping { code } => write!(f, "stopping code={code}"),
        }
    }
}

impl fmt::Display for HostLine {
    /// The line without its end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let identity = match self {
            Self::Stats => return f.write_str("stats"),
            Self::Stop => return f.write_str("stop"),
            Self::Identity(identity) => identity,
        };
        f.write_str("identity")?;
        if let Some([a, b, c, d, e, g]) = identity.mac {
            write!(f, " mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")?;
        }
        if let Some(ip) = identity.ip {
            write!(f, " ip={ip}")?;
        }
        if let Some(gw) = identity.gw {
            write!(f, " gw={gw}")?;
        }
        if let Some(dns) = identity.dns {
            write!(f, " dns={dns}")?;
        }
        if let Some(host) = &identity.host {
            write!(f, " host={}", crate::percent_encode(host))?;
        }
        if let Some(clock) = identity.clock {
            write!(f, " clock={clock}")?;
        }
        if let Some(seed) = &identity.seed {
            write!(f, " seed={seed}")?;
        }
        Ok(())
    }
}

/// The values of a line's numeric keys, all of which must be there.
struct Numbers<'a> {
    verb: &'static str,
    line: &'a str,
}

impl Numbers<'_> {
    fn get<T: TryFrom<u64>>(&self, key: &'static str) -> Result<T, ControlError> {
        words::pairs(self.line)
            .skip(1)
            .find(|(known, _)| *known == key)
            .and_then(|(_, value)| words::number(value))
            .ok_or(ControlError::Value { verb: self.verb, key })
    }
}

fn verb(line: &str) -> &str {
    words::pairs(line).next().map_or("", |(verb, _)| verb)
}

impl GuestLine {
    /// Reads a line from a guest. `None` for an unknown verb.
    ///
    /// # Errors
    /// [`ControlError::Value`] when a key of a known verb is missing or malformed.
    pub fn parse(line: &str) -> Result<Option<Self>, ControlError> {
        Ok(Some(match verb(line) {
            "ready" => {
                let numbers = Numbers { verb: "ready", line };
                Self::Ready {
                    port: numbers.get("port")?,
                    capacity: numbers.get("capacity")?,
                    boot_us: numbers.get("boot_us")?,
                }
            }
            "stats" => {
                let numbers = Numbers { verb: "stats", line };
                Self::Stats(Stats {
                    mem_total: numbers.get("mem_total")?,
                    mem_used: numbers.get("mem_used")?,
                    busy_us: numbers.get("busy_us")?,
                    requests: numbers.get("requests")?,
                    in_service: numbers.get("in_service")?,
                    errors: numbers.get("errors")?,
                    uptime_us: numbers.get("uptime_us")?,
                })
            }
            "stopping" => Self::Stopping { code: Numbers { verb: "stopping", line }.get("code")? },
            _ => return Ok(None),
        }))
    }
}

impl HostLine {
    /// Reads a line from the host. `None` for an unknown verb.
    ///
    /// # Errors
    /// [`ControlError::Value`] when a known key of `identity` is malformed.
    pub fn parse(line: &str) -> Result<Option<Self>, ControlError> {
        Ok(Some(match verb(line) {
            "stats" => Self::Stats,
            "stop" => Self::Stop,
            "identity" => Self::Identity(alloc::boxed::Box::new(identity(line)?)),
            _ => return Ok(None),
        }))
    }
}

fn identity(line: &str) -> Result<Identity, ControlError> {
    let mut identity = Identity::default();
    for (key, value) in words::pairs(line).skip(1) {
        let bad = |key| ControlError::Value { verb: "identity", key };
        match key {
            "mac" => identity.mac = Some(words::mac(value).ok_or(bad("mac"))?),
            "ip" => identity.ip = Some(words::network(value).ok_or(bad("ip"))?),
            "gw" => identity.gw = Some(words::address(value).ok_or(bad("gw"))?),
            "dns" => identity.dns = Some(words::address(value).ok_or(bad("dns"))?),
            "host" => {
                let name = crate::percent_decode(value).ok_or(bad("host"))?;
                identity.host = Some(words::host_name(&name).ok_or(bad("host"))?.to_owned());
            }
            "clock" => identity.clock = Some(words::number(value).ok_or(bad("clock"))?),
            "seed" => identity.seed = Some(words::seed(value).ok_or(bad("seed"))?),
            _ => {}
        }
    }
    Ok(identity)
}

/// Cuts a byte stream into lines. Holds at most one line; a longer one is dropped up to its end and
/// reported once.
#[derive(Debug, Default)]
pub struct LineReader {
    line: Vec<u8>,
    overlong: bool,
}

impl LineReader {
    /// A reader at the beginning of a line.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes `bytes` and calls `each` for every line that ends in them.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Result<&str, ControlError>)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (body, ends) = match part.split_last() {
                Some((b'\n', body)) => (body, true),
                _ => (part, false),
            };
            self.overlong |= self.line.len() + body.len() >= CONTROL_LINE_MAX;
            if !self.overlong {
                self.line.extend_from_slice(body);
            }
            if ends {
                if core::mem::take(&mut self.overlong) {
                    each(Err(ControlError::TooLong));
                } else {
                    each(core::str::from_utf8(&self.line).map_err(|_| ControlError::NotText));
                }
                self.line.clear();
            }
        }
    }
}

/// Appends `line` and its end to `out`.
fn push_line(out: &mut Vec<u8>, line: &dyn fmt::Display) {
    struct Sink<'a>(&'a mut Vec<u8>);
    impl Write for Sink<'_> {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            self.0.extend_from_slice(text.as_bytes());
            Ok(())
        }
    }
    // Writing to a Vec cannot fail.
    let _ = writeln!(Sink(out), "{line}");
}

impl GuestLine {
    /// Appends the line and its end to `out`. Says the same as `Display`, without its machinery:
    /// this runs while a machine boots, where every instruction that runs for the first time
    /// counts.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (verb, pairs): (&str, &[(&str, u64)]) = match self {
            Self::Ready { port, capacity, boot_us } => (
                "ready",
                &[
                    (" port=", u64::from(*port)),
                    (" capacity=", u64::from(*capacity)),
                    (" boot_us=", *boot_us),
                ],
            ),
            Self::Stats(s) => (
                "stats",
                &[
                    (" mem_total=", s.mem_total),
                    (" mem_used=", s.mem_used),
                    (" busy_us=", s.busy_us),
                    (" requests=", s.requests),
                    (" in_service=", s.in_service),
                    (" errors=", s.errors),
                    (" uptime_us=", s.uptime_us),
                ],
            ),
            Self::Stopping { code } => ("stopping", &[(" code=", u64::from(*code))]),
        };
        out.extend_from_slice(verb.as_bytes());
        for (key, value) in pairs {
            out.extend_from_slice(key.as_bytes());
            push_number(out, *value);
        }
        out.push(b'\n');
    }
}

/// Appends `value` in decimal digits.
fn push_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

impl HostLine {
    /// Appends the line and its end to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        push_line(out, self);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn guest_lines_round_trip() {
        let stats = Stats {
            mem_total: 1,
            mem_used: 2,
            busy_us: 3,
            requests: 4,
            in_service: 5,
            errors: 6,
            uptime_us: 7,
        };
        for line in [
            GuestLine::Ready { port: 80, capacity: 4, boot_us: 7300 },
            GuestLine::Stats(stats),
            GuestLine::Stopping { code: 16 },
        ] {
            let text = line.to_string();
            assert_eq!(GuestLine::parse(&text), Ok(Some(line)));
            let mut bytes = vec![];
            line.encode(&mut bytes);
            assert_eq!(bytes, alloc::format!("{text}\n").into_bytes());
        }
        assert_eq!(
            GuestLine::Ready { port: 80, capacity: 4, boot_us: 7300 }.to_string(),
            "ready port=80 capacity=4 boot_us=7300"
        );
    }

    #[test]
    fn host_lines_round_trip() {
        let identity = Identity {
            mac: Some([0x52, 0x54, 0, 0xab, 0xcd, 0xef]),
            ip: Ipv4Network::new(Ipv4Addr::new(10, 0, 0, 2), 16),
            gw: Some(Ipv4Addr::new(10, 0, 0, 1)),
            dns: None,
            host: Some("echo-1".into()),
            clock: Some(5),
            seed: Some(Seed([7; 32])),
        };
        for line in [
            HostLine::Stats,
            HostLine::Stop,
            HostLine::Identity(identity.into()),
            HostLine::Identity(Box::default()),
        ] {
            let text = line.to_string();
            assert_eq!(HostLine::parse(&text), Ok(Some(line)), "{text}");
        }
    }

    use alloc::boxed::Box;

    #[test]
    fn unknown_is_ignored_and_bad_is_refused() {
        assert_eq!(HostLine::parse("dance fast=1"), Ok(None));
        assert_eq!(HostLine::parse(""), Ok(None));
        assert_eq!(HostLine::parse("stats x=1 y"), Ok(Some(HostLine::Stats)));
        for line in [
            "identity ip=1",
            "identity mac=01:00:00:00:00:00",
            "identity mac=2:3:4:5:6:7",
            "identity seed=0",
            "identity host=%20",
            "identity clock=-1",
        ] {
            assert_eq!(HostLine::parse(line).unwrap_err().code(), "CONTROL_LINE_MALFORMED");
        }
        for line in ["ready", "ready port=80 capacity=1", "stopping code=256", "stats requests=1"] {
            assert_eq!(GuestLine::parse(line).unwrap_err().code(), "CONTROL_LINE_MALFORMED");
        }
    }

    fn lines(chunks: &[&[u8]]) -> Vec<Result<String, ControlError>> {
        let mut reader = LineReader::new();
        let mut seen = vec![];
        for chunk in chunks {
            reader.push(chunk, |line| seen.push(line.map(String::from)));
        }
        seen
    }

    #[test]
    fn lines_are_put_together() {
        assert_eq!(
            lines(&[b"sta", b"ts\nst", b"op\n", b"rest"]),
            [Ok("stats".into()), Ok("stop".into())]
        );
        let most = "x".repeat(CONTROL_LINE_MAX - 1);
        let long = "x".repeat(CONTROL_LINE_MAX);
        assert_eq!(lines(&[most.as_bytes(), b"\n"]), [Ok(most.clone())]);
        assert_eq!(
            lines(&[long.as_bytes(), b"yyy\nok\n"]),
            [Err(ControlError::TooLong), Ok("ok".into())]
        );
        assert_eq!(lines(&[b"\xff\nok\n"]), [Err(ControlError::NotText), Ok("ok".into())]);
    }

    proptest! {
        #[test]
        fn cutting_does_not_matter(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..3000), at in any::<prop::sample::Index>()) {
            let cut = at.index(bytes.len() + 1);
            prop_assert_eq!(lines(&[&bytes]), lines(&[&bytes[..cut], &bytes[cut..]]));
        }

        #[test]
        fn any_line_is_answered(line in ".*") {
            let _ = GuestLine::parse(&line);
            let _ = HostLine::parse(&line);
        }
    }
}
