//! What can be done, on few names and in few places, so that the operations meet each other.

use proptest::prelude::*;

/// The names that operations use, all below one directory.
pub const PATHS: [&str; 8] = ["a", "b", "d", "e", "d/a", "d/b", "e/a", "d/e"];
/// How many files are open at the most.
pub const SLOTS: usize = 4;
/// How many mappings there are at the most.
pub const MAPS: usize = 2;
/// The length of a mapping.
pub const MAP_BYTES: usize = 48 << 10;

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub struct Flags {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
    pub create: bool,
    pub exclusive: bool,
}

/// One operation. Slots and maps are numbers, paths are places in [`PATHS`].
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Open(usize, usize, Flags),
    Close(usize),
    Append(usize, usize, u8),
    Write(usize, u64, usize, u8),
    Read(usize, u64, usize),
    Resize(usize, u64),
    Allocate(usize, i32, u64, u64),
    Copy(usize, u64, usize, u64, usize),
    Sync(usize),
    Map(usize, usize),
    MapWrite(usize, usize, usize, u8),
    MapSync(usize),
    Unmap(usize),
    WriteFile(usize, usize, u8),
    CopyFile(usize, usize),
    ReadFile(usize),
    Truncate(usize, u64),
    /// From, to, flags of renameat2(2).
    Rename(usize, usize, u32),
    Link(usize, usize),
    Symlink(usize, usize),
    Unlink(usize),
    MakeDir(usize),
    RemoveDir(usize),
    Mode(usize, u32),
    Times(usize, i64),
    SetAttribute(usize, u8, u8),
    RemoveAttribute(usize, u8),
    /// Lets everything be stored.
    Settle,
    /// Compares all there is.
    Compare,
    /// Ends the daemon in order and starts it again.
    Restart,
    /// Kills it and starts it again.
    Kill,
}

fn flags() -> impl Strategy<Value = Flags> {
    (0..4u8, any::<[bool; 2]>(), 0..3u8).prop_map(|(access, [append, truncate], create)| Flags {
        read: access != 1,
        write: access != 0,
        append: append && access != 0,
        truncate: truncate && access != 0,
        create: create > 0,
        exclusive: create > 1,
    })
}

/// A random operation.
pub fn op() -> impl Strategy<Value = Op> {
    let path = || 0..PATHS.len();
    let slot = || 0..SLOTS;
    let map = || 0..MAPS;
    let at = || prop_oneof![Just(0u64), 0..5000u64, 0..60_000u64];
    let len = || prop_oneof![1..200usize, Just(4096usize), 1..20_000usize];
    let fill = || 1..=255u8;
    prop_oneof![
        8 => (slot(), path(), flags()).prop_map(|(s, p, f)| Op::Open(s, p, f)),
        4 => slot().prop_map(Op::Close),
        3 => (slot(), len(), fill()).prop_map(|(s, l, f)| Op::Append(s, l, f)),
        8 => (slot(), at(), len(), fill()).prop_map(|(s, a, l, f)| Op::Write(s, a, l, f)),
        4 => (slot(), at(), len()).prop_map(|(s, a, l)| Op::Read(s, a, l)),
        3 => (slot(), at()).prop_map(|(s, a)| Op::Resize(s, a)),
        3 => (slot(), 0..5usize, at(), len()).prop_map(|(s, m, a, l)| {
            let modes = [
                0,
                libc::FALLOC_FL_KEEP_SIZE,
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                libc::FALLOC_FL_ZERO_RANGE,
                libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            ];
            Op::Allocate(s, modes[m], a, l as u64)
        }),
        3 => (slot(), at(), slot(), at(), len()).prop_map(|(s, a, t, b, l)| Op::Copy(s, a, t, b, l)),
        1 => slot().prop_map(Op::Sync),
        3 => (map(), slot()).prop_map(|(m, s)| Op::Map(m, s)),
        4 => (map(), 0..MAP_BYTES, len(), fill()).prop_map(|(m, a, l, f)| Op::MapWrite(m, a, l, f)),
        1 => map().prop_map(Op::MapSync),
        2 => map().prop_map(Op::Unmap),
        6 => (path(), len(), fill()).prop_map(|(p, l, f)| Op::WriteFile(p, l, f)),
        3 => (path(), path()).prop_map(|(p, q)| Op::CopyFile(p, q)),
        4 => path().prop_map(Op::ReadFile),
        2 => (path(), at()).prop_map(|(p, a)| Op::Truncate(p, a)),
        5 => (path(), path(), 0..3u32).prop_map(|(p, q, m)| Op::Rename(p, q, m)),
        2 => (path(), path()).prop_map(|(p, q)| Op::Link(p, q)),
        1 => (path(), path()).prop_map(|(p, q)| Op::Symlink(p, q)),
        3 => path().prop_map(Op::Unlink),
        3 => path().prop_map(Op::MakeDir),
        1 => path().prop_map(Op::RemoveDir),
        1 => (path(), 0..0o1000u32).prop_map(|(p, m)| Op::Mode(p, m)),
        1 => (path(), -2_000_000_000..4_000_000_000i64).prop_map(|(p, t)| Op::Times(p, t)),
        1 => (path(), 0..3u8, fill()).prop_map(|(p, n, v)| Op::SetAttribute(p, n, v)),
        1 => (path(), 0..3u8).prop_map(|(p, n)| Op::RemoveAttribute(p, n)),
        2 => Just(Op::Settle),
        2 => Just(Op::Compare),
        1 => Just(Op::Restart),
        1 => Just(Op::Kill),
    ]
}
