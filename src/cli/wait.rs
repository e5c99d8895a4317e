//! `oncefs wait`: returns when everything at and below some paths is stored.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, openat};

use super::Result;
use super::ask::data_dir_of;
use crate::types::printable;
use crate::vfs::standing::Standing;

/// The longest pause between two looks at a file that is not stored yet.
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How much of a path goes into one system call: PATH_MAX, and room for the way to an open directory.
const PATH_BYTES: usize = 3800;

pub(super) fn wait(paths: &[PathBuf]) -> Result {
    let mut files = VecDeque::new();
    for path in paths {
        data_dir_of(path)?;
        collect(path, &mut files)?;
    }
    let mut waiting = Waiting {
        all: files.len(),
        files,
        stored: 0,
        failed: Vec::new(),
        lost: Vec::new(),
    };
    waiting.until_stored()?;
    for (path, why) in waiting.lost.iter().skip(1) {
        eprintln!("oncefs: {}", sentence(path, why));
    }
    match waiting.lost.first() {
        Some((path, why)) => Err(sentence(path, why).into()),
        None => Ok(()),
    }
}

fn sentence(path: &Path, what: impl std::fmt::Display) -> String {
    printable(format_args!("{}: {what}", path.display()))
}

struct Waiting {
    /// Those that are not stored yet, in about the order of the queue.
    files: VecDeque<PathBuf>,
    all: usize,
    stored: usize,
    /// Those that were complained of.
    failed: Vec<PathBuf>,
    /// Those that waiting does not help, and why.
    lost: Vec<(PathBuf, String)>,
}

impl Waiting {
    fn until_stored(&mut self) -> Result {
        let progress = io::stderr().is_terminal();
        let mut pause = Duration::from_millis(5);
        let mut rounds_without_progress = 0;
        while !self.files.is_empty() {
            let before = self.files.len();
            self.look()?;
            if self.files.is_empty() {
                self.look_at_lost();
            }
            if progress {
                eprint!("\r{} of {} files stored ", self.stored, self.all);
                let _ = io::stderr().flush();
            }
            if self.files.len() < before {
                rounds_without_progress = 0;
                pause = Duration::from_millis(5);
            } else {
                rounds_without_progress += 1;
                if rounds_without_progress > 4 {
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
            if !self.files.is_empty() {
                std::thread::sleep(pause);
            }
        }
        if progress {
            eprintln!("\r{} of {} files stored ", self.stored, self.all);
        }
        Ok(())
    }

    /// One round over the files that are not stored yet.
    fn look(&mut self) -> Result {
        for _ in 0..self.files.len() {
            let Some(path) = self.files.pop_front() else {
                break;
            };
            match standing(&path) {
                Ok(Standing::Stored) => {
                    self.stored += 1;
                    continue;
                }
                Ok(Standing::Lost(why)) => {
                    self.lost.push((path, why));
                    continue;
                }
                Ok(Standing::Delayed(why)) => self.complain(&path, &why),
                Ok(Standing::OnItsWay) => {}
                // Removed meanwhile: nothing to wait for.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(sentence(&path, e).into()),
            }
            self.files.push_back(path);
            // What lies behind it in the queue is not stored yet either.
            if self.stored == 0 || self.files.len() > 64 {
                break;
            }
        }
        Ok(())
    }

    /// Once nothing else is left: the files that were waited for may have healed those that were damaged.
    fn look_at_lost(&mut self) {
        let healed =
            |(path, _): &mut (PathBuf, String)| !matches!(standing(path), Ok(Standing::Lost(_)));
        let healed = self.lost.extract_if(.., healed).map(|(path, _)| path);
        self.files.extend(healed);
    }

    fn complain(&mut self, path: &Path, why: &str) {
        if self.failed.iter().any(|p| p == path) {
            return;
        }
        self.failed.push(path.to_owned());
        let what = format!("storing it failed and is tried again: {why}");
        eprintln!("oncefs: {}", sentence(path, what));
    }
}

/// The regular files at and below `path`, not following symbolic links.
fn collect(path: &Path, files: &mut VecDeque<PathBuf>) -> Result {
    let meta = std::fs::symlink_metadata(path).map_err(|e| sentence(path, e))?;
    if meta.is_file() {
        files.push_back(path.to_owned());
    } else if meta.is_dir() {
        let mut dirs = vec![path.to_owned()];
        while let Some(dir) = dirs.pop() {
            match list(&dir, &mut dirs, files) {
                // Removed meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound && dir != path => {}
                listed => listed.map_err(|e| sentence(&dir, e))?,
            }
        }
    }
    Ok(())
}

fn list(dir: &Path, dirs: &mut Vec<PathBuf>, files: &mut VecDeque<PathBuf>) -> io::Result<()> {
    let reach = Reach::new(dir)?;
    for entry in std::fs::read_dir(&reach.path)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            dirs.push(dir.join(entry.file_name()));
        } else if kind.is_file() {
            files.push_back(dir.join(entry.file_name()));
        }
    }
    Ok(())
}

fn standing(path: &Path) -> io::Result<Standing> {
    Standing::of(&Reach::new(path)?.path)
}

/// A path to the same file that the kernel takes however long the first one is, for as long as this lives.
struct Reach {
    path: PathBuf,
    _dir: Option<OwnedFd>,
}

impl Reach {
    fn new(path: &Path) -> io::Result<Reach> {
        if path.as_os_str().len() <= PATH_BYTES {
            return Ok(Reach {
                path: path.to_owned(),
                _dir: None,
            });
        }
        let (mut dir, mut part) = (None::<OwnedFd>, PathBuf::new());
        for component in path.components() {
            if part.as_os_str().len() + component.as_os_str().len() >= PATH_BYTES {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                dir = Some(match &dir {
                    Some(dir) => openat(dir, &part, flags, Mode::empty())?,
                    None => openat(CWD, &part, flags, Mode::empty())?,
                });
                part.clear();
            }
            part.push(component);
        }
        let path = match &dir {
            Some(dir) => Path::new("/proc/self/fd")
                .join(dir.as_raw_fd().to_string())
                .join(part),
            None => part,
        };
        Ok(Reach { path, _dir: dir })
    }
}
