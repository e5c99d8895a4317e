//! What lies in the content directory and in the spool, against what the tree says should.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::report::Outcome;
use super::{Inspection, paths_of};
use crate::config::DataDir;
use crate::content::shelf::{self, move_to_quarantine};
use crate::content::sums::Sums;
use crate::content::{Spool, disk};
use crate::tree::{Body, Inode, TreeError};
use crate::types::{ContentHash, NodeId};

/// Beside a running daemon, a file without an entry is only reported when it is older than any step of storing takes.
const SETTLED: Duration = Duration::from_secs(600);

/// A file that is renamed meanwhile can be missed.
const LOOKS: u32 = 3;

/// Where content lies.
pub(super) struct Place {
    dir: PathBuf,
    /// Where damaged content goes; a cache needs none.
    quarantine: Option<PathBuf>,
}

/// What became of one content file under the hash.
pub(super) enum Judged {
    Whole,
    /// It was damaged, and is gone from its place.
    MovedAway,
    /// It is damaged, and still there.
    Damaged,
    /// Removed meanwhile.
    Gone,
}

impl Place {
    pub(super) fn of(data: &DataDir, is_store: bool) -> Place {
        Place {
            dir: data.content(),
            quarantine: is_store.then(|| data.quarantine()),
        }
    }

    fn path(&self, hash: &ContentHash) -> PathBuf {
        DataDir::content_path(&self.dir, hash)
    }

    /// The size of a content.
    pub(super) fn size(&self, hash: &ContentHash) -> Result<u64, TreeError> {
        let path = self.path(hash);
        let meta = fs::metadata(&path);
        meta.map(|m| m.len())
            .map_err(|e| TreeError::Database(format!("{}: {e}", path.display())))
    }

    /// Hashes a content. With `repair`, a damaged one is moved away and the sums of a whole one are made anew.
    pub(super) fn judge(&self, hash: &ContentHash, repair: bool) -> io::Result<Judged> {
        let path = self.path(hash);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Judged::Gone),
            Err(e) => return Err(e),
        };
        let Some(digest) = disk::hash(&file, || true)? else {
            return Ok(Judged::Gone);
        };
        if digest.hash == *hash {
            if repair && Sums::load(&path, digest.size).as_ref() != Some(&digest.sums) {
                digest.sums.store(&path)?;
            }
            return Ok(Judged::Whole);
        }
        if !repair {
            return Ok(Judged::Damaged);
        }
        match &self.quarantine {
            Some(quarantine) => drop(move_to_quarantine(&path, quarantine, hash)?),
            None => fs::remove_file(&path)?,
        }
        let _ = fs::remove_file(Sums::path(&path));
        Ok(Judged::MovedAway)
    }
}

impl Inspection<'_> {
    /// Compares the content directory with the tree, and hashes what is in it when that is asked for.
    pub(super) fn contents(&mut self) -> Result<(), TreeError> {
        let place = Place::of(self.data, self.is_store);
        // In the order of the hashes.
        let known: Vec<(ContentHash, u64)> = self.ask(|query| {
            let mut known = Vec::new();
            query.each_content(|hash, size| {
                known.push((hash, size));
                Ok(())
            })?;
            Ok(known)
        })?;
        self.report.contents = known.len() as u64;
        for (hash, size) in &known {
            match fs::metadata(place.path(hash)) {
                Ok(meta) if meta.len() == *size => {
                    if self.options.data {
                        self.judged(hash)?;
                    }
                }
                Ok(_) => self.judged(hash)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    if self.is_store {
                        self.missing(hash)?;
                    }
                }
                Err(e) => {
                    let paths = self.paths_of_content(hash)?;
                    let what = format!("content {hash} cannot be looked at: {e}");
                    self.report.add(Outcome::Left, what, paths);
                }
            }
        }
        self.strangers(&place, &known)
            .map_err(|e| TreeError::Database(format!("content directory: {e}")))
    }

    fn missing(&mut self, hash: &ContentHash) -> Result<(), TreeError> {
        // Removed since the list was made.
        if self.ask(|query| query.content(hash))?.is_none() {
            return Ok(());
        }
        let paths = self.paths_of_content(hash)?;
        let (outcome, what) = match paths.is_empty() {
            true => (
                Outcome::Note,
                format!("content {hash}, which no file has, is missing"),
            ),
            false => (
                Outcome::Left,
                format!("content {hash} is missing; {}", cure(hash)),
            ),
        };
        self.report.add(outcome, what, paths);
        Ok(())
    }

    fn judged(&mut self, hash: &ContentHash) -> Result<(), TreeError> {
        let what = match (self.judge)(hash) {
            Ok(Judged::Whole) => {
                self.report.hashed += 1;
                return Ok(());
            }
            Ok(Judged::Gone) => return Ok(()),
            Ok(Judged::MovedAway) if !self.is_store => {
                let what = format!("the cached copy of content {hash} was damaged and is removed");
                self.report.add(Outcome::Repaired, what, Vec::new());
                return Ok(());
            }
            Ok(Judged::MovedAway) => {
                format!(
                    "content {hash} is damaged and now in quarantine; {}",
                    cure(hash)
                )
            }
            Ok(Judged::Damaged) => format!("content {hash} is damaged; {}", cure(hash)),
            Err(e) => format!("content {hash} cannot be read: {e}"),
        };
        let paths = self.paths_of_content(hash)?;
        self.report.add(Outcome::Left, what, paths);
        Ok(())
    }

    /// Files in the content directory that the tree does not know.
    fn strangers(&mut self, place: &Place, known: &[(ContentHash, u64)]) -> io::Result<()> {
        let is_known = |hash: &ContentHash| known.binary_search_by_key(hash, |(h, _)| *h).is_ok();
        let (mut files, mut bytes, mut sums) = (0, 0, 0);
        for listed in shelf::list(&place.dir)? {
            match (listed.hash, listed.sums_of) {
                (Some(hash), _) if is_known(&hash) => {}
                (Some(_), _) => {
                    // A cache may hold what the tree has forgotten, until it is evicted.
                    let Ok(meta) = fs::symlink_metadata(&listed.path) else {
                        continue;
                    };
                    if self.is_store && (self.settled || is_old(&meta)) {
                        files += 1;
                        bytes += meta.len();
                    }
                }
                (None, Some(hash)) if listed.path.with_file_name(hash.to_string()).exists() => {}
                (None, Some(_)) => {
                    sums += 1;
                    if self.options.repair {
                        fs::remove_file(&listed.path)?;
                    }
                }
                (None, None) => {
                    let what = format!("{} does not belong there", listed.path.display());
                    self.report.add(Outcome::Note, what, Vec::new());
                }
            }
        }
        if files > 0 {
            let what = format!(
                "{files} contents ({bytes} bytes) in the content directory that no file and no table knows; gc removes them"
            );
            self.report.add(Outcome::Note, what, Vec::new());
        }
        if sums > 0 {
            let what = format!("{sums} files of sums without their content");
            self.report.add(Outcome::Note, what, Vec::new());
        }
        Ok(())
    }

    /// Compares the spool with the pending marks of this node.
    pub(super) fn spool(&mut self, node: &NodeId) -> Result<(), TreeError> {
        let spool = Spool::new(self.data.spool(), self.data.spare());
        for inode in self.ask(|query| query.pending_at(node))? {
            if self.options.data && self.is_damaged_in(&spool, &inode)? {
                let what = format!(
                    "the content of inode {} ({} bytes) was closed, is not stored, and is damaged in the spool; write it \
                     again, or the same to any file",
                    inode.ino, inode.size
                );
                let paths = self.ask(|query| Ok(paths_of(query, inode.ino)))?;
                self.report.add(Outcome::Left, what, paths);
            }
            // A writer may have it, under a generation that the tree hears of when it is closed.
            if (0..LOOKS).any(|_| spool.holds(inode.ino, inode.generation)) {
                continue;
            }
            // Stored, or written again, since the list was made.
            let moved_on =
                |now: Inode| now.generation != inode.generation || now.body != inode.body;
            if self.ask(|query| Ok(query.inode(inode.ino).map_or(true, moved_on)))? {
                continue;
            }
            let (outcome, advice) = match self.has_previous(&inode) {
                true if self.options.repair && (self.revert)(inode.ino)? => {
                    (Outcome::Repaired, "it has its content of before again")
                }
                true => (
                    Outcome::Left,
                    "--repair, on what is not mounted, gives it its content of before",
                ),
                false => (
                    Outcome::Left,
                    "write it again, remove it, or put its spool file back",
                ),
            };
            let what = format!(
                "the content of inode {} ({} bytes) was closed, is not stored, and is missing in the spool; {advice}",
                inode.ino, inode.size
            );
            let paths = self.ask(|query| Ok(paths_of(query, inode.ino)))?;
            self.report.add(outcome, what, paths);
        }
        Ok(())
    }

    fn is_damaged_in(&mut self, spool: &Spool, inode: &Inode) -> Result<bool, TreeError> {
        let looked = spool.contradicts_itself(inode.ino, inode.generation);
        looked.map_err(|e| TreeError::Database(format!("spool: {e}")))
    }

    /// Whether the content that a file had before is still there.
    fn has_previous(&mut self, inode: &Inode) -> bool {
        let Body::Pending {
            previous: Some(hash),
            ..
        } = &inode.body
        else {
            return false;
        };
        let Ok(Some(content)) = self.ask(|query| query.content(hash)) else {
            return false;
        };
        let place = Place::of(self.data, self.is_store);
        self.is_store && place.size(hash).is_ok_and(|size| size == content.size)
    }
}

fn is_old(meta: &fs::Metadata) -> bool {
    let changed = SystemTime::UNIX_EPOCH + Duration::from_nanos(disk::ctime(meta).0.max(0) as u64);
    changed.elapsed().is_ok_and(|age| age > SETTLED)
}

/// What helps when a content is gone.
fn cure(hash: &ContentHash) -> String {
    let path = DataDir::content_path(Path::new("content"), hash);
    format!(
        "write the same content again, or restore {} from a copy",
        path.display()
    )
}
