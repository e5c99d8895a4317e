//! Joining a tree that is older than this node's replica: the newest checkpoint becomes the replica.
//!
//! Before anybody has the database open, the checkpoint's file is put in its place, whatever its size. Later only
//! [`super::rebase`] can bring one in, row by row and in one transaction.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::op::TreeError;
use super::query::Query;
use super::{Result, checkpoint, outbox, schema, unavailable};
use crate::backend::{BackendError, BlobReader, TreeLog};
use crate::types::Seq;
use crate::windows;

/// Gives a replica at `path` that is new, or was away for longer than the log reaches, the newest checkpoint. An error
/// means that the log does not answer; what is wrong with the checkpoint is only logged, since the log may do without.
pub(super) async fn start(path: &Path, log: &dyn TreeLog) -> Result<()> {
    let Some(applied) = standing(path)? else {
        return Ok(());
    };
    let head = log.head().await.map_err(unavailable)?;
    if head <= applied {
        return Ok(());
    }
    if applied > Seq(0) {
        match log.read(applied.next(), 1).await {
            Ok(_) => return Ok(()),
            Err(BackendError::NotFound) => {}
            Err(e) => return Err(unavailable(e)),
        }
    }
    if let Err(e) = adopt(path, log).await {
        warn!("starting from a checkpoint: {e}");
    }
    Ok(())
}

/// How far the replica is. `None`: it is forked, and has to be merged.
fn standing(path: &Path) -> Result<Option<Seq>> {
    let conn = schema::open_writer(path)?;
    // Whoever carries them over finds them.
    outbox::prepare(&conn)?;
    match outbox::is_forked(&conn)? {
        true => Ok(None),
        false => Query(&conn).applied().map(Some),
    }
}

async fn adopt(path: &Path, log: &dyn TreeLog) -> Result<()> {
    let Some(file) = fetch(path, log).await? else {
        return Ok(());
    };
    let replica = path.to_owned();
    tokio::task::spawn_blocking(move || put_in_place(&file, &replica))
        .await
        .map_err(|e| TreeError::Database(e.to_string()))?
}

/// The newest checkpoint that is sound, as a file beside the database at `path`.
pub(super) async fn fetch(path: &Path, log: &dyn TreeLog) -> Result<Option<PathBuf>> {
    let file = path.with_extension("checkpoint-fetched");
    let (mut before, mut damage) = (None, None);
    loop {
        checkpoint::remove(&file)?;
        let Some((seq, reader)) = log.checkpoint(before).await.map_err(unavailable)? else {
            return damage.map_or(Ok(None), Err);
        };
        match fetch_one(&file, seq, reader).await {
            Ok(()) => {
                info!("starting from the checkpoint of log entry {seq}");
                return Ok(Some(file));
            }
            // The log reaches back to the one before.
            Err(e @ TreeError::Database(_)) => {
                warn!("{e}; looking for an older one");
                (before, damage) = (Some(seq), Some(e));
            }
            Err(e) => return Err(e),
        }
    }
}

async fn fetch_one(file: &Path, seq: Seq, mut reader: BlobReader) -> Result<()> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::InvalidData => {
            TreeError::Database(format!("the checkpoint of log entry {seq} is damaged: {e}"))
        }
        _ => TreeError::Unavailable(format!("checkpoint: {e}")),
    };
    let mut to = tokio::fs::File::create(file).await.map_err(failed)?;
    tokio::io::copy(&mut reader, &mut to)
        .await
        .map_err(failed)?;
    to.sync_all().await.map_err(failed)?;
    let fetched = file.to_owned();
    tokio::task::spawn_blocking(move || checkpoint::check(&fetched, seq))
        .await
        .map_err(|e| TreeError::Database(e.to_string()))?
}

/// Makes the checked checkpoint `file` the database at `path`, which nobody has open, with what belongs to this node alone.
fn put_in_place(file: &Path, path: &Path) -> Result<()> {
    let failed = |e: io::Error| TreeError::Database(format!("{}: {e}", path.display()));
    let old = path
        .to_str()
        .ok_or_else(|| TreeError::Database(format!("{} is not UTF-8", path.display())))?;
    let conn = schema::open_writer(file)?;
    // A checkpoint of an older program has some of its maker's.
    conn.execute_batch("DELETE FROM local; DROP TABLE IF EXISTS given_up")?;
    outbox::prepare(&conn)?;
    conn.execute("ATTACH ?1 AS old", [old])?;
    // The last one is where the numbers of the outbox go on.
    conn.execute_batch(
        "BEGIN;
         INSERT INTO local SELECT * FROM old.local;
         INSERT INTO given_up SELECT * FROM old.given_up;
         DELETE FROM sqlite_sequence;
         INSERT INTO sqlite_sequence SELECT * FROM old.sqlite_sequence;
         COMMIT;",
    )?;
    // Everything is in the two files then, and nothing of the old one is left beside the new one.
    conn.query_row("PRAGMA old.journal_mode=DELETE", [], |_| Ok(()))?;
    conn.execute_batch("DETACH old")?;
    conn.query_row("PRAGMA journal_mode=DELETE", [], |_| Ok(()))?;
    drop(conn);
    File::open(file)
        .and_then(|file| file.sync_all())
        .map_err(failed)?;
    windows::JOIN.pass().map_err(failed)?;
    fs::rename(file, path).map_err(failed)?;
    File::open(path.parent().unwrap_or(Path::new("/")))
        .and_then(|dir| dir.sync_all())
        .map_err(failed)?;
    windows::JOINED.passed();
    Ok(())
}
