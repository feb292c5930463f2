//! The processor and the board: boot, page tables, interrupts, ports. All of it is for one x86-64
//! CPU.

#[cfg(skein_guest)]
mod boot;
pub(crate) mod cpu;
pub(crate) mod interrupts;
#[cfg(skein_guest)]
mod memory_functions;
pub(crate) mod paging;
pub(crate) mod pvh;

/// Addresses that `skein.ld` defines. Only their places matter; nothing is stored there under these
/// names.
#[cfg(skein_guest)]
pub(crate) mod layout {
    macro_rules! places {
        ($($name:ident),*) => {
            unsafe extern "C" { $(static $name: u8;)* }
            /// Bounds of the image's parts, physical and virtual alike.
            #[derive(Clone, Copy)]
            pub(crate) struct Layout { $(pub(crate) $name: usize,)* }
            impl Layout {
                /// Reads the bounds from the linker's symbols.
                pub(crate) fn get() -> Self {
                    Self { $($name: &raw const $name as usize,)* }
                }
            }
        };
    }
    places!(
        __code_start,
        __code_end,
        __constants_start,
        __constants_end,
        __data_start,
        __data_end,
        __stack_start,
        __stack_end,
        __fault_stack_start,
        __fault_stack_end,
        __interrupt_stack_start,
        __interrupt_stack_end,
        __image_end
    );
}
