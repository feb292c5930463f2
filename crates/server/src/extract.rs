//! Extractors whose rejections are our errors.

use crate::error::Failure;
use axum::extract::{FromRequest, FromRequestParts};
use serde::de::DeserializeOwned;
use skein_api::Code;
use std::str::FromStr;

/// A JSON body.
#[derive(Debug, FromRequest)]
#[from_request(via(axum::Json), rejection(Failure))]
pub(crate) struct Json<T>(pub(crate) T);

/// The query.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Query), rejection(Failure))]
pub(crate) struct Query<T>(pub(crate) T);

/// Parts of the path.
#[derive(Debug, FromRequestParts)]
#[from_request(via(axum::extract::Path), rejection(Failure))]
pub(crate) struct Path<T>(pub(crate) T);

/// A name in the path, parsed; what cannot be a name cannot exist.
pub(crate) fn parse<T: FromStr>(text: &str, unknown: Code) -> Result<T, Failure> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Failure::new(unknown, format!("{shown:?} does not exist"))
    })
}

/// A text in a body or query, parsed; an error names the field.
pub(crate) fn field<T>(name: &str, text: &str) -> Result<T, Failure>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| Failure::new(Code::Invalid, format!("{name}: {error}")))
}

/// Keeps `T: DeserializeOwned` where the derive macros need it.
pub(crate) fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::new(Code::Malformed, error.to_string()))
}
