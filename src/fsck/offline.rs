//! The inspection of a data directory that no daemon uses. The caller holds its lock.

use std::cell::RefCell;
use std::path::Path;

use super::contents::{Judged, Place};
use super::report::{Outcome, Report};
use super::{Inspection, Options};
use crate::config::DataDir;
use crate::content::disk;
use crate::tree::TreeError;
use crate::tree::check::{Problem, Workshop};
use crate::types::{NodeId, Time};

/// Looks at everything in `data`. An error means that it could not look.
pub fn offline(data: &DataDir, options: Options) -> Result<Report, TreeError> {
    let owner = text(&data.root().join("belongs-to"))?;
    let is_store = owner.is_none_or(|owner| owner == "embedded");
    let mut report = Report::default();
    let opened = Workshop::open(&data.tree(), is_store);
    let mut workshop = match opened {
        Ok((workshop, journal)) => {
            if let Some(why) = journal {
                report.add(Outcome::Left, why, Vec::new());
            }
            workshop
        }
        Err(TreeError::Database(why)) => {
            report.add(Outcome::Left, advised(&why, is_store), Vec::new());
            return Ok(report);
        }
        Err(e) => return Err(e),
    };
    let mut problems = workshop.query().check(true)?;
    if let Some(Problem::Database(why)) = problems.first() {
        report.add(Outcome::Left, advised(why, is_store), Vec::new());
        return Ok(report);
    }
    let place = Place::of(data, is_store);
    let mut repaired = Vec::new();
    // Only one node's replica: the others' would still be as they are.
    if options.repair && is_store {
        let found = problems.clone();
        workshop.repair(&found, Time::now())?;
        for problem in &found {
            if let Problem::UnknownContent(_, hash) = problem
                && matches!(place.judge(hash, true), Ok(Judged::Whole))
            {
                workshop.adopt(hash, place.size(hash)?, Time::now())?;
            }
        }
        problems = workshop.query().check(false)?;
        repaired = found
            .into_iter()
            .filter(|p| !problems.contains(p))
            .collect();
    }
    let workshop = RefCell::new(workshop);
    let mut look = Inspection {
        data,
        options,
        is_store,
        settled: true,
        ask: Box::new(|question| question(workshop.borrow().query())),
        judge: Box::new(|hash| place.judge(hash, options.repair)),
        revert: Box::new(|ino| workshop.borrow().revert(ino, Time::now())),
        report,
    };
    for problem in &repaired {
        let paths = look.ask(|query| Ok(super::concerned(query, problem)))?;
        look.report
            .add(Outcome::Repaired, problem.to_string(), paths);
    }
    let advice = match (is_store, options.repair) {
        (false, _) => {
            "; remove tree.sqlite and tree.sqlite-wal: the next mount makes them anew from the log"
        }
        (true, false) => " (--repair puts it right)",
        (true, true) => "",
    };
    look.problems(&problems, advice)?;
    look.report.inodes = look.ask(|query| query.totals())?.inodes;
    look.contents()?;
    if let Some(node) = text(&data.node())? {
        look.spool(&NodeId(node))?;
    }
    Ok(look.report)
}

fn text(path: &Path) -> Result<Option<String>, TreeError> {
    let text = disk::read_text(path)
        .map_err(|e| TreeError::Database(format!("{}: {e}", path.display())))?;
    Ok(text.filter(|t| !t.is_empty()))
}

fn advised(why: &str, is_store: bool) -> String {
    match is_store {
        true => format!(
            "{why}; restore tree.sqlite, tree.sqlite-wal and tree.journal together from a copy"
        ),
        false => format!(
            "{why}; remove tree.sqlite and tree.sqlite-wal: the next mount makes them anew from the log"
        ),
    }
}
