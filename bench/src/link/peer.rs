//! The two programs between which is measured: plain sockets of the standard library, nothing of the link in them. They are
//! this binary, started again; one line on standard output is what each has to say.

use crate::error::BenchError;
use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// What goes between the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// One way, in writes of so many bytes; `before` that do not count, then `bytes`.
    Stream {
        /// Of one write.
        write: usize,
        /// Until the link has taken its path.
        before: u64,
        /// That count.
        bytes: u64,
    },
    /// 64 bytes to and fro, so many times; reading without waiting, again and again.
    Spin {
        /// Round trips.
        rounds: u32,
    },
    /// The same; each read waits.
    Sleep {
        /// Round trips.
        rounds: u32,
    },
    /// One way, a write every so often, for so long.
    Paced {
        /// Of one write.
        write: usize,
        /// From the beginning of one write to that of the next; 0: as fast as they are taken.
        interval_us: u32,
        /// In all.
        millis: u32,
    },
}

/// A message of a round trip, bytes.
const MESSAGE: usize = 64;
/// Round trips before those that count: the link takes its path while there is traffic.
const ROUNDS_BEFORE: u32 = 2000;
/// Bytes before those that count, where writes are few.
const BYTES_BEFORE_PACED: u64 = 256 << 10;

/// What the connecting side found: seconds for the stream, or for the median round trip; bytes of the stream; and processor
/// seconds of both sides.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Found {
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    pub(crate) cpu_seconds: f64,
}

impl Traffic {
    /// The arguments after which [`peer`] is to be called with the same value.
    pub fn words(self) -> Vec<String> {
        match self {
            Self::Stream { write, before, bytes } => {
                let numbers = [write.to_string(), before.to_string(), bytes.to_string()];
                std::iter::once("stream".into()).chain(numbers).collect()
            }
            Self::Spin { rounds } => vec!["spin".into(), rounds.to_string()],
            Self::Sleep { rounds } => vec!["sleep".into(), rounds.to_string()],
            Self::Paced { write, interval_us, millis } => {
                let numbers = [write.to_string(), interval_us.to_string(), millis.to_string()];
                std::iter::once("paced".into()).chain(numbers).collect()
            }
        }
    }

    /// The value of those arguments.
    pub fn parse(words: &[String]) -> Option<Self> {
        match words {
            [kind, write, before, bytes] if kind == "stream" => Some(Self::Stream {
                write: write.parse().ok()?,
                before: before.parse().ok()?,
                bytes: bytes.parse().ok()?,
            }),
            [kind, write, interval, millis] if kind == "paced" => Some(Self::Paced {
                write: write.parse().ok()?,
                interval_us: interval.parse().ok()?,
                millis: millis.parse().ok()?,
            }),
            [kind, rounds] if kind == "spin" => Some(Self::Spin { rounds: rounds.parse().ok()? }),
            [kind, rounds] if kind == "sleep" => Some(Self::Sleep { rounds: rounds.parse().ok()? }),
            _ => None,
        }
    }
}

/// Runs one side: the connecting one if a port is given, to the address; else one that listens there. Called by the binary that the
/// bench starts.
///
/// # Errors
/// [`BenchError::Io`].
pub fn peer(traffic: Traffic, address: IpAddr, port: Option<u16>) -> Result<(), BenchError> {
    let run = || match port {
        None => serve(traffic, address),
        Some(port) => {
            let stream = TcpStream::connect((address, port))?;
            let found = ask(traffic, stream)?;
            writeln!(io::stdout(), "{}", serde_json::to_string(&found)?)
        }
    };
    run().map_err(BenchError::io("talking to the other side"))
}

fn serve(traffic: Traffic, address: IpAddr) -> io::Result<()> {
    let listener = TcpListener::bind((address, 0))?;
    writeln!(io::stdout(), "{}", listener.local_addr()?.port())?;
    let (mut stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    match traffic {
        Traffic::Stream { write, before, bytes } => {
            let mut buffer = vec![0; write.max(64 << 10)];
            take(&mut stream, &mut buffer, before)?;
            let spent = cpu_nanos();
            stream.write_all(&[1])?;
            take(&mut stream, &mut buffer, bytes)?;
            stream.write_all(&(cpu_nanos() - spent).to_le_bytes())?;
        }
        Traffic::Paced { .. } => {
            let mut buffer = vec![0; 64 << 10];
            take(&mut stream, &mut buffer, BYTES_BEFORE_PACED)?;
            let before = cpu_nanos();
            stream.write_all(&[1])?;
            while stream.read(&mut buffer)? > 0 {}
            stream.write_all(&(cpu_nanos() - before).to_le_bytes())?;
        }
        Traffic::Spin { rounds } | Traffic::Sleep { rounds } => {
            let spin = matches!(traffic, Traffic::Spin { .. });
            stream.set_nonblocking(spin)?;
            let mut message = [0; MESSAGE];
            let mut before = 0;
            for round in 0..ROUNDS_BEFORE + rounds {
                if round == ROUNDS_BEFORE {
                    before = cpu_nanos();
                }
                read_exact(&mut stream, &mut message)?;
                stream.write_all(&message)?;
            }
            stream.set_nonblocking(false)?;
            stream.write_all(&(cpu_nanos() - before).to_le_bytes())?;
        }
    }
    // The other side has read everything when it closes.
    let _ = stream.read(&mut [0]);
    Ok(())
}

fn ask(traffic: Traffic, mut stream: TcpStream) -> io::Result<Found> {
    stream.set_nodelay(true)?;
    let mut answer = [0; 8];
    let mut sent = 0;
    let (seconds, own) = match traffic {
        Traffic::Paced { write, interval_us, millis } => {
            let piece = vec![7; write];
            give(&mut stream, &piece, BYTES_BEFORE_PACED)?;
            stream.read_exact(&mut [0])?;
            let (begun, cpu) = (now(), cpu_nanos());
            sent = give_paced(
                &mut stream,
                &piece,
                Duration::from_micros(interval_us.into()),
                Duration::from_millis(millis.into()),
            )?;
            stream.shutdown(std::net::Shutdown::Write)?;
            stream.read_exact(&mut answer)?;
            (begun.elapsed().as_secs_f64(), cpu_nanos() - cpu)
        }
        Traffic::Stream { write, before, bytes } => {
            sent = bytes;
            let piece = vec![7; write];
            give(&mut stream, &piece, before)?;
            stream.read_exact(&mut [0])?;
            let (begun, cpu) = (now(), cpu_nanos());
            give(&mut stream, &piece, bytes)?;
            stream.read_exact(&mut answer)?;
            (begun.elapsed().as_secs_f64(), cpu_nanos() - cpu)
        }
        Traffic::Spin { rounds } | Traffic::Sleep { rounds } => {
            let spin = matches!(traffic, Traffic::Spin { .. });
            stream.set_nonblocking(spin)?;
            let mut message = [5; MESSAGE];
            let mut times = Vec::with_capacity(rounds as usize);
            let mut cpu = 0;
            for round in 0..ROUNDS_BEFORE + rounds {
                if round == ROUNDS_BEFORE {
                    cpu = cpu_nanos();
                }
                let begun = now();
                stream.write_all(&message)?;
                read_exact(&mut stream, &mut message)?;
                if round >= ROUNDS_BEFORE {
                    times.push(begun.elapsed().as_nanos() as u64);
                }
            }
            stream.set_nonblocking(false)?;
            stream.read_exact(&mut answer)?;
            times.sort_unstable();
            (times[times.len() / 2] as f64 / 1e9, cpu_nanos() - cpu)
        }
    };
    let cpu_seconds = (own + u64::from_le_bytes(answer)) as f64 / 1e9;
    Ok(Found { seconds, bytes: sent, cpu_seconds })
}

fn now() -> Instant {
    Instant::now()
}

fn give(stream: &mut TcpStream, piece: &[u8], bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let count = left.min(piece.len() as u64);
        stream.write_all(&piece[..count as usize])?;
        left -= count;
    }
    Ok(())
}

/// Writes pieces at their times until the time is over; how many bytes. Between two it looks at the clock, as whoever has something
/// to compute does not give up its processor either.
fn give_paced(
    stream: &mut TcpStream,
    piece: &[u8],
    interval: Duration,
    span: Duration,
) -> io::Result<u64> {
    let begun = now();
    let (mut bytes, mut due) = (0, Duration::ZERO);
    while begun.elapsed() < span {
        if begun.elapsed() < due {
            std::hint::spin_loop();
            continue;
        }
        stream.write_all(piece)?;
        bytes += piece.len() as u64;
        // Who is late does not send twice as often then.
        due = (due + interval).max(begun.elapsed().saturating_sub(interval));
    }
    Ok(bytes)
}

fn take(stream: &mut TcpStream, buffer: &mut [u8], bytes: u64) -> io::Result<()> {
    let mut left = bytes;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let count = stream.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        left -= count as u64;
    }
    Ok(())
}

/// Reads all of it, asking again and again where the socket does not wait.
fn read_exact(stream: &mut TcpStream, into: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        match stream.read(&mut into[done..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Processor time of this thread, nanoseconds.
fn cpu_nanos() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}
