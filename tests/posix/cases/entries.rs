//! Making, renaming and linking every kind of file; who may, in sticky directories and without permission; link counts.

use libc::*;

use super::*;

pub(super) fn creating(cases: &mut Cases) {
    for kind in KINDS {
        for mode in [0o755, 0o644, 0, 0o1777, 0o2755, 0o4755, 0o7777, 0o2745] {
            for mask in [0, 0o22, 0o77, 0o777] {
                for (parent, gid) in [(0o777, GROUP), (0o2777, GROUP), (0o2777, STRANGE_GROUP)] {
                    for who in [ROOT, OWNER] {
                        if who != ROOT && matches!(kind, Kind::Block | Kind::Char) && mask != 0 {
                            continue;
                        }
                        cases.add(
                            format!("create {kind:?} {mode:o} umask {mask:o} in {parent:o} of {gid} as {}", who.name),
                            make_for(Kind::Dir, "d", parent, OWNER.uid, gid),
                            acting(who, [Umask(mask), make(kind, "d/new", mode), Umask(0)]),
                        );
                    }
                }
            }
        }
    }
}

pub(super) fn renaming_kinds(cases: &mut Cases) {
    #[derive(Clone, Copy, Debug)]
    enum Target {
        Nothing,
        A(Kind),
        FullDir,
        SameFile,
        Itself,
        Below,
        Above,
    }
    let targets = KINDS.map(Target::A).into_iter().chain([
        Target::Nothing,
        Target::FullDir,
        Target::SameFile,
        Target::Itself,
        Target::Below,
        Target::Above,
    ]);
    for target in targets {
        for from in KINDS {
            for flags in [
                0,
                RENAME_NOREPLACE,
                RENAME_EXCHANGE,
                RENAME_NOREPLACE | RENAME_EXCHANGE,
                1 << 7,
            ] {
                let mut setup = vec![
                    make(Kind::Dir, "a", 0o755),
                    make(Kind::Dir, "b", 0o755),
                    make(from, "a/from", 0o644),
                ];
                let mut to = "b/to";
                let mut source = "a/from";
                match target {
                    Target::Nothing => {}
                    Target::A(kind) => setup.push(make(kind, "b/to", 0o644)),
                    Target::FullDir => setup.extend([
                        make(Kind::Dir, "b/to", 0o755),
                        make(Kind::Dir, "b/to/x", 0o755),
                    ]),
                    Target::SameFile if from == Kind::Dir => continue,
                    Target::SameFile => setup.push(Link("a/from".into(), "b/to".into())),
                    Target::Itself => to = "a/from",
                    Target::Below => to = "a/from/x",
                    Target::Above => {
                        if from != Kind::Dir {
                            continue;
                        }
                        setup.push(make(Kind::File, "a/from/x", 0o644));
                        (source, to) = ("a/from/x", "a/from");
                    }
                }
                cases.add(
                    format!("rename {from:?} to {target:?} with {flags}"),
                    setup,
                    vec![Rename(source.into(), to.into(), flags)],
                );
            }
            if !matches!(target, Target::A(_) | Target::Nothing) {
                continue;
            }
            let mut setup = vec![make(from, "from", 0o644)];
            if let Target::A(kind) = target {
                setup.push(make(kind, "to", 0o644));
            }
            cases.add(
                format!("link {from:?} to {target:?}"),
                setup,
                vec![Link("from".into(), "to".into())],
            );
        }
    }
}

pub(super) fn sticky(cases: &mut Cases) {
    for dir_mode in [0o1777, 0o777] {
        for dir_owner in [ROOT, OWNER, STRANGER] {
            for owner in [ROOT, OWNER, STRANGER] {
                for who in [OWNER, MEMBER] {
                    for kind in [Kind::File, Kind::Dir, Kind::Symlink, Kind::Fifo] {
                        let mut setup = Vec::new();
                        for place in ["s", "t"] {
                            setup.extend(make_for(
                                Kind::Dir,
                                place,
                                dir_mode,
                                dir_owner.uid,
                                GROUP,
                            ));
                            setup.extend(make_for(
                                kind,
                                &format!("{place}/x"),
                                0o777,
                                owner.uid,
                                GROUP,
                            ));
                        }
                        setup.extend(make_for(Kind::Dir, "free", 0o777, who.uid, GROUP));
                        setup.extend(make_for(kind, "free/x", 0o777, who.uid, GROUP));
                        let calls = [
                            ("unlink", Unlink("s/x".into())),
                            ("rmdir", Rmdir("s/x".into())),
                            ("rename out", Rename("s/x".into(), "free/y".into(), 0)),
                            ("rename over", Rename("free/x".into(), "s/x".into(), 0)),
                            ("rename within", Rename("s/x".into(), "s/y".into(), 0)),
                            ("rename between", Rename("s/x".into(), "t/x".into(), 0)),
                            (
                                "exchange",
                                Rename("free/x".into(), "s/x".into(), RENAME_EXCHANGE),
                            ),
                            ("link", Link("s/x".into(), "s/y".into())),
                        ];
                        for (call, op) in calls {
                            cases.add(
                                format!(
                                    "{call} {kind:?} of {} in {dir_mode:o} of {} as {}",
                                    owner.name, dir_owner.name, who.name
                                ),
                                setup.clone(),
                                acting(who, [op]),
                            );
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn parent_permissions(cases: &mut Cases) {
    for bits in 0..8 {
        for (who, shift) in [(OWNER, 6), (MEMBER, 3), (STRANGER, 0)] {
            let mut setup = vec![Chmod(".".into(), 0o777)];
            setup.extend(dir("p", 0o777));
            setup.extend(make_for(Kind::File, "p/f", 0o666, who.uid, GROUP));
            setup.extend(make_for(Kind::Dir, "p/d", 0o777, who.uid, GROUP));
            setup.extend(make_for(Kind::Symlink, "p/l", 0o777, who.uid, GROUP));
            setup.extend(make_for(Kind::File, "f", 0o666, who.uid, GROUP));
            setup.push(Chmod("p".into(), bits << shift));
            let p = |name: &str| format!("p/{name}");
            let calls = [
                ("open creat", Open(p("new"), O_CREAT | O_WRONLY, 0o644)),
                (
                    "open creat present",
                    Open(p("f"), O_CREAT | O_WRONLY, 0o644),
                ),
                ("open", Open(p("f"), O_RDONLY, 0)),
                ("open none", Open(p("none"), O_RDONLY, 0)),
                ("opendir", Open("p".into(), O_RDONLY | O_DIRECTORY, 0)),
                ("mkdir", Mkdir(p("new"), 0o755)),
                ("mkdir present", Mkdir(p("d"), 0o755)),
                ("mkfifo", Mknod(p("new"), S_IFIFO | 0o644, 0)),
                ("symlink", Symlink("x".into(), p("new"))),
                ("link in", Link("f".into(), p("new"))),
                ("link out", Link(p("f"), "new".into())),
                ("unlink", Unlink(p("f"))),
                ("unlink none", Unlink(p("none"))),
                ("rmdir", Rmdir(p("d"))),
                ("rename out", Rename(p("f"), "new".into(), 0)),
                ("rename in", Rename("f".into(), p("new"), 0)),
                ("rename over", Rename("f".into(), p("f"), 0)),
                ("rename dir out", Rename(p("d"), "new".into(), 0)),
                ("stat", Stat(p("f"))),
                ("stat none", Stat(p("none"))),
                ("readlink", Readlink(p("l"))),
                ("chmod", Chmod(p("f"), 0o600)),
                ("lchown", Lchown(p("l"), -1, GROUP.into())),
                ("truncate", Truncate(p("f"), 3)),
                ("utimens", Utimens(p("f"), NOW, NOW, true)),
                ("access w", Access("p".into(), W_OK)),
                ("access x", Access("p".into(), X_OK)),
            ];
            for (call, op) in calls {
                cases.add(
                    format!("{call} in a directory that gives {bits} to {}", who.name),
                    setup.clone(),
                    acting(who, [op]),
                );
            }
        }
    }
    // A directory that moves to another parent has its `..` changed, which needs permission for it.
    for (who, owner) in [(MEMBER, OWNER), (OWNER, OWNER), (MEMBER, MEMBER)] {
        for mode in [0o755, 0o555, 0o775] {
            let mut setup = vec![Chmod(".".into(), 0o777)];
            setup.extend(make_for(Kind::Dir, "a", 0o777, OWNER.uid, GROUP));
            setup.extend(make_for(Kind::Dir, "b", 0o777, OWNER.uid, GROUP));
            setup.extend(make_for(Kind::Dir, "a/d", mode, owner.uid, GROUP));
            for to in ["b/d", "a/e"] {
                cases.add(
                    format!(
                        "rename directory {mode:o} of {} to {to} as {}",
                        owner.name, who.name
                    ),
                    setup.clone(),
                    acting(who, [Rename("a/d".into(), to.into(), 0)]),
                );
            }
        }
    }
}

pub(super) fn link_counts(cases: &mut Cases) {
    let d = |n: &str| make(Kind::Dir, n, 0o755);
    let ways: Vec<(&str, Vec<Op>)> = vec![
        ("mkdir twice", vec![d("a/x"), d("a/y"), Stat("a".into())]),
        ("rmdir", vec![Rmdir("a/one".into()), Stat("a".into())]),
        (
            "rename away",
            vec![Rename("a/one".into(), "b/one".into(), 0)],
        ),
        (
            "rename over",
            vec![Rename("a/one".into(), "b/two".into(), 0)],
        ),
        (
            "rename within over",
            vec![Rename("a/one".into(), "a/other".into(), 0)],
        ),
        (
            "exchange directories",
            vec![Rename("a/one".into(), "b/two".into(), RENAME_EXCHANGE)],
        ),
        (
            "exchange directory and file",
            vec![Rename("a/one".into(), "b/f".into(), RENAME_EXCHANGE)],
        ),
        (
            "exchange within",
            vec![Rename("a/one".into(), "a/f".into(), RENAME_EXCHANGE)],
        ),
        (
            "exchange with a parent",
            vec![Rename("a".into(), "a/one".into(), RENAME_EXCHANGE)],
        ),
        (
            "exchange with itself",
            vec![Rename("a".into(), "a".into(), RENAME_EXCHANGE)],
        ),
        ("into itself", vec![Rename("a".into(), "a/one/x".into(), 0)]),
        (
            "onto its parent",
            vec![Rename("a/one".into(), "a".into(), 0)],
        ),
        (
            "link three times",
            vec![
                Link("a/f".into(), "l1".into()),
                Link("l1".into(), "l2".into()),
                Link("l2".into(), "b/l3".into()),
                Unlink("a/f".into()),
                Rename("l1".into(), "l2".into(), 0),
                Rename("l2".into(), "b/f".into(), 0),
            ],
        ),
    ];
    for (way, ops) in ways {
        cases.add(
            format!("link counts: {way}"),
            vec![
                d("a"),
                d("b"),
                d("a/one"),
                d("a/other"),
                d("b/two"),
                make(Kind::File, "a/f", 0o644),
                make(Kind::File, "b/f", 0o644),
            ],
            ops,
        );
    }
}
