//! The bytes on the local disk: files that are being written or wait to be stored ([`spool`]), and sealed content by
//! hash ([`sealed`]), which is the store itself in embedded mode and a bounded cache in a cluster.
//!
//! This room knows inode numbers, generations and hashes, but not names and not who has a file open.

pub mod disk;
mod lease;
pub mod sealed;
pub mod spool;

pub use lease::{has_no_writer, leases_work};
pub use sealed::Sealed;
pub use spool::Spool;
