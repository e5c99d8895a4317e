//! oncefs (map to come)
pub mod backend;
pub mod config;
pub mod tree;
pub mod types;
