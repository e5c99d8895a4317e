//! What several test binaries share. Each includes all of it and uses a part.
#![allow(dead_code)]

pub mod servers;
