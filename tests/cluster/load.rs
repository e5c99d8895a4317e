//! Programs that write files on several mounts while something happens, and what they were told.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::files::{bytes, write_closed};
use crate::common::mount::Mount;

/// What programs were told.
#[derive(Default)]
pub struct Told {
    /// The seed and length of the content of each file whose close(2) succeeded.
    pub files: BTreeMap<String, (u64, usize)>,
    /// Those that failed, and how.
    pub refused: Vec<(String, std::io::Error)>,
    /// The slowest from open(2) to close(2).
    pub slowest: Duration,
}

impl Told {
    /// Every file that was acknowledged reads as it was written.
    pub fn check(&self, dir: &Path) {
        for (name, (seed, len)) in &self.files {
            let read = fs::read(dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(read == bytes(*seed, *len), "{name} is not what was written");
        }
    }

    /// Together with what others were told.
    pub fn add(&mut self, other: Told) {
        self.files.extend(other.files);
        self.refused.extend(other.refused);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Writes the files `<prefix>-<n>` in `dir` until told to stop; `content` says what is in the n-th.
pub fn write_until(
    stop: &AtomicBool,
    dir: &Path,
    prefix: &str,
    pause: Duration,
    content: impl Fn(u64) -> (u64, usize),
) -> Told {
    let mut told = Told::default();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (name, (seed, len)) = (format!("{prefix}-{n}"), content(n));
        let begin = Instant::now();
        match write_closed(&dir.join(&name), &bytes(seed, len)) {
            Ok(()) => drop(told.files.insert(name, (seed, len))),
            Err(e) => told.refused.push((name, e)),
        }
        told.slowest = told.slowest.max(begin.elapsed());
        std::thread::sleep(pause);
    }
    told
}

/// Writes on all these mounts, each file another content, for as long as `meanwhile` runs.
pub fn while_writing<T>(
    mounts: &[&Mount],
    round: &str,
    meanwhile: impl FnOnce() -> T,
) -> (Told, T) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0u64..)
            .zip(mounts)
            .map(|(m, mount)| {
                let (stop, dir) = (&stop, mount.path());
                let prefix = format!("{round}-{m}");
                scope.spawn(move || {
                    write_until(stop, &dir, &prefix, Duration::from_millis(15), |n| {
                        (rand::random(), 1000 + (n % 7) as usize * 9000)
                    })
                })
            })
            .collect();
        // Also when it panics, so that the writers end.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(meanwhile));
        stop.store(true, Ordering::Relaxed);
        let mut told = Told::default();
        for writer in writers {
            told.add(writer.join().unwrap());
        }
        match done {
            Ok(done) => (told, done),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A line of the table that `scripts/cluster.sh prove` shows.
pub struct Row {
    /// What failed, and how.
    pub cell: String,
    /// The slowest read of cached content, where that was looked at.
    pub read: Option<Duration>,
    /// The slowest from open(2) to close(2).
    pub write: Duration,
    /// What health said was down.
    pub said: String,
    /// From when the servers were back until nothing waited.
    pub drained: Duration,
    /// How many files were compared on every node.
    pub files: usize,
}

impl Row {
    /// Prints it.
    pub fn print(&self) {
        let read = self
            .read
            .map_or("-".to_owned(), |r| format!("{} ms", r.as_millis()));
        println!(
            "matrix {:<24} read {read:>8}  write {:>5.1} s  down {:<10}  drained {:>5.1} s  {:>4} files",
            self.cell,
            self.write.as_secs_f64(),
            self.said,
            self.drained.as_secs_f64(),
            self.files
        );
    }
}
