//! The command line's side of the control socket: one question, one answer.

use std::io;
use std::path::Path;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::local::Reach;

/// How long an answer may take. The slowest one asks servers with deadlines of their own, of seconds.
const DEADLINE: Duration = Duration::from_secs(30);
/// The largest answer, in bytes.
const ANSWER_MAX: usize = 64 << 20;

/// Asks the daemon behind the socket `control`, with `GET`, for `path_and_query`; returns the HTTP status and the answer.
///
/// Errors: nobody listens there (`NotFound` or `ConnectionRefused`), no answer within 30 s (`TimedOut`), or an answer
/// that is not JSON (`InvalidData`).
pub async fn get_json(control: &Path, path_and_query: &str) -> io::Result<(u16, Value)> {
    let request = request(Method::GET, path_and_query)?;
    match tokio::time::timeout(DEADLINE, ask(control, request)).await {
        Ok(answer) => answer,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", DEADLINE.as_secs()),
        )),
    }
}

/// The same with `POST`, for work that takes as long as it takes.
pub async fn post_json(control: &Path, path_and_query: &str) -> io::Result<(u16, Value)> {
    ask(control, request(Method::POST, path_and_query)?).await
}

fn request(method: Method, path_and_query: &str) -> io::Result<Request<Empty<Bytes>>> {
    Request::builder()
        .method(method)
        .uri(path_and_query)
        .header(header::HOST, "localhost")
        .body(Empty::new())
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

async fn ask(control: &Path, request: Request<Empty<Bytes>>) -> io::Result<(u16, Value)> {
    let reach = Reach::new(control)?;
    let stream = UnixStream::connect(reach.path()).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let asking = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = response.status().as_u16();
        let body = Limited::new(Body::new(response.into_body()), ANSWER_MAX);
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let value = serde_json::from_slice(&body)?;
        Ok((status, value))
    };
    // The connection moves only while it is polled; it never ends before the answer is there, except by failing, which
    // the question then hears of.
    let mut connection = std::pin::pin!(connection);
    let mut asking = std::pin::pin!(asking);
    tokio::select! {
        biased;
        answer = &mut asking => answer,
        _ = &mut connection => asking.await,
    }
}
