//! The search machine.

#![cfg_attr(skein_guest, no_std, no_main)]

skein_unikernel::main!(search::handle, init = search::init);
