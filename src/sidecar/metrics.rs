//! `GET /metrics`: the numbers of this node for Prometheus, in the OpenMetrics text format.
//!
//! Names follow <https://prometheus.io/docs/practices/naming/>: base units, `_total` for what only grows. Everything is
//! read at the scrape, but for what a moment ago others said ([`super::survey`]); nothing is counted here.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use axum::Extension;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use prometheus_client::registry::Unit::{Bytes, Seconds};

use super::access::Door;
use super::errors::ApiError;
use super::status::ask;
use super::survey::Survey;
use super::{App, Shared};
use crate::backend::errors::{ETCD, MONGODB};
use crate::tree::Totals;

const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    registry.register(name, help, ConstGauge::new(value));
}

fn counter(registry: &mut Registry, name: &str, help: &str, value: &AtomicU64) {
    registry.register(name, help, ConstCounter::new(value.load(Relaxed)));
}

fn bytes(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    registry.register_with_unit(name, help, Bytes, ConstGauge::new(value));
}

pub(super) async fn metrics(
    State(app): State<Shared>,
    Extension(door): Extension<Door>,
) -> Result<impl IntoResponse, ApiError> {
    let survey = app.survey(door).await?;
    let mut registry = Registry::with_prefix("oncefs");
    node(&app, &mut registry);
    let totals = survey.totals.ok_or_else(ApiError::internal)?;
    tree(&app, &mut registry, totals);
    ingest(&app, &mut registry);
    cache(&app, &mut registry);
    cluster(&app, &mut registry, survey).await?;
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|_| ApiError::internal())?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

fn node(app: &App, registry: &mut Registry) {
    let ctx = &app.ctx;
    let labels = vec![
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("node", ctx.node.to_string()),
        ("mode", ctx.backends.mode.to_owned()),
    ];
    let help = "Which program runs, and as what";
    registry.register("build", help, Info::new(labels));
    let started = ctx.started_at.0 as f64 / 1e9;
    let help = "When this node started, since 1970";
    registry.register_with_unit("start_time", help, Seconds, ConstGauge::new(started));
}

fn tree(app: &App, registry: &mut Registry, totals: Totals) {
    let counts = app.ctx.vfs.counts(totals);
    gauge(registry, "inodes", "Inodes of every kind", totals.inodes);
    gauge(registry, "contents", "Distinct contents", totals.contents);
    let help = "All files together, as if nothing were shared";
    bytes(registry, "logical", help, totals.logical_bytes);
    let help = "The distinct contents together";
    bytes(registry, "stored", help, totals.stored_bytes);
    let help = "Files that writers have open";
    gauge(registry, "files_writing", help, counts.writing as u64);
    let help = "Closed files that are not stored yet";
    gauge(registry, "files_waiting", help, counts.waiting as u64);
    let help = "Inodes that are open";
    gauge(registry, "open_inodes", help, counts.open_inodes as u64);
    let help = "Open handles";
    gauge(registry, "open_handles", help, counts.open_handles as u64);
}

fn ingest(app: &App, registry: &mut Registry) {
    let (waiting, busy) = app.ctx.ingest.depth();
    let workers = app.ctx.workers as u64;
    gauge(registry, "workers", "Workers that hash and store", workers);
    let help = "Files in the hands of workers";
    gauge(registry, "queue_busy", help, busy as u64);
    let help = "Jobs that wait in memory for a worker";
    gauge(registry, "queue_waiting", help, waiting as u64);
    let done = &app.ctx.ingest.counters;
    let help = "Contents stored by this node";
    counter(registry, "contents_stored", help, &done.stored);
    let help = "Files whose content was stored before";
    counter(registry, "files_duplicate", help, &done.duplicates);
    let help = "Attempts to store that failed and are tried again";
    counter(registry, "store_failures", help, &done.failures);
    let help = "Bytes of the contents stored by this node";
    let stored = ConstCounter::new(done.bytes.load(Relaxed));
    registry.register_with_unit("put", help, Bytes, stored);
}

fn cache(app: &App, registry: &mut Registry) {
    let sealed = &app.ctx.sealed;
    if let Some((used, limit)) = sealed.usage() {
        bytes(registry, "cache", "Content in the cache on disk", used);
        bytes(registry, "cache_limit", "The bound of the cache", limit);
    }
    let done = sealed.counters();
    let help = "Contents opened that were on this disk";
    counter(registry, "cache_hits", help, &done.hits);
    let help = "Contents opened that were not, and were asked of the store";
    counter(registry, "cache_misses", help, &done.misses);
    let help = "Contents fetched from the store";
    counter(registry, "cache_fetches", help, &done.fetches);
    let help = "Contents fetched from the node that had closed them";
    counter(registry, "peer_fetches", help, &done.peer_fetches);
    let help = "Fetches whose bytes were wrong";
    counter(registry, "cache_mismatches", help, &done.mismatches);
    let help = "Contents found damaged on this disk, or not whole in the store";
    counter(registry, "contents_damaged", help, &done.damaged);
    let help = "Contents dropped to keep to the bound";
    counter(registry, "cache_evictions", help, &done.evictions);
}

/// What only a node with others has.
async fn cluster(app: &App, registry: &mut Registry, survey: Survey) -> Result<(), ApiError> {
    if app.ctx.backends.log.is_none() {
        return Ok(());
    }
    let (head, load) = tokio::join!(app.head(), ask(app, |vfs| vfs.node_load()));
    let (head, load) = (head?, load?);
    let (health, members) = (survey.servers, survey.members);
    let servers = Labelled::default();
    set(&servers, ("backend", "etcd"), health.etcd.into());
    set(&servers, ("backend", "mongodb"), health.mongo.into());
    let help = "Whether the server answers";
    registry.register("backend_up", help, servers);
    let failures = Family::<Vec<(&'static str, String)>, Counter>::default();
    for of in [&ETCD, &MONGODB] {
        for (failure, count) in of.counts() {
            let labels = [("backend", of.server), ("kind", failure.as_str())];
            let labels = labels
                .map(|(name, value)| (name, value.to_owned()))
                .to_vec();
            failures.get_or_create_owned(&labels).inc_by(count);
        }
    }
    let help = "Calls to the server that failed; some were tried again";
    registry.register("backend_errors", help, failures);
    let help = "Nodes that are alive";
    gauge(registry, "members", help, members.len() as u64);
    let help = "Entries of the namespace log that are applied here";
    gauge(registry, "log_applied", help, load.applied);
    let help = "Changes that wait for the namespace log to come back";
    gauge(registry, "changes_waiting", help, load.waiting_changes);
    if let Some(head) = head {
        let help = "Entries of the namespace log that are not applied here yet";
        let lag = head.saturating_sub(load.applied);
        gauge(registry, "log_lag", help, lag);
    }
    let (applied, waiting) = (Labelled::default(), Labelled::default());
    for member in members {
        let label = ("member", member.node.0.as_str());
        set(&applied, label, member.load.applied);
        set(&waiting, label, member.load.waiting_files);
    }
    let help = "Entries of the namespace log that the member has applied, as it said";
    registry.register("member_log_applied", help, applied);
    let help = "Closed files that are not stored yet at the member, as it said";
    registry.register("member_files_waiting", help, waiting);
    Ok(())
}

/// A number for each value of one label.
type Labelled = Family<Vec<(&'static str, String)>, Gauge>;

fn set(family: &Labelled, (label, value): (&'static str, &str), number: u64) {
    let gauge = family.get_or_create_owned(&vec![(label, value.to_owned())]);
    gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
}
