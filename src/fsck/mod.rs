//! Looking for damage, in order and without a reason: the tables, the content directory, the spool.
//!
//! An inspection looks once, at a data directory that no daemon uses ([`offline()`]) or at the one of this process while it
//! serves ([`online()`]; [`in_store()`] for what a shared store has), and says what it found in a [`Report`]. [`scrub`] hashes all content in the background, slowly.
//! What can be put right without losing anything is, when asked for; the rest is said with the paths that it concerns.
//!
//! This room knows where things lie on the disk, and asks the tree; it does not know who has what open.

mod contents;
mod in_store;
mod offline;
mod online;
pub mod report;
pub mod scrub;

pub use in_store::in_store;
pub use offline::offline;
pub use online::online;
pub use report::{Finding, Report};

use std::io;

use crate::config::DataDir;
use crate::tree::check::Problem;
use crate::tree::{Query, TreeError};
use crate::types::{ContentHash, Ino};
use contents::Judged;

/// What to do.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Hash every content.
    pub data: bool,
    /// Put right what can be without loss.
    pub repair: bool,
}

/// Paths that a finding names at the most.
const PATHS_MAX: usize = 20;

/// A way to ask the tree. No snapshot outlives one question: a long one would keep the write-ahead log from being cut.
type Ask<'a> =
    dyn FnMut(&mut dyn FnMut(Query<'_>) -> Result<(), TreeError>) -> Result<(), TreeError> + 'a;

/// A way to judge one content.
type Judge<'a> = dyn Fn(&ContentHash) -> io::Result<Judged> + 'a;

/// A way to give a file its content of before. False: not here.
type Revert<'a> = dyn Fn(Ino) -> Result<bool, TreeError> + 'a;

/// One look.
struct Inspection<'a> {
    data: &'a DataDir,
    options: Options,
    /// The content directory is the store, and not a cache.
    is_store: bool,
    /// Nobody changes anything meanwhile.
    settled: bool,
    ask: Box<Ask<'a>>,
    judge: Box<Judge<'a>>,
    revert: Box<Revert<'a>>,
    report: Report,
}

impl Inspection<'_> {
    fn ask<T>(
        &mut self,
        question: impl FnOnce(Query<'_>) -> Result<T, TreeError>,
    ) -> Result<T, TreeError> {
        let (mut question, mut answer) = (Some(question), None);
        (self.ask)(&mut |query| {
            if let Some(question) = question.take() {
                answer = Some(question(query)?);
            }
            Ok(())
        })?;
        answer.ok_or_else(|| TreeError::Unavailable("not asked".into()))
    }

    /// Adds problems of the tables that are still there.
    fn problems(&mut self, problems: &[Problem], advice: &str) -> Result<(), TreeError> {
        for problem in problems {
            let paths = self.ask(|query| Ok(concerned(query, problem)))?;
            let what = match problem.is_repairable() {
                true => format!("{problem}{advice}"),
                false => problem.to_string(),
            };
            self.report.add(report::Outcome::Left, what, paths);
        }
        Ok(())
    }

    /// The paths below the root of the files with this content, at most a few.
    fn paths_of_content(&mut self, hash: &ContentHash) -> Result<Vec<String>, TreeError> {
        self.ask(|query| Ok(paths_of_content(query, hash)))
    }
}

fn paths_of_content(query: Query<'_>, hash: &ContentHash) -> Vec<String> {
    let inodes = query.files_of(hash, PATHS_MAX).unwrap_or_default();
    inodes
        .into_iter()
        .flat_map(|ino| paths_of(query, ino))
        .take(PATHS_MAX)
        .collect()
}

fn paths_of(query: Query<'_>, ino: Ino) -> Vec<String> {
    let paths = query.paths_of(ino, PATHS_MAX).unwrap_or_default();
    paths
        .iter()
        .map(|path| String::from_utf8_lossy(path).into_owned())
        .collect()
}

/// The paths that a problem concerns.
fn concerned(query: Query<'_>, problem: &Problem) -> Vec<String> {
    match problem {
        Problem::DirectoryTwice(ino)
        | Problem::Unreachable(ino)
        | Problem::Parent(ino)
        | Problem::Links { ino, .. }
        | Problem::Cookie(ino)
        | Problem::State(ino)
        | Problem::UnknownContent(ino, _)
        | Problem::Size(ino) => paths_of(query, *ino),
        Problem::Reference(hash) => paths_of_content(query, hash),
        Problem::DanglingName(dir, ..)
        | Problem::NameNowhere(dir, ..)
        | Problem::BadName(dir, _) => paths_of(query, *dir),
        Problem::Database(_) | Problem::NoRoot | Problem::StrayXattrs(_) => Vec::new(),
    }
}
