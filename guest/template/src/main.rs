#![no_std]
#![no_main]

extern crate alloc;

use alloc::format;
use skein_unikernel::{Request, Response, main, param};

async fn hello(request: Request) -> Response {
    let greeting = param("GREETING").unwrap_or("Hello");
    let name = request.query_param("name").unwrap_or_else(|| "world".into());
    Response::text(format!("{greeting}, {name}!\n"))
}

main!(hello);
