//! The bytes on the local disk: files that are being written or wait to be stored ([`spool`]), and sealed content by
//! hash ([`sealed`]), which is the store itself in embedded mode and a bounded cache in a cluster. Content is read through
//! [`verified`] and nothing else, so that what the disk damaged is never taken for right.
//!
//! This room knows inode numbers, generations and hashes, but not names and not who has a file open.

pub mod arrivals;
pub mod disk;
pub mod flight;
mod incoming;
mod lease;
mod lost;
pub mod sealed;
pub mod shelf;
pub mod spool;
pub mod sums;
pub mod verified;

pub use arrivals::Arrivals;
pub use lease::{has_no_writer, leases_work};
pub use sealed::Sealed;
pub use spool::Spool;
pub use verified::{ReadFile, VerifiedFile, damaged, is_damage};
