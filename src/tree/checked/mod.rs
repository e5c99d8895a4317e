//! A layer below SQLite that checks what it reads: bits that flip in the database or in its write-ahead log are an error,
//! never an answer. What it does is said in `vfs.c`, which this crate's build script compiles.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_int, c_uchar};
use std::sync::OnceLock;

use rusqlite::Connection;
use rusqlite::ffi::{SQLITE_OK, sqlite3};

use super::op::TreeError;

unsafe extern "C" {
    fn oncefs_register_checked() -> c_int;
    fn oncefs_reserve(db: *mut sqlite3) -> c_int;
    fn oncefs_stamp_page(page: *mut c_uchar, n: c_int, offset: i64);
}

/// The name of the VFS that checks.
pub(super) fn vfs() -> Result<&'static CStr, TreeError> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    // SAFETY: called once; it hands SQLite a table of functions that lives as long as the program.
    let code = *REGISTERED.get_or_init(|| unsafe { oncefs_register_checked() });
    match code {
        SQLITE_OK => Ok(c"oncefs-checked"),
        code => Err(TreeError::Database(format!(
            "SQLite refuses the layer that checks it: error {code}"
        ))),
    }
}

/// Lets a database that `conn` makes, by creating it or by VACUUM, have the room for checksums.
pub(super) fn reserve(conn: &Connection) -> Result<(), TreeError> {
    // SAFETY: the handle is open as long as `conn` is borrowed, and the call keeps nothing of it.
    match unsafe { oncefs_reserve(conn.handle()) } {
        SQLITE_OK => Ok(()),
        code => Err(TreeError::Database(format!(
            "no room for checksums: SQLite error {code}"
        ))),
    }
}

/// Sets the checksum of a page that lies at `offset` in the database.
pub(super) fn stamp(page: &mut [u8], offset: u64) {
    debug_assert!(page.len() >= 512 && page.len().is_multiple_of(8));
    // SAFETY: it reads and writes within the `len` bytes of `page`.
    unsafe { oncefs_stamp_page(page.as_mut_ptr(), page.len() as c_int, offset as i64) }
}
