//! `POST /fsck`, `POST /scrub`, `POST /gc`: looking after what is stored, for the command line.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::Uri;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Shared;
use super::errors::ApiError;
use super::request::query;
use super::status::ask;
use crate::fsck::{self, Report};
use crate::types::Time;

/// Contents that one answer of `POST /gc` lists at the most.
const LISTED_MAX: usize = 10_000;

/// Refuses to change anything in a tree that is mounted read-only. Looking is allowed there.
fn may_change(app: &Shared, changes: bool) -> Result<(), ApiError> {
    match changes && (app.ctx.read_only)() {
        true => Err(ApiError::read_only()),
        false => Ok(()),
    }
}

#[derive(Deserialize)]
struct FsckQuery {
    #[serde(default)]
    data: bool,
    #[serde(default)]
    repair: bool,
}

/// Looks at everything, which takes its time, and says what it found.
pub(super) async fn fsck(State(app): State<Shared>, uri: Uri) -> Result<Json<Report>, ApiError> {
    let FsckQuery { data, repair } = query(&uri)?;
    may_change(&app, repair)?;
    let shared = app.clone();
    let report = ask(&app, move |vfs| {
        let ctx = &shared.ctx;
        let options = fsck::Options { data, repair };
        let report = fsck::online(&ctx.data, &ctx.node, &vfs.tree, &ctx.sealed, options);
        Ok(report?)
    });
    let mut report = report.await?;
    if !app.ctx.backends.content_dir_is_store {
        fsck::in_store(&app.ctx.vfs.tree, &app.ctx.sealed, &mut report).await?;
    }
    Ok(Json(report))
}

#[derive(Deserialize)]
struct ScrubQuery {
    /// Bytes a second; none: as fast as it goes.
    rate: Option<u64>,
    /// End the one that is under way.
    #[serde(default)]
    stop: bool,
}

/// Starts hashing all content in the background, unless that is under way; or ends it.
pub(super) async fn scrub(State(app): State<Shared>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let ScrubQuery { rate, stop } = query(&uri)?;
    if stop {
        return Ok(Json(json!({ "stopped": app.scrub.stop() })));
    }
    if rate == Some(0) {
        return Err(ApiError::bad_request(
            "a rate of 0 would never come to an end",
        ));
    }
    let started = app.scrub.start(app.ctx.sealed.clone(), rate.unwrap_or(0))?;
    Ok(Json(json!({ "started": started })))
}

#[derive(Deserialize)]
struct GcQuery {
    #[serde(default)]
    delete: bool,
    grace_secs: Option<u64>,
}

/// What no file has, and with `delete` its removal after the grace period.
pub(super) async fn gc(State(app): State<Shared>, uri: Uri) -> Result<Json<Value>, ApiError> {
    let GcQuery { delete, grace_secs } = query(&uri)?;
    may_change(&app, delete)?;
    let grace = grace_secs.map_or(app.ctx.gc_grace, Duration::from_secs);
    let nanos = i64::try_from(grace.as_nanos()).unwrap_or(i64::MAX);
    let before = Time(Time::now().0.saturating_sub(nanos));
    let (contents, total, due) = ask(&app, move |vfs| {
        let (contents, total) = vfs.unreferenced(Time(i64::MAX), LISTED_MAX)?;
        let (_, due) = vfs.unreferenced(before, 0)?;
        Ok((contents, total, due))
    })
    .await?;
    let listed: Vec<Value> = contents
        .iter()
        .map(|content| {
            let since = content.unreferenced_at.unwrap_or_default();
            json!({
                "hash": content.hash,
                "size": content.size,
                "filename": String::from_utf8_lossy(&content.filename),
                "unreferenced_since": since.rfc3339(),
                "in_grace": since > before,
            })
        })
        .collect();
    let removed = match delete {
        true => Some(app.ctx.ingest.collect(grace).await?),
        false => None,
    };
    Ok(Json(json!({
        "grace_secs": grace.as_secs(),
        "contents": listed,
        "total": { "contents": total.0, "bytes": total.1 },
        "due": { "contents": due.0, "bytes": due.1 },
        "removed": removed,
    })))
}
