//! `oncefs fsck`, `oncefs scrub` and `oncefs gc`: looking after what is stored, by asking the running daemon, or at the
//! data directory itself when none runs.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use clap::Args;
use rustix::fs::FlockOperation;
use serde_json::Value;

use super::Result;
use super::ask::{data_dir_of, get, post};
use crate::config::DataDir;
use crate::fsck::{self, Report};
use crate::node::{DataLock, ENDING_DEADLINE};
use crate::types::printable;

/// fsck(8): it could not look.
const OPERATIONAL_ERROR: u8 = 8;
/// fsck(8): wrong options.
pub(super) const USAGE_ERROR: u8 = 16;
/// Between two looks at a scrub that is waited for.
const PAUSE: Duration = Duration::from_millis(200);
/// Between two looks at what is about to end.
const ENDING_PAUSE: Duration = Duration::from_millis(20);

/// Options of `oncefs fsck`.
#[derive(Args)]
pub(super) struct FsckArgs {
    /// A data directory, or a mount point
    target: PathBuf,
    /// Hash every content, too
    #[arg(long)]
    data: bool,
    /// Put right what can be without losing anything
    #[arg(long, short = 'y')]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Options of `oncefs scrub`.
#[derive(Args)]
pub(super) struct ScrubArgs {
    /// A mount point, or the data directory of a mount
    target: PathBuf,
    /// Bytes to read in a second, or "unlimited"
    #[arg(long, value_name = "BYTES", default_value = "50MiB", value_parser = Rate::parse)]
    rate: Rate,
    /// Return when it is done
    #[arg(long)]
    wait: bool,
    /// End the one that is under way
    #[arg(long, conflicts_with_all = ["rate", "wait"])]
    stop: bool,
}

/// How fast a scrub reads.
#[derive(Clone, Copy)]
enum Rate {
    BytesPerSecond(u64),
    Unlimited,
}

impl Rate {
    fn parse(text: &str) -> std::result::Result<Rate, String> {
        if text == "unlimited" {
            return Ok(Rate::Unlimited);
        }
        match text.parse::<ByteSize>()?.as_u64() {
            0 => Err("it would never end; name a rate such as 50MiB, or \"unlimited\"".into()),
            bytes => Ok(Rate::BytesPerSecond(bytes)),
        }
    }
}

/// Options of `oncefs gc`.
#[derive(Args)]
pub(super) struct GcArgs {
    /// A mount point, or the data directory of a mount
    target: PathBuf,
    /// Remove it; otherwise only show what would go
    #[arg(long, short = 'y')]
    delete: bool,
    /// How long content that no file has is kept, such as 1h; nothing: as the mount has it
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    grace: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The data directory that `target` is, or that of the daemon that serves it.
fn data_dir(target: &Path) -> Result<DataDir> {
    let data = DataDir::new(target);
    if data.tree().exists() {
        return Ok(data);
    }
    if data.node().exists() {
        return Err(format!(
            "data directory {} has lost its names: {} is missing, restore it from a copy",
            target.display(),
            data.tree().display()
        )
        .into());
    }
    if let Err(e) = std::fs::metadata(target) {
        return Err(format!("{}: {e}", target.display()).into());
    }
    data_dir_of(target)
        .map_err(|_| format!("{} is no data directory and no mount", target.display()).into())
}

/// Whether a daemon holds the data directory.
fn is_in_use(data: &DataDir) -> Result<bool> {
    match File::open(data.lock()) {
        Ok(lock) => Ok(rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared).is_err()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(format!("{}: {e}", data.lock().display()).into()),
    }
}

/// The answer to a request that must succeed.
fn asked(data: &DataDir, path: &str) -> Result<Value> {
    let (code, answer) = post(data, path)?;
    match code {
        200 => Ok(answer),
        _ => Err(refusal(&answer)),
    }
}

fn refusal(answer: &Value) -> Box<dyn std::error::Error> {
    answer["error"].as_str().unwrap_or("refused").into()
}

/// Returns a code of fsck(8).
pub(super) fn fsck(args: &FsckArgs) -> u8 {
    let report = match inspect(args) {
        Ok(report) => report,
        Err(e) => {
            eprintln!("oncefs: {}", printable(e));
            return OPERATIONAL_ERROR;
        }
    };
    let shown = match args.json {
        true => serde_json::to_string_pretty(&report).unwrap_or_default(),
        false => report.to_string(),
    };
    println!("{shown}");
    report.exit_code()
}

fn inspect(args: &FsckArgs) -> Result<Report> {
    let data = data_dir(&args.target)?;
    let path = format!("/fsck?data={}&repair={}", args.data, args.repair);
    let deadline = Instant::now() + ENDING_DEADLINE;
    while is_in_use(&data)? {
        match post(&data, &path) {
            Ok((200, report)) => return Ok(serde_json::from_value(report)?),
            Ok((_, refused)) => return Err(refusal(&refused)),
            // It does not listen yet, or was killed a moment ago and holds the lock until it is gone.
            Err(_) if Instant::now() < deadline => std::thread::sleep(ENDING_PAUSE),
            Err(_) => {
                return Err(format!(
                    "data directory {} is held by a process (its file `lock` says which) that does not answer",
                    data.root().display()
                )
                .into());
            }
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let _lock = runtime.block_on(DataLock::take(&data, Path::new("")))?;
    let options = fsck::Options {
        data: args.data,
        repair: args.repair,
    };
    Ok(fsck::offline(&data, options)?)
}

pub(super) fn scrub(args: &ScrubArgs) -> Result {
    let data = data_dir(&args.target)?;
    if args.stop {
        return stop_scrub(&data);
    }
    let rate = match args.rate {
        Rate::BytesPerSecond(bytes) => format!("?rate={bytes}"),
        Rate::Unlimited => String::new(),
    };
    let answer = asked(&data, &format!("/scrub{rate}"))?;
    if answer["started"] == false {
        eprintln!("oncefs: a scrub is under way already");
    }
    if !args.wait {
        return Ok(());
    }
    let progress = io::stderr().is_terminal();
    loop {
        let (_, health) = get(&data, "/health")?;
        let scrub = &health["scrub"];
        let (done, all) = (&scrub["done"], &scrub["contents"]);
        if progress {
            eprint!("\r{done} of {all} contents hashed ");
            let _ = io::stderr().flush();
        }
        if scrub["running"] == false {
            println!("{done} contents hashed, {} damaged", scrub["damaged"]);
            if scrub["stopped"] == true {
                return Err(format!("the scrub was stopped after {done} of {all} contents").into());
            }
            let found = |what: &str| scrub[what].as_u64().unwrap_or(0);
            return match found("damaged") + found("errors") {
                0 => Ok(()),
                _ => Err(format!(
                    "content is damaged: oncefs fsck {} names the files",
                    args.target.display()
                )
                .into()),
            };
        }
        std::thread::sleep(PAUSE);
    }
}

fn stop_scrub(data: &DataDir) -> Result {
    if asked(data, "/scrub?stop=true")?["stopped"] == false {
        println!("no scrub is under way");
        return Ok(());
    }
    loop {
        let (_, health) = get(data, "/health")?;
        let scrub = &health["scrub"];
        if scrub["running"] == false {
            println!(
                "stopped after {} of {} contents, {} damaged",
                scrub["done"], scrub["contents"], scrub["damaged"]
            );
            return Ok(());
        }
        std::thread::sleep(ENDING_PAUSE);
    }
}

pub(super) fn gc(args: &GcArgs) -> Result {
    let data = data_dir(&args.target)?;
    let mut path = format!("/gc?delete={}", args.delete);
    if let Some(grace) = args.grace {
        path += &format!("&grace_secs={}", grace.as_secs());
    }
    let answer = asked(&data, &path)?;
    if args.json {
        println!("{answer:#}");
        return Ok(());
    }
    let listed = answer["contents"].as_array().map_or(&[][..], Vec::as_slice);
    let text = |value: &Value| printable(value.as_str().unwrap_or_default());
    for content in listed {
        println!(
            "{} {:>12} unused since {} {} {}",
            text(&content["hash"]),
            content["size"],
            text(&content["unreferenced_since"]),
            match content["in_grace"] == true {
                true => "kept  ",
                false => "to go ",
            },
            text(&content["filename"]),
        );
    }
    let (total, due) = (&answer["total"], &answer["due"]);
    if total["contents"].as_u64().unwrap_or(0) > listed.len() as u64 {
        println!("... only the first {} are listed", listed.len());
    }
    println!(
        "{} contents ({} bytes) that no file has; {} ({} bytes) longer than {}",
        total["contents"],
        total["bytes"],
        due["contents"],
        due["bytes"],
        humantime::format_duration(Duration::from_secs(
            answer["grace_secs"].as_u64().unwrap_or(0)
        )),
    );
    match &answer["removed"] {
        Value::Null => println!("nothing was removed; --delete removes"),
        removed => println!("{removed} removed"),
    }
    Ok(())
}
