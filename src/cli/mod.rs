//! The command line: options, their environment variables, and the small commands. What a running node does is in
//! [`crate::node`].

mod ask;
mod daemon;
mod options;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

pub use options::MountArgs;

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
}

#[derive(Args)]
struct StatusArgs {
    /// A path in a mount, or a SHA-256 in hexadecimal; nothing: the node
    what: Option<String>,
    /// The data directory of the node to ask
    #[arg(long, env = "ONCEFS_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command line of this process. Errors are printed in one line.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Mount(args) => daemon::mount(*args),
        Command::Umount { mountpoint } => daemon::umount(&mountpoint),
        Command::Status(args) => ask::status(&args),
        Command::Wait { paths } => ask::wait(&paths),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("oncefs: {e}");
            ExitCode::FAILURE
        }
    }
}

/// What a command ends with: a sentence for the person who gave it.
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;
