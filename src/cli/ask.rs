//! Asking a running daemon, through the attributes of the mount's files and through the control socket in its data
//! directory; and `oncefs status`, which does.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::options::default_data_dir;
use super::{Result, StatusArgs};
use crate::config::DataDir;
use crate::sidecar::client;
use crate::types::{ContentHash, printable};
use crate::vfs::standing::attribute;
use crate::vfs::xattrs::{DATA_DIR, ERROR, SHA256, STATUS};

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

pub(super) fn get(data: &DataDir, path: &str) -> Result<(u16, Value)> {
    answer(data, client::get_json(&data.control(), path))
}

pub(super) fn post(data: &DataDir, path: &str) -> Result<(u16, Value)> {
    answer(data, client::post_json(&data.control(), path))
}

fn answer(
    data: &DataDir,
    asking: impl Future<Output = std::io::Result<(u16, Value)>>,
) -> Result<(u16, Value)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime
        .block_on(asking)
        .map_err(|e| {
            format!(
                "no daemon answers at data directory {} ({e}); is it mounted? Another one can be named with --data-dir",
                data.root().display()
            )
            .into()
        })
}

pub(super) fn status(args: &StatusArgs) -> Result {
    if args.conflicts {
        let data = match &args.what {
            Some(path) => data_dir_of(Path::new(path))?,
            None => node(args)?,
        };
        return conflicts(&data, args.json);
    }
    let Some(what) = &args.what else {
        return node_status(&node(args)?, args.json);
    };
    let hash = what.to_str().map(str::to_ascii_lowercase);
    match hash.and_then(|text| text.parse::<ContentHash>().ok()) {
        Some(hash) if !Path::new(what).exists() => {
            content_status(&node(args)?, &hash.to_string(), args.json)
        }
        _ => file_status(Path::new(what), args.json),
    }
}

/// The data directory of the node to ask: the one that is named, else that of the mount we are in, else the usual one.
fn node(args: &StatusArgs) -> Result<DataDir> {
    if let Some(dir) = &args.data_dir {
        return Ok(DataDir::new(dir));
    }
    match data_dir_of(Path::new(".")) {
        Ok(data) => Ok(data),
        Err(_) => Ok(DataDir::new(default_data_dir()?)),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => printable(text),
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
        return Err(record["error"].as_str().unwrap_or("refused").into());
    }
    if json {
        println!("{record:#}");
    } else {
        print_tree(&record, 0);
        let shown = record["paths"].as_array().map_or(0, Vec::len) as u64;
        match record["references"].as_u64() {
            Some(all) if all > shown => println!("  ... {} more", all - shown),
            _ => {}
        }
    }
    Ok(())
}

fn conflicts(data: &DataDir, json: bool) -> Result {
    let (code, answer) = get(data, "/conflicts")?;
    if code != 200 {
        return Err(text(&answer["error"]).into());
    }
    if json {
        println!("{answer:#}");
        return Ok(());
    }
    for copy in answer["conflicts"].as_array().unwrap_or(&Vec::new()) {
        println!(
            "{} {:>12} {} {}",
            text(&copy["written_at"]),
            copy["size"],
            text(&copy["node"]),
            text(&copy["path"]),
        );
    }
    if answer["more"] == true {
        println!("... and more");
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
    let word = attribute(path, STATUS)?;
    let hash = attribute(path, SHA256).ok();
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
    if let Ok(error) = attribute(path, ERROR) {
        file["error"] = error.into();
    }
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
