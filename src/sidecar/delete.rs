//! `DELETE /delete/{hash}`: takes the content's names away. The bytes follow after the grace period, unless someone
//! stores the same content again meanwhile.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};
use tracing::info;

use super::Shared;
use super::errors::ApiError;
use super::request::Hash;
use super::status::not_stored;

/// Answers with the number of names that went. The token was checked before ([`super::access`]).
pub(super) async fn delete(
    State(app): State<Shared>,
    Hash(hash): Hash,
) -> Result<Json<Value>, ApiError> {
    let vfs = app.ctx.vfs.clone();
    // On its own task, so that it is done whole even when the client goes away.
    let names = app
        .tasks
        .spawn(async move { vfs.delete_content(&hash).await })
        .await
        .map_err(|_| ApiError::internal())??;
    if names == 0 {
        return Err(match app.ctx.vfs.content(&hash)? {
            Some(_) => ApiError::new(StatusCode::NOT_FOUND, "no file has this content"),
            None => not_stored(&app, &hash).await,
        });
    }
    info!("deleted {hash}: {names} names");
    Ok(Json(
        json!({ "status": "deleted", "hash": hash, "names": names }),
    ))
}
