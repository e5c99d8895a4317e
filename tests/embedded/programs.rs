//! Programs that people use, at work in the mount.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use crate::common::files::{bytes, sha256, write_closed};
use crate::common::mount::Mount;
use crate::common::run::{needs, sh};

both_ways!(copying, git, sqlite, editors, compilers);

/// A tree with a bit of everything, in `work/src`.
fn make_source(m: &Mount) {
    let src = m.work().join("src");
    for n in 0..150u64 {
        let dir = src.join(format!("d{}/e{}", n % 7, n % 3));
        fs::create_dir_all(&dir).unwrap();
        write_closed(&dir.join(format!("f{n}")), &bytes(n / 2, (n * 97) as usize)).unwrap();
    }
    write_closed(&src.join("large"), &bytes(1000, 3 << 20)).unwrap();
    sh(
        &src,
        "ln -s d0/e0 link; ln -s /nowhere dangling; ln large hard; mkfifo fifo
         chmod 600 large; chmod 2750 d1; chmod 555 d2/e0; touch -d '2001-02-03 04:05:06.789' large
         # Whole seconds differ, which is what rsync compares at the end.
         find . -type d,l,p -exec touch -h -d '2002-03-04 05:06:07.891' {} +",
    );
}

/// Kind, mode, links, target, time, and the size of files.
const LISTING: &str = r"find . ! -name . \( ! -type d -printf '%p %y %m %n %l %T@ %s\n' -o -printf '%p %y %m %T@\n' \) | sort";

fn copying(m: &Mount) {
    needs(&["cp", "mv", "rsync", "tar", "diff", "find"]);
    make_source(m);
    let (work, root) = (m.work(), m.path());
    let mnt = root.display();
    let expected = sh(&work.join("src"), LISTING);
    let is_copy = |dir: &str| {
        sh(
            &work,
            &format!("diff -r --no-dereference -x fifo src {mnt}/{dir}"),
        );
        let listing = sh(&root.join(dir), LISTING);
        for (line, wanted) in listing.lines().zip(expected.lines()) {
            assert_eq!(line, wanted, "{dir}");
        }
        assert_eq!(listing.len(), expected.len(), "{dir}");
    };
    sh(&work, &format!("cp -a src {mnt}/cp"));
    is_copy("cp");
    sh(&work, &format!("rsync -aH src/ {mnt}/rsync"));
    is_copy("rsync");
    let again = sh(&work, &format!("rsync -aHi --checksum src/ {mnt}/rsync"));
    assert_eq!(again, "", "a second rsync has nothing to do");
    sh(
        &work,
        &format!(
            "tar --format=pax -cf src.tar -C src . && mkdir {mnt}/tar && tar xpf src.tar -C {mnt}/tar"
        ),
    );
    is_copy("tar");
    sh(
        &root,
        "tar --format=pax -cf inside.tar -C cp . && mkdir twice && tar xpf inside.tar -C twice",
    );
    is_copy("twice");
    sh(
        &root,
        "mkdir deep && mv cp deep/moved && test ! -e cp && mv deep/moved cp",
    );
    is_copy("cp");
    sh(
        &work,
        &format!("cp -a src out && mv out {mnt}/mv-in && test ! -e out"),
    );
    is_copy("mv-in");
    sh(
        &work,
        &format!(
            "mv {mnt}/mv-in out && diff -r --no-dereference -x fifo src out && test ! -e {mnt}/mv-in"
        ),
    );
    m.wait_stored();
    is_copy("twice");
    sh(
        &root,
        "chmod -R u+w cp rsync && rm -r cp rsync && test ! -e cp",
    );
    is_copy("tar");
}

fn git(m: &Mount) {
    needs(&["git"]);
    let root = m.path();
    let script = r#"
        export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_TERMINAL_PROMPT=0
        export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q -b main origin; cd origin
        for c in 1 2 3 4 5; do
            mkdir -p dir$c; for f in $(seq 40); do echo $c $f > dir$c/$f; done
            head -c 300000 /dev/urandom > blob; ln -sf dir$c last; git add .; git commit -qm $c
        done
        cd "$MNT"
        git clone -q "file://$OLDPWD" clone; cd clone
        git fsck --strict; test -z "$(git status --porcelain)"
        echo more >> dir1/1; git rm -q dir2/2; git mv dir3/3 dir3/renamed; git commit -qam more
        git checkout -q -b other HEAD~3; git checkout -q main; git merge -q other
        git repack -qad; git gc -q --prune=now; git fsck --strict
        test -z "$(git status --porcelain)"
        git clone -q . ../second; git -C ../second fsck --strict
        git push -q origin main:pushed
        git worktree add -q ../tree other; git -C ../tree status --porcelain
    "#;
    let script = format!("MNT='{}'\n{script}", root.display());
    sh(&m.work(), &script);
    m.wait_stored();
    let after = "export GIT_CONFIG_GLOBAL=/dev/null; git -C clone fsck --strict; git -C clone status --porcelain";
    assert_eq!(sh(&root, after), "");
}

fn sqlite(m: &Mount) {
    needs(&["sqlite3"]);
    let root = m.path();
    for mode in ["delete", "truncate", "persist", "wal"] {
        let script = format!(
            r#"
            db={mode}.db
            sqlite3 $db "pragma journal_mode={mode}; create table t(k integer primary key, v blob);" > {mode}.mode
            grep -qx {mode} {mode}.mode
            writer() {{
                for i in $(seq 15); do
                    echo ".timeout 20000"
                    echo "begin immediate; insert into t(v) select randomblob(500) from generate_series(1,20); commit;"
                done | sqlite3 $db
            }}
            writer & a=$!; writer & b=$!
            for i in 1 2 3; do sqlite3 -cmd '.timeout 20000' $db 'select count(*) from t' >> {mode}.counts; done
            wait $a; wait $b
            sqlite3 $db "pragma integrity_check; select count(*) from t;"
            "#
        );
        assert_eq!(sh(&root, &script), "ok\n600", "{mode}");
    }
    m.wait_stored();
    for mode in ["delete", "wal"] {
        let script = format!(
            "sqlite3 {mode}.db 'delete from t where k % 2; vacuum; pragma integrity_check; select count(*) from t;'"
        );
        assert_eq!(sh(&root, &script), "ok\n300", "{mode}");
    }
}

/// The ways in which editors save a file.
fn editors(m: &Mount) {
    let file = m.at("notes.txt");
    write_closed(&file, b"first\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    for round in 0..20 {
        let text = format!("round {round}\n").repeat(round + 1);
        // A new file beside it, synced, takes its place.
        let beside = m.at(format!(".notes.txt.{round}"));
        let mut new = File::create_new(&beside).unwrap();
        new.write_all(text.as_bytes()).unwrap();
        new.set_permissions(fs::metadata(&file).unwrap().permissions())
            .unwrap();
        new.sync_all().unwrap();
        fs::rename(&beside, &file).unwrap();
        drop(new);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
        // The old one becomes the backup, and a new one is made.
        let backup = m.at("notes.txt~");
        fs::rename(&file, &backup).unwrap();
        write_closed(&file, format!("{text}more\n").as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(&backup).unwrap(), text);
        fs::remove_file(&backup).unwrap();
        // It is written in place.
        write_closed(&file, text.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
    m.wait_stored();
    let text = fs::read(&file).unwrap();
    assert_eq!(text, "round 19\n".repeat(20).as_bytes());
    assert!(m.contents().contains(&sha256(&text)));
}

fn compilers(m: &Mount) {
    needs(&["cc", "ar", "make", "cargo"]);
    let root = m.path();
    let script = r#"
        mkdir c; cd c
        for i in $(seq 12); do echo "int f$i(void) { return $i; }" > f$i.c; done
        { for i in $(seq 12); do echo "int f$i(void);"; done
          echo '#include <stdio.h>'; echo 'int main(void) { int s = 0;'
          for i in $(seq 12); do echo "s += f$i();"; done
          echo 'printf("%d\n", s); return 0; }'; } > main.c
        printf 'all: prog\n%%.o: %%.c\n\tcc -c -o $@ $<\nlib.a: $(patsubst %%,f%%.o,1 2 3 4 5 6 7 8 9 10 11 12)\n\tar rcs $@ $^\nprog: main.o lib.a\n\tcc -o $@ $^\n' > Makefile
        make -s -j2; ./prog
        make -q
        echo 'int f1(void) { return 101; }' > f1.c; make -s; ./prog
    "#;
    assert_eq!(sh(&root, script), "78\n178");
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    fs::create_dir_all(m.at("hello/src")).unwrap();
    let manifest =
        "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n";
    write_closed(&m.at("hello/Cargo.toml"), manifest.as_bytes()).unwrap();
    let build = |text: &str| {
        let main = format!("fn main() {{ println!(\"{text}\"); }}\n");
        write_closed(&m.at("hello/src/main.rs"), main.as_bytes()).unwrap();
        let home = std::env::var("HOME").unwrap_or_default();
        let script = format!(
            "export HOME='{home}'; unset RUSTFLAGS RUSTC_WRAPPER; CARGO_TARGET_DIR=target '{cargo}' build -q --offline && target/debug/hello"
        );
        assert_eq!(sh(&m.at("hello"), &script), text);
    };
    build("hello");
    build("hello again");
    m.wait_stored();
    assert_eq!(
        sh(&root, "c/prog; hello/target/debug/hello"),
        "178\nhello again"
    );
}
