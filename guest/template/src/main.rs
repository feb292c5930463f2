//! A service is one function: request in, response out.

#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use skein_unikernel::{Request, Response};

skein_unikernel::main!(handle);

async fn handle(request: Request) -> Response {
    let name = core::str::from_utf8(request.body()).unwrap_or("stranger");
    Response::text(format!("Hello, {name}!\n"))
}
