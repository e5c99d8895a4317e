//! Every shape of a path, every way to open, every length.

use libc::*;

use super::*;

/// Every call that takes one path.
fn one_path(path: &str) -> Vec<(&'static str, Op)> {
    let p = || path.to_string();
    vec![
        ("open", Open(p(), O_RDONLY | O_NONBLOCK, 0)),
        ("open write", Open(p(), O_WRONLY | O_NONBLOCK, 0)),
        (
            "open creat",
            Open(p(), O_CREAT | O_RDWR | O_NONBLOCK, 0o644),
        ),
        ("open excl", Open(p(), O_CREAT | O_EXCL | O_RDWR, 0o644)),
        ("open trunc", Open(p(), O_TRUNC | O_WRONLY | O_NONBLOCK, 0)),
        ("open directory", Open(p(), O_DIRECTORY, 0)),
        ("open nofollow", Open(p(), O_NOFOLLOW | O_NONBLOCK, 0)),
        ("mkdir", Mkdir(p(), 0o755)),
        ("mkfifo", Mknod(p(), S_IFIFO | 0o644, 0)),
        ("mknod", Mknod(p(), S_IFCHR | 0o644, makedev(1, 3))),
        ("symlink", Symlink("x".into(), p())),
        ("unlink", Unlink(p())),
        ("rmdir", Rmdir(p())),
        ("chmod", Chmod(p(), 0o700)),
        ("chown", Chown(p(), -1, GROUP.into())),
        ("lchown", Lchown(p(), -1, GROUP.into())),
        ("truncate", Truncate(p(), 5)),
        ("utimens", Utimens(p(), (5, 6), (7, 8), true)),
        ("lutimens", Utimens(p(), NOW, NOW, false)),
        ("stat", Stat(p())),
        ("lstat", Lstat(p())),
        ("readlink", Readlink(p())),
        ("access", Access(p(), R_OK)),
        ("rename from", Rename(p(), "elsewhere".into(), 0)),
        ("rename to", Rename("source".into(), p(), 0)),
        ("rename dir to", Rename("sourcedir".into(), p(), 0)),
        (
            "rename noreplace",
            Rename("source".into(), p(), RENAME_NOREPLACE),
        ),
        (
            "rename exchange",
            Rename("source".into(), p(), RENAME_EXCHANGE),
        ),
        ("link from", Link(p(), "elsewhere".into())),
        ("link to", Link("source".into(), p())),
    ]
}

pub(super) fn path_shapes(cases: &mut Cases) {
    let of_length = |n: usize| "./".repeat(n / 2 - 4) + &"f".repeat(8 + n % 2);
    let shapes = [
        "".to_string(),
        ".".into(),
        "..".into(),
        "/".into(),
        "none".into(),
        "none/x".into(),
        "none/".into(),
        "file/x".into(),
        "file/".into(),
        "file/.".into(),
        "file/..".into(),
        "fifo/x".into(),
        "dir/".into(),
        "dir//".into(),
        "dir/.".into(),
        "dir/..".into(),
        "dir/../dir".into(),
        "full".into(),
        "full/".into(),
        "loop".into(),
        "loop/x".into(),
        "dangling".into(),
        "dangling/".into(),
        "tofile".into(),
        "tofile/".into(),
        "todir".into(),
        "todir/".into(),
        "todir/x".into(),
        "todir/.".into(),
        "tofull/inner".into(),
        "closed/x".into(),
        "n".repeat(255),
        "n".repeat(256),
        "dir/".to_string() + &"n".repeat(255),
        "dir/".to_string() + &"n".repeat(256),
        "n".repeat(256) + "/x",
        of_length(4095),
        of_length(4096),
        "../".to_string(),
    ];
    let furniture = [
        make(Kind::File, "source", 0o644),
        make(Kind::Dir, "sourcedir", 0o755),
        make(Kind::File, "file", 0o644),
        make(Kind::Fifo, "fifo", 0o644),
        make(Kind::Dir, "dir", 0o755),
        make(Kind::Dir, "full", 0o755),
        make(Kind::File, "full/inner", 0o644),
        make(Kind::Dir, "closed", 0o700),
        make(Kind::File, "closed/x", 0o644),
        Symlink("loop".into(), "loop".into()),
        Symlink("nowhere".into(), "dangling".into()),
        Symlink("file".into(), "tofile".into()),
        Symlink("dir".into(), "todir".into()),
        Symlink("full".into(), "tofull".into()),
        Chown("source".into(), OWNER.uid.into(), GROUP.into()),
        Chown("file".into(), OWNER.uid.into(), GROUP.into()),
        Chown("dir".into(), OWNER.uid.into(), GROUP.into()),
        Chown(".".into(), OWNER.uid.into(), GROUP.into()),
    ];
    // Only what the path or a call speaks of, which is most of the time that this takes.
    let setup_for = |shape: &str, op: &Op| -> Vec<Op> {
        let wanted = |name: &str| {
            let name = name.split('/').next().unwrap_or_default();
            name == "." || shape.contains(name) || format!("{op:?}").contains(&format!("{name:?}"))
        };
        furniture
            .iter()
            .filter(|made| match made {
                Symlink(_, name)
                | Open(name, ..)
                | Mkdir(name, _)
                | Mknod(name, ..)
                | Chown(name, ..) => wanted(name),
                _ => true,
            })
            .cloned()
            .collect()
    };
    for shape in &shapes {
        // The case's own directory lies in one that is everybody's concern.
        let outside = matches!(&shape[..], "/" | ".." | "../");
        for (call, op) in one_path(shape) {
            let changes = matches!(
                op,
                Chmod(..)
                    | Chown(..)
                    | Lchown(..)
                    | Utimens(..)
                    | Rename(..)
                    | Rmdir(_)
                    | Stat(_)
                    | Lstat(_)
            );
            if outside && changes {
                continue;
            }
            for who in [ROOT, OWNER, STRANGER] {
                let shown = if shape.len() > 20 {
                    format!("{}… ({})", &shape[..12], shape.len())
                } else {
                    shape.clone()
                };
                cases.add(
                    format!("{call} {shown:?} as {}", who.name),
                    setup_for(shape, &op),
                    acting(who, [op.clone()]),
                );
            }
        }
    }
}

pub(super) fn opening(cases: &mut Cases) {
    for access in [O_RDONLY, O_WRONLY, O_RDWR] {
        for more in [
            0,
            O_CREAT,
            O_CREAT | O_EXCL,
            O_TRUNC,
            O_CREAT | O_TRUNC,
            O_DIRECTORY,
            O_NOFOLLOW,
            O_CREAT | O_NOFOLLOW,
            O_CREAT | O_DIRECTORY,
            O_APPEND,
            O_NOATIME,
            O_PATH,
            O_SYNC,
            O_CREAT | O_EXCL | O_TRUNC | O_APPEND,
        ] {
            for (kind, target) in KINDS.map(|k| (Some(k), 0)).into_iter().chain([
                (None, 0),
                (Some(Kind::Symlink), 1),
                (Some(Kind::Symlink), 2),
            ]) {
                for who in [OWNER, STRANGER] {
                    let mut setup = vec![Chown(".".into(), OWNER.uid.into(), GROUP.into())];
                    if let Some(kind) = kind {
                        setup.extend(make_for(kind, "x", 0o644, OWNER.uid, GROUP));
                    }
                    match target {
                        1 => setup.extend(file("target", 0o644)),
                        2 => setup.extend(dir("target", 0o755)),
                        _ => {}
                    }
                    cases.add(
                        format!(
                            "open {kind:?} (target {target}) {access:#x} {more:#x} as {}",
                            who.name
                        ),
                        setup,
                        acting(who, [Open("x".into(), access | more | O_NONBLOCK, 0o640)]),
                    );
                }
            }
        }
    }
}

pub(super) fn lengths(cases: &mut Cases) {
    for n in [0, 1, 254, 255, 256, 1000, 4094, 4095, 4096] {
        cases.add(
            format!("symlink to {n} bytes"),
            vec![],
            vec![
                Symlink("t".repeat(n), "x".into()),
                Lstat("x".into()),
                Readlink("x".into()),
            ],
        );
    }
    for size in [-1, 0, 1, 4096, 1 << 31, 1 << 40, i64::MAX] {
        // More than ext4 takes.
        if size == i64::MAX {
            continue;
        }
        for kind in KINDS {
            cases.add(
                format!("truncate {kind:?} to {size}"),
                vec![make(kind, "x", 0o644)],
                vec![Truncate("x".into(), size), Lstat("x".into())],
            );
        }
        cases.add(
            format!("ftruncate to {size}"),
            file("x", 0o644),
            vec![
                Hold("x".into(), O_RDWR, 0),
                FWrite("some text"),
                FTruncate(size),
                FStat,
                Hold("x".into(), O_RDONLY, 0),
                FTruncate(size),
                FStat,
                Close,
            ],
        );
    }
}
