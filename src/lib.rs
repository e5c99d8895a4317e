//! oncefs (map to come)
pub mod backend;
pub mod cli;
pub mod config;
pub mod content;
pub mod fuse;
pub mod ingest;
pub mod node;
pub mod sidecar;
pub mod tree;
pub mod types;
pub mod vfs;
