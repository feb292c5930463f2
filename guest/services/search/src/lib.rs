//! Finds cities by their names in any language.
//!
//! `GET /?q=WORDS&limit=N`, or `POST /` with `{"q": "WORDS", "limit": N}` or with the words as
//! plain text. A city is found when every word is, or begins, a word of one of its names; accents
//! and case do not matter. `country:FR` among the words keeps to one country. The best match comes
//! first: whole words count more than beginnings, the city's own name more than its names
//! elsewhere, and large cities more than small ones.
//!
//! The data are GeoNames' cities of 15,000 inhabitants and more, under CC BY 4.0; every answer says
//! so.

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod index;
mod query;
#[cfg(test)]
mod tests;

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use skein_unikernel::{Request, Response, module, now};

pub use index::{City, Index, IndexError};
pub use query::{Found, LIMIT_MAX, Query};

/// Results when the request names no limit.
const LIMIT_DEFAULT: usize = 10;

const MODULE: &str = "cities.bin";

#[derive(Deserialize)]
struct Asked {
    q: String,
    limit: Option<usize>,
}

#[derive(Serialize)]
struct Answer<'a> {
    query: &'a str,
    total: usize,
    took_us: u64,
    results: Vec<City<'a>>,
    attribution: &'static str,
}

/// Checks that the data are there, before the machine listens.
///
/// # Errors
/// What is wrong with them.
pub fn init() -> Result<(), IndexError> {
    data().map(|_| ())
}

fn data() -> Result<Index<'static>, IndexError> {
    Index::new(module(MODULE).ok_or(IndexError::Missing)?)
}

/// Answers one search.
pub async fn handle(request: Request) -> Response {
    let index = match data() {
        Ok(index) => index,
        Err(error) => return Response::error(500, "DATA_UNUSABLE", &error.to_string()),
    };
    answer(&index, &request).await
}

/// Answers one search in `index`.
pub async fn answer(index: &Index<'_>, request: &Request) -> Response {
    let asked = match read(request) {
        Ok(asked) => asked,
        Err(refusal) => return refusal,
    };
    let start = now();
    let query = Query::parse(index, &asked.q);
    if query.is_empty() {
        return Response::error(400, "QUERY_EMPTY", "the query names nothing to search for");
    }
    let found = query.search(index, asked.limit.unwrap_or(LIMIT_DEFAULT)).await;
    let took_us = u64::try_from((now() - start).as_micros()).unwrap_or(u64::MAX);
    let answer = Answer {
        query: &asked.q,
        total: found.total,
        took_us,
        results: found.best.iter().filter_map(|number| index.city(*number)).collect(),
        attribution: "City data by GeoNames (geonames.org), CC BY 4.0",
    };
    match serde_json::to_string(&answer) {
        Ok(json) => Response::json(json + "\n"),
        Err(error) => Response::error(500, "ANSWER_NOT_ENCODED", &error.to_string()),
    }
}

fn read(request: &Request) -> Result<Asked, Response> {
    let limit_of = |text: Option<String>| match text {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Response::error(400, "LIMIT_MALFORMED", "limit is not a number")),
    };
    if let Some(q) = request.query_param("q") {
        return Ok(Asked { q, limit: limit_of(request.query_param("limit"))? });
    }
    let text = request
        .text()
        .filter(|text| !text.trim().is_empty())
        .ok_or_else(|| Response::error(400, "QUERY_EMPTY", "send ?q=WORDS, JSON or plain text"))?;
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text)
            .map_err(|error| Response::error(400, "QUERY_MALFORMED", &error.to_string()));
    }
    Ok(Asked { q: text.trim().to_owned(), limit: limit_of(request.query_param("limit"))? })
}
