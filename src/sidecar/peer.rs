//! For other nodes of the cluster: `GET /peer/content/{ino}/{generation}`, what was closed or synced here and waits to be
//! stored; and `GET /peer/stored/{hash}`, stored content that is on this disk.
//!
//! The answer is whole only with its trailer, in which this node vouches for all bytes; one that a writer made impossible
//! half-way breaks off without it.

use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use sha2::{Digest, Sha256};

use super::Shared;
use super::errors::ApiError;
use super::request::Hash;
use crate::backend::{PEER_PROOF, Peers};
use crate::types::{ContentHash, Generation, Ino};
use crate::vfs::Closed;
use crate::vfs::transfer::blocking;

/// How many bytes are read at a time.
const CHUNK: u64 = 512 << 10;

pub(super) async fn content(
    State(app): State<Shared>,
    Path((ino, generation)): Path<(u64, u64)>,
    uri: Uri,
) -> Result<Response, ApiError> {
    let closed = app.ctx.vfs.closed(Ino(ino), Generation(generation)).await?;
    answer(&app, closed, &uri)
}

pub(super) async fn stored(
    State(app): State<Shared>,
    Hash(hash): Hash,
    uri: Uri,
) -> Result<Response, ApiError> {
    let here = app.ctx.sealed.open_local(&hash)?;
    answer(&app, here.map(Closed::Stored), &uri)
}

fn answer(app: &Shared, closed: Option<Closed>, uri: &Uri) -> Result<Response, ApiError> {
    let (Some(closed), Some(peers)) = (closed, app.ctx.backends.peers.clone()) else {
        let why = "not here, or open for writing";
        return Err(ApiError::new(StatusCode::NOT_FOUND, why));
    };
    let sending = Sending {
        left: closed.size()?,
        closed: Arc::new(closed),
        at: 0,
        sha: Sha256::new(),
        peers,
        path: uri.path().to_owned(),
    };
    let mut response = Body::new(StreamBody::new(frames(sending))).into_response();
    let headers = response.headers_mut();
    headers.insert(header::TRAILER, HeaderValue::from_static(PEER_PROOF));
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    Ok(response)
}

struct Sending {
    closed: Arc<Closed>,
    at: u64,
    left: u64,
    sha: Sha256,
    peers: Arc<dyn Peers>,
    path: String,
}

/// The bytes, then the trailer.
fn frames(sending: Sending) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
    stream::try_unfold(Some(sending), |sending| async {
        let Some(mut sending) = sending else {
            return Ok(None);
        };
        if sending.left == 0 {
            let hash = ContentHash(sending.sha.finalize().into());
            let proof = sending.peers.vouch(&sending.path, &hash).await;
            let proof = proof.map_err(io::Error::other)?;
            let mut trailers = HeaderMap::new();
            let proof = HeaderValue::from_str(&proof).map_err(io::Error::other)?;
            trailers.insert(PEER_PROOF, proof);
            return Ok(Some((Frame::trailers(trailers), None)));
        }
        let (closed, at, len) = (sending.closed.clone(), sending.at, sending.left.min(CHUNK));
        let (chunk, sha) = {
            let mut sha = sending.sha;
            blocking(move || {
                let mut chunk = vec![0; len as usize];
                if closed.read_at(&mut chunk, at)? < chunk.len() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                sha.update(&chunk);
                Ok((chunk, sha))
            })
            .await?
        };
        sending.sha = sha;
        sending.at += len;
        sending.left -= len;
        Ok(Some((Frame::data(Bytes::from(chunk)), Some(sending))))
    })
}
