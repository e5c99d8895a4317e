//! Random operations on the mount and, the same, on a directory of the disk: every answer and everything to be seen must
//! be the same, also over restarts and kills.
//!
//! What was closed or synced before a kill must be there exactly; what was open for writing may be as it was at any
//! time since. A failing sequence is shrunk and printed with its seed.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::collection::vec;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use super::op::{MAP_BYTES, Op, op};
use super::setting;
use super::side::{Side, bytes_of};
use crate::common::files::seed;
use crate::common::mount::Mount;
use crate::common::run::counted;

const CASES: u32 = 60;
const OPERATIONS: std::ops::Range<usize> = 20..160;

type Checked = Result<(), TestCaseError>;

macro_rules! check {
    ($condition:expr, $($why:tt)*) => {
        if !$condition {
            return Err(TestCaseError::fail(format!($($why)*)));
        }
    };
}

/// The two trees.
struct Pair<'m> {
    mount: &'m Mount,
    ours: Side,
    disk: Side,
    /// By the disk's inode: what a file was since it was last closed or synced.
    since: HashMap<u64, Vec<Vec<u8>>>,
    /// Written through a mapping since then, in pages that nobody can tell apart.
    mapped: HashSet<u64>,
    /// Modification times that were set and must stay.
    times: HashMap<u64, i64>,
}

impl Pair<'_> {
    fn run(&mut self, op: &Op) -> Checked {
        let op = &match *op {
            // Only where both have something mapped: beyond lies SIGBUS.
            Op::MapWrite(map, at, len, fill) => {
                let end = self.disk.mapped_len(map).unwrap_or(0).min(MAP_BYTES as u64) as usize;
                let at = at.min(end);
                Op::MapWrite(map, at, len.min(end - at), fill)
            }
            other => other,
        };
        match op {
            Op::Settle => {
                let writing = self.disk.slots.iter().flatten().any(|o| o.write);
                if !writing && self.disk.maps.iter().all(|m| m.is_none()) {
                    self.mount.wait_stored();
                }
            }
            Op::Compare => return self.compare(),
            Op::Restart => return self.restart(),
            Op::Kill => return self.kill(),
            _ => {}
        }
        let before = self.disk_inode(op).map(|ino| (ino, self.disk_bytes(op)));
        let (disk, ours) = (self.disk.apply(op), self.ours.apply(op));
        check!(
            disk == ours,
            "{op:?}: the disk says {}, oncefs {}",
            shown(&disk),
            shown(&ours)
        );
        if disk.is_ok() {
            self.note(op, before);
        }
        self.compare_open(op)
    }

    /// The inode on the disk that an operation changes, if it changes a file's bytes.
    fn disk_inode(&self, op: &Op) -> Option<u64> {
        let of_slot = |s: usize| self.disk.slots[s].as_ref().map(|o| o.ino);
        let of_path = |p: usize| fs::metadata(self.disk.path(p)).ok().map(|m| m.ino());
        match *op {
            Op::Append(s, ..) | Op::Write(s, ..) | Op::Resize(s, ..) | Op::Allocate(s, ..) => {
                of_slot(s)
            }
            Op::Copy(_, _, s, ..) | Op::Sync(s) | Op::Close(s) => of_slot(s),
            Op::MapWrite(m, ..) => self.disk.maps[m].as_ref().map(|m| m.ino),
            Op::Open(_, p, _) | Op::WriteFile(p, ..) | Op::Truncate(p, _) => of_path(p),
            Op::CopyFile(_, p) => of_path(p),
            _ => None,
        }
    }

    fn disk_bytes(&self, op: &Op) -> Vec<u8> {
        let of_slot = |s: usize| self.disk.slots[s].as_ref().map(|o| bytes_of(&o.file));
        match *op {
            Op::Append(s, ..) | Op::Write(s, ..) | Op::Resize(s, ..) | Op::Allocate(s, ..) => {
                of_slot(s).unwrap_or_default()
            }
            Op::Copy(_, _, s, ..) | Op::Sync(s) | Op::Close(s) => of_slot(s).unwrap_or_default(),
            Op::MapWrite(m, ..) => {
                let ino = self.disk.maps[m].as_ref().map(|m| m.ino);
                self.bytes_by_inode(ino.unwrap_or(0)).unwrap_or_default()
            }
            Op::Open(_, p, _) | Op::WriteFile(p, ..) | Op::Truncate(p, _) => {
                fs::read(self.disk.path(p)).unwrap_or_default()
            }
            _ => Vec::new(),
        }
    }

    fn bytes_by_inode(&self, ino: u64) -> Option<Vec<u8>> {
        if let Some(open) = self.disk.slots.iter().flatten().find(|o| o.ino == ino) {
            return Some(bytes_of(&open.file));
        }
        let path = (0..super::op::PATHS.len())
            .map(|p| self.disk.path(p))
            .find(|p| fs::symlink_metadata(p).is_ok_and(|m| m.ino() == ino))?;
        fs::read(path).ok()
    }

    /// Keeps what a file may be after a kill, and which times must stay.
    fn note(&mut self, op: &Op, before: Option<(u64, Vec<u8>)>) {
        if let Op::Times(path, secs) = *op
            && let Ok(meta) = fs::symlink_metadata(self.disk.path(path))
        {
            self.times.insert(meta.ino(), secs);
        }
        let ino = match (&before, self.disk_inode(op)) {
            (Some((ino, _)), _) => *ino,
            (None, Some(ino)) => {
                // New, perhaps under the number of a file that is gone.
                self.since.remove(&ino);
                self.mapped.remove(&ino);
                self.times.remove(&ino);
                ino
            }
            (None, None) => return,
        };
        let changes = !matches!(op, Op::Sync(_) | Op::Close(_))
            && !matches!(op, Op::Open(_, _, flags) if !flags.truncate);
        if changes {
            self.times.remove(&ino);
        }
        let history = self.since.entry(ino).or_default();
        if history.is_empty() {
            history.push(before.map(|b| b.1).unwrap_or_default());
        }
        if matches!(op, Op::MapWrite(..)) {
            self.mapped.insert(ino);
        }
        let now = self.bytes_by_inode(ino);
        let history = self.since.entry(ino).or_default();
        history.extend(now.clone());
        // Closed or synced through a writing handle: from here on only this counts. A mapping can write later.
        let acknowledged = match *op {
            Op::Close(_) | Op::WriteFile(..) | Op::CopyFile(..) => true,
            Op::Sync(s) => self.disk.slots[s].as_ref().is_some_and(|o| o.write),
            _ => false,
        };
        if acknowledged && let Some(now) = now {
            self.since.insert(ino, vec![now]);
            if !self.disk.maps.iter().flatten().any(|m| m.ino == ino) {
                self.mapped.remove(&ino);
            }
        }
    }

    /// The lengths of all open files agree. That of a directory says nothing: on ext4 it is 0 once it is removed.
    fn compare_open(&self, op: &Op) -> Checked {
        for (disk, ours) in self.disk.slots.iter().zip(&self.ours.slots) {
            if let (Some(disk), Some(ours)) = (disk, ours) {
                let (disk, ours) = (disk.file.metadata()?, ours.file.metadata()?);
                let both = [disk, ours].map(|m| {
                    let len = m.is_file().then_some(m.len());
                    (len, m.nlink(), m.mode())
                });
                check!(both[0] == both[1], "open file after {op:?}: {both:?}");
            }
        }
        Ok(())
    }

    fn compare(&self) -> Checked {
        let (disk, ours) = (self.disk.look()?, self.ours.look()?);
        let names = |seen: &std::collections::BTreeMap<std::path::PathBuf, _>| {
            seen.keys().cloned().collect::<Vec<_>>()
        };
        check!(
            names(&disk) == names(&ours),
            "the disk has {:?}, oncefs {:?}",
            names(&disk),
            names(&ours)
        );
        for (name, seen) in &disk {
            let ours = &ours[name];
            let place = first_difference(&seen.bytes, &ours.bytes);
            check!(place.is_none(), "{}: differs at {place:?}", name.display());
            check!(seen == ours, "{}: {seen:?} {ours:?}", name.display());
            self.compare_time(name)?;
        }
        Ok(())
    }

    fn compare_time(&self, name: &Path) -> Checked {
        let disk = fs::symlink_metadata(self.disk.root().join(name))?;
        if disk.is_file()
            && let Some(secs) = self.times.get(&disk.ino())
        {
            let ours = fs::symlink_metadata(self.ours.root().join(name))?;
            let now = (ours.mtime(), ours.mtime_nsec());
            check!(
                now == (*secs, 123_456_789),
                "{}: time {now:?}",
                name.display()
            );
        }
        Ok(())
    }

    fn close_all(&mut self) -> Checked {
        for map in 0..super::op::MAPS {
            self.run(&Op::Unmap(map))?;
        }
        for slot in 0..super::op::SLOTS {
            self.run(&Op::Close(slot))?;
        }
        self.since.clear();
        self.mapped.clear();
        Ok(())
    }

    fn restart(&mut self) -> Checked {
        self.close_all()?;
        self.mount.stop();
        self.mount.remount();
        self.compare()
    }

    fn kill(&mut self) -> Checked {
        let open: HashSet<u64> = self
            .disk
            .slots
            .iter()
            .flatten()
            .filter(|o| o.write)
            .map(|o| o.ino)
            .chain(self.disk.maps.iter().flatten().map(|m| m.ino))
            .collect();
        self.mount.kill9();
        for side in [&mut self.disk, &mut self.ours] {
            side.maps = Default::default();
            side.slots = Default::default();
        }
        self.mount.remount();
        for name in self.disk.look()?.keys() {
            let path = self.disk.root().join(name);
            let meta = fs::symlink_metadata(&path)?;
            if !meta.is_file() || !open.contains(&meta.ino()) {
                continue;
            }
            let found = fs::read(self.ours.root().join(name))?;
            let states = self.since.get(&meta.ino()).cloned().unwrap_or_default();
            let legal = if self.mapped.contains(&meta.ino()) {
                // Pages of a mapping may be missing one by one.
                states.iter().any(|s| s.len() == found.len())
                    && (0..found.len()).all(|at| {
                        states
                            .iter()
                            .any(|s| s.get(at).copied().unwrap_or(0) == found[at])
                    })
            } else {
                states.contains(&found)
            };
            check!(
                legal,
                "{}: after the kill {} bytes that it never was; it was {:?} long",
                name.display(),
                found.len(),
                states.iter().map(Vec::len).collect::<Vec<_>>()
            );
            fs::write(&path, found)?;
            self.times.remove(&meta.ino());
        }
        self.since.clear();
        self.mapped.clear();
        self.compare()
    }
}

fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b {
        return None;
    }
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    Some(same)
}

fn shown(answer: &Result<Vec<u8>, i32>) -> String {
    match answer {
        Ok(bytes) if bytes.len() < 20 => format!("{bytes:?}"),
        Ok(bytes) => format!("{} bytes {:?}...", bytes.len(), &bytes[..20]),
        Err(number) => std::io::Error::from_raw_os_error(*number).to_string(),
    }
}

/// Runs one sequence in directories of its own.
fn sequence(mount: &Mount, ops: &[Op]) -> Checked {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let name = format!(
        "case{}",
        COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    );
    let mut pair = Pair {
        mount,
        ours: Side::new(mount.at(&name)),
        disk: Side::new(mount.work().join(&name)),
        since: HashMap::new(),
        mapped: HashSet::new(),
        times: HashMap::new(),
    };
    for (n, op) in ops.iter().enumerate() {
        pair.run(op)
            .map_err(|e| TestCaseError::fail(format!("step {n}, {op:?}: {e}")))?;
    }
    pair.close_all()?;
    pair.compare()?;
    mount.wait_stored();
    pair.compare()?;
    drop(pair);
    fs::remove_dir_all(mount.at(&name))?;
    fs::remove_dir_all(mount.work().join(&name))?;
    Ok(())
}

fn random(options: &[&str]) {
    let mount = Mount::start(options);
    let seed = seed("random operations");
    let mut full = [0; 32];
    full[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: setting("ONCEFS_MODEL_CASES", CASES),
        max_shrink_iters: 4000,
        max_shrink_time: 60_000,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &full);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let ran = runner.run(&vec(op(), OPERATIONS), |ops| sequence(&mount, &ops));
    mount.wait_spool_empty();
    match ran {
        Ok(()) => counted(
            setting("ONCEFS_MODEL_CASES", CASES),
            "random sequences of operations compared with ext4",
        ),
        Err(TestError::Fail(why, ops)) => {
            panic!("ONCEFS_TEST_SEED={seed}: {why}\nafter these operations:\n{ops:#?}")
        }
        Err(e) => panic!("ONCEFS_TEST_SEED={seed}: {e}"),
    }
}

#[test]
fn passthrough() {
    random(&[]);
}

#[test]
fn through_the_daemon() {
    random(&["--no-passthrough"]);
}
