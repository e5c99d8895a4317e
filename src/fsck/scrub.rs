//! Hashing all content in the background of a running node, at a bounded rate.
//!
//! Damage goes into quarantine as it does when a reader meets it, and is counted and named. One scrub runs at a time; it
//! ends with the process and is not resumed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tracing::{info, warn};

use crate::content::shelf;
use crate::content::{Sealed, is_damage};
use crate::types::{ContentHash, Time};

/// Damaged contents that the status names at the most.
const NAMED_MAX: usize = 100;

/// How far a scrub has come.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Progress {
    /// It runs.
    pub running: bool,
    /// Somebody stopped the last one before it was through.
    pub stopped: bool,
    /// When the last one began.
    pub started_at: Option<String>,
    /// When it ended.
    pub finished_at: Option<String>,
    /// Contents to hash.
    pub contents: u64,
    /// Contents hashed.
    pub done: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Contents found damaged.
    pub damaged: u64,
    /// Contents that could not be read.
    pub errors: u64,
    /// Some of them.
    pub hashes: Vec<ContentHash>,
}

/// The scrub of one node.
#[derive(Default)]
pub struct Scrub {
    progress: Mutex<Progress>,
    stop: AtomicBool,
}

impl Scrub {
    /// How far it has come.
    pub fn progress(&self) -> Progress {
        self.progress.lock().clone()
    }

    /// Starts one over `sealed` on a thread of its own, at up to `rate` bytes a second (0: as fast as it goes). False when
    /// one runs already.
    pub fn start(self: &Arc<Self>, sealed: Arc<Sealed>, rate: u64) -> std::io::Result<bool> {
        {
            let mut progress = self.progress.lock();
            if progress.running {
                return Ok(false);
            }
            self.stop.store(false, Ordering::Release);
            *progress = Progress {
                running: true,
                started_at: Some(Time::now().rfc3339()),
                ..Progress::default()
            };
        }
        let this = self.clone();
        let started = std::thread::Builder::new()
            .name("scrub".into())
            .spawn(move || this.run(&sealed, rate));
        if started.is_err() {
            self.progress.lock().running = false;
        }
        started.map(|_| true)
    }

    /// Ends a scrub that runs, within a moment. False when none does.
    pub fn stop(&self) -> bool {
        let progress = self.progress.lock();
        self.stop.store(progress.running, Ordering::Release);
        progress.running
    }

    fn run(&self, sealed: &Sealed, rate: u64) {
        let result = self.pass(sealed, rate);
        let mut progress = self.progress.lock();
        progress.running = false;
        progress.finished_at = Some(Time::now().rfc3339());
        match result {
            Ok(false) => {
                progress.stopped = true;
                info!(
                    "scrub: stopped after {} of {} contents",
                    progress.done, progress.contents
                );
            }
            Ok(true) => info!(
                "scrub: {} contents, {} bytes hashed, {} damaged",
                progress.done, progress.bytes, progress.damaged
            ),
            Err(e) => warn!("scrub: {e}"),
        }
    }

    /// False when it was stopped.
    fn pass(&self, sealed: &Sealed, rate: u64) -> std::io::Result<bool> {
        let hashes: Vec<ContentHash> = shelf::list(sealed.dir())?
            .into_iter()
            .filter_map(|listed| listed.hash)
            .collect();
        self.progress.lock().contents = hashes.len() as u64;
        let begun = Instant::now();
        let pace = |bytes: u64| {
            let done = {
                let mut progress = self.progress.lock();
                progress.bytes += bytes;
                progress.bytes
            };
            self.wait_until(begun, done, rate)
        };
        for hash in hashes {
            if self.stop.load(Ordering::Acquire) {
                return Ok(false);
            }
            // Evicted or removed meanwhile.
            let Some(content) = sealed.open_local(&hash)? else {
                continue;
            };
            let judged = content.judge(pace);
            let mut progress = self.progress.lock();
            match judged {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(e) => {
                    match is_damage(&e) {
                        true => progress.damaged += 1,
                        false => progress.errors += 1,
                    }
                    if progress.hashes.len() < NAMED_MAX {
                        progress.hashes.push(hash);
                    }
                }
            }
            progress.done += 1;
        }
        Ok(true)
    }

    /// Sleeps until `done` bytes fit the rate. False once it shall end.
    fn wait_until(&self, begun: Instant, done: u64, rate: u64) -> bool {
        if rate > 0 {
            let due = Duration::from_secs_f64(done as f64 / rate as f64);
            while let Some(left) = due.checked_sub(begun.elapsed()) {
                if self.stop.load(Ordering::Acquire) || left.is_zero() {
                    break;
                }
                std::thread::sleep(left.min(Duration::from_millis(100)));
            }
        }
        !self.stop.load(Ordering::Acquire)
    }
}
