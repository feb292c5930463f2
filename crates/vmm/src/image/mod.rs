//! Images: what a kernel must be to boot, and a store of kernels, modules and manifests on disk.
//! Synchronous, and free of QEMU.

mod kernel;
mod store;

pub use kernel::{KERNEL_BYTES_MAX, KernelError, KernelInfo, check_kernel};
pub use store::{
    BlobFault, ImageError, ImageFiles, ImageImport, ImageStore, ImportModule, MODULES_BYTES_MAX,
};
