//! What went wrong, as the web says it: a status and `{"error": "..."}`. The one table from the errors of the rooms
//! below is here, matched exhaustively, so that a new error forces a decision.

use std::io;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tracing::warn;

use crate::backend::BackendError;
use crate::tree::TreeError;
use crate::vfs::VfsError;

/// A refusal.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError {
            status,
            message: message.into(),
            header: None,
        }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn read_only() -> ApiError {
        ApiError::new(StatusCode::FORBIDDEN, "this is mounted read-only")
    }

    pub(super) fn internal() -> ApiError {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal error: the daemon's log says more",
        )
    }

    pub(super) fn method_not_allowed(allowed: &Method) -> ApiError {
        let allow = match *allowed {
            Method::GET => HeaderValue::from_static("GET, HEAD"),
            _ => HeaderValue::from_str(allowed.as_str()).unwrap_or(HeaderValue::from_static("")),
        };
        ApiError::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("this route takes {allowed}"),
        )
        .with(header::ALLOW, allow)
    }

    /// With one more header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> ApiError {
        self.header = Some((name, value));
        self
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = Json(json!({ "error": self.message }));
        let mut response = (self.status, body).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

impl<E: Into<VfsError>> From<E> for ApiError {
    fn from(e: E) -> ApiError {
        let e = e.into();
        let status = status(&e);
        if status == StatusCode::INTERNAL_SERVER_ERROR {
            warn!("sidecar: {e}");
            return ApiError::internal();
        }
        let error = ApiError::new(status, e.to_string());
        match status {
            StatusCode::SERVICE_UNAVAILABLE => {
                error.with(header::RETRY_AFTER, HeaderValue::from_static("5"))
            }
            _ => error,
        }
    }
}

fn status(e: &VfsError) -> StatusCode {
    match e {
        VfsError::Tree(e) => tree(e),
        VfsError::Io(e) => disk(e),
        VfsError::Backend(e) => backend(e),
        VfsError::BadHandle => StatusCode::INTERNAL_SERVER_ERROR,
        VfsError::NotSupported(_) => StatusCode::NOT_IMPLEMENTED,
        VfsError::Range => StatusCode::INTERNAL_SERVER_ERROR,
        VfsError::StillElsewhere(_) => StatusCode::SERVICE_UNAVAILABLE,
        VfsError::Stalled => StatusCode::SERVICE_UNAVAILABLE,
        VfsError::Lost(_) => StatusCode::INTERNAL_SERVER_ERROR,
        // Nobody takes locks over HTTP.
        VfsError::Locked
        | VfsError::LockLost(_)
        | VfsError::Overtaken(_)
        | VfsError::Unsettled(_) => StatusCode::INTERNAL_SERVER_ERROR,
        VfsError::NoLocks(_) => StatusCode::SERVICE_UNAVAILABLE,
        VfsError::Interrupted => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn tree(e: &TreeError) -> StatusCode {
    match e {
        TreeError::NotFound => StatusCode::NOT_FOUND,
        TreeError::Exists => StatusCode::CONFLICT,
        TreeError::NotDirectory => StatusCode::CONFLICT,
        TreeError::IsDirectory => StatusCode::CONFLICT,
        TreeError::NotEmpty => StatusCode::CONFLICT,
        TreeError::NameTooLong => StatusCode::BAD_REQUEST,
        TreeError::Invalid => StatusCode::BAD_REQUEST,
        TreeError::NotPermitted => StatusCode::FORBIDDEN,
        TreeError::TooManyLinks => StatusCode::CONFLICT,
        TreeError::NoAttribute => StatusCode::NOT_FOUND,
        TreeError::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        TreeError::Superseded => StatusCode::CONFLICT,
        TreeError::Reaped => StatusCode::CONFLICT,
        TreeError::InUse => StatusCode::CONFLICT,
        TreeError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        TreeError::Database(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn backend(e: &BackendError) -> StatusCode {
    match e {
        // Removed between the look into the namespace and the read.
        BackendError::NotFound => StatusCode::NOT_FOUND,
        BackendError::Cancelled => StatusCode::CONFLICT,
        BackendError::Corrupt(_) => StatusCode::INTERNAL_SERVER_ERROR,
        BackendError::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
        BackendError::Unusable(_) => StatusCode::SERVICE_UNAVAILABLE,
        BackendError::Io(e) => disk(e),
    }
}

fn disk(e: &io::Error) -> StatusCode {
    match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            StatusCode::INSUFFICIENT_STORAGE
        }
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
