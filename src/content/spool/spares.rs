//! Spool files that were let go, empty, to be used again.
//!
//! Most files are duplicates somewhere: their spool file is made and soon removed. Making and removing an inode for each
//! is the larger part of both on many disks (an ext4 without a journal even looks past every inode that was removed in the
//! last minutes before it makes one). A file is kept only when certainly nobody else has it open, under no other name and
//! without the mark of what lasts; so nothing that anybody holds can change. They lie in a directory of their own, and go at
//! the end, or at the next start.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, RenameFlags, Timespec, Timestamps, UTIME_NOW, fchmod, futimens};

use super::lasting::is_lasting;
use crate::content::lease::is_nobody_elses;

/// How many are kept: what is stored in a burst goes at once, and comes back one by one.
const MOST: usize = 1024;

/// The files that are kept.
pub(super) struct Spares {
    dir: PathBuf,
    next: AtomicU64,
    files: Mutex<Vec<PathBuf>>,
}

/// A file that lost its name in the spool and is not empty yet.
#[must_use]
pub(super) struct Retired(PathBuf);

impl Spares {
    /// Keeps them in `dir`, which is on the disk of the spool.
    pub fn new(dir: PathBuf) -> Spares {
        Spares {
            dir,
            next: AtomicU64::new(0),
            files: Mutex::default(),
        }
    }

    /// Takes the name of a spool file away. The rest is for [`Spares::keep`], which can take longer.
    pub fn retire(&self, path: &Path) -> Option<Retired> {
        if self.files.lock().len() < MOST {
            let n = self.next.fetch_add(1, Ordering::Relaxed);
            let spare = self.dir.join(n.to_string());
            if std::fs::rename(path, &spare).is_ok() {
                return Some(Retired(spare));
            }
        }
        let _ = std::fs::remove_file(path);
        None
    }

    /// Keeps the file if nobody else has it, else removes it.
    pub fn keep(&self, Retired(path): Retired) {
        match empty(&path) {
            Ok(true) => self.files.lock().push(path),
            Ok(false) | Err(_) => drop(std::fs::remove_file(path)),
        }
    }

    /// Makes a spool file of one that is kept. `None` when there is none, or it did not work.
    pub fn make(&self, path: &Path) -> Option<File> {
        let spare = self.files.lock().pop()?;
        let made = as_new(&spare).and_then(|file| {
            let flags = RenameFlags::NOREPLACE;
            rustix::fs::renameat_with(CWD, &spare, CWD, path, flags)?;
            Ok(file)
        });
        if made.is_err() {
            let _ = std::fs::remove_file(spare);
        }
        made.ok()
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        for path in self.files.get_mut() {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Empties the file, or says that it is somebody's.
fn empty(path: &Path) -> io::Result<bool> {
    let file = open(path)?;
    let meta = file.metadata()?;
    // Nobody can open it from now on: nobody knows the name.
    if meta.nlink() != 1 || is_lasting(&meta) || !is_nobody_elses(&file) {
        return Ok(false);
    }
    file.set_len(0)?;
    fchmod(&file, Mode::from_raw_mode(0o600))?;
    Ok(true)
}

/// Opens an empty file, with the times of one that was made now.
fn as_new(path: &Path) -> io::Result<File> {
    let file = open(path)?;
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    futimens(&file, &times)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::content::spool::lasting::mark;

    struct Place {
        dir: tempfile::TempDir,
        spares: Spares,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            let spares = Spares::new(dir.path().to_owned());
            Place { dir, spares }
        }

        fn file(&self, name: &str) -> PathBuf {
            let path = self.dir.path().join(name);
            fs::write(&path, "text").unwrap();
            path
        }

        /// Whether the file is used again.
        fn reuses(&self, path: &Path) -> bool {
            let inode = fs::metadata(path).unwrap().ino();
            let retired = self.spares.retire(path).unwrap();
            assert!(!path.exists());
            self.spares.keep(retired);
            let Some(file) = self.spares.make(path) else {
                return false;
            };
            assert_eq!(file.metadata().unwrap().ino(), inode);
            true
        }
    }

    #[test]
    fn one_is_empty_and_as_new() {
        let place = Place::new();
        let path = place.file("1.1");
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        let old = fs::File::open(&path).unwrap();
        let past = std::time::SystemTime::UNIX_EPOCH;
        old.set_times(fs::FileTimes::new().set_modified(past))
            .unwrap();
        drop(old);
        assert!(place.reuses(&path));
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777), (0, 0o600));
        assert!(meta.modified().unwrap().elapsed().unwrap().as_secs() < 60);
    }

    #[test]
    fn what_somebody_has_open_keeps_its_bytes() {
        let place = Place::new();
        let path = place.file("1.1");
        let reader = fs::File::open(&path).unwrap();
        assert!(!place.reuses(&path));
        let mut bytes = [0; 4];
        reader.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"text");
        let path = place.file("2.1");
        let mut writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
        assert!(!place.reuses(&path));
        writer.write_all(b"more").unwrap();
        assert_eq!(writer.metadata().unwrap().len(), 8);
        assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_has_another_name_or_lasts_is_left_alone() {
        let place = Place::new();
        let path = place.file("1.1");
        let content = place.dir.path().join("content");
        fs::hard_link(&path, &content).unwrap();
        assert!(!place.reuses(&path));
        assert_eq!(fs::read(&content).unwrap(), b"text");
        let path = place.file("2.1");
        mark(&fs::File::open(&path).unwrap()).unwrap();
        assert!(!place.reuses(&path));
    }

    #[test]
    fn nothing_is_replaced() {
        let place = Place::new();
        let retired = place.spares.retire(&place.file("1.1")).unwrap();
        place.spares.keep(retired);
        let there = place.file("2.1");
        assert!(place.spares.make(&there).is_none());
        assert_eq!(fs::read(&there).unwrap(), b"text");
        assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 1);
    }
}
