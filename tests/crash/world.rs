//! What a directory may hold after a crash: a model of every state that it went through.
//!
//! Names change in one order, so after a crash they are as they were after some step; which steps are possible is known.
//! The bytes of each file are those of one of its versions, from the last that was guaranteed on.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::common::files::sha256;

/// What is guaranteed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarantee {
    /// Everything that was answered: the daemon is killed, the machine goes on.
    Answered,
    /// What was synced: the machine goes down.
    Synced,
}

/// The versions of one file.
#[derive(Clone, Debug, Default)]
struct History {
    versions: Vec<Vec<u8>>,
    /// Older versions than this one cannot be.
    floor: Option<usize>,
    /// Bytes of several versions may be mixed: some were written over others and not guaranteed.
    mixed: bool,
    /// The files that it replaced: should none of its own versions last, that of one may be there.
    replaced: Vec<usize>,
}

impl History {
    fn allows(&self, found: Option<&[u8]>, guarantee: Guarantee, all: &[History]) -> bool {
        let possible = &self.versions[self.floor.unwrap_or(0)..];
        match found {
            // The name lasted and no bytes did.
            None => guarantee == Guarantee::Synced && self.floor.is_none(),
            Some(found) => {
                possible.iter().any(|v| v == found)
                    || (self.mixed && mixture(found, possible))
                    || (guarantee == Guarantee::Synced
                        && self.floor.is_none()
                        && self
                            .replaced
                            .iter()
                            .any(|file| all[*file].allows(Some(found), guarantee, all)))
            }
        }
    }
}

/// Whether every part of `found` is that part of one of the versions; beyond the end of the shortest it
/// may be zero, up to the end of a block of the disk.
fn mixture(found: &[u8], versions: &[Vec<u8>]) -> bool {
    const PART: usize = 512;
    let shortest = versions.iter().map(Vec::len).min().unwrap_or(0);
    found.chunks(PART).enumerate().all(|(n, part)| {
        versions.iter().any(|v| {
            part.iter().enumerate().all(|(at, byte)| {
                let at = n * PART + at;
                v.get(at) == Some(byte) || (*byte == 0 && at >= shortest && at < v.len())
            })
        })
    })
}

/// A directory in the mount and all that it may be.
pub struct World {
    dir: PathBuf,
    guarantee: Guarantee,
    files: Vec<History>,
    /// The names after each step, and the file that each names.
    steps: Vec<BTreeMap<String, usize>>,
    /// Earlier steps than this one cannot be.
    sure: usize,
}

impl World {
    /// An empty directory at `dir`, which is made.
    pub fn new(dir: PathBuf, guarantee: Guarantee) -> World {
        fs::create_dir_all(&dir).unwrap();
        let mut world = World {
            dir,
            guarantee,
            files: Vec::new(),
            steps: Vec::new(),
            sure: 0,
        };
        world.rebase();
        world
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn names(&self) -> &BTreeMap<String, usize> {
        &self.steps[self.steps.len() - 1]
    }

    /// The present names.
    pub fn list(&self) -> Vec<String> {
        self.names().keys().cloned().collect()
    }

    /// The present bytes of a name.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let file = *self.names().get(name)?;
        self.files[file].versions.last().map(|v| &v[..])
    }

    /// A change of names begins.
    pub fn step(&mut self, change: impl FnOnce(&mut BTreeMap<String, usize>)) {
        let mut names = self.names().clone();
        change(&mut names);
        self.steps.push(names);
    }

    /// `from` is to become `to`.
    pub fn rename(&mut self, from: &str, to: &str) {
        let names = self.names();
        let (source, target) = (names[from], names.get(to).copied());
        // Two names of one file stay both.
        if target == Some(source) {
            return self.step(|_| ());
        }
        self.files[source].replaced.extend(target);
        self.step(|names| {
            names.remove(from);
            names.insert(to.to_owned(), source);
        });
    }

    /// A new, empty file is to get this name.
    pub fn create(&mut self, name: &str) {
        self.files.push(History {
            versions: vec![Vec::new()],
            ..History::default()
        });
        let file = self.files.len() - 1;
        self.step(|names| {
            names.insert(name.to_owned(), file);
        });
    }

    /// The bytes of `name` are to become these. `over`: in the very file that holds the present ones.
    pub fn write(&mut self, name: &str, bytes: Vec<u8>, over: bool) {
        let file = self.names()[name];
        let history = &mut self.files[file];
        history.versions.push(bytes);
        // Until it is answered any part of it can be there; of what was synced once, also later.
        history.mixed |= self.guarantee == Guarantee::Answered || (over && history.floor.is_some());
    }

    /// `name` is to be as long as this before its bytes are written. After a power cut that is no state of it: nobody
    /// closed it so.
    pub fn lengthen(&mut self, name: &str, len: usize) {
        if self.guarantee == Guarantee::Answered {
            self.write(name, vec![0; len], true);
        }
    }

    /// What began last was answered.
    pub fn answered(&mut self) {
        if self.guarantee == Guarantee::Answered {
            self.sure = self.steps.len() - 1;
            for file in &mut self.files {
                file.floor = Some(file.versions.len() - 1);
                file.mixed = false;
            }
        }
    }

    /// `name` was synced, and with it every name.
    pub fn synced(&mut self, name: &str) {
        let file = &mut self.files[self.steps[self.steps.len() - 1][name]];
        file.floor = Some(file.versions.len() - 1);
        file.mixed = false;
        self.names_synced();
    }

    /// Every name was synced.
    pub fn names_synced(&mut self) {
        self.sure = self.steps.len() - 1;
    }

    fn found(&self) -> BTreeMap<String, (u64, Vec<u8>)> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.dir).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let bytes = fs::read(entry.path())
                .unwrap_or_else(|e| panic!("{}: {e}", entry.path().display()));
            let ino = entry.metadata().unwrap().ino();
            found.insert(name, (ino, bytes));
        }
        found
    }

    /// Fails unless the directory is as it may be.
    pub fn check(&self) {
        if !self.dir.exists() {
            assert!(self.guarantee == Guarantee::Synced && self.sure == 0);
            return;
        }
        let found = self.found();
        let mut reasons = Vec::new();
        for step in (self.sure..self.steps.len()).rev() {
            match self.differs(&self.steps[step], &found) {
                None => return,
                Some(why) => reasons.push(format!("not as after step {step}: {why}")),
            }
        }
        reasons.truncate(12);
        panic!("{}: {}", self.dir.display(), reasons.join("\n"));
    }

    fn differs(
        &self,
        names: &BTreeMap<String, usize>,
        found: &BTreeMap<String, (u64, Vec<u8>)>,
    ) -> Option<String> {
        let unknown = found.keys().find(|name| !names.contains_key(*name));
        if let Some(name) = unknown {
            return Some(format!("{name} should not be there"));
        }
        names.iter().find_map(|(name, file)| {
            let bytes = found.get(name).map(|f| &f.1[..]);
            let history = &self.files[*file];
            (!history.allows(bytes, self.guarantee, &self.files)).then(|| {
                let lengths: Vec<usize> = history.versions.iter().map(Vec::len).collect();
                let zeros = bytes.map(|b| b.iter().filter(|b| **b == 0).count());
                format!(
                    "{name} has {:?} bytes, {zeros:?} of them zero, of lengths {lengths:?} from {:?} on",
                    bytes.map(<[u8]>::len),
                    history.floor
                )
            })
        })
    }

    /// Begins anew with what there is, which is guaranteed.
    pub fn rebase(&mut self) {
        fs::create_dir_all(&self.dir).unwrap();
        let mut by_ino = BTreeMap::new();
        let mut names = BTreeMap::new();
        self.files.clear();
        for (name, (ino, bytes)) in self.found() {
            let file = *by_ino.entry(ino).or_insert_with(|| {
                self.files.push(History {
                    versions: vec![bytes],
                    floor: Some(0),
                    ..History::default()
                });
                self.files.len() - 1
            });
            names.insert(name, file);
        }
        self.steps = vec![names];
        self.sure = 0;
    }

    /// The hashes of the contents that the directory's files have.
    pub fn hashes(&self) -> Vec<String> {
        let found = self.found();
        found.values().map(|(_, bytes)| sha256(bytes)).collect()
    }
}
