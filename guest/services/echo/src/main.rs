//! The echo machine.

#![no_std]
#![no_main]

skein_unikernel::main!(echo::handle);
