//! One machine, no servers: the real program, mounted through the real kernel, used as programs use a disk.
//!
//! A missing program or a missing /dev/fuse is a failure, never a skipped test.

#![allow(unsafe_code)] // System calls that the standard library does not offer.
#[path = "../common/mod.rs"]
mod common;

/// Runs each check on a mount that hands its spool files to the kernel, and on one that does not.
macro_rules! both_ways {
    ($($check:ident),* $(,)?) => {$(
        mod $check {
            #[test]
            fn passthrough() {
                super::$check(&crate::common::mount::Mount::start(&[]));
            }

            #[test]
            fn through_the_daemon() {
                super::$check(&crate::common::mount::Mount::start(&["--no-passthrough"]));
            }
        }
    )*};
}

mod agreement;
mod background;
mod bytes;
mod coherence;
mod commands;
mod copy_range;
mod crashes;
mod dedup;
mod ending;
mod gc;
mod https;
mod locks;
mod names;
mod open_flags;
mod programs;
mod promises;
mod sidecar;
mod sparse;
mod user;
