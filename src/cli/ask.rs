//! `oncefs status` and `oncefs wait`: they ask a running daemon, through the attributes of the mount's files and through
//! the control socket in its data directory.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::options::default_data_dir;
use super::{Result, StatusArgs};
use crate::config::DataDir;
use crate::sidecar::client;
use crate::types::ContentHash;
use crate::vfs::xattrs::{DATA_DIR, SHA256, STATUS};

/// The longest pause between two looks at a file that is not stored yet.
const PAUSE_MAX: Duration = Duration::from_millis(500);

fn xattr(path: &Path, name: &[u8]) -> io::Result<String> {
    let mut value = vec![0u8; 4096];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(n);
    Ok(String::from_utf8_lossy(&value).into_owned())
}

/// The data directory of the daemon that serves the mount which `path` lies in.
pub(super) fn data_dir_of(path: &Path) -> Result<DataDir> {
    let not_ours = || format!("{} is not on an oncefs mount", path.display());
    let full = std::fs::canonicalize(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let device = std::fs::symlink_metadata(&full)?.dev();
    let root = full
        .ancestors()
        .take_while(|p| std::fs::symlink_metadata(p).is_ok_and(|m| m.dev() == device))
        .last()
        .ok_or_else(not_ours)?
        .to_owned();
    let mut value = vec![0u8; 4096];
    let n = rustix::fs::lgetxattr(&root, DATA_DIR, &mut value[..]).map_err(|_| not_ours())?;
    value.truncate(n);
    Ok(DataDir::new(PathBuf::from(std::ffi::OsString::from_vec(
        value,
    ))))
}

fn get(data: &DataDir, path: &str) -> Result<(u16, Value)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(client::get_json(&data.control(), path))
        .map_err(|e| {
            format!(
                "no daemon answers at data directory {} ({e}); is it mounted? Another one can be named with --data-dir",
                data.root().display()
            )
            .into()
        })
}

pub(super) fn status(args: &StatusArgs) -> Result {
    let named = || -> Result<DataDir> {
        Ok(DataDir::new(match &args.data_dir {
            Some(dir) => dir.clone(),
            None => default_data_dir()?,
        }))
    };
    match &args.what {
        None => node_status(&named()?, args.json),
        Some(what) => match what.parse::<ContentHash>() {
            Ok(hash) if !Path::new(what).exists() => {
                content_status(&named()?, &hash.to_string(), args.json)
            }
            _ => file_status(Path::new(what), args.json),
        },
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".into(),
        other => other.to_string(),
    }
}

fn node_status(data: &DataDir, json: bool) -> Result {
    let (_, health) = get(data, "/health")?;
    if json {
        println!("{health:#}");
        return Ok(());
    }
    print_tree(&health, 0);
    Ok(())
}

/// Prints an object as aligned lines, inner objects indented.
fn print_tree(value: &Value, indent: usize) {
    let Value::Object(fields) = value else { return };
    for (name, value) in fields {
        match value {
            Value::Object(_) => {
                println!("{:indent$}{name}:", "");
                print_tree(value, indent + 2);
            }
            Value::Array(items) => {
                println!("{:indent$}{name}:", "");
                for item in items {
                    match item {
                        Value::Object(_) => {
                            println!("{:indent$}  -", "");
                            print_tree(item, indent + 4);
                        }
                        other => println!("{:indent$}  {}", "", text(other)),
                    }
                }
            }
            _ => println!(
                "{:indent$}{name:<width$} {}",
                "",
                text(value),
                width = 18usize.saturating_sub(indent)
            ),
        }
    }
}

fn content_status(data: &DataDir, hash: &str, json: bool) -> Result {
    let (code, record) = get(data, &format!("/status/{hash}"))?;
    if code != 200 {
        return Err(text(&record["error"]).into());
    }
    if json {
        println!("{record:#}");
    } else {
        print_tree(&record, 0);
    }
    Ok(())
}

fn file_status(path: &Path, json: bool) -> Result {
    let data = data_dir_of(path)?;
    let meta = std::fs::symlink_metadata(path)?;
    if !meta.is_file() {
        return Err(format!(
            "{} is no regular file, so it has no content to store",
            path.display()
        )
        .into());
    }
    let word = xattr(path, STATUS)?;
    let hash = xattr(path, SHA256).ok();
    let record = match &hash {
        Some(hash) => match get(&data, &format!("/status/{hash}")) {
            Ok((200, record)) => record,
            // Nothing is known of the content as such yet.
            Ok(_) => Value::Null,
            Err(e) => return Err(e),
        },
        None => Value::Null,
    };
    let mut file = serde_json::json!({
        "path": path.display().to_string(),
        "status": word,
        "sha256": hash,
        "size": meta.len(),
    });
    if !record.is_null() {
        file["content"] = record;
    }
    if json {
        println!("{file:#}");
    } else {
        print_tree(&file, 0);
    }
    Ok(())
}

pub(super) fn wait(paths: &[PathBuf]) -> Result {
    let mut waiting = VecDeque::new();
    let mut checked = 0usize;
    for path in paths {
        data_dir_of(path)?;
        collect(path, &mut waiting)?;
    }
    let all = waiting.len();
    let progress = io::stderr().is_terminal();
    let mut pause = Duration::from_millis(5);
    let mut failed = Vec::new();
    let mut rounds_without_progress = 0;
    while !waiting.is_empty() {
        let before = waiting.len();
        for _ in 0..before {
            let Some(path) = waiting.pop_front() else {
                break;
            };
            match xattr(&path, STATUS) {
                Ok(word) if word == "done" || word == "duplicate" => checked += 1,
                Ok(word) => {
                    if word == "failed" && !failed.contains(&path) {
                        failed.push(path.clone());
                        eprintln!(
                            "oncefs: {}: storing it failed and is tried again (oncefs status {} tells why)",
                            path.display(),
                            path.display()
                        );
                    }
                    waiting.push_back(path);
                    // What lies behind it in the queue is not stored yet either.
                    if checked == 0 || waiting.len() > 64 {
                        break;
                    }
                }
                // Removed meanwhile: nothing to wait for.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(format!("{}: {e}", path.display()).into()),
            }
        }
        if progress {
            eprint!("\r{checked} of {all} files stored ");
            let _ = io::stderr().flush();
        }
        if waiting.len() < before {
            rounds_without_progress = 0;
            pause = Duration::from_millis(5);
        } else {
            rounds_without_progress += 1;
            if rounds_without_progress > 4 {
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
        if !waiting.is_empty() {
            std::thread::sleep(pause);
        }
    }
    if progress {
        eprintln!("\r{checked} of {all} files stored ");
    }
    Ok(())
}

/// The regular files at and below `path`, not following symbolic links.
fn collect(path: &Path, files: &mut VecDeque<PathBuf>) -> Result {
    let meta = std::fs::symlink_metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    if meta.is_file() {
        files.push_back(path.to_owned());
    } else if meta.is_dir() {
        let mut dirs = vec![path.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir)? {
                let entry = entry?;
                let kind = entry.file_type()?;
                if kind.is_dir() {
                    dirs.push(entry.path());
                } else if kind.is_file() {
                    files.push_back(entry.path());
                }
            }
        }
    }
    Ok(())
}
