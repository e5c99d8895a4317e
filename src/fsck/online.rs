//! The inspection of a tree that is being served.
//!
//! Each question sees one snapshot, so changes meanwhile do not show as contradictions. The tables are not repaired: the
//! kernel and the open files hold what they were told. Damaged content goes into quarantine as it does when a reader
//! meets it.

use std::io;

use super::contents::Judged;
use super::report::Report;
use super::{Inspection, Options};
use crate::config::DataDir;
use crate::content::{Sealed, is_damage};
use crate::tree::check::Problem;
use crate::tree::{Tree, TreeError};
use crate::types::{ContentHash, NodeId};

/// Looks at everything that `tree` and `sealed` serve. Blocks.
pub fn online(
    data: &DataDir,
    node: &NodeId,
    tree: &Tree,
    sealed: &Sealed,
    options: Options,
) -> Result<Report, TreeError> {
    let mut look = Inspection {
        data,
        options,
        is_store: sealed.usage().is_none(),
        settled: false,
        ask: Box::new(|question| tree.scan(&mut *question)),
        judge: Box::new(|hash| judge(sealed, hash)),
        revert: Box::new(|_| Ok(false)),
        report: Report::default(),
    };
    let problems = look.ask(|query| query.check(true))?;
    look.problems(&problems, " (to repair this, unmount first)")?;
    if matches!(problems.first(), Some(Problem::Database(_))) {
        return Ok(look.report);
    }
    look.report.inodes = look.ask(|query| query.totals())?.inodes;
    look.contents()?;
    look.spool(node)?;
    Ok(look.report)
}

/// Hashes a content that is served. A damaged one is out of the way afterwards.
pub(super) fn judge(sealed: &Sealed, hash: &ContentHash) -> io::Result<Judged> {
    match sealed.open_local(hash)? {
        None => Ok(Judged::Gone),
        Some(content) => match content.judge(|_| true) {
            Ok(_) => Ok(Judged::Whole),
            Err(e) if is_damage(&e) => Ok(Judged::MovedAway),
            Err(e) => Err(e),
        },
    }
}
