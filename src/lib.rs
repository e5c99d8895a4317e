//! oncefs keeps every distinct file content exactly once. This page is the map of the crate.
//!
//! # The house
//!
//! Imports run downwards only.
//!
//! | room | what it knows |
//! |---|---|
//! | [`cli`] | options, and the small commands that ask a running daemon |
//! | [`node`] | the only wiring: open, recover, start workers, mount, serve, and the same backwards |
//! | [`fuse`], [`sidecar`] | the two ways in: the kernel, and HTTP |
//! | [`vfs`] | what a file operation means; what is open |
//! | [`mod@fsck`] | looking for damage: tables, content, spool; once, or slowly in the background |
//! | [`import`] | bringing an embedded tree into a mounted one |
//! | [`ingest`] | from a sealed file to stored content; recovery at start; removal of unused content |
//! | [`tree`] | the namespace: ops, applying them, questions, and the order in which they happen |
//! | [`content`] | bytes on the local disk: spool files, and sealed content by hash |
//! | [`backend`] | the seams to content store, namespace log, locks, records, members; embedded and cluster |
//! | [`config`], [`types`] | values that all rooms share |
//! | [`windows`] | the moments of a crash, by name, for the tests |
//!
//! # Two flows
//!
//! **Writing.** `create` ([`vfs::opening`]) makes a spool file and an `Op::Create`; the kernel writes to the spool file
//! itself (passthrough) or through [`fuse`]. `flush` submits `Op::Pending`: from then on the bytes survive the daemon being
//! killed. The last `release` seals the spool file and wakes a worker ([`ingest`]): hash → lock of the hash → already
//! stored? else put → `Op::Commit` → the spool file is gone, its bytes are content.
//!
//! **Reading.** `open` finds out nothing yet, but calls for what is small and waits at another node. The first `read` takes
//! the spool file of this node, else the sealed file ([`content::sealed`]), else fetches it from the store, hashed as it
//! streams.
//!
//! # What always holds
//!
//! - Data is durable before anything refers to it: content is published before the `Op::Commit` that names it.
//! - After power loss only a spool file is believed that says of itself that it was synced ([`content::spool`]).
//! - A spool file goes only after the namespace has its content under a hash, or has no use for it any more.
//! - While a spool file is being published nobody writes to it; a spool file that shares its inode with content is never
//!   written again ([`content::spool`]).
//! - Content is read through [`content::verified`]: what the disk damaged is an error or fetched again, never returned.
//! - Every change of the namespace is an [`tree::Op`], applied by [`tree::apply`] and nothing else, in one order.
//! - The locks of contents only save work: without any of them content is still stored once and nothing is lost. File locks
//!   are for programs, which rely on them ([`vfs::locking`]).
//!
//! Start reading at [`node::run`], then [`vfs::opening`] and `ingest/worker.rs`.

#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod backend;
pub mod cli;
pub mod config;
pub mod content;
pub mod fsck;
pub mod fuse;
pub mod import;
pub mod ingest;
pub mod node;
pub mod sidecar;
pub mod tree;
pub mod types;
pub mod vfs;
pub mod windows;
