//! What is left after a crash: of the daemon, in every window by name and at any moment; of the disk, which is full or
//! fails; of the power. The real program, mounted through the real kernel, on real file systems.
//!
//! A missing program is a failure, never a skipped test. `ONCEFS_TEST_SEED` repeats a run, `ONCEFS_TORTURE` multiplies
//! the rounds (`scripts/suites.sh`).

#![allow(unsafe_code)] // System calls that the standard library does not offer.
#[path = "../common/mod.rs"]
mod common;

mod disk_full;
mod injections;
mod kills;
mod power;
mod torture;
mod windows;
mod workload;
mod world;
