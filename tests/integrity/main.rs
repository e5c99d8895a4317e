//! Damage: bits that flip on the disk, files that go missing, tables that contradict each other. Whatever is damaged, what
//! a program reads is right or an error; `oncefs fsck`, `scrub` and `gc` find what there is to find.
//!
//! A missing program or a missing /dev/fuse is a failure, never a skipped test.

#![allow(unsafe_code)] // System calls that the standard library does not offer.
#[path = "../common/mod.rs"]
mod common;

mod bit_flips;
mod damage;
mod fsck;
mod gc;
mod scrub;
mod verified;
