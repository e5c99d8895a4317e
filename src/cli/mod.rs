//! The command line: options, their environment variables, and the small commands. What a running node does is in
//! [`crate::node`].

mod ask;
mod care;
mod daemon;
mod helper;
mod import;
mod log;
mod options;
mod wait;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use options::MountArgs;

use crate::types::printable;

/// Store once, mount everywhere: a deduplicating filesystem.
#[derive(Parser)]
#[command(name = "oncefs", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mount a tree. Returns when the mount is ready; it then serves in the background
    Mount(Box<MountArgs>),
    /// Unmount in order. What is not stored yet is stored after the next mount
    #[command(alias = "unmount")]
    Umount {
        /// Where it is mounted
        mountpoint: PathBuf,
    },
    /// Show this node, or where one file or content stands
    Status(StatusArgs),
    /// Return when the content of these files, or of all files below these directories, is stored
    Wait {
        /// Files or directories in a mount
        #[arg(required = true)]
        paths: Vec<PathBuf>,
    },
    /// Look for contradictions and damage. Ends as fsck(8): 0 nothing, 1 repaired, 4 errors left, 8 could not look
    Fsck(care::FsckArgs),
    /// Hash all content of a mount in the background; `oncefs status` shows how far it is
    Scrub(care::ScrubArgs),
    /// Show, or remove, the content that no file has any more
    Gc(care::GcArgs),
    /// Bring the tree of an embedded data directory into a mount. Run again after an interruption, it goes on
    Import(import::ImportArgs),
}

#[derive(Args)]
struct StatusArgs {
    /// A path in a mount, or a SHA-256 in hexadecimal; nothing: the node
    what: Option<OsString>,
    /// The data directory of the node to ask [default: that of the mount in which the working directory is, if any]
    #[arg(long, env = "ONCEFS_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// List what was kept aside when machines had worked apart
    #[arg(long)]
    conflicts: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command line of this process. Errors are printed in one line.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let (result, failure) = match helper::called(&args) {
        Some(call) => (call.and_then(help_mount), helper::MOUNT_FAILED.into()),
        None => (run(&args), ExitCode::FAILURE),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("oncefs: {}", printable(e));
            failure
        }
    }
}

fn run(args: &[OsString]) -> Result {
    let cli = Cli::try_parse_from(args).unwrap_or_else(|e| {
        // Whoever runs fsck on many file systems goes by its codes.
        if e.use_stderr() && args.get(1).is_some_and(|a| a == "fsck") {
            let _ = e.print();
            std::process::exit(care::USAGE_ERROR.into());
        }
        e.exit()
    });
    match cli.command {
        Command::Mount(mount) => daemon::mount(*mount, args.get(2..).unwrap_or_default()),
        Command::Umount { mountpoint } => daemon::umount(&mountpoint),
        Command::Status(args) => ask::status(&args),
        Command::Wait { paths } => wait::wait(&paths),
        Command::Fsck(args) => std::process::exit(care::fsck(&args).into()),
        Command::Scrub(args) => care::scrub(&args),
        Command::Gc(args) => care::gc(&args),
        Command::Import(args) => import::import(&args),
    }
}

/// What mount(8) asked for.
fn help_mount(call: helper::Call) -> Result {
    match call.task() {
        helper::Task::Mount(args) => run(&args),
        helper::Task::Check(args) => match Cli::parse_from(args).command {
            Command::Mount(mount) => mount.config().map(drop),
            _ => Ok(()),
        },
        helper::Task::Remount(dir, options) => helper::remount(&dir, &options),
    }
}

/// What a command ends with: a sentence for the person who gave it.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;
