//! The places for connections at one door, and who has to leave when all are taken.
//!
//! Whoever can connect can hold a connection: with half a handshake, half a header, or requests that are open to anyone.
//! So a connection counts as waiting until a request on it was admitted, and again once that is answered. When all places
//! are taken, the one that has waited longest is closed for who comes next; one that is served never is.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// The places at one door.
pub(super) struct Slots {
    permits: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    /// A connection began to wait.
    news: Notify,
}

/// The connections that wait, the longest first.
#[derive(Default)]
struct Waiting {
    next: u64,
    ends: BTreeMap<u64, CancellationToken>,
}

/// The place of one connection.
pub(super) struct Slot {
    slots: Arc<Slots>,
    _permit: OwnedSemaphorePermit,
    /// Its number among those that wait.
    number: Mutex<Option<u64>>,
    /// Somebody else needs the place.
    end: CancellationToken,
}

impl Slots {
    pub(super) fn new(connections: usize) -> Arc<Slots> {
        Arc::new(Slots {
            permits: Arc::new(Semaphore::new(connections)),
            waiting: Mutex::default(),
            news: Notify::new(),
        })
    }

    /// A place, as soon as there is one. `None` never happens while the door is open.
    pub(super) async fn take(self: &Arc<Self>) -> Option<Arc<Slot>> {
        let permits = self.permits.clone();
        let permit = match permits.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                let mut freed = std::pin::pin!(permits.acquire_owned());
                let mut asked = false;
                loop {
                    let news = self.news.notified();
                    // One is enough, and the place that it leaves may take a moment to come.
                    asked = asked || self.end_longest();
                    tokio::select! {
                        permit = &mut freed => break permit.ok()?,
                        () = news, if !asked => {}
                    }
                }
            }
        };
        let slot = Arc::new(Slot {
            slots: self.clone(),
            _permit: permit,
            number: Mutex::default(),
            end: CancellationToken::new(),
        });
        slot.wait();
        Some(slot)
    }

    /// Ends the connection that has waited longest, if any waits.
    fn end_longest(&self) -> bool {
        match self.waiting.lock().ends.pop_first() {
            Some((_, end)) => {
                end.cancel();
                true
            }
            None => false,
        }
    }
}

impl Slot {
    /// Completes when the connection has to end.
    pub(super) async fn ended(&self) {
        self.end.cancelled().await;
    }

    /// A request on it was admitted: it stays until the answer is given.
    pub(super) fn serve(self: Arc<Self>) -> Serving {
        self.leave();
        Serving(self)
    }

    fn wait(&self) {
        let mut waiting = self.slots.waiting.lock();
        let number = waiting.next;
        waiting.next += 1;
        waiting.ends.insert(number, self.end.clone());
        *self.number.lock() = Some(number);
        self.slots.news.notify_waiters();
    }

    fn leave(&self) {
        let mut waiting = self.slots.waiting.lock();
        if let Some(number) = self.number.lock().take() {
            waiting.ends.remove(&number);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.leave();
    }
}

/// An admitted request under way.
pub(super) struct Serving(Arc<Slot>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.wait();
    }
}

impl Serving {
    /// The same answer, which counts as given when the last byte of it was.
    pub(super) fn until_given(self, body: Body) -> Body {
        Body::new(Answer {
            body,
            _serving: self,
        })
    }
}

struct Answer {
    body: Body,
    _serving: Serving,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NO: Duration = Duration::from_millis(50);
    const YES: Duration = Duration::from_secs(10);

    /// A connection as the server has it: its place is free once it has heard that it has to end.
    fn connection(slot: Arc<Slot>) -> tokio::task::JoinHandle<()> {
        tokio::spawn(async move { slot.ended().await })
    }

    #[tokio::test]
    async fn who_waited_longest_leaves_and_who_is_served_stays() {
        let slots = Slots::new(2);
        let first = slots.take().await.unwrap();
        let serving = first.clone().serve();
        let (first, second) = (connection(first), connection(slots.take().await.unwrap()));
        let third = tokio::time::timeout(YES, slots.take()).await.unwrap();
        let third = third.unwrap();
        second.await.unwrap();
        assert!(!first.is_finished());
        let more = third.clone().serve();
        let third = connection(third);
        // All are served.
        assert!(tokio::time::timeout(NO, slots.take()).await.is_err());
        let (fourth, ()) = tokio::join!(tokio::time::timeout(YES, slots.take()), async {
            tokio::time::sleep(NO).await;
            drop(serving);
        });
        first.await.unwrap();
        assert!(!third.is_finished());
        drop((fourth, more));
        assert_eq!(slots.waiting.lock().ends.len(), 1);
    }
}
