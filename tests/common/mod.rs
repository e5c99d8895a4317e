//! What several test binaries share. Each includes all of it and uses a part.
#![allow(dead_code)]

pub mod certificates;
pub mod disk;
pub mod files;
pub mod http;
pub mod locker;
pub mod map;
pub mod mount;
pub mod net;
pub mod run;
pub mod servers;
