//! Makes files durable, many at once when many ask at once.
//!
//! A disk flush costs about the same whatever it covers, so callers that arrive while a flush is under way wait for the
//! next one and share it: up to two files are flushed each for itself, more by one `syncfs` of their file system. There
//! is no timer; the flush under way is the window in which the next group gathers, and a lone caller never waits.
//!
//! All files given to one [`GroupSync`] must lie on one file system. It does not know which files belong together.

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// From how many waiting files on one `syncfs` is taken for all.
const SYNCFS_FROM: usize = 3;

type Waiter = (File, oneshot::Sender<io::Result<()>>);

#[derive(Default)]
struct State {
    /// A blocking thread is at work and will look at `waiting` again before it ends.
    flushing: bool,
    waiting: Vec<Waiter>,
}

/// The place where callers meet. Cheap to clone.
#[derive(Clone, Default)]
pub struct GroupSync {
    // A std mutex: held for a push or a swap only, never over an await.
    state: Arc<Mutex<State>>,
}

impl GroupSync {
    /// Returns once what was written to `file` before the call survives power loss.
    pub async fn sync(&self, file: File) -> io::Result<()> {
        let (done, result) = oneshot::channel();
        let begin = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.waiting.push((file, done));
            !std::mem::replace(&mut state.flushing, true)
        };
        if begin {
            let state = self.state.clone();
            tokio::task::spawn_blocking(move || flush_until_empty(&state));
        }
        result
            .await
            .unwrap_or_else(|_| Err(io::Error::other("the flushing thread ended early")))
    }
}

fn flush_until_empty(state: &Mutex<State>) {
    loop {
        let group = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.waiting.is_empty() {
                state.flushing = false;
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        if group.len() < SYNCFS_FROM {
            for (file, done) in group {
                let _ = done.send(sync_one(&file));
            }
        } else {
            // An error of any file comes back to all of them: better one retry too many than one file lost.
            let result = rustix::fs::syncfs(&group[0].0);
            for (_, done) in group {
                let _ = done.send(result.map_err(io::Error::from));
            }
        }
    }
}

fn sync_one(file: &File) -> io::Result<()> {
    if file.metadata()?.is_dir() {
        file.sync_all()
    } else {
        file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_of_a_crowd_are_answered() {
        let dir = tempfile::tempdir().unwrap();
        let sync = GroupSync::default();
        let calls = (0..20).map(|i| {
            let file = File::create(dir.path().join(i.to_string())).unwrap();
            let sync = sync.clone();
            tokio::spawn(async move { sync.sync(file).await })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap().unwrap();
        }
        assert!(!sync.state.lock().unwrap().flushing);
    }
}
