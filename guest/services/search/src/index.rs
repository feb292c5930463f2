//! Reads the data module, whose layout `data/build.py` describes. Nothing is indexed or copied at
//! boot.
//!
//! Every access is checked: damaged data give wrong answers, never a fault.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::Serialize;

const MAGIC: &[u8] = b"SKCITY01";
/// Words per block of the dictionary.
const BLOCK: usize = 16;
const CITY_SIZE: usize = 32;
const FOLD_SIZE: usize = 8;
const OFFSET_SIZE: usize = 4;

/// Why the data cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexError {
    /// The image has no module `cities.bin`.
    Missing,
    /// It is not what `data/build.py` builds.
    Malformed,
}

impl fmt::Display for IndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "the data module cities.bin is missing",
            Self::Malformed => "the data module cities.bin is malformed",
        })
    }
}

impl core::error::Error for IndexError {}

/// A city as it is answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct City<'a> {
    /// Its own name.
    pub name: &'a str,
    /// Country, ISO 3166-1 alpha-2.
    pub country: &'a str,
    /// Degrees north.
    pub latitude: f64,
    /// Degrees east.
    pub longitude: f64,
    /// Inhabitants.
    pub population: u32,
    /// Name of its time zone.
    pub timezone: &'a str,
    /// Number at GeoNames.
    pub geonameid: u32,
}

/// A table of records of one size.
#[derive(Debug, Clone, Copy)]
struct Table<'a> {
    bytes: &'a [u8],
    size: usize,
}

impl<'a> Table<'a> {
    fn len(self) -> usize {
        self.bytes.len() / self.size
    }

    fn get(self, number: usize) -> Option<&'a [u8]> {
        let start = number.checked_mul(self.size)?;
        self.bytes.get(start..start.checked_add(self.size)?)
    }
}

/// The data.
#[derive(Debug, Clone, Copy)]
pub struct Index<'a> {
    bytes: &'a [u8],
    folds: Table<'a>,
    cities: Table<'a>,
    blocks: Table<'a>,
    zones: Table<'a>,
    strings: &'a [u8],
}

impl<'a> Index<'a> {
    /// Reads the header of `bytes`.
    ///
    /// # Errors
    /// [`IndexError::Malformed`] when it is not one, or describes more than there is.
    pub fn new(bytes: &'a [u8]) -> Result<Self, IndexError> {
        Self::read(bytes).ok_or(IndexError::Malformed)
    }

    fn read(bytes: &'a [u8]) -> Option<Self> {
        if !bytes.starts_with(MAGIC) {
            return None;
        }
        let header = |number: usize| u32_at(bytes, MAGIC.len() + 4 * number);
        let table = |number: usize, size: usize| {
            let start = header(number)?;
            let length = header(number + 1)?.checked_mul(size)?;
            Some(Table { bytes: bytes.get(start..start.checked_add(length)?)?, size })
        };
        let end = header(10)?;
        Some(Self {
            bytes: bytes.get(..end)?,
            folds: table(0, FOLD_SIZE)?,
            cities: table(2, CITY_SIZE)?,
            blocks: table(4, OFFSET_SIZE)?,
            zones: table(6, OFFSET_SIZE)?,
            strings: bytes.get(header(8)?..header(9)?)?,
        })
    }

    /// Number of cities. They are numbered by inhabitants, most first.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cities.len()
    }

    /// Whether there are no cities.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The city of that number.
    #[must_use]
    pub fn city(&self, number: usize) -> Option<City<'a>> {
        let record = self.cities.get(number)?;
        let degrees = |at| Some(f64::from(i32::from_le_bytes(array_at(record, at)?)) / 1e5);
        let zone = usize::from(u16::from_le_bytes(array_at(record, 22)?));
        Some(City {
            name: self.string(u32_at(record, 0)?)?,
            latitude: degrees(4)?,
            longitude: degrees(8)?,
            population: u32::from_le_bytes(array_at(record, 12)?),
            geonameid: u32::from_le_bytes(array_at(record, 16)?),
            country: core::str::from_utf8(record.get(20..22)?).ok()?,
            timezone: self.string(u32_at(self.zones.get(zone)?, 0)?)?,
        })
    }

    /// Inhabitants of a city; 0 when there is no such city.
    pub(crate) fn population(&self, number: usize) -> u32 {
        let record = self.cities.get(number);
        record.and_then(|record| array_at(record, 12)).map_or(0, u32::from_le_bytes)
    }

    /// The country of a city, two letters.
    pub(crate) fn country(&self, number: usize) -> Option<[u8; 2]> {
        array_at(self.cities.get(number)?, 20)
    }

    fn string(&self, offset: usize) -> Option<&'a str> {
        let length = usize::from(*self.strings.get(offset)?);
        core::str::from_utf8(self.strings.get(offset + 1..offset + 1 + length)?).ok()
    }

    /// Small letters without accents; blanks for punctuation: what the dictionary's words are made
    /// of.
    #[must_use]
    pub fn fold(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            match self.fold_of(c) {
                Some(folded) => out.push_str(folded),
                None => out.push(c),
            }
        }
        out
    }

    fn fold_of(&self, c: char) -> Option<&'a str> {
        let code = c as usize;
        let code_at = |number| self.folds.get(number).and_then(|fold| u32_at(fold, 0));
        let number = lower_bound(self.folds.len(), |number| code_at(number) < Some(code));
        let fold = self.folds.get(number).filter(|_| code_at(number) == Some(code))?;
        self.string(u32_at(fold, 4)?)
    }

    /// All words that begin with `prefix`, in order.
    #[must_use]
    pub fn words(&self, prefix: &'a str) -> Words<'a> {
        let prefix = prefix.as_bytes();
        // The first block whose first word is not before the prefix; matches may begin in the one
        // before it.
        let after = lower_bound(self.blocks.len(), |block| {
            self.first_word(block).is_some_and(|word| word < prefix)
        });
        Words {
            index: *self,
            prefix,
            block: after.saturating_sub(1),
            place: BLOCK,
            offset: 0,
            word: Vec::new(),
        }
    }

    fn first_word(&self, block: usize) -> Option<&'a [u8]> {
        let at = u32_at(self.blocks.get(block)?, 0)?;
        let length = usize::from(*self.bytes.get(at + 1)?);
        self.bytes.get(at + 2..at + 2 + length)
    }
}

/// A word of the dictionary.
#[derive(Debug, Clone, Copy)]
pub struct Word<'a> {
    /// Whether it is the whole of what was looked for.
    pub is_whole: bool,
    cities: &'a [u8],
    count: usize,
}

impl<'a> Word<'a> {
    /// The cities that have it in a name, and whether in their own.
    pub fn cities(&self) -> impl Iterator<Item = (usize, bool)> + use<'a> {
        let (mut rest, mut number) = (self.cities, 0_usize);
        (0..self.count).map_while(move |_| {
            let value = varint(&mut rest)?;
            number = number.checked_add(value >> 1)?;
            Some((number, value & 1 == 1))
        })
    }
}

/// Walks through the dictionary.
#[derive(Debug)]
pub struct Words<'a> {
    index: Index<'a>,
    prefix: &'a [u8],
    /// The next block to enter.
    block: usize,
    /// Words read of the current one.
    place: usize,
    offset: usize,
    word: Vec<u8>,
}

impl<'a> Words<'a> {
    /// Reads the next word into `self.word`.
    fn advance(&mut self) -> Option<(&'a [u8], usize)> {
        if self.place == BLOCK {
            self.offset = u32_at(self.index.blocks.get(self.block)?, 0)?;
            (self.block, self.place) = (self.block + 1, 0);
            self.word.clear();
        }
        let bytes = self.index.bytes;
        let (shared, more) = (*bytes.get(self.offset)?, *bytes.get(self.offset + 1)?);
        let start = self.offset + 2;
        let suffix = bytes.get(start..start + usize::from(more))?;
        self.word.truncate(usize::from(shared));
        self.word.extend_from_slice(suffix);
        let mut rest = bytes.get(start + suffix.len()..)?;
        let count = varint(&mut rest)?;
        let cities = rest;
        for _ in 0..count {
            varint(&mut rest)?;
        }
        self.offset = bytes.len() - rest.len();
        self.place += 1;
        Some((cities, count))
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        loop {
            let (cities, count) = self.advance()?;
            if self.word.starts_with(self.prefix) {
                let is_whole = self.word.len() == self.prefix.len();
                return Some(Word { is_whole, cities, count });
            }
            if self.word.as_slice() > self.prefix {
                return None;
            }
        }
    }
}

/// The first number below `count` for which `is_before` is false.
fn lower_bound(count: usize, is_before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if is_before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(array_at(bytes, at)?) as usize)
}

/// Seven bits a byte, least first, the high bit set on all but the last; at most five bytes.
fn varint(bytes: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in [0, 7, 14, 21, 28] {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}
