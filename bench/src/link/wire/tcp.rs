//! TCP between two hosts, as a program without the link uses it.

use super::light::Waits;
use super::run::{Meter, Stop};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const PORT: u16 = 4078;

/// One end of a connection.
pub(crate) struct End {
    stream: TcpStream,
}

impl End {
    /// Waits for a connection.
    pub(crate) fn listen(address: Ipv4Addr) -> io::Result<TcpListener> {
        TcpListener::bind((address, PORT))
    }

    pub(crate) fn accept(listener: &TcpListener, waits: Waits) -> io::Result<Self> {
        Self::of(listener.accept()?.0, waits)
    }

    /// Connects; the other end may still be about to listen.
    pub(crate) fn connect(address: Ipv4Addr, waits: Waits) -> io::Result<Self> {
        let begun = Instant::now();
        loop {
            match TcpStream::connect((address, PORT)) {
                Ok(stream) => return Self::of(stream, waits),
                Err(error) if begun.elapsed() > Duration::from_secs(5) => return Err(error),
                Err(_) => std::thread::yield_now(),
            }
        }
    }

    fn of(stream: TcpStream, waits: Waits) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        if waits == Waits::Spinning {
            stream.set_nonblocking(true)?;
        } else {
            stream.set_read_timeout(Some(Duration::from_millis(200)))?;
        }
        Ok(Self { stream })
    }

    pub(crate) fn send_until(&mut self, stop: &Stop) -> io::Result<()> {
        let block = vec![0x5a; 64 * 1024];
        self.stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        while !stop.load(Ordering::Relaxed) {
            match self.stream.write(&block) {
                Ok(_) => {}
                Err(error) if is_timeout(&error) => {}
                // The receiver was told first, and closed.
                Err(_) if stop.load(Ordering::Relaxed) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn receive_until(
        &mut self,
        warm: Duration,
        stop: &Stop,
    ) -> io::Result<(u64, Duration)> {
        let mut block = vec![0; 256 * 1024];
        let mut meter = Meter::new(warm);
        while !stop.load(Ordering::Relaxed) {
            match self.stream.read(&mut block) {
                Ok(0) => break,
                Ok(length) => meter.count(length as u64),
                Err(error) if is_timeout(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
                Err(error) => return Err(error),
            }
        }
        Ok(meter.result())
    }

    fn read_exactly(&mut self, mut into: &mut [u8]) -> io::Result<()> {
        let begun = Instant::now();
        while !into.is_empty() {
            match self.stream.read(into) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => into = &mut into[length..],
                Err(error) if is_timeout(&error) && begun.elapsed() < Duration::from_secs(5) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn ping(&mut self, message: usize, rounds: usize) -> io::Result<Vec<Duration>> {
        let mut block = vec![0x5a; message];
        let mut times = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            let begun = Instant::now();
            self.stream.write_all(&block)?;
            self.read_exactly(&mut block)?;
            times.push(begun.elapsed());
        }
        self.stream.shutdown(Shutdown::Both)?;
        Ok(times)
    }

    /// Sends everything back until the other end closes.
    pub(crate) fn echo(&mut self, message: usize) -> io::Result<()> {
        let mut block = vec![0; message];
        loop {
            match self.read_exactly(&mut block) {
                Ok(()) => self.stream.write_all(&block)?,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends `bytes` over the fresh connection and waits for one byte that says that all have come.
    pub(crate) fn burst(&mut self, bytes: usize) -> io::Result<Duration> {
        let block = vec![0x5a; bytes];
        let begun = Instant::now();
        let mut written = 0;
        while written < bytes {
            match self.stream.write(&block[written..]) {
                Ok(length) => written += length,
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        self.read_exactly(&mut [0])?;
        Ok(begun.elapsed())
    }

    /// Takes `bytes` and answers with one.
    pub(crate) fn answer_burst(&mut self, bytes: usize) -> io::Result<()> {
        self.read_exactly(&mut vec![0; bytes])?;
        self.stream.write_all(&[1])
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
