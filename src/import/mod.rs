//! Bringing the tree of an embedded data directory into a mounted one.
//!
//! The source is read beside any mount, with its lock held, and never changed: its namespace is read from a copy, its
//! content from the content directory. The target is written as any program would write it, so it may be any mount, and
//! what it has already is not uploaded again. An entry is made whole under a name of its own and then renamed, so that one
//! with its right name is finished: whoever runs it again after a kill goes on where it ended.
//!
//! Content is hashed before it is copied, and the target must say the same hash once it has stored the file. What is
//! damaged, or cannot be made, is reported, and the rest goes on. A name that is taken by something else stays as it is.
//!
//! Whoever runs it may have more rights than those whose directories it works in: what they do meanwhile leads it nowhere
//! else ([`dir`]), and what it makes is its own alone until it is finished.

mod dir;
mod source;
mod target;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::tree::op::check_name;
use crate::tree::{Body, Inode, TreeError};
use crate::types::{ContentHash, Ino};
use crate::vfs::standing::Standing;
use crate::windows;
use dir::Dir;
pub use source::Source;
use target::{Placed, Target};

/// Files that may wait to be stored before the import waits for the first of them.
const WAITING_FILES: usize = 2000;
/// And how many bytes they may have.
const WAITING_BYTES: u64 = 1 << 30;

/// What was done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Entries that were made, directories included.
    pub made: u64,
    /// Entries that were there already.
    pub there: u64,
    /// Bytes of the files made.
    pub bytes: u64,
    /// What could not be brought over.
    pub problems: u64,
}

/// Hears how it goes.
pub trait Watch {
    /// What could not be brought over, by its path in the source, and why.
    fn problem(&mut self, path: &Path, why: &str);

    /// What the target could not store at once, and why; it is waited for.
    fn delayed(&mut self, path: &Path, why: &str);

    /// Called every now and then.
    fn progress(&mut self, so_far: &Summary);
}

/// A directory under way.
struct Frame {
    inode: Inode,
    path: PathBuf,
    dir: Dir,
    after: u64,
    /// This import made it, so it gets its attributes at the end.
    ours: bool,
}

/// A file that the target has not stored yet.
struct Waiting {
    path: PathBuf,
    hash: ContentHash,
    bytes: u64,
}

struct Import<'a> {
    source: &'a Source,
    target: Target,
    watch: &'a mut dyn Watch,
    summary: Summary,
    /// Where the files with more names than one are.
    linked: HashMap<Ino, (PathBuf, Placed)>,
    /// Contents that were found whole.
    whole: HashSet<ContentHash>,
    waiting: VecDeque<Waiting>,
    waiting_bytes: u64,
    /// What the target will never store as it is, and why.
    lost: Vec<(Waiting, String)>,
}

/// Brings everything below the root of `source` into the directory `into`, and returns when it is stored there. An error
/// is one that keeps it from going on at all.
pub fn run(source: &Source, into: &Path, watch: &mut dyn Watch) -> io::Result<Summary> {
    let mut import = Import {
        source,
        target: Target::new(into, source.node())?,
        watch,
        summary: Summary::default(),
        linked: HashMap::new(),
        whole: HashSet::new(),
        waiting: VecDeque::new(),
        waiting_bytes: 0,
        lost: Vec::new(),
    };
    import.walk()?;
    import.settle();
    import.target.finish()?;
    Ok(import.summary)
}

impl Import<'_> {
    fn walk(&mut self) -> io::Result<()> {
        let root = self.source.ask(|q| q.inode(Ino::ROOT)).map_err(failed)?;
        let mut open = vec![Frame {
            inode: root,
            path: PathBuf::new(),
            dir: self.target.root()?,
            after: 0,
            ours: false,
        }];
        while let Some(frame) = open.last_mut() {
            let (ino, after) = (frame.inode.ino, frame.after);
            let entries = self
                .source
                .ask(|q| q.readdir(ino, after, 1))
                .map_err(failed)?;
            let Some(entry) = entries.into_iter().next() else {
                if let Some(done) = open.pop().filter(|d| d.ours) {
                    let finished = self.attributes(&done.inode).and_then(|xattrs| {
                        self.target
                            .finish_directory(&done.dir, &done.inode, &xattrs)
                    });
                    if let Err(e) = finished {
                        self.problem(&done.path, &e.to_string());
                    }
                }
                continue;
            };
            frame.after = entry.cookie;
            let name = OsStr::from_bytes(&entry.name);
            let path = frame.path.join(name);
            if let Err(e) = check_name(&entry.name) {
                self.problem(&path, &e.to_string());
                continue;
            }
            let inode = match self.source.ask(|q| q.inode(entry.ino)) {
                Ok(inode) => inode,
                Err(e) => {
                    self.problem(&path, &e.to_string());
                    continue;
                }
            };
            if inode.is_dir() {
                match self.target.directory(&frame.dir, name, &inode) {
                    Ok((dir, ours)) => {
                        self.note(&path, Ok(ours));
                        open.push(Frame {
                            inode,
                            path,
                            dir,
                            after: 0,
                            ours,
                        });
                    }
                    Err(e) => self.note(&path, Err(e)),
                }
            } else {
                let mut placed = self.entry(&path, &frame.dir, name, &inode);
                if matches!(&placed, Err(e) if e.kind() == io::ErrorKind::StorageFull) {
                    // What the target stores leaves the local disk, if it is a cluster's.
                    self.drain(0, 0);
                    placed = self.entry(&path, &frame.dir, name, &inode);
                }
                self.note(&path, placed.map(|p| p.made));
            }
            self.watch.progress(&self.summary);
        }
        Ok(())
    }

    /// Anything but a directory.
    fn entry(&mut self, path: &Path, dir: &Dir, name: &OsStr, inode: &Inode) -> io::Result<Placed> {
        if let Some((first, placed)) = self.linked.get(&inode.ino) {
            return self.target.link((first, *placed), dir, name);
        }
        let placed = self.first_name(path, dir, name, inode)?;
        if inode.nlink > 1 {
            self.linked.insert(inode.ino, (path.to_owned(), placed));
        }
        Ok(placed)
    }

    fn first_name(
        &mut self,
        path: &Path,
        dir: &Dir,
        name: &OsStr,
        inode: &Inode,
    ) -> io::Result<Placed> {
        let xattrs = self.attributes(inode)?;
        if !inode.is_file() {
            let link = match inode.kind() {
                libc::S_IFLNK => Some(self.source.ask(|q| q.readlink(inode.ino)).map_err(failed)?),
                _ => None,
            };
            return self.target.special(dir, name, inode, link.as_deref());
        }
        let hash = match &inode.body {
            Body::Empty => None,
            Body::Stored { hash, .. } => Some(*hash),
            Body::Pending { .. } => {
                return Err(io::Error::other(
                    "it is not stored yet: mount the data directory once, wait with oncefs wait, unmount, and import again",
                ));
            }
        };
        let Some(hash) = hash else {
            return self.target.file(dir, name, inode, None, &xattrs);
        };
        if let Some(placed) = self.target.has(dir, name, inode.size, &hash)? {
            return Ok(placed);
        }
        let content = self.source.content(&hash, inode.size)?;
        if !self.whole.contains(&hash) {
            self.source.judge(&hash, &content)?;
            self.whole.insert(hash);
        }
        let placed = self
            .target
            .file(dir, name, inode, Some(&content), &xattrs)?;
        self.summary.bytes += inode.size;
        self.waiting_bytes += inode.size;
        self.waiting.push_back(Waiting {
            path: path.to_owned(),
            hash,
            bytes: inode.size,
        });
        self.drain(WAITING_FILES, WAITING_BYTES);
        Ok(placed)
    }

    fn attributes(&self, inode: &Inode) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let read = |q: crate::tree::Query<'_>| {
            let names = q.xattr_names(inode.ino)?.into_iter();
            names
                .map(|name| q.xattr(inode.ino, &name).map(|value| (name, value)))
                .collect()
        };
        self.source.ask(read).map_err(failed)
    }

    /// Waits until no more than so many files, with so many bytes, wait to be stored.
    fn drain(&mut self, files: usize, bytes: u64) {
        while self.waiting.len() > files || self.waiting_bytes > bytes {
            let Some(first) = self.waiting.pop_front() else {
                return;
            };
            self.waiting_bytes -= first.bytes;
            let watch = &mut self.watch;
            let delayed = |why: &str| watch.delayed(&first.path, why);
            match self.target.stored(&first.path, &first.hash, delayed) {
                Ok(None) => {}
                Ok(Some(why)) => self.lost.push((first, why)),
                Err(e) => self.problem(&first.path, &e.to_string()),
            }
            self.watch.progress(&self.summary);
        }
    }

    /// Waits for all that is left. What was stored meanwhile may have healed what was lost.
    fn settle(&mut self) {
        loop {
            self.drain(0, 0);
            let target = &self.target;
            let healed = |(file, _): &mut (Waiting, String)| {
                !matches!(target.standing(&file.path), Ok(Standing::Lost(_)))
            };
            for (file, _) in self.lost.extract_if(.., healed) {
                self.waiting_bytes += file.bytes;
                self.waiting.push_back(file);
            }
            if self.waiting.is_empty() {
                break;
            }
        }
        for (file, why) in std::mem::take(&mut self.lost) {
            self.problem(&file.path, &why);
        }
    }

    fn note(&mut self, path: &Path, made: io::Result<bool>) {
        match made {
            Ok(true) => self.summary.made += 1,
            Ok(false) => self.summary.there += 1,
            Err(e) => self.problem(path, &e.to_string()),
        }
        windows::IMPORT.passed();
    }

    fn problem(&mut self, path: &Path, why: &str) {
        self.summary.problems += 1;
        self.watch.problem(path, why);
    }
}

fn failed(e: TreeError) -> io::Error {
    io::Error::other(format!("the namespace of the source: {e}"))
}
