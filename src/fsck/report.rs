//! What an inspection found.

use serde::{Deserialize, Serialize};

use crate::types::printable;

/// How grave, and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Worth knowing; nothing is wrong with any file.
    Note,
    /// Put right.
    Repaired,
    /// An error that is still there.
    Left,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What became of it.
    pub outcome: Outcome,
    /// What it is, as a sentence.
    pub what: String,
    /// The paths that it concerns, below the root; not all where there are many.
    pub paths: Vec<String>,
}

/// All findings of one inspection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Inodes in the tree.
    pub inodes: u64,
    /// Contents in the tree.
    pub contents: u64,
    /// Contents that were hashed.
    pub hashed: u64,
    /// What was found.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Adds a finding.
    pub fn add(&mut self, outcome: Outcome, what: impl Into<String>, paths: Vec<String>) {
        self.findings.push(Finding {
            outcome,
            what: what.into(),
            paths,
        });
    }

    /// How many findings have this outcome.
    pub fn count(&self, outcome: Outcome) -> usize {
        self.findings
            .iter()
            .filter(|f| f.outcome == outcome)
            .count()
    }

    /// As fsck(8) says it: 0 nothing, 1 errors were corrected, 4 errors are left.
    pub fn exit_code(&self) -> u8 {
        let bit = |outcome, bit| if self.count(outcome) > 0 { bit } else { 0 };
        bit(Outcome::Repaired, 1) | bit(Outcome::Left, 4)
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for finding in &self.findings {
            let outcome = match finding.outcome {
                Outcome::Note => "note",
                Outcome::Repaired => "repaired",
                Outcome::Left => "ERROR",
            };
            writeln!(f, "{outcome}: {}", printable(&finding.what))?;
            for path in &finding.paths {
                writeln!(f, "    {}", printable(path))?;
            }
        }
        write!(
            f,
            "{} inodes, {} contents, {} hashed: {} errors, {} repaired, {} notes",
            self.inodes,
            self.contents,
            self.hashed,
            self.count(Outcome::Left),
            self.count(Outcome::Repaired),
            self.count(Outcome::Note),
        )
    }
}
