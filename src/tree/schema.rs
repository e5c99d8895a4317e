//! The tables, and how a connection to them is opened.
//!
//! All connections go through SQLite's `unix-excl` VFS: the process holds the database alone (the data directory's lock
//! sees to that), so that locks and the WAL index cost no system calls, and several connections of this process still
//! read beside the writer. Above it lies the layer that checks what is read ([`super::checked`]).

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use tracing::info;

use super::checked;
use super::op::TreeError;

/// Raised when an older program could not read the tables any more.
pub const FORMAT: i64 = 2;
/// The format before pages had checksums.
const UNCHECKED: i64 = 1;

/// `contents_blob` is for ids that an upload made; names that are a hash need no index. `inodes.cookie` is the last position given to an entry of a directory; of a file, the generation of its stored content.
const TABLES: &str = "
CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS local(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inodes(
  ino INTEGER PRIMARY KEY,
  mode INTEGER NOT NULL, nlink INTEGER NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
  rdev INTEGER NOT NULL, size INTEGER NOT NULL,
  atime INTEGER NOT NULL, mtime INTEGER NOT NULL, ctime INTEGER NOT NULL,
  generation INTEGER NOT NULL, state INTEGER NOT NULL, node TEXT, hash BLOB,
  target BLOB, parent INTEGER, cookie INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS inodes_hash ON inodes(hash) WHERE hash IS NOT NULL;
CREATE TABLE IF NOT EXISTS dentries(
  parent INTEGER NOT NULL, name BLOB NOT NULL, ino INTEGER NOT NULL, cookie INTEGER NOT NULL,
  PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS dentries_cookie ON dentries(parent, cookie);
CREATE INDEX IF NOT EXISTS dentries_ino ON dentries(ino);
CREATE TABLE IF NOT EXISTS xattrs(
  ino INTEGER NOT NULL, name BLOB NOT NULL, value BLOB NOT NULL,
  PRIMARY KEY(ino, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS contents(
  hash BLOB PRIMARY KEY, size INTEGER NOT NULL, blob TEXT NOT NULL, filename BLOB NOT NULL,
  node TEXT NOT NULL, worker TEXT NOT NULL,
  uploaded_at INTEGER NOT NULL, started_at INTEGER NOT NULL, done_at INTEGER NOT NULL,
  unreferenced_at INTEGER) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS contents_unreferenced ON contents(unreferenced_at)
  WHERE unreferenced_at IS NOT NULL;
CREATE INDEX IF NOT EXISTS contents_blob ON contents(blob) WHERE length(blob)<64;
CREATE TABLE IF NOT EXISTS tombstones(blob TEXT PRIMARY KEY, reaped_at INTEGER NOT NULL)
  WITHOUT ROWID;
";

/// The tables that are the same on every node. All others belong to this one.
pub(super) const SHARED_TABLES: [&str; 6] = [
    "meta",
    "inodes",
    "dentries",
    "xattrs",
    "contents",
    "tombstones",
];

/// Opens the database at `path` for writing, creating the empty tree when there is none.
pub fn open_writer(path: &Path) -> Result<Connection, TreeError> {
    if is_unchecked(path)? {
        upgrade(path)?;
    }
    let conn = connect(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
    )?;
    checked::reserve(&conn)?;
    // The size limit truncates the WAL when it is written from its start again, so that its length says how much there is
    // to write back.
    conn.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=0; PRAGMA journal_size_limit=0;",
    )?;
    let found: i64 = conn.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    if found > FORMAT {
        return Err(TreeError::Database(format!(
            "the data directory was written by a newer oncefs (format {found}, this program knows {FORMAT}); upgrade this program"
        )));
    }
    if found == 0 {
        conn.execute_batch(&format!(
            "BEGIN IMMEDIATE; {TABLES}
             INSERT INTO inodes(ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, generation, state, parent)
               VALUES(1, {mode}, 2, 0, 0, 0, 4096, 0, 0, 0, 0, 0, 1);
             INSERT INTO meta VALUES('applied', 0);
             PRAGMA user_version={FORMAT}; COMMIT;",
            mode = libc::S_IFDIR | 0o755,
        ))?;
    }
    Ok(conn)
}

/// Opens one more connection for reading.
pub fn open_reader(path: &Path) -> Result<Connection, TreeError> {
    let conn = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // There may be many of them, and this much holds the inner pages of a tree of a million files.
    conn.execute_batch("PRAGMA query_only=1; PRAGMA cache_size=-2048;")?;
    Ok(conn)
}

/// Whether there is a database of the format whose pages have no checksums.
fn is_unchecked(path: &Path) -> Result<bool, TreeError> {
    let mut header = [0; 100];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    match read {
        // Two fields say it, so that one flipped bit does not. The log may have the later one.
        Ok(()) => Ok(header.starts_with(b"SQLite format 3\0")
            && header[20] == 0
            && header[60..63] == [0; 3]
            && header[63] <= UNCHECKED as u8),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => Ok(false),
        Err(e) => Err(TreeError::Database(format!("{}: {e}", path.display()))),
    }
}

/// Puts a copy with checksums in the place of a database without.
fn upgrade(path: &Path) -> Result<(), TreeError> {
    let copy = path.with_extension("upgrade");
    let failed = |e: std::io::Error| TreeError::Database(format!("{}: {e}", copy.display()));
    match std::fs::remove_file(&copy) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let plain = |path: &Path| {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        Connection::open_with_flags_and_vfs(path, flags, c"unix-excl")
    };
    let old = plain(path)?;
    // Everything is in the one file then, so that nothing of the old one is left beside the new one.
    old.query_row("PRAGMA journal_mode=DELETE", [], |_| Ok(()))?;
    let found: i64 = old.query_row("PRAGMA user_version", [], |r| r.get(0))?;
    if found == 0 {
        // Killed before it held anything.
        drop(old);
        return std::fs::remove_file(path).map_err(failed);
    }
    let sound: String = old.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    if sound != "ok" {
        return Err(TreeError::Database(sound));
    }
    checked::reserve(&old)?;
    old.execute("VACUUM INTO ?1", [copy.to_string_lossy()])?;
    let new = plain(&copy)?;
    new.execute_batch(&format!("PRAGMA user_version={FORMAT}"))?;
    let page_size: u64 = new.query_row("PRAGMA page_size", [], |r| r.get(0))?;
    drop(new);
    stamp_all(&copy, page_size).map_err(failed)?;
    drop(old);
    std::fs::rename(&copy, path).map_err(failed)?;
    File::open(path.parent().unwrap_or(Path::new("/")))
        .and_then(|dir| dir.sync_all())
        .map_err(failed)?;
    info!("the pages of the namespace database have checksums now");
    Ok(())
}

fn stamp_all(path: &Path, page_size: u64) -> std::io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut page = vec![0; page_size as usize];
    for at in (0..file.metadata()?.len()).step_by(page_size as usize) {
        file.read_exact_at(&mut page, at)?;
        checked::stamp(&mut page, at);
        file.write_all_at(&page, at)?;
    }
    file.sync_all()
}

fn connect(path: &Path, flags: OpenFlags) -> Result<Connection, TreeError> {
    let conn = Connection::open_with_flags_and_vfs(
        path,
        flags | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        checked::vfs()?,
    )?;
    conn.busy_timeout(Duration::from_secs(10))?;
    conn.set_prepared_statement_cache_capacity(128);
    conn.execute_batch(
        "PRAGMA cache_size=-8192; PRAGMA cache_spill=OFF; PRAGMA temp_store=MEMORY; PRAGMA foreign_keys=OFF;",
    )?;
    Ok(conn)
}
