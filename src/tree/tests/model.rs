//! Random ops against a reference model: a few maps with the rules of the manual pages, compared after every step.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What the model keeps of an inode. Link counts, parents and everything else that follows from the names is computed.
#[derive(Clone, Debug)]
struct Node {
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    times: [Time; 3],
    generation: u64,
    body: Body,
    /// It had content of its own in the store.
    committed: bool,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug)]
struct Stored {
    size: u64,
    blob: BlobId,
    unreferenced_at: Option<Time>,
}

#[derive(Clone, Debug)]
struct Model {
    nodes: BTreeMap<Ino, Node>,
    names: BTreeMap<(Ino, Vec<u8>), Ino>,
    contents: BTreeMap<ContentHash, Stored>,
    buried: BTreeSet<String>,
}

impl Node {
    fn is(&self, kind: u32) -> bool {
        self.mode & libc::S_IFMT == kind
    }

    fn hash(&self) -> Option<ContentHash> {
        match &self.body {
            Body::Empty => None,
            Body::Pending { previous, .. } => *previous,
            Body::Stored { hash, .. } => Some(*hash),
        }
    }
}

type Done = Result<()>;

impl Model {
    fn new(root: &Inode) -> Model {
        let node = Node {
            mode: root.mode,
            uid: root.uid,
            gid: root.gid,
            size: root.size,
            times: [root.atime, root.mtime, root.ctime],
            generation: 0,
            body: Body::Empty,
            committed: false,
            xattrs: BTreeMap::new(),
        };
        Model {
            nodes: [(Ino::ROOT, node)].into(),
            names: BTreeMap::new(),
            contents: BTreeMap::new(),
            buried: BTreeSet::new(),
        }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.nodes[&ino].is(libc::S_IFDIR)
    }

    fn dir(&self, ino: Ino) -> Done {
        match self.nodes.get(&ino) {
            None => Err(TreeError::NotFound),
            Some(_) if self.is_dir(ino) => Ok(()),
            Some(_) => Err(TreeError::NotDirectory),
        }
    }

    fn child(&self, parent: Ino, name: &[u8]) -> Result<Ino> {
        let found = self.names.get(&(parent, name.to_vec()));
        found.copied().ok_or(TreeError::NotFound)
    }

    fn node(&mut self, ino: Ino) -> Result<&mut Node> {
        self.nodes.get_mut(&ino).ok_or(TreeError::NotFound)
    }

    fn is_empty(&self, dir: Ino) -> bool {
        self.names.keys().all(|(p, _)| *p != dir)
    }

    fn parent_of(&self, dir: Ino) -> Ino {
        let named = self.names.iter().find(|(_, i)| **i == dir);
        named.map_or(Ino::ROOT, |((p, _), _)| *p)
    }

    fn is_below(&self, mut dir: Ino, ancestor: Ino) -> bool {
        while dir != ancestor {
            if dir == Ino::ROOT {
                return false;
            }
            dir = self.parent_of(dir);
        }
        true
    }

    fn touch_dir(&mut self, dir: Ino, now: Time) {
        let node = self.nodes.get_mut(&dir).unwrap();
        node.times[1] = now;
        node.times[2] = now;
    }

    fn inode(&self, ino: Ino) -> Option<Inode> {
        let node = self.nodes.get(&ino)?;
        let is_dir = self.is_dir(ino);
        let names = self.names.values().filter(|i| **i == ino).count();
        let below = self
            .names
            .iter()
            .filter(|((p, _), i)| *p == ino && self.is_dir(**i))
            .count();
        Some(Inode {
            ino,
            mode: node.mode,
            nlink: if is_dir { 2 + below } else { names } as u32,
            uid: node.uid,
            gid: node.gid,
            rdev: 0,
            size: node.size,
            atime: node.times[0],
            mtime: node.times[1],
            ctime: node.times[2],
            generation: Generation(node.generation),
            body: node.body.clone(),
            parent: is_dir.then(|| self.parent_of(ino)),
        })
    }

    /// After every op: contents that lost their last file, inodes that lost their last name.
    fn collect(&mut self, now: Time) {
        let named: BTreeSet<Ino> = self.names.values().copied().collect();
        self.nodes
            .retain(|i, _| *i == Ino::ROOT || named.contains(i));
        let used: BTreeSet<_> = self.nodes.values().filter_map(Node::hash).collect();
        for (hash, content) in &mut self.contents {
            match used.contains(hash) {
                true => content.unreferenced_at = None,
                false => content.unreferenced_at = content.unreferenced_at.or(Some(now)),
            }
        }
    }

    fn run(&mut self, op: &Op) -> Done {
        let mut next = self.clone();
        let now = next.apply(op)?;
        next.collect(now);
        *self = next;
        Ok(())
    }

    fn apply(&mut self, op: &Op) -> Result<Time> {
        match op {
            Op::Create {
                parent,
                name,
                ino,
                mode,
                uid,
                gid,
                now,
                ..
            } => {
                self.dir(*parent)?;
                if self.child(*parent, name).is_ok() {
                    return Err(TreeError::Exists);
                }
                let above = &self.nodes[parent];
                let handed_on = above.mode & libc::S_ISGID;
                let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
                let node = Node {
                    mode: mode | if is_dir { handed_on } else { 0 },
                    uid: *uid,
                    gid: if handed_on != 0 { above.gid } else { *gid },
                    size: if is_dir { 4096 } else { 0 },
                    times: [*now; 3],
                    generation: 0,
                    body: Body::Empty,
                    committed: false,
                    xattrs: BTreeMap::new(),
                };
                self.nodes.insert(*ino, node);
                self.names.insert((*parent, name.to_vec()), *ino);
                self.touch_dir(*parent, *now);
                Ok(*now)
            }
            Op::Link {
                ino,
                parent,
                name,
                now,
            } => {
                self.dir(*parent)?;
                self.node(*ino)?;
                if self.is_dir(*ino) {
                    return Err(TreeError::NotPermitted);
                }
                if self.child(*parent, name).is_ok() {
                    return Err(TreeError::Exists);
                }
                self.names.insert((*parent, name.to_vec()), *ino);
                self.disinherit(*ino)?;
                self.node(*ino)?.times[2] = *now;
                self.touch_dir(*parent, *now);
                Ok(*now)
            }
            Op::Unlink { parent, name, now } | Op::Rmdir { parent, name, now } => {
                self.dir(*parent)?;
                let ino = self.child(*parent, name)?;
                match (matches!(op, Op::Rmdir { .. }), self.is_dir(ino)) {
                    (true, false) => return Err(TreeError::NotDirectory),
                    (false, true) => return Err(TreeError::IsDirectory),
                    (true, true) if !self.is_empty(ino) => return Err(TreeError::NotEmpty),
                    _ => {}
                }
                self.names.remove(&(*parent, name.to_vec()));
                self.node(ino)?.times[2] = *now;
                self.touch_dir(*parent, *now);
                Ok(*now)
            }
            Op::Rename {
                parent,
                name,
                new_parent,
                new_name,
                mode,
                now,
            } => self.rename(
                (*parent, name.to_vec()),
                (*new_parent, new_name.to_vec()),
                *mode,
                *now,
            ),
            Op::SetAttr {
                ino,
                mode,
                uid,
                gid,
                atime,
                mtime,
                now,
            } => {
                let node = self.node(*ino)?;
                let kind = node.mode & libc::S_IFMT;
                // A file that changes hands loses its set-id bits.
                let lost = match kind {
                    libc::S_IFREG if node.mode & 0o010 != 0 => 0o6000,
                    libc::S_IFREG => 0o4000,
                    _ => 0,
                };
                let kept = if uid.or(*gid).is_some() { !lost } else { !0 };
                node.mode = mode.map_or(node.mode & kept, |m| kind | m & 0o7777);
                node.uid = uid.unwrap_or(node.uid);
                node.gid = gid.unwrap_or(node.gid);
                node.times = [
                    atime.unwrap_or(node.times[0]),
                    mtime.unwrap_or(node.times[1]),
                    *now,
                ];
                Ok(*now)
            }
            Op::SetXattr {
                ino,
                name,
                value,
                mode,
                now,
            } => {
                let node = self.node(*ino)?;
                match (mode, node.xattrs.contains_key(&name[..])) {
                    (XattrMode::Create, true) => return Err(TreeError::Exists),
                    (XattrMode::Replace, false) => return Err(TreeError::NoAttribute),
                    _ => {}
                }
                node.xattrs.insert(name.to_vec(), value.to_vec());
                node.times[2] = *now;
                Ok(*now)
            }
            Op::RemoveXattr { ino, name, now } => {
                let node = self.node(*ino)?;
                node.xattrs
                    .remove(&name[..])
                    .ok_or(TreeError::NoAttribute)?;
                node.times[2] = *now;
                Ok(*now)
            }
            Op::Pending {
                ino,
                generation,
                node: at,
                size,
                mtime,
                ctime,
            } => {
                let node = self.node(*ino)?;
                if !node.is(libc::S_IFREG) {
                    return Err(TreeError::Invalid);
                }
                let mine = matches!(&node.body, Body::Pending { node, .. } if node == at);
                let oldest = if mine {
                    node.generation
                } else {
                    node.generation + 1
                };
                if generation.0 < oldest {
                    return Err(TreeError::Superseded);
                }
                node.body = Body::Pending {
                    node: at.clone(),
                    previous: node.hash(),
                };
                node.generation = generation.0;
                node.size = *size;
                node.times[1] = *mtime;
                node.times[2] = *ctime;
                Ok(*ctime)
            }
            Op::Commit {
                ino,
                generation,
                hash,
                size,
                blob,
                by,
                now,
            } => {
                let node = self.node(*ino)?;
                let theirs = matches!(&node.body, Body::Pending { node, .. } if *node == by.node);
                if !theirs || node.generation != generation.0 {
                    return Err(TreeError::Superseded);
                }
                let duplicate = match self.contents.get(hash) {
                    Some(known) if known.blob == *blob => true,
                    Some(_) => return Err(TreeError::Reaped),
                    None if self.buried.contains(&blob.0) => return Err(TreeError::Reaped),
                    None => false,
                };
                if !duplicate {
                    let content = Stored {
                        size: *size,
                        blob: blob.clone(),
                        unreferenced_at: None,
                    };
                    self.contents.insert(*hash, content);
                }
                let node = self.node(*ino)?;
                node.size = *size;
                node.committed = true;
                node.body = Body::Stored {
                    hash: *hash,
                    duplicate,
                };
                Ok(*now)
            }
            Op::Reap { hash, now } => {
                let content = self.contents.get(hash).ok_or(TreeError::NotFound)?;
                if content.unreferenced_at.is_none() {
                    return Err(TreeError::InUse);
                }
                self.buried.insert(content.blob.0.clone());
                self.contents.remove(hash);
                Ok(*now)
            }
            Op::Bury { blob, now } => {
                if self.contents.values().any(|c| c.blob == *blob) {
                    return Err(TreeError::InUse);
                }
                self.buried.insert(blob.0.clone());
                Ok(*now)
            }
            Op::Replace {
                hash,
                lost,
                blob,
                now,
            } => {
                let buried = self.buried.contains(&blob.0);
                match self.contents.get_mut(hash) {
                    Some(content) if content.blob == *lost && blob != lost && !buried => {
                        content.blob = blob.clone();
                    }
                    _ => return Err(TreeError::Reaped),
                }
                self.buried.insert(lost.0.clone());
                Ok(*now)
            }
        }
    }

    /// What a file took over from one that it replaced is not its own under another name.
    fn disinherit(&mut self, ino: Ino) -> Result<()> {
        let node = self.node(ino)?;
        if let Body::Pending { previous, .. } = &mut node.body
            && !node.committed
        {
            *previous = None;
        }
        Ok(())
    }

    fn rename(
        &mut self,
        from: (Ino, Vec<u8>),
        to: (Ino, Vec<u8>),
        mode: RenameMode,
        now: Time,
    ) -> Result<Time> {
        self.dir(from.0)?;
        self.dir(to.0)?;
        let source = self.child(from.0, &from.1)?;
        let target = self.child(to.0, &to.1).ok();
        if self.is_dir(source) && self.is_below(to.0, source) {
            return Err(TreeError::Invalid);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(TreeError::Exists),
            (RenameMode::Exchange, None) => return Err(TreeError::NotFound),
            (_, Some(target)) if target == source => return Ok(now),
            (RenameMode::Exchange, Some(target)) => {
                if self.is_dir(target) && self.is_below(from.0, target) {
                    return Err(TreeError::Invalid);
                }
            }
            (RenameMode::Replace, Some(target)) => {
                match (self.is_dir(source), self.is_dir(target)) {
                    (true, true) if !self.is_empty(target) => return Err(TreeError::NotEmpty),
                    (true, false) => return Err(TreeError::NotDirectory),
                    (false, true) => return Err(TreeError::IsDirectory),
                    _ => {}
                }
            }
            (_, None) => {}
        }
        self.disinherit(source)?;
        if let Some(target) = target {
            if mode == RenameMode::Exchange {
                self.disinherit(target)?;
            } else if let Body::Stored { hash, .. } = self.node(target)?.body
                && self.names.values().filter(|ino| **ino == source).count() == 1
                && let Body::Pending {
                    previous: previous @ None,
                    ..
                } = &mut self.node(source)?.body
            {
                *previous = Some(hash);
            }
        }
        self.touch_dir(from.0, now);
        self.touch_dir(to.0, now);
        self.names.remove(&from);
        if let Some(target) = target {
            self.node(target)?.times[2] = now;
            if mode == RenameMode::Exchange {
                self.names.insert(from, target);
            }
        }
        self.names.insert(to, source);
        self.node(source)?.times[2] = now;
        Ok(now)
    }
}

/// An op before its numbers are known: small numbers that pick among what exists when it runs, so that any part of a
/// failing sequence is still a sequence.
#[derive(Clone, Debug)]
struct Pick {
    what: u8,
    a: u8,
    b: u8,
    n: u8,
    m: u8,
    x: u8,
}

fn picks(what: &'static [u8]) -> impl Strategy<Value = Vec<Pick>> {
    let what = proptest::sample::select(what);
    let pick = (what, any::<u8>(), any::<u8>(), 0..3u8, 0..3u8, 0..6u8).prop_map(
        |(what, a, b, n, m, x)| Pick {
            what,
            a,
            b,
            n,
            m,
            x,
        },
    );
    proptest::collection::vec(pick, 1..60)
}

/// Weights of the ops by how often they are named: first the names, then the contents.
const NAMING: &[u8] = &[
    0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 5, 5, 5, 5, 6, 7, 8, 9, 10, 11, 12,
];
const STORING: &[u8] = &[0, 0, 2, 3, 5, 9, 9, 9, 9, 10, 10, 10, 10, 11, 11, 12, 13];

const NAMES: [&[u8]; 3] = [b"a", b"\xffb", b"c"];

/// `inos` are all numbers ever used, the dead ones included; `dirs` those that are directories.
fn op_of(p: &Pick, now: Time, next: Ino, model: &Model, inos: &[Ino], dirs: &[Ino]) -> Op {
    // Mostly the newest, so that trees grow deep and files have histories.
    let among = |list: &[Ino], k: u8| list[list.len() - 1 - k as usize % list.len().min(6)];
    let (ino, dir, dir2) = (among(inos, p.a), among(dirs, p.a), among(dirs, p.b));
    let (name, name2) = (bytes(NAMES[p.n as usize]), bytes(NAMES[p.m as usize]));
    let some = |bit: u8, value: u32| (p.b & bit != 0).then_some(value);
    let current = model.nodes.get(&ino).map_or(1, |n| n.generation);
    match p.what {
        0 => create_op(next, dir, &name, FILE, now),
        1 => create_op(next, dir, &name, DIR, now),
        2 => Op::Link {
            ino,
            parent: dir2,
            name,
            now,
        },
        3 => Op::Unlink {
            parent: dir,
            name,
            now,
        },
        4 => Op::Rmdir {
            parent: dir,
            name,
            now,
        },
        5 => Op::Rename {
            parent: dir,
            name,
            new_parent: dir2,
            new_name: name2,
            mode: [
                RenameMode::Replace,
                RenameMode::Exchange,
                RenameMode::NoReplace,
            ][p.x as usize % 3],
            now,
        },
        6 => Op::SetAttr {
            ino,
            mode: some(1, 0o2755 + p.x as u32),
            uid: some(2, p.x as u32),
            gid: some(4, p.x as u32),
            atime: some(8, p.x as u32).map(|t| Time(-(t as i64))),
            mtime: some(16, p.x as u32).map(|t| Time(t as i64)),
            now,
        },
        7 => Op::SetXattr {
            ino,
            name,
            value: bytes(vec![p.m; p.m as usize]),
            mode: [XattrMode::Set, XattrMode::Create, XattrMode::Replace][p.x as usize % 3],
            now,
        },
        8 => Op::RemoveXattr { ino, name, now },
        9 => Op::Pending {
            ino,
            generation: Generation(current + [0, 1, 1, 1, 1, 2][p.x as usize]),
            node: NodeId(format!("n{}", p.n / 2)),
            size: p.b as u64,
            mtime: now,
            ctime: now,
        },
        10 => Op::Commit {
            ino,
            generation: Generation(current + [0, 0, 0, 0, 0, 1][p.x as usize]),
            hash: hash(p.n),
            size: p.n as u64,
            blob: BlobId(format!("{}-{}", p.n, p.m / 2)),
            by: by(),
            now,
        },
        11 => Op::Reap {
            hash: hash(p.n),
            now,
        },
        12 => Op::Bury {
            blob: BlobId(format!("{}-{}", p.n, p.m / 2)),
            now,
        },
        _ => Op::Replace {
            hash: hash(p.n),
            lost: BlobId(format!("{}-{}", p.n, p.x / 3)),
            blob: BlobId(format!("{}-{}", p.n, p.m / 2)),
            now,
        },
    }
}

fn compare(tree: &Tree, model: &Model, inos: &[Ino]) {
    tree.read(|q| {
        for ino in inos {
            let expected = model.inode(*ino);
            assert_eq!(q.inode(*ino).ok(), expected, "inode {ino}");
            let Some(expected) = expected else { continue };
            let names: Vec<_> = model.nodes[ino].xattrs.keys().cloned().collect();
            assert_eq!(q.xattr_names(*ino)?, names);
            for (name, value) in &model.nodes[ino].xattrs {
                assert_eq!(&q.xattr(*ino, name)?, value);
            }
            if expected.is_dir() {
                let mut listed: Vec<_> = q
                    .readdir(*ino, 0, 100)?
                    .into_iter()
                    .map(|d| (d.name, d.ino, d.mode))
                    .collect();
                listed.sort();
                let all = model.names.iter().filter(|((p, _), _)| p == ino);
                let expected: Vec<_> = all
                    .map(|((_, n), i)| (n.clone(), *i, model.nodes[i].mode))
                    .collect();
                assert_eq!(listed, expected);
                for name in NAMES {
                    let found = q.lookup(*ino, name).map(|i| i.ino);
                    assert_eq!(found, model.child(*ino, name));
                }
            }
        }
        for h in 0..3 {
            let found = q.content(&hash(h))?;
            let found = found.map(|c| (c.size, c.blob, c.unreferenced_at));
            let expected = model.contents.get(&hash(h)).cloned();
            assert_eq!(found, expected.map(|c| (c.size, c.blob, c.unreferenced_at)));
        }
        check_tables(q.0);
        Ok(())
    })
    .unwrap();
}

fn check(picks: &[Pick]) {
    let bed = Bed::new();
    let twin = Bed::new();
    let mut model = Model::new(&bed.inode(Ino::ROOT));
    let (mut inos, mut dirs) = (vec![Ino::ROOT], vec![Ino::ROOT]);
    for (i, pick) in picks.iter().enumerate() {
        let next = Ino(100 + i as u64);
        let op = op_of(pick, Time(i as i64 * 10 - 100), next, &model, &inos, &dirs);
        let before = dump(&bed.tree);
        let expected = model.run(&op);
        let result = bed.run(op.clone());
        assert_eq!(
            result.as_ref().map(|_| ()),
            expected.as_ref().map(|_| ()),
            "{op:?}"
        );
        assert_eq!(twin.run(op.clone()), result);
        match &result {
            Err(_) => assert_eq!(dump(&bed.tree), before, "{op:?} was refused"),
            Ok(applied) => {
                if let Some(inode) = applied.inode.as_ref().filter(|i| i.nlink > 0) {
                    assert_eq!(Some(inode), model.inode(inode.ino).as_ref(), "{op:?}");
                }
                if let Op::Create { mode, .. } = op {
                    inos.push(next);
                    if mode & libc::S_IFMT == libc::S_IFDIR {
                        dirs.push(next);
                    }
                }
            }
        }
        compare(&bed.tree, &model, &inos);
    }
    assert_eq!(dump(&twin.tree), dump(&bed.tree));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The tree does what the model does, and a second tree comes to the same rows.
    #[test]
    fn random_naming_does_what_the_model_says(picks in picks(NAMING)) {
        check(&picks);
    }

    /// The same for the way of contents.
    #[test]
    fn random_storing_does_what_the_model_says(picks in picks(STORING)) {
        check(&picks);
    }
}
