//! The echo machine.

#![cfg_attr(skein_guest, no_std, no_main)]

skein_unikernel::main!(echo::handle);
