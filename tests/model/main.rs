//! Random use through the real mount, against the disk's own file system.
//!
//! Settings: `ONCEFS_TEST_SEED` repeats a run, `ONCEFS_MODEL_CASES` and `ONCEFS_FSX_OPERATIONS` make it longer.

#![allow(unsafe_code)] // System calls that the standard library does not offer.
#[path = "../common/mod.rs"]
mod common;

mod fsx;
mod op;
mod random;
mod side;

/// A number from the environment, or this one.
fn setting(name: &str, otherwise: u32) -> u32 {
    match std::env::var(name) {
        Ok(value) => value
            .parse()
            .unwrap_or_else(|e| panic!("{name}={value}: {e}")),
        Err(_) => otherwise,
    }
}
