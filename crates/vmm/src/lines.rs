//! Splits a byte stream into lines of bounded length. Used for QMP and for the control channel:
//! both peers may be hostile, so a line that is too long is skipped to its end and counted, never
//! stored.

/// Turns pieces of a stream into whole lines.
#[derive(Debug)]
pub(crate) struct LineDecoder {
    /// The beginning of a line whose end has not come yet; never longer than `bytes_max`.
    partial: Vec<u8>,
    bytes_max: usize,
    /// Inside a line that is too long.
    skipping: bool,
    /// Lines that were too long.
    oversized: u64,
}

impl LineDecoder {
    /// For lines of at most `bytes_max` bytes, not counting the newline.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { partial: Vec::new(), bytes_max, skipping: false, oversized: 0 }
    }

    /// How many lines were dropped because they were too long.
    pub(crate) fn oversized(&self) -> u64 {
        self.oversized
    }

    /// Hands each line that `bytes` completes to `sink`, without its newline and a carriage return
    /// before it.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut sink: impl FnMut(&[u8])) {
        while let Some(at) = bytes.iter().position(|&b| b == b'\n') {
            let (line, rest) = (&bytes[..at], &bytes[at + 1..]);
            self.append(line);
            if self.skipping {
                self.skipping = false;
            } else {
                sink(self.partial.strip_suffix(b"\r").unwrap_or(&self.partial));
            }
            self.partial.clear();
            bytes = rest;
        }
        self.append(bytes);
        if self.partial.is_empty() {
            // One long line must not hold its memory for the life of the machine.
            self.partial = Vec::new();
        }
    }

    fn append(&mut self, piece: &[u8]) {
        if self.skipping {
            return;
        }
        if self.partial.len() + piece.len() > self.bytes_max {
            self.skipping = true;
            self.oversized += 1;
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(piece);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(decoder: &mut LineDecoder, bytes: &[u8]) -> Vec<String> {
        let mut out = Vec::new();
        decoder.push(bytes, |line| out.push(String::from_utf8_lossy(line).into_owned()));
        out
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let mut decoder = LineDecoder::new(8);
        assert_eq!(lines(&mut decoder, b"re"), Vec::<String>::new());
        assert_eq!(lines(&mut decoder, b"ady\r\n\nx\nsta"), ["ready", "", "x"]);
        assert_eq!(lines(&mut decoder, b"ts\n"), ["stats"]);
        assert_eq!(decoder.oversized(), 0);
    }

    #[test]
    fn a_line_too_long_is_skipped_and_the_next_is_read() {
        let mut decoder = LineDecoder::new(4);
        assert_eq!(lines(&mut decoder, b"12345\n1234\n"), ["1234"]);
        assert_eq!(lines(&mut decoder, &[b'z'; 100_000]), Vec::<String>::new());
        assert!(decoder.partial.capacity() <= 64);
        assert_eq!(lines(&mut decoder, b"zz\nok\n"), ["ok"]);
        assert_eq!(decoder.oversized(), 2);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()], 0..300),
            cut in 1usize..40,
        ) {
            let whole = lines(&mut LineDecoder::new(16), &bytes);
            let mut decoder = LineDecoder::new(16);
            let pieces: Vec<_> = bytes.chunks(cut).flat_map(|p| lines(&mut decoder, p)).collect();
            prop_assert_eq!(whole, pieces);
            prop_assert!(decoder.partial.len() <= 16);
        }
    }
}
