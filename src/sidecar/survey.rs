//! What `GET /health` and `GET /metrics` have to ask of others, and what of the namespace takes long. Anybody may ask for
//! it, as often as they like, so whoever comes over the network shares: one question is under way at a time, and its
//! answer is given for a second. The command line gets one of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::App;
use super::access::Door;
use super::errors::ApiError;
use super::status::ask;
use crate::backend::{Health, Member, Result};
use crate::content::flight::Flights;
use crate::tree::Totals;

/// How long an answer is given.
const LIFE: Duration = Duration::from_secs(1);
/// How long the head of the namespace log may take to be asked.
const HEAD_DEADLINE: Duration = Duration::from_secs(2);

/// What others said.
#[derive(Clone)]
pub(super) struct Survey {
    pub(super) servers: Health,
    pub(super) members: Vec<Member>,
    /// `None`: the namespace cannot say.
    pub(super) totals: Option<Totals>,
    pub(super) waiting_changes: Option<u64>,
}

/// The answers that are shared.
#[derive(Default)]
pub(super) struct Surveys {
    all: Lately<Survey>,
    head: Lately<Option<u64>>,
}

impl App {
    /// What others say, or said a moment ago if the question came in at `door`.
    pub(super) async fn survey(self: &Arc<Self>, door: Door) -> Result<Survey, ApiError> {
        let app = self.clone();
        let ask = move || async move { app.ask_around().await };
        match door {
            Door::Control => Ok(ask().await),
            Door::Tcp(_) | Door::Peer => Ok(self.surveys.all.get(ask).await?),
        }
    }

    async fn ask_around(&self) -> Survey {
        let membership = &self.ctx.backends.membership;
        let (servers, members, totals, waiting) = tokio::join!(
            membership.health(),
            membership.members(),
            ask(self, |vfs| vfs.totals()),
            ask(self, |vfs| vfs.waiting_changes()),
        );
        Survey {
            servers,
            members,
            totals: totals.ok(),
            waiting_changes: waiting.ok(),
        }
    }

    /// The last position of the namespace log; `None` when there is none, or it does not say.
    pub(super) async fn head(&self) -> Result<Option<u64>, ApiError> {
        let Some(log) = self.ctx.backends.log.clone() else {
            return Ok(None);
        };
        let ask = move || async move {
            match tokio::time::timeout(HEAD_DEADLINE, log.head()).await {
                Ok(Ok(head)) => Some(head.0),
                Ok(Err(_)) | Err(_) => None,
            }
        };
        Ok(self.surveys.head.get(ask).await?)
    }
}

/// An answer that is shared.
struct Lately<T> {
    answer: Arc<Mutex<Option<(Instant, T)>>>,
    asking: Flights<(), T>,
}

impl<T> Default for Lately<T> {
    fn default() -> Self {
        Lately {
            answer: Arc::default(),
            asking: Flights::default(),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Lately<T> {
    /// The answer of a moment ago, or that of the question under way. It is asked to its end, whoever goes away: else
    /// going away at once would be a way to ask more often.
    async fn get<F>(&self, ask: impl FnOnce() -> F + Send + 'static) -> Result<T>
    where
        F: Future<Output = T> + Send,
    {
        let answer = self.answer.clone();
        let kept = move || {
            let kept = answer.lock();
            kept.as_ref()
                .filter(|(at, _)| at.elapsed() < LIFE)
                .map(|(_, answer)| answer.clone())
        };
        if let Some(kept) = kept() {
            return Ok(kept);
        }
        let answer = self.answer.clone();
        let asked = self.asking.join((), |_| async move {
            if let Some(kept) = kept() {
                return Ok(kept);
            }
            let new = ask().await;
            *answer.lock() = Some((Instant::now(), new.clone()));
            Ok(new)
        });
        asked.ended().await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn all_who_ask_at_once_share_one_question_also_those_who_leave() {
        let lately = Lately::default();
        let (asked, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Semaphore::new(0)));
        let ask = || {
            let (asked, go) = (asked.clone(), go.clone());
            move || async move {
                let nth = asked.fetch_add(1, Ordering::Relaxed);
                let _go = go.acquire().await;
                nth
            }
        };
        for _ in 0..20 {
            let leaves = tokio::time::timeout(Duration::from_millis(2), lately.get(ask()));
            assert!(leaves.await.is_err());
        }
        go.add_permits(1);
        for _ in 0..20 {
            assert_eq!(lately.get(ask()).await.unwrap(), 0);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        tokio::time::sleep(LIFE).await;
        assert_eq!(lately.get(ask()).await.unwrap(), 1);
    }
}
