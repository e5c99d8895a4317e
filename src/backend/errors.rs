//! How often the servers failed this process, for `GET /metrics`.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a call to a server failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No answer within the deadline.
    Timeout,
    /// It could not be reached, or could not do it now.
    Unavailable,
    /// It refused: credentials, permissions, its set-up.
    Refused,
    /// It answered with what cannot be understood.
    Corrupt,
}

impl Failure {
    /// All of them, in the order of their numbers.
    const ALL: [Failure; 4] = [
        Failure::Timeout,
        Failure::Unavailable,
        Failure::Refused,
        Failure::Corrupt,
    ];

    /// A word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Failure::Timeout => "timeout",
            Failure::Unavailable => "unavailable",
            Failure::Refused => "refused",
            Failure::Corrupt => "corrupt",
        }
    }
}

/// The failures of one server's calls.
#[derive(Debug)]
pub struct Failures {
    /// The server, as `oncefs_backend_up` names it.
    pub server: &'static str,
    counts: [AtomicU64; Failure::ALL.len()],
}

/// Of etcd.
pub static ETCD: Failures = Failures::of("etcd");
/// Of MongoDB.
pub static MONGODB: Failures = Failures::of("mongodb");

impl Failures {
    const fn of(server: &'static str) -> Failures {
        Failures {
            server,
            counts: [const { AtomicU64::new(0) }; Failure::ALL.len()],
        }
    }

    /// One more.
    pub(super) fn count(&self, failure: Failure) {
        self.counts[failure as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often each happened.
    pub fn counts(&self) -> impl Iterator<Item = (Failure, u64)> {
        Failure::ALL
            .into_iter()
            .zip(self.counts.iter().map(|n| n.load(Ordering::Relaxed)))
    }
}
