//! `oncefs import`: an embedded tree into a mounted one.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::Args;

use super::Result;
use super::ask::data_dir_of;
use super::daemon::raise_open_files;
use crate::config::DataDir;
use crate::import::{self, Source, Summary, Watch};
use crate::types::printable;

/// Between two lines of progress.
const PERIOD: Duration = Duration::from_millis(500);

/// Options of `oncefs import`.
#[derive(Args)]
pub(super) struct ImportArgs {
    /// The data directory of an embedded tree that is not mounted. It is only read
    data_dir: PathBuf,
    /// An existing directory in a mount
    #[arg(long, value_name = "DIR")]
    into: PathBuf,
}

struct Terminal {
    shown: Option<Instant>,
}

impl Watch for Terminal {
    fn problem(&mut self, path: &Path, why: &str) {
        say(path, why);
    }

    fn delayed(&mut self, path: &Path, why: &str) {
        say(
            path,
            &format!("storing it failed and is tried again: {why}"),
        );
    }

    fn progress(&mut self, so_far: &Summary) {
        if self.shown.is_some_and(|at| at.elapsed() >= PERIOD) {
            self.shown = Some(Instant::now());
            eprint!("\r{} ", told(so_far));
            let _ = io::stderr().flush();
        }
    }
}

fn say(path: &Path, what: &str) {
    let said = printable(format_args!("{}: {what}", path.display()));
    eprintln!("oncefs: {said}");
}

fn told(summary: &Summary) -> String {
    format!(
        "{} made ({}), {} there already, {} not brought over",
        summary.made,
        ByteSize(summary.bytes),
        summary.there,
        summary.problems
    )
}

pub(super) fn import(args: &ImportArgs) -> Result {
    if !args.into.is_dir() {
        return Err(format!("{} is no directory", args.into.display()).into());
    }
    data_dir_of(&args.into)?;
    let source = Source::open(&DataDir::new(&args.data_dir), &std::env::temp_dir())?;
    // Each directory on the way down costs one.
    raise_open_files();
    let mut terminal = Terminal {
        shown: io::stderr().is_terminal().then(Instant::now),
    };
    let summary = import::run(&source, &args.into, &mut terminal)?;
    if terminal.shown.is_some() {
        eprintln!();
    }
    println!("{}", told(&summary));
    match summary.problems {
        0 => Ok(()),
        n => Err(format!(
            "{n} problems; what they name is not in the target, or not as it is in the source"
        )
        .into()),
    }
}
