//! Files and directories that are open while they lose their name.

use libc::*;

use super::*;

pub(super) fn open_and_gone(cases: &mut Cases) {
    let x = || "x".to_string();
    let loss: [(&str, Op); 4] = [
        ("unlink", Unlink(x())),
        ("rename over", Rename("y".into(), x(), 0)),
        ("rename away", Rename(x(), "z".into(), 0)),
        ("exchange", Rename(x(), "y".into(), RENAME_EXCHANGE)),
    ];
    for (way, lose) in &loss {
        for flags in [O_RDWR, O_RDONLY, O_RDWR | O_APPEND] {
            let uses: Vec<(&str, Vec<Op>)> = vec![
                ("stat", vec![FStat]),
                ("write", vec![FWrite("more"), FRead, FStat]),
                ("truncate", vec![FTruncate(2), FRead, FStat]),
                ("chmod", vec![FChmod(0o6711), FStat]),
                (
                    "chown",
                    vec![FChmod(0o6755), FChown(OWNER.uid.into(), -1), FStat],
                ),
                ("utimens", vec![FUtimens((1, 2), (3, 4)), FStat]),
                ("fsync", vec![FWrite("more"), FSync, FRead]),
                (
                    "name again",
                    vec![make(Kind::File, "w", 0o600), FWrite("more"), FStat],
                ),
            ];
            for (what, ops) in uses {
                let mut act = vec![
                    Hold(x(), O_WRONLY, 0),
                    FWrite("text"),
                    Hold(x(), flags, 0),
                    lose.clone(),
                ];
                act.extend(ops);
                act.push(Close);
                cases.add(
                    format!("{way} while open {flags:#x}, then {what}"),
                    [file("x", 0o644), file("y", 0o600)].concat(),
                    act,
                );
            }
        }
    }
    for lose in [
        Rmdir(x()),
        Rename("y".into(), x(), 0),
        Rename(x(), "z".into(), 0),
    ] {
        cases.add(
            format!("{lose:?} of an open directory"),
            [dir("x", 0o755), dir("y", 0o700)].concat(),
            vec![
                Hold(x(), O_RDONLY | O_DIRECTORY, 0),
                lose.clone(),
                FStat,
                FList,
                FMkdirAt("new"),
                FChmod(0o711),
                FUtimens((1, 2), (3, 4)),
                FStat,
                Close,
            ],
        );
    }
    cases.add(
        "a linked file loses one name while open".into(),
        [file("x", 0o644), vec![Link(x(), "y".into())]].concat(),
        vec![
            Hold(x(), O_RDWR, 0),
            FWrite("a"),
            Unlink(x()),
            FStat,
            FWrite("b"),
            Unlink("y".into()),
            FStat,
            FRead,
            Close,
        ],
    );
    // The working directory of whoever calls, which nobody has open.
    for lose in [
        Rmdir("../x".into()),
        Rename("../y".into(), "../x".into(), 0),
    ] {
        cases.add(
            format!("{lose:?} of the working directory"),
            [dir("x", 0o755), dir("y", 0o700)].concat(),
            vec![
                Enter("x"),
                lose.clone(),
                Stat(".".into()),
                Open(".".into(), O_RDONLY | O_DIRECTORY, 0),
                Hold(".".into(), O_RDONLY | O_DIRECTORY, 0),
                FStat,
                FList,
                Close,
                Mkdir("new".into(), 0o755),
                Open("none".into(), O_RDONLY, 0),
                Stat(".".into()),
                Chmod(".".into(), 0o711),
                Chown(".".into(), OWNER.uid.into(), -1),
                Utimens(".".into(), (1, 2), (3, 4), false),
                Stat(".".into()),
            ],
        );
    }
    // What the kernel opens by itself: of a fifo, or of anything by O_PATH, nobody hears.
    let fifo = make(Kind::Fifo, "x", 0o644);
    let file_ops = vec![
        FStat,
        FChmod(0o6711),
        FChown(OWNER.uid.into(), -1),
        FUtimens((1, 2), (3, 4)),
        FStat,
        Close,
    ];
    for lose in [Unlink(x()), Rename("y".into(), x(), 0)] {
        let mut act = vec![Hold(x(), O_RDWR | O_NONBLOCK, 0), lose.clone()];
        act.extend(file_ops.clone());
        cases.add(
            format!("{lose:?} of an open fifo"),
            [vec![fifo.clone()], file("y", 0o644)].concat(),
            act,
        );
    }
    for kind in KINDS.into_iter().filter(|&kind| kind != Kind::Dir) {
        cases.add(
            format!("unlink of a {kind:?} that is named by O_PATH"),
            vec![make(kind, "x", 0o644)],
            vec![
                Hold(x(), O_PATH | O_NOFOLLOW, 0),
                Unlink(x()),
                FStat,
                FChmod(0o711),
                Close,
            ],
        );
    }
}
