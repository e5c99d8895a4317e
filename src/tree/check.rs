//! Whether the tables contradict each other, and putting right what can be without loss.
//!
//! Pure SQL on one connection; what the bytes of contents look like on the disk is for others to say ([`crate::fsck`]).
//! A replica of a shared log is never repaired here: it would differ from the others. It is made anew from the log.

use std::path::Path;

use rusqlite::{Connection, params};

use super::op::{TreeError, check_name};
use super::query::{DUPLICATE, EMPTY, PENDING, Query, STORED};
use super::reserve::Reserve;
use super::{local, schema};
use crate::types::{ContentHash, Ino, Time};

type Result<T> = std::result::Result<T, TreeError>;

/// The directory in the root for inodes that have no name any more.
const LOST_AND_FOUND: &[u8] = b"lost+found";
/// Problems of one kind that are listed at the most.
const LISTED_MAX: i64 = 1000;

/// A contradiction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// SQLite finds the file itself malformed, or cannot read a page of it.
    Database(String),
    /// There is no root directory.
    NoRoot,
    /// A name for an inode that does not exist.
    DanglingName(Ino, Vec<u8>, Ino),
    /// A name in something that is no directory.
    NameNowhere(Ino, Vec<u8>, Ino),
    /// A name that no file may have.
    BadName(Ino, Vec<u8>),
    /// A directory with more names than one.
    DirectoryTwice(Ino),
    /// No path from the root leads to the inode.
    Unreachable(Ino),
    /// A directory's note of its parent differs from where its name is.
    Parent(Ino),
    /// The link count is not what the names make it.
    Links {
        /// The inode.
        ino: Ino,
        /// Its link count.
        noted: i64,
        /// What it should be.
        counted: i64,
    },
    /// A directory's next position lies behind that of an entry.
    Cookie(Ino),
    /// Extended attributes of an inode that does not exist.
    StrayXattrs(Ino),
    /// State, hash, node and kind do not go together.
    State(Ino),
    /// A stored file whose content the tree does not know.
    UnknownContent(Ino, ContentHash),
    /// A stored file whose length is not its content's.
    Size(Ino),
    /// A content is marked unreferenced and is not, or the other way round.
    Reference(ContentHash),
}

impl Problem {
    /// Whether [`Workshop::repair`] can put it right without losing anything.
    pub fn is_repairable(&self) -> bool {
        match self {
            Problem::DanglingName(..)
            | Problem::NameNowhere(..)
            | Problem::DirectoryTwice(_)
            | Problem::Unreachable(_)
            | Problem::Parent(_)
            | Problem::Links { .. }
            | Problem::Cookie(_)
            | Problem::StrayXattrs(_)
            | Problem::Size(_)
            | Problem::Reference(_) => true,
            Problem::Database(_)
            | Problem::NoRoot
            | Problem::BadName(..)
            | Problem::State(_)
            | Problem::UnknownContent(..) => false,
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = String::from_utf8_lossy;
        match self {
            Problem::Database(why) => write!(f, "the database is damaged: {why}"),
            Problem::NoRoot => write!(f, "there is no root directory"),
            Problem::DanglingName(dir, name, ino) => write!(
                f,
                "\"{}\" in directory {dir} names inode {ino}, which does not exist",
                text(name)
            ),
            Problem::NameNowhere(dir, name, ino) => write!(
                f,
                "\"{}\" names inode {ino} in {dir}, which is no directory",
                text(name)
            ),
            Problem::BadName(dir, name) => {
                write!(
                    f,
                    "directory {dir} has the impossible name {:?}",
                    text(name)
                )
            }
            Problem::DirectoryTwice(ino) => write!(f, "directory {ino} has more names than one"),
            Problem::Unreachable(ino) => write!(f, "no path leads to inode {ino}"),
            Problem::Parent(ino) => write!(f, "directory {ino} does not know where it is"),
            Problem::Links {
                ino,
                noted,
                counted,
            } => write!(f, "inode {ino} has link count {noted}, should be {counted}"),
            Problem::Cookie(ino) => write!(f, "directory {ino} would give positions out twice"),
            Problem::StrayXattrs(ino) => {
                write!(
                    f,
                    "extended attributes of inode {ino}, which does not exist"
                )
            }
            Problem::State(ino) => write!(f, "inode {ino}: kind, state and hash contradict"),
            Problem::UnknownContent(ino, hash) => {
                write!(f, "inode {ino} has content {hash}, which is not known")
            }
            Problem::Size(ino) => write!(f, "inode {ino} has another size than its content"),
            Problem::Reference(hash) => {
                write!(f, "content {hash}: wrongly marked as used or as unused")
            }
        }
    }
}

/// A database that no daemon uses, opened to be looked at and repaired.
pub struct Workshop(Connection);

impl Workshop {
    /// Opens the database at `path`. `with_journal`: brings into it first what the journal holds, as a mount does; why that
    /// did not work is the second answer, and the database is as it was then.
    pub fn open(path: &Path, with_journal: bool) -> Result<(Workshop, Option<String>)> {
        // The next mount sets it aside again.
        Reserve::new(path).give_up_if_needed();
        let replayed = match with_journal {
            true => local::replay(path).err(),
            false => None,
        };
        let conn = schema::open_writer(path)?;
        let why = replayed.map(|e| match e {
            TreeError::NoSpace => "the disk is full: the last changes, which are in the journal (tree.journal), cannot be \
                brought into the database, and what follows is how it was before them; make room and look again"
                .into(),
            e => e.to_string(),
        });
        Ok((Workshop(conn), why))
    }

    /// Questions to it.
    pub fn query(&self) -> Query<'_> {
        Query(&self.0)
    }

    /// Puts right what [`Problem::is_repairable`], all or nothing. `now` is the time of what is made.
    pub fn repair(&mut self, problems: &[Problem], now: Time) -> Result<()> {
        match problems.iter().any(Problem::is_repairable) {
            true => repair(&mut self.0, problems, now),
            false => Ok(()),
        }
    }

    /// Makes a content known again that lies whole in the content directory.
    pub fn adopt(&self, hash: &ContentHash, size: u64, now: Time) -> Result<()> {
        self.0.execute(
            "INSERT OR IGNORE INTO contents(hash, size, blob, filename, node, worker, uploaded_at, started_at, done_at)
             VALUES(?1, ?2, ?3, x'', '', '', ?4, ?4, ?4)",
            params![&hash.0[..], size, hash.to_string(), now.0],
        )?;
        Ok(())
    }

    /// Gives a file whose bytes went before they were stored the content back that it had before. False when there is none.
    pub fn revert(&self, ino: Ino, now: Time) -> Result<bool> {
        let sql = format!(
            "UPDATE inodes SET state={DUPLICATE}, node=NULL, size=c.size, mtime=c.uploaded_at, ctime=?2, cookie=generation
             FROM contents c WHERE ino=?1 AND state={PENDING} AND c.hash=inodes.hash"
        );
        Ok(self.0.execute(&sql, params![ino.0, now.0])? > 0)
    }
}

impl Query<'_> {
    /// Looks at every row. `deep`: also at the order and the bytes of the database's pages, slower.
    pub fn check(&self, deep: bool) -> Result<Vec<Problem>> {
        check(self.0, deep)
    }
}

fn check(conn: &Connection, deep: bool) -> Result<Vec<Problem>> {
    let pages = integrity(conn, deep)?;
    if !pages.is_empty() {
        return Ok(pages);
    }
    let mut found = match rows(conn) {
        Ok(found) => found,
        // A page that only this question needed.
        Err(TreeError::Database(why)) => return Ok(vec![Problem::Database(why)]),
        Err(e) => return Err(e),
    };
    let root_is_there: bool = conn.query_row(
        "SELECT EXISTS(SELECT 1 FROM inodes WHERE ino=1 AND mode&61440=16384)",
        [],
        |r| r.get(0),
    )?;
    if !root_is_there {
        found.insert(0, Problem::NoRoot);
    }
    Ok(found)
}

fn integrity(conn: &Connection, deep: bool) -> Result<Vec<Problem>> {
    let pragma = match deep {
        true => "PRAGMA integrity_check(100)",
        false => "PRAGMA quick_check(100)",
    };
    let lines = conn.prepare(pragma).and_then(|mut statement| {
        let rows = statement.query_map([], |r| r.get::<_, String>(0))?;
        rows.collect::<rusqlite::Result<Vec<_>>>()
    });
    Ok(match lines {
        Ok(lines) => lines
            .into_iter()
            .filter(|line| line != "ok")
            .map(Problem::Database)
            .collect(),
        Err(e) => vec![Problem::Database(e.to_string())],
    })
}

fn rows(conn: &Connection) -> Result<Vec<Problem>> {
    let mut found = names(conn)?;
    found.extend(shape(conn)?);
    found.extend(contents(conn)?);
    Ok(found)
}

/// Runs a question whose rows each are a problem.
fn ask(
    conn: &Connection,
    sql: &str,
    problem: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<Problem>,
) -> Result<Vec<Problem>> {
    let mut statement = conn.prepare(&format!("{sql} LIMIT {LISTED_MAX}"))?;
    let rows = statement.query_map([], problem)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

fn ino(row: &rusqlite::Row<'_>) -> rusqlite::Result<Ino> {
    row.get(0).map(Ino)
}

fn names(conn: &Connection) -> Result<Vec<Problem>> {
    let name = |r: &rusqlite::Row<'_>| -> rusqlite::Result<(Ino, Vec<u8>, Ino)> {
        Ok((Ino(r.get(0)?), r.get(1)?, Ino(r.get(2)?)))
    };
    let mut found = ask(
        conn,
        "SELECT parent, name, ino FROM dentries d WHERE NOT EXISTS(SELECT 1 FROM inodes i WHERE i.ino=d.ino)",
        |r| name(r).map(|(dir, name, ino)| Problem::DanglingName(dir, name, ino)),
    )?;
    found.extend(ask(
        conn,
        "SELECT parent, name, ino FROM dentries d
         WHERE NOT EXISTS(SELECT 1 FROM inodes i WHERE i.ino=d.parent AND i.mode&61440=16384)",
        |r| name(r).map(|(dir, name, ino)| Problem::NameNowhere(dir, name, ino)),
    )?);
    let mut statement = conn.prepare("SELECT parent, name FROM dentries")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let name = row.get_ref(1)?.as_bytes().map_err(rusqlite::Error::from)?;
        if check_name(name).is_err() && found.len() < LISTED_MAX as usize {
            found.push(Problem::BadName(Ino(row.get(0)?), name.to_vec()));
        }
    }
    found.extend(ask(
        conn,
        "SELECT d.ino FROM dentries d JOIN inodes i ON i.ino=d.ino WHERE i.mode&61440=16384
         GROUP BY d.ino HAVING count(*)>1 OR d.ino=1",
        |r| ino(r).map(Problem::DirectoryTwice),
    )?);
    found.extend(ask(
        conn,
        "SELECT DISTINCT x.ino FROM xattrs x WHERE NOT EXISTS(SELECT 1 FROM inodes i WHERE i.ino=x.ino)",
        |r| ino(r).map(Problem::StrayXattrs),
    )?);
    Ok(found)
}

const REACHABLE: &str = "WITH RECURSIVE reach(ino) AS (
    SELECT 1 UNION SELECT d.ino FROM dentries d JOIN reach r ON d.parent=r.ino)";

/// What the link count of the inode `i` should be.
const LINKS: &str = "CASE WHEN i.mode&61440=16384
    THEN 2+(SELECT count(*) FROM dentries d JOIN inodes c ON c.ino=d.ino
            WHERE d.parent=i.ino AND c.mode&61440=16384)
    ELSE (SELECT count(*) FROM dentries d WHERE d.ino=i.ino) END";

fn shape(conn: &Connection) -> Result<Vec<Problem>> {
    let mut found = ask(
        conn,
        &format!("{REACHABLE} SELECT ino FROM inodes WHERE ino NOT IN (SELECT ino FROM reach)"),
        |r| ino(r).map(Problem::Unreachable),
    )?;
    found.extend(ask(
        conn,
        "SELECT i.ino FROM inodes i WHERE i.mode&61440=16384 AND (
           CASE WHEN i.ino=1 THEN i.parent IS NOT 1
           ELSE EXISTS(SELECT 1 FROM dentries d WHERE d.ino=i.ino)
            AND NOT EXISTS(SELECT 1 FROM dentries d WHERE d.ino=i.ino AND d.parent=i.parent) END)",
        |r| ino(r).map(Problem::Parent),
    )?);
    found.extend(ask(
        conn,
        &format!(
            "SELECT ino, nlink, counted FROM (SELECT i.ino, i.nlink, {LINKS} AS counted FROM inodes i)
             WHERE nlink<>counted"
        ),
        |r| {
            Ok(Problem::Links {
                ino: ino(r)?,
                noted: r.get(1)?,
                counted: r.get(2)?,
            })
        },
    )?);
    found.extend(ask(
        conn,
        "SELECT i.ino FROM inodes i JOIN (SELECT parent, max(cookie) AS last FROM dentries GROUP BY parent) d
         ON d.parent=i.ino WHERE i.cookie<d.last",
        |r| ino(r).map(Problem::Cookie),
    )?);
    Ok(found)
}

fn contents(conn: &Connection) -> Result<Vec<Problem>> {
    let hash = |r: &rusqlite::Row<'_>, column| -> rusqlite::Result<ContentHash> {
        let bytes: Vec<u8> = r.get(column)?;
        ContentHash::from_slice(&bytes).ok_or(rusqlite::Error::InvalidQuery)
    };
    let mut found = ask(
        conn,
        &format!(
            "SELECT ino FROM inodes WHERE state NOT IN ({EMPTY},{PENDING},{STORED},{DUPLICATE})
             OR (mode&61440<>32768 AND (state<>{EMPTY} OR hash IS NOT NULL))
             OR (state IN ({STORED},{DUPLICATE}) AND (hash IS NULL OR length(hash)<>32))
             OR (state={PENDING} AND node IS NULL)
             OR (state={EMPTY} AND hash IS NOT NULL)
             OR (hash IS NOT NULL AND length(hash)<>32)
             OR (mode&61440=40960 AND target IS NULL)"
        ),
        |r| ino(r).map(Problem::State),
    )?;
    found.extend(ask(
        conn,
        "SELECT i.ino, i.hash FROM inodes i WHERE i.hash IS NOT NULL AND length(i.hash)=32
         AND NOT EXISTS(SELECT 1 FROM contents c WHERE c.hash=i.hash)",
        |r| Ok(Problem::UnknownContent(ino(r)?, hash(r, 1)?)),
    )?);
    found.extend(ask(
        conn,
        &format!(
            "SELECT i.ino FROM inodes i JOIN contents c ON c.hash=i.hash
             WHERE i.state IN ({STORED},{DUPLICATE}) AND i.size<>c.size"
        ),
        |r| ino(r).map(Problem::Size),
    )?);
    found.extend(ask(
        conn,
        "SELECT c.hash FROM contents c WHERE length(c.hash)=32
         AND (c.unreferenced_at IS NULL)<>EXISTS(SELECT 1 FROM inodes i WHERE i.hash=c.hash)",
        |r| Ok(Problem::Reference(hash(r, 0)?)),
    )?);
    Ok(found)
}

fn repair(conn: &mut Connection, problems: &[Problem], now: Time) -> Result<()> {
    let transaction = conn.transaction()?;
    for problem in problems {
        repair_name(&transaction, problem)?;
    }
    loop {
        let lost = lost(&transaction)?;
        if lost.is_empty() {
            break;
        }
        for ino in lost {
            into_lost_and_found(&transaction, ino, now)?;
        }
    }
    // These follow from the names, which are right now.
    let sql = format!(
        "UPDATE inodes SET parent=(SELECT d.parent FROM dentries d WHERE d.ino=inodes.ino)
           WHERE mode&61440=16384 AND ino<>1;
         UPDATE inodes SET parent=1 WHERE ino=1;
         UPDATE inodes AS i SET nlink={LINKS} WHERE i.nlink<>{LINKS};
         UPDATE inodes SET cookie=max(cookie, coalesce((SELECT max(d.cookie) FROM dentries d WHERE d.parent=inodes.ino), 0))
           WHERE mode&61440=16384;
         DELETE FROM xattrs WHERE NOT EXISTS(SELECT 1 FROM inodes i WHERE i.ino=xattrs.ino);
         UPDATE inodes SET size=(SELECT c.size FROM contents c WHERE c.hash=inodes.hash)
           WHERE state IN ({STORED},{DUPLICATE}) AND EXISTS(SELECT 1 FROM contents c WHERE c.hash=inodes.hash);
         UPDATE contents SET unreferenced_at=NULL
           WHERE unreferenced_at IS NOT NULL AND EXISTS(SELECT 1 FROM inodes i WHERE i.hash=contents.hash);
         UPDATE contents SET unreferenced_at={now}
           WHERE unreferenced_at IS NULL AND NOT EXISTS(SELECT 1 FROM inodes i WHERE i.hash=contents.hash);",
        now = now.0
    );
    transaction.execute_batch(&sql)?;
    Ok(transaction.commit()?)
}

fn repair_name(conn: &Connection, problem: &Problem) -> Result<()> {
    match problem {
        Problem::DanglingName(parent, name, _) | Problem::NameNowhere(parent, name, _) => {
            conn.execute(
                "DELETE FROM dentries WHERE parent=?1 AND name=?2",
                params![parent.0, name],
            )?;
        }
        // The name where the directory itself says that it is stays; else any one.
        Problem::DirectoryTwice(ino) => {
            conn.execute(
                "DELETE FROM dentries WHERE ino=?1 AND (?1=1 OR (parent, name) IS NOT
                   (SELECT d.parent, d.name FROM dentries d JOIN inodes i ON i.ino=d.ino WHERE d.ino=?1
                    ORDER BY d.parent=i.parent DESC LIMIT 1))",
                [ino.0],
            )?;
        }
        _ => {}
    }
    Ok(())
}

/// Inodes that no path leads to: those without any name if there are some, else one of a ring of directories.
fn lost(conn: &Connection) -> Result<Vec<Ino>> {
    let nameless = "SELECT ino FROM inodes i
        WHERE ino<>1 AND NOT EXISTS(SELECT 1 FROM dentries d WHERE d.ino=i.ino)";
    let in_a_ring = format!(
        "{REACHABLE} SELECT ino FROM inodes WHERE ino NOT IN (SELECT ino FROM reach) LIMIT 1"
    );
    for sql in [nameless, &in_a_ring] {
        let mut statement = conn.prepare(sql)?;
        let lost = statement.query_map([], ino)?;
        let lost: Vec<Ino> = lost.collect::<rusqlite::Result<_>>()?;
        if !lost.is_empty() {
            return Ok(lost);
        }
    }
    Ok(Vec::new())
}

fn into_lost_and_found(conn: &Connection, ino: Ino, now: Time) -> Result<()> {
    let dir = lost_and_found(conn, now)?;
    conn.execute("DELETE FROM dentries WHERE ino=?1", [ino.0])?;
    add_name(conn, dir, format!("#{ino}").as_bytes(), ino)
}

fn lost_and_found(conn: &Connection, now: Time) -> Result<Ino> {
    let query = Query(conn);
    let mut name = LOST_AND_FOUND.to_vec();
    while let Some(ino) = query.child(Ino::ROOT, &name)? {
        if query.inode(ino)?.is_dir() {
            return Ok(ino);
        }
        name.push(b'~');
    }
    // Above every number that a node has given out, in the range of this one.
    let free = query
        .local("ino-0")?
        .map_or(0, |n| n as u64)
        .max(query.highest_ino(0)?.map_or(0, |ino| ino.0 + 1));
    let ino = Ino(free.max(Ino::ROOT.0 + 1));
    conn.execute(
        "INSERT INTO inodes(ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, generation, state, parent)
         VALUES(?1, ?2, 2, 0, 0, 0, 4096, ?3, ?3, ?3, 0, 0, 1)",
        params![ino.0, libc::S_IFDIR | 0o700, now.0],
    )?;
    add_name(conn, Ino::ROOT, &name, ino)?;
    Ok(ino)
}

fn add_name(conn: &Connection, dir: Ino, name: &[u8], ino: Ino) -> Result<()> {
    conn.execute(
        "UPDATE inodes SET cookie=1+max(cookie, coalesce((SELECT max(cookie) FROM dentries WHERE parent=?1), 0))
         WHERE ino=?1",
        [dir.0],
    )?;
    conn.execute(
        "INSERT INTO dentries(parent, name, ino, cookie) SELECT ino, ?2, ?3, cookie FROM inodes WHERE ino=?1",
        params![dir.0, name, ino.0],
    )?;
    Ok(())
}
