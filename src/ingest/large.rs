//! Keeps large files from having all workers while small ones wait: one worker is always left to those.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::Job;
use crate::types::{Generation, Ino};

/// A file of this size or more is large: it takes a worker for a noticeable time.
pub(super) const LARGE_BYTES: u64 = 64 << 20;

/// How many large files are in hand, and which wait. Like the queue it holds wake-ups only.
#[derive(Default)]
pub(super) struct Lane(Mutex<State>);

#[derive(Default)]
struct State {
    room: usize,
    waiting: BTreeMap<(Ino, Generation), Job>,
}

impl Lane {
    /// For so many workers.
    pub(super) fn open_for(&self, workers: usize) {
        self.0.lock().room = workers.saturating_sub(1).max(1);
    }

    /// True when the job may go on now; each time needs one [`Lane::leave`]. Else it waits here.
    pub(super) fn enter(&self, job: Job) -> bool {
        let mut state = self.0.lock();
        if state.room == 0 {
            state.waiting.insert((job.ino, job.generation), job);
            return false;
        }
        state.room -= 1;
        true
    }

    /// Makes room, and returns a job that waited for it, to be queued again.
    pub(super) fn leave(&self) -> Option<Job> {
        let mut state = self.0.lock();
        state.room += 1;
        state.waiting.pop_first().map(|(_, job)| job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(n: u64) -> Job {
        Job {
            ino: Ino(n),
            generation: Generation(1),
            failures: 0,
        }
    }

    #[test]
    fn one_worker_is_left_and_each_that_waits_comes_once() {
        let lane = Lane::default();
        lane.open_for(3);
        assert!(lane.enter(job(1)) && lane.enter(job(2)));
        assert!(!lane.enter(job(3)) && !lane.enter(job(3)) && !lane.enter(job(4)));
        assert_eq!(lane.leave(), Some(job(3)));
        assert!(lane.enter(job(3)));
        assert_eq!(lane.leave(), Some(job(4)));
        assert_eq!(lane.leave(), None);
        lane.open_for(1);
        assert!(lane.enter(job(5)) && !lane.enter(job(6)));
    }
}
