//! What is looked for, and how matches are ranked.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use skein_unikernel::yield_now;

use crate::index::Index;

/// Most results in one answer.
pub const LIMIT_MAX: usize = 100;
/// 8: every word costs a walk through the dictionary and one byte per city.
const WORDS_MAX: usize = 8;
/// 2,000 words of the dictionary, about a millisecond emulated, before others get their turn.
const WORDS_PER_TURN: usize = 2_000;

/// Points for a word that begins a word of a foreign name; the other matches add to it.
const PREFIX: u8 = 1;
/// The whole word matches.
const WHOLE: u8 = 4;
/// It is of the city's own name.
const OWN: u8 = 1;
/// A city with this many inhabitants gets no points for its size; each fourfold is one point, so
/// that Munich comes before the village whose own name happens to contain `München`.
const SMALL: u32 = 15_000;

/// A query taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Query {
    words: Vec<String>,
    country: Option<[u8; 2]>,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Number of cities that match.
    pub total: usize,
    /// The best of them, best first.
    pub best: Vec<usize>,
}

impl Query {
    /// Takes `text` apart with the foldings of `index`. Words beyond the eighth are not looked at.
    #[must_use]
    pub fn parse(index: &Index<'_>, text: &str) -> Self {
        let mut query = Self { words: Vec::new(), country: None };
        for part in text.split_whitespace() {
            match part.split_once(':') {
                Some((key, code)) if key.eq_ignore_ascii_case("country") && code.len() == 2 => {
                    query.country = code.to_ascii_uppercase().as_bytes().try_into().ok();
                }
                _ => {
                    let folded = index.fold(part);
                    query.words.extend(
                        folded.split(' ').filter(|word| !word.is_empty()).map(String::from),
                    );
                }
            }
        }
        query.words.truncate(WORDS_MAX);
        query
    }

    /// Whether there is nothing to look for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty() && self.country.is_none()
    }

    /// Finds the cities that match, and the best `limit` (at most [`LIMIT_MAX`]) of them.
    pub async fn search(&self, index: &Index<'_>, limit: usize) -> Found {
        // Points per city; a city that missed a word has none.
        let mut points = vec![1_u8; index.len()];
        for word in &self.words {
            let matches = matches(index, word).await;
            for (points, found) in points.iter_mut().zip(matches) {
                *points = if *points == 0 || found == 0 { 0 } else { points.saturating_add(found) };
            }
        }
        let in_country =
            |number: &usize| self.country.is_none() || self.country == index.country(*number);
        let mut all: Vec<(u8, usize)> = points
            .into_iter()
            .enumerate()
            .filter(|(number, points)| *points > 0 && in_country(number))
            .map(|(number, points)| {
                let size = index.population(number) / SMALL;
                let size = size.checked_ilog2().map_or(0, |log| (log / 2) as u8);
                (u8::MAX - points.saturating_add(size), number)
            })
            .collect();
        // Most points first, and then by number, which is by inhabitants.
        all.sort_unstable();
        let best = all.iter().take(limit.min(LIMIT_MAX)).map(|(_, number)| *number).collect();
        Found { total: all.len(), best }
    }
}

/// Points of every city for one word.
async fn matches(index: &Index<'_>, word: &str) -> Vec<u8> {
    let mut points = vec![0_u8; index.len()];
    for (count, found) in index.words(word).enumerate() {
        let base = if found.is_whole { PREFIX + WHOLE } else { PREFIX };
        for (number, is_own) in found.cities() {
            if let Some(points) = points.get_mut(number) {
                *points = (*points).max(base + if is_own { OWN } else { 0 });
            }
        }
        if count % WORDS_PER_TURN == WORDS_PER_TURN - 1 {
            yield_now().await;
        }
    }
    points
}
