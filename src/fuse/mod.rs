//! The kernel's side: copies arguments, calls [`Vfs`], replies. Only this room names a fuser type.
//!
//! A callback never waits for the network. Each operation is a future that is polled once on the kernel's thread; what
//! is local completes there, without a thread switch, and whatever has to wait moves into a task together with its reply.

mod adapter;
mod convert;
mod errno;
mod listing;
mod lock_flags;
pub mod notify;
mod remount;
mod reply;
mod session;
pub mod table;

pub use remount::remount;
pub use session::{Mounted, abort, clear_stale, is_dying, mount, unmount};
