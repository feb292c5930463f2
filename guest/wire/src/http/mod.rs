//! HTTP/1.1 as a server speaks it (RFC 9110 and 9112), without IO: bytes go in, requests come out,
//! answers become bytes.
//!
//! ```text
//! bytes -> RequestReader -> Step::Head -> (body, chunked or not) -> Step::Request -> service -> Response -> bytes
//! ```
//!
//! A request that could be understood in two ways (both framings, two lengths, a bare CR) is
//! refused: such requests are how proxies and servers are made to disagree.

mod chunked;
mod date;
mod head;
mod reader;
mod response;

pub use date::HttpDate;
pub use head::{Head, Request};
pub use reader::{Limits, Refusal, RequestReader, Step};
pub use response::{Response, reason};
