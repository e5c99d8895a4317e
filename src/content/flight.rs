//! Fetches under way. However many want the same thing, one fetch runs, as a task of its own: who gives up takes it from
//! nobody else. All who wait see whether it moves.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::backend::{BackendError, Result};

struct State<T> {
    moved: bool,
    ended: Option<Result<T, Arc<BackendError>>>,
}

/// All fetches of one kind.
pub struct Flights<K, T> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<State<T>>>>>,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Flights {
            under_way: Arc::default(),
        }
    }
}

/// Takes a fetch off the list, however it ends.
struct Listed<K: Eq + Hash, T>(Arc<Mutex<HashMap<K, watch::Receiver<State<T>>>>>, K);

impl<K: Eq + Hash, T> Drop for Listed<K, T> {
    fn drop(&mut self) {
        self.0.lock().remove(&self.1);
    }
}

impl<K, T> Flights<K, T>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Joins the fetch of `key`, which is begun with `fetch` if nobody did. It is given what to call whenever bytes came.
    /// An earlier one may have ended a moment ago, so `fetch` looks first whether there is anything left to do.
    pub fn join<F>(&self, key: K, fetch: impl FnOnce(Box<dyn Fn() + Send + Sync>) -> F) -> Flight<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut under_way = self.under_way.lock();
        if let Some(state) = under_way.get(&key) {
            return Flight(state.clone());
        }
        let (sender, state) = watch::channel(State {
            moved: false,
            ended: None,
        });
        under_way.insert(key.clone(), state.clone());
        let listed = Listed(self.under_way.clone(), key);
        let sender = Arc::new(sender);
        let mover = sender.clone();
        let fetch = fetch(Box::new(move || mover.send_modify(|s| s.moved = true)));
        tokio::spawn(async move {
            let ended = fetch.await.map_err(Arc::new);
            // Before anybody hears of it: who then asks anew is to begin anew.
            drop(listed);
            sender.send_modify(|s| s.ended = Some(ended));
        });
        Flight(state)
    }
}

/// A fetch under way, as one who waits sees it.
pub struct Flight<T>(watch::Receiver<State<T>>);

/// What happened to a fetch.
pub enum Step<T> {
    /// Bytes came.
    Moved,
    /// It is over.
    Ended(Result<T>),
}

impl<T: Clone> Flight<T> {
    /// Completes when something happened since this was called last, at once when it is over.
    pub async fn step(&mut self) -> Step<T> {
        let ended = self.0.borrow_and_update().ended.clone();
        if let Some(ended) = ended {
            return Step::Ended(ended.map_err(|e| e.again()));
        }
        if self.0.changed().await.is_err() {
            let why = "the fetch was given up".to_owned();
            return Step::Ended(Err(BackendError::Unavailable(why)));
        }
        match &self.0.borrow_and_update().ended {
            Some(ended) => Step::Ended(ended.clone().map_err(|e| e.again())),
            None => Step::Moved,
        }
    }

    /// Whether any bytes came.
    pub fn has_moved(&self) -> bool {
        self.0.borrow().moved
    }

    /// Waits for its end, however long that takes.
    pub async fn ended(mut self) -> Result<T> {
        loop {
            if let Step::Ended(result) = self.step().await {
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_fetches_for_all_also_when_the_first_gives_up() {
        let flights: Flights<u8, u32> = Flights::default();
        let begun = Arc::new(AtomicU32::new(0));
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let count = begun.clone();
        let first = flights.join(1, |moved| async move {
            count.fetch_add(1, Ordering::Relaxed);
            moved();
            let _ = wait.await;
            Ok(7)
        });
        drop(first);
        let mut second = flights.join(1, |_| async { Ok(8) });
        let third = flights.join(1, |_| async { Ok(9) });
        assert!(matches!(second.step().await, Step::Moved));
        assert!(second.has_moved());
        go.send(()).unwrap();
        assert_eq!(second.ended().await.unwrap(), 7);
        assert_eq!(third.ended().await.unwrap(), 7);
        assert_eq!(begun.load(Ordering::Relaxed), 1);
        assert_eq!(
            flights.join(1, |_| async { Ok(10) }).ended().await.unwrap(),
            10
        );
    }

    #[tokio::test]
    async fn an_error_and_a_panic_reach_all_who_wait() {
        let flights: Flights<u8, ()> = Flights::default();
        let full = || std::io::Error::from(rustix::io::Errno::NOSPC);
        let (one, two) = (
            flights.join(1, |_| async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(full().into())
            }),
            flights.join(1, |_| async { Ok(()) }),
        );
        for flight in [one, two] {
            let e = flight.ended().await.unwrap_err();
            assert!(matches!(e, BackendError::Io(e) if e.raw_os_error() == full().raw_os_error()));
        }
        let lost = flights.join(2, |_| async { panic!("as a test") });
        assert!(lost.ended().await.is_err());
        assert!(flights.join(2, |_| async { Ok(()) }).ended().await.is_ok());
    }
}
