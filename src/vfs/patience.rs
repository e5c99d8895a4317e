//! How long a request waits for what another machine has: as long as something comes, and five seconds without; and not
//! at all once its thread has a signal to act on.
//!
//! The request carries its patience along as a task-local value ([`asked_by`]), since the waits lie deep below many
//! operations. Time that passed in one wait, such as for a lock that somebody held while waiting for the same dead
//! machine, is not given again to the next.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::MutexGuard;
use tokio::time::{Instant, sleep_until};

use super::interrupt::interrupted;
use super::open::{OpenInode, Transition};
use super::{Result, VfsError};
use crate::content::flight::{Flight, Step};

/// How long a request waits while nothing comes.
pub const DEADLINE: Duration = Duration::from_secs(5);

tokio::task_local! {
    static PATIENCE: Patience;
}

/// Runs `request`, which `thread` waits for; 0 when nobody knows which.
pub async fn asked_by<T>(thread: u32, request: impl Future<Output = T>) -> T {
    PATIENCE.scope(Patience::new(thread), request).await
}

/// That of one request.
#[derive(Clone)]
pub(super) struct Patience {
    thread: u32,
    /// When something came last.
    moved: Arc<Mutex<Instant>>,
}

/// Why the waiting ended.
pub(super) enum End {
    Signal,
    Late,
}

impl End {
    /// The error of this end; `late` says what did not come.
    pub(super) fn or(self, late: impl FnOnce() -> VfsError) -> VfsError {
        match self {
            End::Signal => VfsError::Interrupted,
            End::Late => late(),
        }
    }
}

impl Patience {
    fn new(thread: u32) -> Patience {
        Patience {
            thread,
            moved: Arc::new(Mutex::new(Instant::now())),
        }
    }

    /// That of the request under way.
    pub(super) fn of_request() -> Patience {
        PATIENCE
            .try_with(Patience::clone)
            .unwrap_or_else(|_| Patience::new(0))
    }

    /// Something came.
    pub(super) fn moved(&self) {
        *self.moved.lock() = Instant::now();
    }

    /// Completes when it is at its end.
    pub(super) async fn end(&self) -> End {
        let mut signal = std::pin::pin!(interrupted(self.thread));
        loop {
            let deadline = *self.moved.lock() + DEADLINE;
            tokio::select! {
                () = &mut signal => return End::Signal,
                () = sleep_until(deadline) => if *self.moved.lock() + DEADLINE <= Instant::now() {
                    return End::Late;
                }
            }
        }
    }

    /// Waits for a fetch as long as it moves.
    pub(super) async fn follow<T: Clone>(&self, mut flight: Flight<T>) -> Result<T> {
        let mut end = std::pin::pin!(self.end());
        loop {
            tokio::select! {
                biased;
                step = flight.step() => match step {
                    Step::Moved => self.moved(),
                    Step::Ended(result) => return Ok(result?),
                },
                end = &mut end => return Err(end.or(|| VfsError::Stalled)),
            }
        }
    }
}

/// Locks the state of an open inode. Whoever has it may be waiting for another machine, so a signal ends this.
pub(super) async fn enter(open: &OpenInode) -> Result<MutexGuard<'_, Transition>> {
    if let Ok(entered) = open.transition.try_lock() {
        return Ok(entered);
    }
    let thread = Patience::of_request().thread;
    tokio::select! {
        biased;
        entered = open.transition.lock() => Ok(entered),
        () = interrupted(thread) => Err(VfsError::Interrupted),
    }
}
