//! What several test binaries share. Each includes all of it and uses a part.
#![allow(dead_code)]

pub mod files;
pub mod http;
pub mod mount;
pub mod run;
pub mod servers;
