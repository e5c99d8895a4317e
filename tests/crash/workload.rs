//! Random changes of a [`World`], as programs make them, until one fails.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

use super::world::World;
use crate::common::files::{bytes, close, sha256, xattr};
use crate::common::mount::Mount;
use crate::common::run::becomes;

/// How a workload behaves.
#[derive(Clone, Copy)]
pub struct Habits {
    /// How many of a hundred changes are synced.
    pub sync_percent: u32,
    /// How many names there are.
    pub names: u32,
    /// The longest file that is usual.
    pub usual: usize,
    /// The longest that is not.
    pub large: usize,
}

impl Default for Habits {
    fn default() -> Habits {
        Habits {
            sync_percent: 8,
            names: 6,
            usual: 20_000,
            large: 300_000,
        }
    }
}

impl Habits {
    fn name(&self, rng: &mut StdRng) -> String {
        format!("n{}", rng.random_range(0..self.names))
    }

    fn some(&self, world: &World, rng: &mut StdRng) -> Option<String> {
        let list = world.list();
        (!list.is_empty()).then(|| list[rng.random_range(0..list.len())].clone())
    }

    fn content(&self, rng: &mut StdRng) -> Vec<u8> {
        let len = match rng.random_range(0..20) {
            0 => 0,
            1 => rng.random_range(0..=self.large),
            _ => rng.random_range(1..=self.usual),
        };
        // Every fourth is one that there may be already.
        if rng.random_range(0..4) == 0 {
            let seed = rng.random_range(0..8);
            return bytes(seed, 1000 * (seed as usize + 1));
        }
        bytes(rng.random(), len)
    }

    fn syncs(&self, rng: &mut StdRng) -> bool {
        rng.random_range(0..100) < self.sync_percent
    }

    /// Makes one change. An error leaves the world with what may or may not have happened.
    pub fn change(&self, world: &mut World, rng: &mut StdRng) -> io::Result<()> {
        match rng.random_range(0..100) {
            0..35 => {
                let name = self.name(rng);
                let content = self.content(rng);
                let sync = self.syncs(rng);
                self.put(world, &name, content, sync)
            }
            35..45 => {
                // Written beside, moved over: how a careful program saves.
                let (name, content, sync) = (self.name(rng), self.content(rng), self.syncs(rng));
                self.put(world, "new", content, sync)?;
                self.rename(world, "new", &name)?;
                if sync {
                    File::open(world.dir())?.sync_all()?;
                    world.names_synced();
                }
                Ok(())
            }
            45..60 => self.append(world, rng),
            60..68 => self.overwrite(world, rng),
            68..76 => {
                let (Some(from), to) = (self.some(world, rng), self.name(rng)) else {
                    return Ok(());
                };
                self.rename(world, &from, &to)
            }
            76..80 => {
                let (Some(from), to) = (self.some(world, rng), self.name(rng)) else {
                    return Ok(());
                };
                if world.bytes(&to).is_some() {
                    return Ok(());
                }
                world.step(|names| {
                    names.insert(to.clone(), names[&from]);
                });
                fs::hard_link(world.path(&from), world.path(&to))?;
                world.answered();
                Ok(())
            }
            80..88 => {
                let Some(name) = self.some(world, rng) else {
                    return Ok(());
                };
                world.step(|names| {
                    names.remove(&name);
                });
                fs::remove_file(world.path(&name))?;
                world.answered();
                Ok(())
            }
            88..94 => {
                let Some(name) = self.some(world, rng) else {
                    return Ok(());
                };
                let mut content = world.bytes(&name).unwrap().to_vec();
                content.resize(rng.random_range(0..=content.len() + 100), 0);
                let file = OpenOptions::new().write(true).open(world.path(&name))?;
                let len = content.len() as u64;
                world.write(&name, content, true);
                file.set_len(len)?;
                close(file)?;
                world.answered();
                Ok(())
            }
            94..97 => {
                let Some(name) = self.some(world, rng) else {
                    return Ok(());
                };
                File::open(world.path(&name))?.sync_all()?;
                world.synced(&name);
                Ok(())
            }
            _ => {
                let Some(name) = self.some(world, rng) else {
                    return Ok(());
                };
                let found = fs::read(world.path(&name))?;
                assert!(Some(&found[..]) == world.bytes(&name), "{name}");
                Ok(())
            }
        }
    }

    fn put(&self, world: &mut World, name: &str, content: Vec<u8>, sync: bool) -> io::Result<()> {
        if world.bytes(name).is_none() {
            world.create(name);
        }
        let parts = content.clone();
        // A program that knows the length before it has the bytes.
        let lengthen = parts.first().is_some_and(|b| b % 4 == 0);
        if lengthen {
            world.lengthen(name, parts.len());
        }
        world.write(name, content, false);
        let mut file = File::create(world.path(name))?;
        if lengthen {
            file.set_len(parts.len() as u64)?;
        }
        for part in parts.chunks(64 << 10) {
            file.write_all(part)?;
        }
        self.end(world, name, file, sync)
    }

    fn end(&self, world: &mut World, name: &str, file: File, sync: bool) -> io::Result<()> {
        if sync {
            file.sync_all()?;
            world.synced(name);
        }
        close(file)?;
        world.answered();
        Ok(())
    }

    fn rename(&self, world: &mut World, from: &str, to: &str) -> io::Result<()> {
        world.rename(from, to);
        fs::rename(world.path(from), world.path(to))?;
        world.answered();
        Ok(())
    }

    fn append(&self, world: &mut World, rng: &mut StdRng) -> io::Result<()> {
        let Some(name) = self.some(world, rng) else {
            return Ok(());
        };
        let more = bytes(rng.random(), rng.random_range(1..=self.usual));
        let mut content = world.bytes(&name).unwrap().to_vec();
        content.extend(&more);
        let mut file = OpenOptions::new().append(true).open(world.path(&name))?;
        world.write(&name, content, true);
        file.write_all(&more)?;
        let sync = self.syncs(rng);
        self.end(world, &name, file, sync)
    }

    fn overwrite(&self, world: &mut World, rng: &mut StdRng) -> io::Result<()> {
        let Some(name) = self.some(world, rng) else {
            return Ok(());
        };
        let mut content = world.bytes(&name).unwrap().to_vec();
        if content.is_empty() {
            return Ok(());
        }
        let at = rng.random_range(0..content.len());
        let len = rng.random_range(1..=(content.len() - at).min(9000));
        let new = bytes(rng.random(), len);
        content[at..at + len].copy_from_slice(&new);
        let file = OpenOptions::new().write(true).open(world.path(&name))?;
        world.write(&name, content, true);
        file.write_all_at(&new, at as u64)?;
        let sync = self.syncs(rng);
        self.end(world, &name, file, sync)
    }
}

/// Fails unless everything in the mount is stored under the hash of its bytes and nothing is left over: no spool file,
/// no content that no file has, no content that is not what its name says.
pub fn check_stored(m: &Mount, worlds: &[World]) {
    m.wait_stored();
    m.wait_spool_empty();
    let mut known = BTreeSet::new();
    for world in worlds {
        for name in world.list() {
            let content = fs::read(world.path(&name)).unwrap();
            let hash = sha256(&content);
            let said = xattr(&world.path(&name), "user.oncefs.sha256");
            assert_eq!(said.as_ref(), Some(&hash), "{name}");
        }
        known.extend(world.hashes());
    }
    // A file that was never written has no content on the disk; one that was written and is empty has.
    let empty = sha256(b"");
    known.remove(&empty);
    becomes(Duration::from_secs(30), (Vec::new(), Vec::new()), || {
        let there: BTreeSet<String> = m.contents().into_iter().filter(|h| *h != empty).collect();
        let less = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect();
        // What nobody has, and what is missing.
        let differs: (Vec<String>, Vec<String>) = (less(&there, &known), less(&known, &there));
        differs
    });
    for hash in m.contents() {
        let path = m.data().join("content").join(&hash[..2]).join(&hash);
        // It may go while this looks at it.
        if let Ok(content) = fs::read(path) {
            assert_eq!(sha256(&content), hash);
        }
    }
    let tmp = m.data().join("tmp");
    assert!(fs::read_dir(tmp).unwrap().next().is_none());
    becomes(Duration::from_secs(10), 0, || {
        let spares = fs::read_dir(m.data().join("spare")).unwrap();
        // One may be made a spool file while this looks at it.
        let sizes = spares.filter_map(|e| Some(e.unwrap().metadata().ok()?.len()));
        sizes.sum()
    });
}
