//! What POSIX and the man pages say of names, attributes and mounts: the field's suite, the same calls on ext4 and on a
//! mount, and what mount(8) does.
//!
//! Needs root, since most of it is about who may do what. A missing program is a failure, never a skipped test.

#![allow(unsafe_code)] // System calls that the standard library does not offer.
#[path = "../common/mod.rs"]
mod common;

mod calls;
mod cases;
mod differential;
mod many;
mod mounting;
mod native;
mod pjdfstest;
mod unsupported;
mod walk;
