//! `GET /health`, `GET /status/{hash}`, `GET /files`, `GET /conflicts`: what is there and where it stands.

use std::sync::atomic::Ordering::Relaxed;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::access::Door;
use super::errors::ApiError;
use super::request::{Hash, parse_hash, query};
use super::survey::Survey;
use super::{App, Shared};
use crate::backend::{FileRecord, Health};
use crate::types::{ContentHash, NodeId, Status, Time};
use crate::vfs::status::Holders;
use crate::vfs::{self, Vfs};

/// How many paths `GET /status` shows at the most.
const PATHS_MAX: usize = 1000;
/// How many paths each entry of `GET /files` shows at the most.
const PATHS_LISTED_MAX: usize = 16;
/// Names that `GET /conflicts` lists at the most.
const CONFLICTS_MAX: usize = 10_000;
/// Entries of a page unless asked otherwise.
const PAGE: usize = 100;
/// Entries of a page at the most.
const PAGE_MAX: usize = 1000;

/// One content, as `GET /status` and `GET /files` show it. Times are RFC 3339 in UTC.
#[derive(Serialize)]
struct FileStatus {
    hash: ContentHash,
    filename: String,
    size: u64,
    status: Status,
    worker: Option<String>,
    uploaded_at: String,
    started_at: Option<String>,
    done_at: Option<String>,
    node: NodeId,
    error: Option<String>,
    /// How many files have it.
    files: u64,
    /// How many names these have.
    references: u64,
    /// Not all of them where there are many.
    paths: Vec<String>,
}

impl FileStatus {
    fn new(record: FileRecord, holders: Holders) -> FileStatus {
        FileStatus {
            hash: record.hash,
            filename: record.filename,
            size: record.size,
            status: record.status,
            worker: record.worker,
            uploaded_at: record.uploaded_at.rfc3339(),
            started_at: record.started_at.map(Time::rfc3339),
            done_at: record.done_at.map(Time::rfc3339),
            node: record.node,
            error: record.error,
            files: holders.files,
            references: holders.names,
            paths: holders.paths,
        }
    }
}

/// Asks the namespace what may take longer than a moment, where it may block.
pub(super) async fn ask<T: Send + 'static>(
    app: &App,
    question: impl FnOnce(&Vfs) -> vfs::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let vfs = app.ctx.vfs.clone();
    let answer = tokio::task::spawn_blocking(move || question(&vfs)).await;
    Ok(answer.map_err(|_| ApiError::internal())??)
}

/// Why content that the namespace does not hold as stored cannot be had: unknown, or on its way.
pub(super) async fn not_stored(app: &App, hash: &ContentHash) -> ApiError {
    match app.ctx.vfs.content_status(hash).await {
        Ok(Some(record)) => ApiError::new(
            StatusCode::CONFLICT,
            format!(
                "this content is not stored yet ({}): try again later",
                record.status
            ),
        )
        .with(header::RETRY_AFTER, HeaderValue::from_static("1")),
        Ok(None) => ApiError::new(StatusCode::NOT_FOUND, "no file has this content"),
        Err(e) => e.into(),
    }
}

pub(super) async fn status(
    State(app): State<Shared>,
    Hash(hash): Hash,
) -> Result<Json<impl Serialize>, ApiError> {
    let record = app.ctx.vfs.content_status(&hash).await?;
    let record = record.ok_or_else(|| {
        ApiError::new(
            StatusCode::NOT_FOUND,
            "no file is known to have this content",
        )
    })?;
    let holders = ask(&app, move |vfs| vfs.holders_of(&hash, PATHS_MAX)).await?;
    Ok(Json(FileStatus::new(record, holders)))
}

#[derive(Deserialize)]
struct Page {
    limit: Option<String>,
    after: Option<String>,
}

/// The stored contents by hash, a page at a time: `next` is the `after` of the next page, null at the end.
pub(super) async fn files(State(app): State<Shared>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let page: Page = query(&uri)?;
    let limit = match page.limit.as_deref().map(str::parse) {
        None => PAGE,
        Some(Ok(limit @ 1..=PAGE_MAX)) => limit,
        Some(_) => {
            return Err(ApiError::bad_request(format!(
                "limit must be a number from 1 to {PAGE_MAX}"
            )));
        }
    };
    let after = page.after.as_deref().map(parse_hash).transpose()?;
    let (files, more) = ask(&app, move |vfs| {
        // One more than asked for tells whether there is a next page.
        let mut records = vfs.contents(after.as_ref(), limit + 1)?;
        let more = records.len() > limit;
        records.truncate(limit);
        let shown = records.into_iter().map(|record| {
            let holders = vfs.holders_of(&record.hash, PATHS_LISTED_MAX)?;
            Ok(FileStatus::new(record, holders))
        });
        Ok((shown.collect::<vfs::Result<Vec<_>>>()?, more))
    })
    .await?;
    let next = files.last().filter(|_| more).map(|f| f.hash);
    Ok(Json(json!({ "files": files, "next": next })))
}

/// What was kept aside when machines had worked apart. `more`: there are more than one answer lists.
pub(super) async fn conflicts(State(app): State<Shared>) -> Result<Json<Value>, ApiError> {
    let mut found = ask(&app, |vfs| vfs.conflicts(CONFLICTS_MAX + 1)).await?;
    let more = found.len() > CONFLICTS_MAX;
    found.truncate(CONFLICTS_MAX);
    let listed: Vec<Value> = found
        .into_iter()
        .map(|copy| {
            json!({
                "path": String::from_utf8_lossy(&copy.path),
                "size": copy.size,
                "node": copy.node,
                "written_at": copy.time.rfc3339(),
            })
        })
        .collect();
    Ok(Json(json!({ "conflicts": listed, "more": more })))
}

/// Whether nothing is down. Without a shared log there are no servers that could be.
fn all_answer(shared: bool, servers: Health) -> bool {
    !shared || (servers.etcd && servers.mongo)
}

/// Always 200 while the daemon answers. `degraded`: a configured server, or the namespace, does not answer.
pub(super) async fn health(
    State(app): State<Shared>,
    Extension(door): Extension<Door>,
) -> Result<Json<Value>, ApiError> {
    let Survey {
        servers,
        members,
        totals,
        waiting_changes,
    } = app.survey(door).await?;
    let ctx = &app.ctx;
    let ok = totals.is_some() && all_answer(ctx.backends.log.is_some(), servers);
    let (waiting, busy) = ctx.ingest.depth();
    let (cache, ingest) = (ctx.sealed.counters(), &ctx.ingest.counters);
    let usage = ctx.sealed.usage();
    let now = Time::now();
    // As far as anybody who is there has come.
    let head = members.iter().map(|m| m.load.applied).max().unwrap_or(0);
    let members: Vec<Value> = members
        .into_iter()
        .map(|m| {
            json!({
                "node": m.node,
                "mountpoint": m.mountpoint,
                "api": m.api,
                "peer": m.peer,
                "version": m.version,
                "started_at": m.started_at.rfc3339(),
                "log_applied": m.load.applied,
                "log_lag": head.saturating_sub(m.load.applied),
                "waiting_files": m.load.waiting_files,
                "waiting_changes": m.load.waiting_changes,
            })
        })
        .collect();
    Ok(Json(json!({
        "status": if ok { "ok" } else { "degraded" },
        "etcd": servers.etcd,
        "mongo": servers.mongo,
        "workers": ctx.workers,
        "timestamp": now.rfc3339(),
        "mode": ctx.backends.mode,
        "node": ctx.node,
        "mountpoint": ctx.mountpoint.to_string_lossy(),
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_secs": now.0.saturating_sub(ctx.started_at.0).max(0) / 1_000_000_000,
        "queue": { "waiting": waiting, "busy": busy },
        "waiting_changes": waiting_changes,
        "counts": totals.map(|totals| ctx.vfs.counts(totals)),
        "damaged": cache.damaged.load(Relaxed),
        "scrub": app.scrub.progress(),
        "cache": {
            "bytes": usage.map(|u| u.0),
            "limit_bytes": usage.map(|u| u.1),
            "hits": cache.hits.load(Relaxed),
            "misses": cache.misses.load(Relaxed),
            "fetches": cache.fetches.load(Relaxed),
            "peer_fetches": cache.peer_fetches.load(Relaxed),
            "mismatches": cache.mismatches.load(Relaxed),
            "evictions": cache.evictions.load(Relaxed),
        },
        "ingest": {
            "stored": ingest.stored.load(Relaxed),
            "duplicates": ingest.duplicates.load(Relaxed),
            "failures": ingest.failures.load(Relaxed),
            "bytes": ingest.bytes.load(Relaxed),
        },
        "members": members,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_server_down_is_degraded() {
        for (etcd, mongo) in [(true, true), (true, false), (false, true), (false, false)] {
            let servers = Health { etcd, mongo };
            assert_eq!(all_answer(true, servers), etcd && mongo);
            assert!(all_answer(false, servers));
        }
    }
}
