//! What is taken from a request's address, checked before anything else sees it.

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use super::errors::ApiError;
use crate::types::ContentHash;

/// The hash at the end of a path.
pub(super) struct Hash(pub(super) ContentHash);

impl<S: Send + Sync> FromRequestParts<S> for Hash {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let text = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|e| ApiError::bad_request(e.body_text()))?;
        parse_hash(&text).map(Hash)
    }
}

/// The hash that `text` is.
pub(super) fn parse_hash(text: &str) -> Result<ContentHash, ApiError> {
    text.parse()
        .map_err(|e: crate::types::BadHash| ApiError::bad_request(e.to_string()))
}

/// The part of the address behind the question mark.
pub(super) fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, ApiError> {
    // Else it would be taken for something similar.
    if percent_decode_str(uri.query().unwrap_or_default())
        .decode_utf8()
        .is_err()
    {
        let why = "what is behind the question mark is not UTF-8";
        return Err(ApiError::bad_request(why));
    }
    Query::try_from_uri(uri)
        .map(|Query(query)| query)
        .map_err(|e| ApiError::bad_request(e.body_text()))
}
