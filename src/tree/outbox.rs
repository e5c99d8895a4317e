//! What this node did while the shared log was away.
//!
//! The replica is forked then: changes are applied to it all the same, each kept in the table `outbox` beside it, and
//! triggers note in the table `undo` how to take every changed row back. When the log answers again, [`rewind`] undoes the
//! fork inside a transaction that nobody else sees, what other nodes did is applied, and the outbox on top of it.
//!
//! All of it is in the transaction of the change itself, so a fork survives whatever the replica survives.

use rusqlite::{Connection, OptionalExtension, params};

use super::Result;
use super::schema::SHARED_TABLES;
use crate::types::{Generation, Ino};

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS outbox(n INTEGER PRIMARY KEY AUTOINCREMENT, ops BLOB NOT NULL, batch TEXT);
CREATE TABLE IF NOT EXISTS undo(n INTEGER PRIMARY KEY, sql TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS given_up(ino INTEGER PRIMARY KEY, generation INTEGER NOT NULL);
";

/// Begins the names of log entries that carry an outbox; the number of the last row in them follows.
const BATCH: &str = "outbox-";

/// One submission that is not in the log yet.
pub(super) struct Row {
    /// Grows, and is never used again.
    pub n: u64,
    /// Its ops, encoded.
    pub ops: Vec<u8>,
}

/// Makes the tables. They belong to this node alone.
pub(super) fn prepare(conn: &Connection) -> Result<()> {
    // Without it a row that is replaced would go unnoticed.
    conn.execute_batch("PRAGMA recursive_triggers=1;")?;
    Ok(conn.execute_batch(TABLES)?)
}

/// How many submissions wait.
pub(super) fn len(conn: &Connection) -> Result<u64> {
    Ok(conn
        .prepare_cached("SELECT count(*) FROM outbox")?
        .query_row([], |r| r.get(0))?)
}

/// Begins the fork: from here on every change of a shared table is noted.
pub(super) fn begin(conn: &Connection) -> Result<()> {
    for table in SHARED_TABLES {
        let columns = columns(conn, table)?;
        let key = |row: &str| {
            let equal: Vec<String> = columns
                .iter()
                .filter(|c| c.key)
                .map(|c| format!("'{0}='||quote({row}.{0})", c.name))
                .collect();
            equal.join("||' AND '||")
        };
        let names: Vec<&str> = columns.iter().map(|c| c.name.as_str()).collect();
        let old: Vec<String> = names.iter().map(|n| format!("quote(OLD.{n})")).collect();
        let back: Vec<String> = names
            .iter()
            .map(|n| format!("'{n}='||quote(OLD.{n})"))
            .collect();
        conn.execute_batch(&format!(
            "CREATE TRIGGER fork_{table}_insert AFTER INSERT ON {table} BEGIN
               INSERT INTO undo(sql) VALUES('DELETE FROM {table} WHERE '||{new_key});
             END;
             CREATE TRIGGER fork_{table}_delete AFTER DELETE ON {table} BEGIN
               INSERT INTO undo(sql) VALUES('INSERT INTO {table}({names}) VALUES('||{old}||')');
             END;
             CREATE TRIGGER fork_{table}_update AFTER UPDATE ON {table} BEGIN
               INSERT INTO undo(sql) VALUES('UPDATE {table} SET '||{back}||' WHERE '||{new_key});
             END;",
            new_key = key("NEW"),
            names = names.join(","),
            old = old.join("||','||"),
            back = back.join("||','||"),
        ))?;
    }
    Ok(())
}

/// Whether the replica is forked.
pub(super) fn is_forked(conn: &Connection) -> Result<bool> {
    Ok(conn
        .prepare_cached("SELECT 1 FROM sqlite_master WHERE type='trigger' AND name LIKE 'fork\\_%' ESCAPE '\\' LIMIT 1")?
        .query_row([], |_| Ok(()))
        .optional()?
        .is_some())
}

/// Undoes the fork: the replica is as the log left it. The outbox stays.
pub(super) fn rewind(conn: &Connection) -> Result<()> {
    for table in SHARED_TABLES {
        for change in ["insert", "delete", "update"] {
            conn.execute_batch(&format!("DROP TRIGGER IF EXISTS fork_{table}_{change};"))?;
        }
    }
    let mut undo = conn.prepare("SELECT sql FROM undo ORDER BY n DESC")?;
    let mut rows = undo.query([])?;
    while let Some(row) = rows.next()? {
        conn.execute(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?, [])?;
    }
    conn.execute("DELETE FROM undo", [])?;
    Ok(())
}

/// Keeps a submission. `in_doubt`: the log entry that may have carried it already.
pub(super) fn push(conn: &Connection, ops: &[u8], in_doubt: Option<&str>) -> Result<()> {
    conn.prepare_cached("INSERT INTO outbox(ops, batch) VALUES(?1,?2)")?
        .execute(params![ops, in_doubt])?;
    Ok(())
}

/// All submissions, in their order.
pub(super) fn rows(conn: &Connection) -> Result<Vec<Row>> {
    let mut stmt = conn.prepare("SELECT n, ops FROM outbox ORDER BY n")?;
    let rows = stmt.query_map([], |r| {
        Ok(Row {
            n: r.get(0)?,
            ops: r.get(1)?,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// The name of a log entry with the outbox up to row `last`.
pub(super) fn batch_name(last: u64) -> String {
    format!("{BATCH}{last}-{}", hex::encode(rand::random::<[u8; 8]>()))
}

/// This node finds an entry of its own in the log: what it carried waits no longer.
pub(super) fn arrived(conn: &Connection, batch: &str) -> Result<()> {
    let through = batch
        .strip_prefix(BATCH)
        .and_then(|b| b.split('-').next()?.parse::<u64>().ok());
    match through {
        Some(n) => conn.execute("DELETE FROM outbox WHERE n<=?1", [n])?,
        None => conn.execute("DELETE FROM outbox WHERE batch=?1", [batch])?,
    };
    Ok(())
}

/// Everything has arrived.
pub(super) fn clear(conn: &Connection) -> Result<()> {
    conn.execute("DELETE FROM outbox", [])?;
    Ok(())
}

/// Notes that what this node holds of a version, or of an older one, is nobody's any more.
pub(super) fn give_up(conn: &Connection, ino: Ino, generation: Generation) -> Result<()> {
    conn.execute(
        "INSERT OR REPLACE INTO given_up VALUES(?1,?2)",
        [ino.0, generation.0],
    )?;
    Ok(())
}

/// What was noted so.
pub(super) fn given_up(conn: &Connection) -> Result<Vec<(Ino, Generation)>> {
    let mut stmt = conn.prepare("SELECT ino, generation FROM given_up")?;
    let rows = stmt.query_map([], |r| Ok((Ino(r.get(0)?), Generation(r.get(1)?))))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// It is gone. From here on a version of that number is another one.
pub(super) fn forget_given_up(conn: &Connection) -> Result<()> {
    conn.execute("DELETE FROM given_up", [])?;
    Ok(())
}

struct Column {
    name: String,
    key: bool,
}

fn columns(conn: &Connection, table: &str) -> Result<Vec<Column>> {
    let mut stmt = conn.prepare("SELECT name, pk FROM pragma_table_info(?1)")?;
    let rows = stmt.query_map([table], |r| {
        Ok(Column {
            name: r.get(0)?,
            key: r.get::<_, i64>(1)? > 0,
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
