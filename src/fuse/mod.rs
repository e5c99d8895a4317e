//! The kernel's side: copies arguments, calls [`Vfs`], replies. Only this room names a fuser type.
//!
//! A callback never waits for the network. Each operation is a future that is polled once on the kernel's thread; what
//! is local completes there, without a thread switch, and whatever has to wait moves into a task together with its reply.

mod adapter;
mod errno;
pub mod notify;
mod session;

pub use session::{Mounted, clear_stale, is_mounted, mount, unmount};
