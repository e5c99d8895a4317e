//! Which jobs a worker takes, and when one comes again that did not end well.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tracing::{debug, error, info, warn};

use super::large::LARGE_BYTES;
use super::worker::StoreError;
use super::{Ingest, Job};
use crate::content::spool::Progress;
use crate::tree::TreeError;
use crate::types::Status;

/// How many small files one worker takes at a time.
const BATCH_FILES: usize = 64;
/// How many bytes they have together at the most.
const BATCH_BYTES: u64 = 8 << 20;
/// How long a worker lets small files gather before it takes what there is. Where there are many, a sync for each would
/// cost the writers their disk.
const GATHER: Duration = Duration::from_millis(15);
/// How often a store that does not answer is asked whether it is back.
const PROBE: Duration = Duration::from_millis(500);
/// How often it is looked whether somebody has stored what was damaged here.
const HEALED_WITHIN: Duration = Duration::from_secs(5);
/// How many files are hashed between two such questions.
const HASHED_AHEAD: usize = 1024;

pub(super) async fn run(ingest: Arc<Ingest>, name: String) {
    let mut stop = ingest.stop.subscribe();
    loop {
        let batch = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            batch = async {
                ingest.store_answers().await;
                ingest.next_batch().await
            } => batch,
        };
        ingest.busy.fetch_add(batch.len(), Ordering::Relaxed);
        let count = batch.len();
        join_all(batch.into_iter().map(|job| ingest.process(&name, job))).await;
        ingest.busy.fetch_sub(count, Ordering::Relaxed);
    }
}

impl Ingest {
    /// Returns once the store answers, as far as this node knows. Work that has to wait for it waits in the spool.
    async fn store_answers(&self) {
        while self.away.load(Ordering::Acquire) {
            if self.backends.membership.health().await.mongo {
                self.away.store(false, Ordering::Release);
                info!("the store is back");
                // Another worker may be waiting for a job, and these were taken off the queue.
                self.refill();
                return;
            }
            self.hash_ahead().await;
            tokio::time::sleep(PROBE).await;
        }
    }

    /// What has to wait is hashed all the same, so that damage shows that it takes meanwhile.
    async fn hash_ahead(&self) {
        let Ok(mut rest) = self.hashing_ahead.try_lock() else {
            return;
        };
        let begun = Instant::now();
        if rest.is_some_and(|rest| begun < rest) {
            return;
        }
        let unhashed = self.spool.unhashed(HASHED_AHEAD);
        // Of a million that wait, most are hashed, and the search keeps writers from the spool.
        *rest = Some(Instant::now() + 20 * begun.elapsed());
        for (ino, generation) in unhashed {
            if begun.elapsed() > PROBE {
                return;
            }
            let job = Job {
                ino,
                generation,
                failures: 0,
            };
            match self.hash(job).await {
                Ok(_) => self.spool.note_hash(ino, generation),
                Err(e) => {
                    debug!("inode {ino} is not hashed yet: {e}");
                    self.spool.put_off(ino, generation);
                }
            }
        }
    }

    async fn next_batch(&self) -> Vec<Job> {
        let mut jobs = self.jobs.lock().await;
        let mut batch = Vec::new();
        let mut bytes = 0;
        loop {
            match jobs.try_recv() {
                Ok(job) => {
                    bytes += std::fs::metadata(self.spool.path(job.ino, job.generation))
                        .map_or(0, |m| m.len());
                    batch.push(job);
                    if batch.len() == BATCH_FILES || bytes >= BATCH_BYTES {
                        return batch;
                    }
                }
                Err(_) if self.overflow.swap(false, Ordering::AcqRel) => self.refill(),
                Err(_) if !batch.is_empty() => return batch,
                Err(_) => match jobs.recv().await {
                    Some(job) => {
                        // Back through the loop, to take along what comes meanwhile.
                        tokio::time::sleep(GATHER).await;
                        self.push(job);
                    }
                    None => std::future::pending().await,
                },
            }
        }
    }

    /// Queues what did not fit the queue before.
    fn refill(&self) {
        let room = self.queue.capacity();
        let sealed = self.spool.sealed(room + self.in_flight.lock().len() + 1);
        if sealed.len() > room {
            self.overflow.store(true, Ordering::Release);
        }
        let in_flight = self.in_flight.lock();
        let fresh = sealed.into_iter().filter(|key| !in_flight.contains(key));
        for (ino, generation) in fresh.take(room) {
            self.enqueue(ino, generation);
        }
    }

    async fn process(self: &Arc<Self>, worker: &str, job: Job) {
        let key = (job.ino, job.generation);
        if !self.in_flight.lock().insert(key) {
            return;
        }
        let path = self.spool.path(job.ino, job.generation);
        let large = std::fs::metadata(path).is_ok_and(|m| m.len() >= LARGE_BYTES);
        if large && !self.large.enter(job) {
            self.in_flight.lock().remove(&key);
            return;
        }
        let result = self.store(worker, job).await;
        self.in_flight.lock().remove(&key);
        if large && let Some(next) = self.large.leave() {
            self.push(next);
        }
        match result {
            Ok(()) => {}
            Err(StoreError::Stale) => debug!("inode {}: job is stale", job.ino),
            Err(StoreError::StillMapped) => {
                let pause = Duration::from_millis(10 << job.failures.min(7));
                self.again(job, pause);
            }
            Err(StoreError::Tree(TreeError::Reaped)) => {
                debug!("inode {}: its object was removed meanwhile", job.ino);
                self.again(job, Duration::from_millis(20 << job.failures.min(8)));
            }
            Err(e) => self.failed(worker, job, e).await,
        }
    }

    /// Notes the failure and comes back later.
    async fn failed(self: &Arc<Self>, worker: &str, job: Job, e: StoreError) {
        if !self.spool.is_sealed(job.ino, job.generation) {
            return;
        }
        if e.is_outage() {
            self.wait_for_store(job, &e);
            return;
        }
        let longest = match e {
            StoreError::Damaged(_) => HEALED_WITHIN,
            _ => Duration::from_secs(30),
        };
        let pause = Duration::from_millis(250 << job.failures.min(8)).min(longest);
        // Whoever removed it may put it back.
        let e = match self.spool.is_missing(job.ino) {
            true => StoreError::Missing(self.spool.path(job.ino, job.generation)),
            false => e,
        };
        match e {
            StoreError::Missing(_) | StoreError::Damaged(_) if job.failures == 0 => {
                error!("inode {}: {e}", job.ino);
            }
            StoreError::Missing(_) | StoreError::Damaged(_) => debug!("inode {}: {e}", job.ino),
            ref e => warn!(
                "{worker}: inode {} was not stored: {e}; trying again in {pause:?}",
                job.ino
            ),
        }
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        let hash = self.spool.progress(job.ino).and_then(|(_, p)| p.hash);
        let progress = Progress {
            hash,
            status: Status::Failed,
            error: Some(e.to_string()),
        };
        self.spool.set_progress(job.ino, job.generation, progress);
        self.spool.note_hash(job.ino, job.generation);
        if let Some(hash) = hash
            && let Ok(Some(mut record)) = self.backends.records.get(&hash).await
        {
            record.status = Status::Failed;
            record.error = Some(e.to_string());
            self.note(&record).await;
        }
        self.again(job, pause);
    }

    /// Leaves the job in the spool until the store is back.
    fn wait_for_store(&self, job: Job, e: &StoreError) {
        if !self.away.swap(true, Ordering::AcqRel) {
            warn!("the store does not answer: {e}; files wait in the spool until it is back");
        }
        let hash = self.spool.progress(job.ino).and_then(|(_, p)| p.hash);
        let progress = Progress {
            hash,
            status: Status::Queued,
            error: Some(e.to_string()),
        };
        self.spool.set_progress(job.ino, job.generation, progress);
        self.spool.set_waiting(job.ino, job.generation, true);
        self.spool.note_hash(job.ino, job.generation);
        self.overflow.store(true, Ordering::Release);
    }

    fn again(self: &Arc<Self>, job: Job, pause: Duration) {
        let this = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            if let Ok(permit) = this.queue.reserve().await {
                permit.send(Job {
                    failures: job.failures + 1,
                    ..job
                });
            }
        });
    }
}
