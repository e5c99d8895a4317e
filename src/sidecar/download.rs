//! `GET /download/{hash}`: a stored content as an attachment, whole or in part, streamed from the sealed file.
//!
//! Content that is known but not stored yet is answered with 409 and `Retry-After`: it has no sealed file to stream from.
//! A content never changes, so its hash is a strong entity tag.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};

use super::Shared;
use super::errors::ApiError;
use super::header::{attachment, names_tag};
use super::range::{Wanted, wanted};
use super::request::Hash;
use super::status::not_stored;
use crate::content::VerifiedFile;
use crate::content::sums::BLOCK;
use crate::vfs::transfer::blocking;

/// How many bytes are read at a time: what is checked at a time.
const CHUNK: u64 = BLOCK as u64;
/// How many chunks of one download are in memory or being read.
const CHUNKS: usize = 2;

pub(super) async fn download(
    State(app): State<Shared>,
    method: Method,
    Hash(hash): Hash,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Some(content) = app.ctx.vfs.content(&hash)? else {
        return Err(not_stored(&app, &hash).await);
    };
    let tag = format!("\"{hash}\"");
    let tagged = |response: &mut Response| {
        let headers = response.headers_mut();
        // Only visible ASCII: quotes and hexadecimal digits.
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("private, no-cache"),
        );
    };
    if names_tag(&headers, header::IF_NONE_MATCH, &tag) {
        let mut response = StatusCode::NOT_MODIFIED.into_response();
        tagged(&mut response);
        return Ok(response);
    }
    let len = content.size;
    let wanted = match headers.get(header::RANGE).map(HeaderValue::to_str) {
        Some(Ok(range)) if method == Method::GET && still_current(&headers, &tag) => {
            wanted(range, len)
        }
        _ => Wanted::Whole,
    };
    let (status, part) = match wanted {
        Wanted::Whole => (StatusCode::OK, 0..len),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wanted::Unsatisfiable => {
            let error = ApiError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                format!("the content has {len} bytes"),
            );
            let mut response = error.into_response();
            tagged(&mut response);
            set(
                &mut response,
                header::CONTENT_RANGE,
                format!("bytes */{len}"),
            );
            return Ok(response);
        }
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        let file = app.ctx.sealed.open(&hash, &content.blob).await?;
        Body::from_stream(chunks(file, part.clone()))
    };
    let mut response = (status, body).into_response();
    tagged(&mut response);
    let size = part.end - part.start;
    set(&mut response, header::CONTENT_LENGTH, size.to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        let last = part.end - 1;
        let range = format!("bytes {}-{last}/{len}", part.start);
        set(&mut response, header::CONTENT_RANGE, range);
    }
    let name = attachment(&String::from_utf8_lossy(&content.filename));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_DISPOSITION, name);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    Ok(response)
}

fn set(response: &mut Response, name: header::HeaderName, value: String) {
    if let Ok(value) = HeaderValue::from_str(&value) {
        response.headers_mut().insert(name, value);
    }
}

/// `If-Range`: a part is sent only while the client's copy is of this content. A date never matches: none was ever sent.
fn still_current(headers: &HeaderMap, tag: &str) -> bool {
    match headers.get(header::IF_RANGE) {
        None => true,
        Some(given) => given.to_str().is_ok_and(|given| given.trim() == tag),
    }
}

/// The bytes `part` of `file`, read where reading may block, a chunk ahead of the client.
fn chunks(file: Arc<VerifiedFile>, part: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> {
    let starts = stream::iter((part.start..part.end).step_by(CHUNK as usize));
    starts
        .map(move |start| {
            let file = file.clone();
            let len = CHUNK.min(part.end - start) as usize;
            blocking(move || {
                let mut chunk = vec![0; len];
                if file.read_at(&mut chunk, start)? < len {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Ok(Bytes::from(chunk))
            })
        })
        .buffered(CHUNKS)
}
