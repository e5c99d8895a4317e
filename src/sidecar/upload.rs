//! `POST /upload`: one file per request, as a multipart form.
//!
//! The part with a file name is the file; parts without one are passed over, a second file is refused. `?path=a/b` names
//! the directory, made where it is missing; without it the file goes to the root. Answers 200 with `queued`, or with
//! `duplicate` when the store had the content before. The same content under the same name again is a `duplicate` too;
//! other content under a taken name is refused with 409, nothing is ever replaced.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::{BoxError, Json};
use http_body_util::BodyExt;
use hyper::body::Frame;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Value, json};
use tower_http::timeout::{TimeoutBody, TimeoutError};
use tracing::debug;

use super::errors::ApiError;
use super::request::query;
use super::sink::Sink;
use super::{App, MULTIPART_EXTRA_BYTES, Shared};
use crate::backend::FileRecord;
use crate::tree::TreeError;
use crate::tree::op::check_name;
use crate::types::{Status, Time};
use crate::vfs::VfsError;
use crate::vfs::upload::{Incoming, Uploaded};

/// How many bytes may come between two things that the form yields: bounds the header of a part, and with it memory.
const UNCLAIMED_MAX: u64 = 1 << 20;
/// How much more of a refused upload is read, so that its sender gets to see the answer.
const DRAIN_BYTES: u64 = 8 << 20;
/// How long that may take.
const DRAIN_TIME: Duration = Duration::from_secs(2);
/// The longest path of a directory, in bytes: the kernel takes no longer one (PATH_MAX).
const PATH_BYTES_MAX: usize = 4095;
/// How long the public record of a new upload may take; it only informs.
const RECORD_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Target {
    #[serde(default)]
    path: String,
}

pub(super) async fn upload(
    State(app): State<Shared>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let (parts, body) = request.into_parts();
    let target: Target = query(&parts.uri)?;
    let idle = TimeoutBody::new(app.limits.body_idle, body);
    let intake = Intake::new(Body::new(idle));
    let waits_for_continue = parts.headers.contains_key(header::EXPECT);
    let request = Request::from_parts(parts, Body::new(intake.clone()));
    match receive(&app, &target, request, &intake).await {
        Ok((name, incoming)) => install(app, target.path, name, incoming).await,
        Err(e) => {
            if intake.was_read() || !waits_for_continue {
                intake.drain().await;
            }
            Err(e)
        }
    }
}

/// Takes the whole form; returns the file's name and its bytes.
async fn receive(
    app: &App,
    target: &Target,
    request: Request,
    intake: &Intake,
) -> Result<(String, Incoming), ApiError> {
    if target.path.len() > PATH_BYTES_MAX {
        return Err(ApiError::bad_request(format!(
            "path may have at most {PATH_BYTES_MAX} bytes"
        )));
    }
    for name in target.path.split('/').filter(|n| !n.is_empty()) {
        check_name(name.as_bytes()).map_err(|_| {
            ApiError::bad_request("path must be names of directories with slashes between them")
        })?;
    }
    check_room(app, request.headers())?;
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|e| ApiError::bad_request(e.body_text()))?;
    let mut file = None;
    while let Some(mut field) = form.next_field().await.map_err(broken)? {
        intake.claim();
        let Some(name) = field.file_name().map(str::to_owned) else {
            while field.chunk().await.map_err(broken)?.is_some() {
                intake.claim();
            }
            continue;
        };
        if file.is_some() {
            return Err(ApiError::bad_request("one file per upload is expected"));
        }
        check_name(name.as_bytes()).map_err(|_| {
            ApiError::bad_request(
                "the file name must be a single name of at most 255 bytes, without slashes",
            )
        })?;
        file = Some((name, save(app, &mut field, intake).await?));
    }
    file.ok_or_else(|| {
        ApiError::bad_request("a form part with a file name is expected (curl -F file=@NAME)")
    })
}

/// Refuses what is announced to be too large for us, or for the disk.
fn check_room(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let Some(announced) = announced else {
        return Ok(());
    };
    if announced
        > app
            .limits
            .upload_bytes
            .saturating_add(MULTIPART_EXTRA_BYTES)
    {
        return Err(too_large(app));
    }
    let disk = app.ctx.vfs.statfs()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if announced > free {
        return Err(ApiError::new(
            StatusCode::INSUFFICIENT_STORAGE,
            format!("{announced} bytes are announced and the disk has room for {free}"),
        ));
    }
    Ok(())
}

fn too_large(app: &App) -> ApiError {
    let limit = app.limits.upload_bytes;
    ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        format!("a file may have at most {limit} bytes"),
    )
}

async fn save(app: &App, field: &mut Field<'_>, intake: &Intake) -> Result<Incoming, ApiError> {
    let mut sink = Sink::create(app.ctx.vfs.incoming_path())?;
    while let Some(bytes) = field.chunk().await.map_err(broken)? {
        intake.claim();
        sink.push(&bytes).await?;
        if sink.size() > app.limits.upload_bytes {
            return Err(too_large(app));
        }
    }
    Ok(sink.finish().await?)
}

/// Gives the file its name. Runs to its end even when the client goes away meanwhile.
async fn install(
    app: Shared,
    dir: String,
    name: String,
    incoming: Incoming,
) -> Result<Json<Value>, ApiError> {
    let tasks = app.tasks.clone();
    let installed = tasks.spawn(async move {
        let (hash, size) = (incoming.hash, incoming.size);
        let ctx = &app.ctx;
        let place = ctx.vfs.directory(ctx.owner, &dir).await?;
        let uploaded = ctx
            .vfs
            .install(ctx.owner, place, name.as_bytes(), incoming)
            .await?;
        let status = match uploaded {
            Uploaded::Queued => {
                note(&app, &name, hash, size).await;
                "queued"
            }
            Uploaded::Duplicate => "duplicate",
        };
        let names = dir.split('/').chain([&*name]).filter(|n| !n.is_empty());
        let path = names.collect::<Vec<_>>().join("/");
        Ok(Json(json!({
            "status": status,
            "hash": hash,
            "filename": name,
            "size": size,
            "path": path,
        })))
    });
    let installed: Result<_, VfsError> = installed.await.map_err(|_| ApiError::internal())?;
    installed.map_err(|e| match e {
        // No attribute: what has the name is no regular file.
        VfsError::Tree(TreeError::Exists | TreeError::NoAttribute) => ApiError::new(
            StatusCode::CONFLICT,
            "the name is taken by something else: remove that first, or choose another name",
        ),
        e => e.into(),
    })
}

/// Makes the content known as queued, so that `GET /status` answers from now on and not only once a worker has it.
async fn note(app: &App, name: &str, hash: crate::types::ContentHash, size: u64) {
    if matches!(app.ctx.vfs.content(&hash), Ok(Some(_))) {
        return;
    }
    let record = FileRecord {
        hash,
        filename: name.to_owned(),
        size,
        status: Status::Queued,
        worker: None,
        node: app.ctx.node.clone(),
        uploaded_at: Time::now(),
        started_at: None,
        done_at: None,
        fence: 0,
        error: None,
    };
    let noted = app.ctx.ingest.records().advance(&record);
    match tokio::time::timeout(RECORD_DEADLINE, noted).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => debug!("record of {hash}: {e}"),
        Err(_) => debug!("record of {hash}: no answer in time"),
    }
}

/// What a form that cannot be read to its end is answered with.
fn broken(e: MultipartError) -> ApiError {
    if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return ApiError::new(e.status(), "the form is too large");
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(&e);
    while let Some(inner) = cause {
        if inner.is::<TimeoutError>() {
            return ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "no bytes came for too long; the upload was given up",
            );
        }
        if inner.is::<Unclaimed>() {
            return ApiError::bad_request("the header of a form part is too long");
        }
        cause = inner.source();
    }
    ApiError::bad_request(format!("the form cannot be read: {}", e.body_text()))
}

/// More came between two things that the form yields than [`UNCLAIMED_MAX`].
#[derive(Debug, thiserror::Error)]
#[error("too much without a form part")]
struct Unclaimed;

/// The body of an upload, one piece at a time.
///
/// The form parser takes whatever is ready before it hands anything on, and lets the header of a part grow without
/// bound. Both would let memory grow with what the client sends; so after each piece this says "not now" once, and it
/// counts what came since the handler last saw something.
#[derive(Clone)]
struct Intake(Arc<Mutex<Pieces>>);

struct Pieces {
    body: Body,
    pause: bool,
    unclaimed: u64,
    total: u64,
}

impl Intake {
    fn new(body: Body) -> Intake {
        Intake(Arc::new(Mutex::new(Pieces {
            body,
            pause: false,
            unclaimed: 0,
            total: 0,
        })))
    }

    /// The handler saw something.
    fn claim(&self) {
        self.0.lock().unclaimed = 0;
    }

    fn was_read(&self) -> bool {
        self.0.lock().total > 0
    }

    /// Reads on for a while and throws away: a client that is still sending does not look for an answer.
    async fn drain(mut self) {
        let reading = async {
            let mut drained = 0;
            while drained < DRAIN_BYTES {
                self.claim();
                match self.frame().await {
                    Some(Ok(frame)) => drained += frame.data_ref().map_or(0, |d| d.len() as u64),
                    Some(Err(_)) | None => break,
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN_TIME, reading).await;
    }
}

impl hyper::body::Body for Intake {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut pieces = self.0.lock();
        if std::mem::take(&mut pieces.pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let frame = ready!(Pin::new(&mut pieces.body).poll_frame(cx));
        let Some(frame) = frame.transpose()? else {
            return Poll::Ready(None);
        };
        let len = frame.data_ref().map_or(0, |data| data.len() as u64);
        pieces.pause = true;
        pieces.total += len;
        pieces.unclaimed += len;
        if pieces.unclaimed > UNCLAIMED_MAX {
            return Poll::Ready(Some(Err(Box::new(Unclaimed))));
        }
        Poll::Ready(Some(Ok(frame)))
    }
}
