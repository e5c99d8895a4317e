//! Checkpoints: the whole replica as a file, so that the log need not be kept from its beginning.

use std::fs;
use std::path::Path;

use rusqlite::Connection;

use super::Result;
use super::apply::Effect;
use super::op::TreeError;
use super::query::Query;
use super::schema::{self, SHARED_TABLES};
use super::writer::Writer;
use crate::types::{Ino, Seq};

/// Writes what the database at `tree` holds now to `to`, without what belongs to this node alone. `None`: the replica is
/// forked, so that this is no state of the log.
pub(super) fn write(tree: &Path, to: &Path) -> Result<Option<Seq>> {
    remove(to)?;
    let target = to
        .to_str()
        .ok_or_else(|| TreeError::Database(format!("{} is not UTF-8", to.display())))?;
    let conn = schema::open_reader(tree)?;
    conn.execute_batch("PRAGMA query_only=0")?;
    conn.execute("VACUUM INTO ?1", [target])?;
    drop(conn);
    let copy = schema::open_writer(to)?;
    let forked = super::outbox::is_forked(&copy)?;
    copy.execute_batch(
        "PRAGMA journal_mode=DELETE; DELETE FROM local; DROP TABLE IF EXISTS outbox; DROP TABLE IF EXISTS undo;
         DROP TABLE IF EXISTS given_up;",
    )?;
    let applied = Query(&copy).applied()?;
    drop(copy);
    Ok((!forked).then_some(applied))
}

/// Checks a checkpoint that was fetched and brings it to this program's format.
pub(super) fn check(file: &Path, seq: Seq) -> Result<()> {
    let conn = schema::open_writer(file)?;
    let sound: String = conn.query_row("PRAGMA quick_check(1)", [], |r| r.get(0))?;
    let applied = Query(&conn).applied()?;
    if sound != "ok" || applied != seq {
        return Err(TreeError::Database(format!(
            "the checkpoint of log entry {seq} is damaged ({sound}, entry {applied})"
        )));
    }
    conn.execute_batch("PRAGMA journal_mode=DELETE")?;
    Ok(())
}

/// Lets the writer see the checked checkpoint `file` under the name `newer`. Not inside a transaction.
pub(super) fn attach(writer: &Writer, file: &Path) -> Result<()> {
    let file = file
        .to_str()
        .ok_or_else(|| TreeError::Database(format!("{} is not UTF-8", file.display())))?;
    writer.conn().execute("ATTACH ?1 AS newer", [file])?;
    Ok(())
}

/// The opposite.
pub(super) fn detach(writer: &Writer) {
    if let Err(e) = writer.conn().execute_batch("DETACH newer") {
        tracing::warn!("closing a checkpoint: {e}");
    }
}

/// Makes the replica what the attached checkpoint is, inside the transaction under way; tells what is different. Takes
/// memory for what is different, not for the tree: rows are looked up in the other database, never gathered.
pub(super) fn load(writer: &Writer) -> Result<Vec<Effect>> {
    let conn = writer.conn();
    let effects = differences(conn)?;
    for table in SHARED_TABLES {
        let (key, row) = same(conn, table)?;
        conn.execute_batch(&format!(
            "DELETE FROM main.{table} AS m WHERE NOT EXISTS (SELECT 1 FROM newer.{table} AS n WHERE {key});
             INSERT OR REPLACE INTO main.{table} SELECT * FROM newer.{table} AS n
               WHERE NOT EXISTS (SELECT 1 FROM main.{table} AS m WHERE {row});",
        ))?;
    }
    Ok(effects)
}

/// Two conditions on a row `m` and a row `n` of a table: that they have the same key, and that they are the same.
fn same(conn: &Connection, table: &str) -> Result<(String, String)> {
    let mut stmt = conn.prepare("SELECT name, pk>0 FROM pragma_table_info(?1)")?;
    let columns: Vec<(String, bool)> = stmt
        .query_map([table], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let (keys, others): (Vec<_>, Vec<_>) = columns.into_iter().partition(|(_, key)| *key);
    let keys: Vec<String> = keys.iter().map(|(c, _)| format!("m.{c}=n.{c}")).collect();
    let others = others.iter().map(|(c, _)| format!("m.{c} IS n.{c}"));
    let all: Vec<String> = keys.iter().cloned().chain(others).collect();
    Ok((keys.join(" AND "), all.join(" AND ")))
}

fn differences(conn: &Connection) -> Result<Vec<Effect>> {
    let mut effects = Vec::new();
    let (key, _) = same(conn, "dentries")?;
    let mut entries = conn.prepare(&format!(
        "SELECT parent, name FROM main.dentries AS m WHERE NOT EXISTS (SELECT 1 FROM newer.dentries AS n WHERE {key} AND m.ino=n.ino)
         UNION ALL
         SELECT parent, name FROM newer.dentries AS n WHERE NOT EXISTS (SELECT 1 FROM main.dentries AS m WHERE {key})",
    ))?;
    let rows = entries.query_map([], |r| {
        Ok(Effect::Entry {
            parent: Ino(r.get(0)?),
            name: r.get(1)?,
        })
    })?;
    for effect in rows {
        effects.push(effect?);
    }
    let (key, row) = same(conn, "inodes")?;
    let mut inodes = conn.prepare(&format!(
        "SELECT ino, EXISTS(SELECT 1 FROM newer.inodes AS n WHERE {key}) FROM main.inodes AS m
           WHERE NOT EXISTS (SELECT 1 FROM newer.inodes AS n WHERE {row})",
    ))?;
    let mut changed = inodes.query([])?;
    while let Some(inode) = changed.next()? {
        let (ino, stays) = (Ino(inode.get(0)?), inode.get(1)?);
        if stays {
            effects.extend([Effect::Attributes(ino), Effect::Content(ino)]);
        } else {
            let mut gone = Query(conn).inode(ino)?;
            gone.nlink = 0;
            effects.push(Effect::Gone(Box::new(gone)));
        }
    }
    Ok(effects)
}

/// Removes a file and what SQLite put beside it.
pub(super) fn remove(file: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut path = file.to_owned().into_os_string();
        path.push(suffix);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(TreeError::Database(format!("{}: {e}", file.display()))),
        }
    }
    Ok(())
}
