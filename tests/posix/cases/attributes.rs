//! Permissions, owners, set-id bits, times.

use libc::*;

use super::*;

pub(super) fn file_permissions(cases: &mut Cases) {
    for bits in 0..8 {
        for (who, shift) in [(OWNER, 6), (MEMBER, 3), (STRANGER, 0)] {
            for kind in [Kind::File, Kind::Dir, Kind::Fifo] {
                let setup = make_for(kind, "x", bits << shift, OWNER.uid, GROUP);
                let x = || "x".to_string();
                let calls = [
                    ("open r", Open(x(), O_RDONLY | O_NONBLOCK, 0)),
                    ("open w", Open(x(), O_WRONLY | O_NONBLOCK, 0)),
                    ("open rw", Open(x(), O_RDWR | O_NONBLOCK, 0)),
                    ("open trunc", Open(x(), O_RDONLY | O_TRUNC | O_NONBLOCK, 0)),
                    ("truncate", Truncate(x(), 7)),
                    ("utimens now", Utimens(x(), NOW, NOW, true)),
                    ("utimens omit", Utimens(x(), OMIT, OMIT, true)),
                    ("utimens now omit", Utimens(x(), NOW, OMIT, true)),
                    ("utimens", Utimens(x(), (1, 2), (3, 4), true)),
                    ("chmod", Chmod(x(), 0o6755)),
                    ("access r", Access(x(), R_OK)),
                    ("access w", Access(x(), W_OK)),
                    ("access x", Access(x(), X_OK)),
                ];
                for (call, op) in calls {
                    cases.add(
                        format!("{call} {kind:?} that gives {bits} to {}", who.name),
                        setup.clone(),
                        acting(who, [op]),
                    );
                }
            }
        }
    }
}

pub(super) fn changing_modes(cases: &mut Cases) {
    for kind in KINDS {
        for gid in [GROUP, STRANGE_GROUP] {
            for mode in [0, 0o111, 0o644, 0o1777, 0o2777, 0o4777, 0o7777, 0o2666] {
                for who in ACTORS {
                    let mut setup = make_for(kind, "x", 0o640, OWNER.uid, gid);
                    setup.extend(file("target", 0o600));
                    cases.add(
                        format!("chmod {mode:o} {kind:?} of group {gid} as {}", who.name),
                        setup,
                        acting(who, [Chmod("x".into(), mode), Stat("x".into())]),
                    );
                }
            }
        }
    }
}

pub(super) fn changing_owners(cases: &mut Cases) {
    for kind in KINDS {
        for mode in [0o755, 0o6755, 0o6644, 0o2745, 0o4711, 0o7777] {
            for (uid, gid) in [
                (-1, -1),
                (OWNER.uid as i64, -1),
                (-1, GROUP as i64),
                (-1, OTHER_GROUP as i64),
                (-1, STRANGE_GROUP as i64),
                (MEMBER.uid as i64, -1),
                (MEMBER.uid as i64, OTHER_GROUP as i64),
                (0, 0),
            ] {
                for who in [ROOT, OWNER, MEMBER] {
                    let setup = make_for(kind, "x", mode, OWNER.uid, GROUP);
                    cases.add(
                        format!("lchown {uid} {gid} {kind:?} {mode:o} as {}", who.name),
                        setup,
                        acting(who, [Lchown("x".into(), uid, gid)]),
                    );
                }
            }
        }
    }
    // The owner of a file of a group that they are not in.
    for mode in [0o2755, 0o2745, 0o6666] {
        cases.add(
            format!("lchown -1 -1 {mode:o} of a strange group"),
            make_for(Kind::File, "x", mode, OWNER.uid, STRANGE_GROUP),
            acting(
                OWNER,
                [
                    Lchown("x".into(), -1, -1),
                    Lchown("x".into(), -1, GROUP.into()),
                ],
            ),
        );
    }
}

pub(super) fn set_ids_and_writing(cases: &mut Cases) {
    for mode in [0o6777, 0o4777, 0o2777, 0o2767, 0o6766, 0o1777] {
        for gid in [GROUP, STRANGE_GROUP] {
            for who in [ROOT, OWNER, STRANGER] {
                let hold = |flags| Hold("x".into(), flags, 0);
                let ways: Vec<(&str, Vec<Op>)> = vec![
                    ("write", vec![hold(O_WRONLY), FWrite("text"), FStat, Close]),
                    (
                        "write of nothing",
                        vec![hold(O_WRONLY), FWrite(""), FStat, Close],
                    ),
                    (
                        "append",
                        vec![hold(O_WRONLY | O_APPEND), FWrite("text"), FStat, Close],
                    ),
                    ("open only", vec![hold(O_RDWR), FStat, Close]),
                    ("open trunc", vec![hold(O_WRONLY | O_TRUNC), FStat, Close]),
                    ("truncate", vec![Truncate("x".into(), 2)]),
                    ("truncate to the same", vec![Truncate("x".into(), 0)]),
                    (
                        "ftruncate",
                        vec![hold(O_WRONLY), FTruncate(3), FStat, Close],
                    ),
                    (
                        "fallocate",
                        vec![hold(O_WRONLY), FAllocate(0, 0, 100), FStat, Close],
                    ),
                    ("read", vec![hold(O_RDONLY), FRead, FStat, Close]),
                    ("utimens", vec![Utimens("x".into(), NOW, NOW, true)]),
                    ("link", vec![Link("x".into(), "y".into())]),
                    ("rename", vec![Rename("x".into(), "y".into(), 0)]),
                ];
                for (way, ops) in ways {
                    let mut setup = vec![Chmod(".".into(), 0o777)];
                    setup.extend(make_for(Kind::File, "x", mode, OWNER.uid, gid));
                    cases.add(
                        format!("{way} {mode:o} of group {gid} as {}", who.name),
                        setup,
                        acting(who, ops),
                    );
                }
            }
        }
    }
    // Written by somebody who was given the descriptor of a stored file and could not have opened it.
    for who in [ROOT, OWNER, MEMBER, STRANGER] {
        for mode in [0o6755, 0o4755, 0o2755, 0o755] {
            for flags in [O_RDWR, O_WRONLY | O_APPEND] {
                let setup = vec![
                    Hold("x".into(), O_CREAT | O_WRONLY, 0o755),
                    FWrite("stored"),
                    Close,
                    Chmod("x".into(), mode),
                ];
                let mut act = vec![Hold("x".into(), flags, 0)];
                act.extend(acting(who, [FWrite("text"), FWrite("more"), FStat, Close]));
                cases.add(
                    format!("{mode:o} written by {} through root's {flags:#x}", who.name),
                    setup,
                    act,
                );
            }
        }
    }
    // Set while a writer has the file open.
    for who in [ROOT, OWNER, STRANGER] {
        for mode in [0o6777, 0o2767] {
            for written in [true, false] {
                let mut act = acting(who, [Hold("x".into(), O_WRONLY, 0), FWrite("one")]);
                act.extend(acting(ROOT, [Chmod("x".into(), mode), FStat]));
                act.push(Become(who));
                if written {
                    act.push(FWrite("two"));
                }
                act.extend([Close, Stat("x".into())]);
                cases.add(
                    format!(
                        "{mode:o} set while open, then written: {written} as {}",
                        who.name
                    ),
                    file("x", 0o777),
                    act,
                );
            }
        }
    }
}

pub(super) fn times(cases: &mut Cases) {
    let stamps: [Stamp; 12] = [
        NOW,
        OMIT,
        (0, 0),
        (1, 999_999_999),
        (1_500_000_000, 123_456_789),
        (-1, 500_000_000),
        (-1, 0),
        (-86_400 * 365 * 60, 1),
        (2_147_483_647, 999_999_999),
        (2_147_483_648, 1),
        (4_294_967_296, 5),
        (9_000_000_000, 6),
    ];
    for kind in KINDS {
        for a in stamps {
            for m in stamps {
                for follow in [true, false] {
                    // Both ways matter for links only.
                    if !follow && kind != Kind::Symlink && (a != m || a.0 != 0) {
                        continue;
                    }
                    let mut setup = make_for(kind, "x", 0o644, OWNER.uid, GROUP);
                    if kind == Kind::Symlink {
                        setup.extend(file("target", 0o644));
                    }
                    cases.add(
                        format!("utimens {kind:?} {a:?} {m:?} follow {follow}"),
                        setup,
                        acting(OWNER, [Utimens("x".into(), a, m, follow)]),
                    );
                }
            }
        }
    }
    for nanos in [-1, 1_000_000_000, UTIME_NOW + 1, UTIME_OMIT + 1] {
        cases.add(
            format!("utimens with {nanos} nanoseconds"),
            file("x", 0o644),
            vec![Utimens("x".into(), (1, nanos), (1, 1), true)],
        );
    }
    // Which times move when a file is written, and what closing does to them.
    let x = || "x".to_string();
    let ways: Vec<(&str, Vec<Op>)> = vec![
        ("write", vec![Hold(x(), O_WRONLY, 0), FWrite("a"), Close]),
        (
            "write of nothing",
            vec![Hold(x(), O_WRONLY, 0), FWrite(""), Close],
        ),
        ("open and close", vec![Hold(x(), O_RDWR, 0), Close]),
        ("open and fsync", vec![Hold(x(), O_RDWR, 0), FSync, Close]),
        ("open trunc", vec![Open(x(), O_WRONLY | O_TRUNC, 0)]),
        ("open creat", vec![Open(x(), O_WRONLY | O_CREAT, 0o644)]),
        ("truncate same", vec![Truncate(x(), 0)]),
        ("truncate", vec![Truncate(x(), 10)]),
        (
            "ftruncate same",
            vec![Hold(x(), O_WRONLY, 0), FTruncate(0), Close],
        ),
        (
            "ftruncate",
            vec![Hold(x(), O_WRONLY, 0), FTruncate(9), Close],
        ),
        (
            "fallocate",
            vec![Hold(x(), O_WRONLY, 0), FAllocate(0, 0, 9), Close],
        ),
        (
            "fallocate keep",
            vec![
                Hold(x(), O_WRONLY, 0),
                FAllocate(FALLOC_FL_KEEP_SIZE, 0, 9),
                Close,
            ],
        ),
        (
            "write and set",
            vec![
                Hold(x(), O_WRONLY, 0),
                FWrite("a"),
                FUtimens((5, 5), (6, 6)),
                Close,
            ],
        ),
        (
            "set and write",
            vec![
                Hold(x(), O_WRONLY, 0),
                FUtimens((5, 5), (6, 6)),
                FWrite("a"),
                Close,
            ],
        ),
        (
            "write, chmod",
            vec![Hold(x(), O_WRONLY, 0), FWrite("a"), FChmod(0o600), Close],
        ),
        ("chmod same", vec![Chmod(x(), 0o644)]),
        ("mkdir", vec![Mkdir("d/n".into(), 0o755)]),
        ("rmdir", vec![Rmdir("d/e".into())]),
        ("symlink", vec![Symlink("a".into(), "d/l".into())]),
        (
            "failed create",
            vec![Open("d/e".into(), O_CREAT | O_EXCL | O_WRONLY, 0o644)],
        ),
        ("failed rmdir", vec![Rmdir("d".into())]),
    ];
    for (way, ops) in ways {
        let mut setup = file("x", 0o644);
        setup.extend([make(Kind::Dir, "d", 0o755), make(Kind::Dir, "d/e", 0o755)]);
        cases.add(format!("times after {way}"), setup, ops);
    }
}
