//! Space set aside, so that files can still be removed when the disk is full: removing is a change of the namespace, and
//! every change is written before it is answered.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tracing::{debug, warn};

use super::op::Op;

/// Enough for the namespace's files to grow by many thousand removals.
const BYTES_MAX: u64 = 8 << 20;
/// The share of a small disk that is set aside.
const SHARE: u64 = 16;
/// Set aside only while this many times as much is free.
const PLENTY: u64 = 2;

/// Whether an op is one that frees space, or helps to.
pub(super) fn frees_space(op: &Op) -> bool {
    matches!(
        op,
        Op::Unlink { .. } | Op::Rmdir { .. } | Op::Reap { .. } | Op::RemoveXattr { .. }
    )
}

/// The file that holds the space.
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
}

impl Reserve {
    /// Beside the database at `database`. Nothing is set aside yet.
    pub(super) fn new(database: &Path) -> Reserve {
        let disk = database.parent().and_then(|dir| statvfs(dir).ok());
        let disk_bytes = disk.map_or(u64::MAX, |s| s.f_blocks.saturating_mul(s.f_frsize));
        Reserve {
            path: database.with_extension("reserve"),
            bytes: BYTES_MAX.min(disk_bytes / SHARE),
        }
    }

    fn free_bytes(&self) -> Option<u64> {
        let dir = self.path.parent()?;
        let stat = statvfs(dir).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Frees the space if there is next to nothing left beside it: to open a database may take some.
    pub(super) fn give_up_if_needed(&self) {
        if self.free_bytes().is_some_and(|free| free < self.bytes / 8) {
            self.give_up();
        }
    }

    /// Frees the space. True when there was some.
    pub(super) fn give_up(&self) -> bool {
        let given = fs::remove_file(&self.path).is_ok();
        if given {
            warn!("the disk is full: the space set aside for removing files is used now");
        }
        given
    }

    /// Sets the space aside again when there is plenty.
    pub(super) fn renew(&self) {
        // By its length: a kill may have come between making the file and giving it its space.
        let set_aside = fs::metadata(&self.path).is_ok_and(|m| m.len() >= self.bytes);
        if set_aside
            || self
                .free_bytes()
                .is_none_or(|free| free < self.bytes * PLENTY)
        {
            return;
        }
        let set_aside = File::create(&self.path)
            .and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?));
        if let Err(e) = set_aside {
            debug!("no space set aside: {e}");
            let _ = fs::remove_file(&self.path);
        }
    }
}
