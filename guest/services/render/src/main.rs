//! The render machine.

#![cfg_attr(skein_guest, no_std, no_main)]

skein_unikernel::main!(render::handle);
