//! What is left when the daemon is killed, and when the disk is full.

use std::time::{Duration, Instant};

use super::*;

/// The tree as it would be found if the daemon were killed now: the files as they are, without any closing.
pub(super) async fn killed(path: &Path, copy: &Path) -> Tree {
    // The journal first: what it holds may be committed by the time the database is copied, never the other way round.
    for suffix in [".journal", "", "-wal"] {
        let file = |p: &Path| format!("{}{suffix}", p.display());
        if std::fs::exists(file(path)).unwrap() {
            std::fs::copy(file(path), file(copy)).unwrap();
        }
    }
    open(copy).await
}

/// Makes the writer find the disk full as soon as it needs one more page.
pub(super) fn limit_pages(tree: &Tree, full: bool) {
    let limit = if full {
        tree.sequencer
            .ask_writer(|q| {
                let pages: i64 = q.0.query_row("PRAGMA page_count", [], |r| r.get(0))?;
                Ok(pages)
            })
            .unwrap()
    } else {
        1 << 30
    };
    tree.sequencer
        .ask_writer(|q| {
            Ok(q.0.query_row(&format!("PRAGMA max_page_count={limit}"), [], |_| Ok(()))?)
        })
        .unwrap();
}

async fn create(tree: &Tree, commitment: Commitment, n: &str) -> Result<Applied> {
    let op = create_op(
        tree.new_ino().unwrap(),
        Ino::ROOT,
        n.as_bytes(),
        FILE,
        Time(1),
    );
    tree.submit(Origin::Kernel, commitment, vec![op]).await
}

fn big_xattr(bytes_: usize) -> Op {
    Op::SetXattr {
        ino: Ino::ROOT,
        name: bytes("user.big"),
        value: bytes(vec![1; bytes_]),
        mode: XattrMode::Set,
        now: Time(2),
    }
}

#[tokio::test]
async fn what_was_committed_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let tree = open(&path).await;
    create(&tree, Commitment::Committed, "visible")
        .await
        .unwrap();
    create(&tree, Commitment::Committed, "committed")
        .await
        .unwrap();
    create(&tree, Commitment::Durable, "durable").await.unwrap();
    let after = killed(&path, &dir.path().join("copy")).await;
    // A later commit takes along what was visible before it.
    for n in ["visible", "committed", "durable"] {
        after.read(|q| q.lookup(Ino::ROOT, n.as_bytes())).unwrap();
    }
    // Numbers that the killed daemon may have given out are not given out again.
    assert!(after.new_ino().unwrap() > tree.new_ino().unwrap());
}

/// Many kills at arbitrary moments between the commits of the database: what was answered is there.
#[tokio::test]
async fn every_answer_survives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let tree = open(&path).await;
    for i in 0..60 {
        create(&tree, Commitment::Committed, &format!("f{i}"))
            .await
            .unwrap();
        if i % 7 == 0 {
            tree.scan(|q| q.applied()).unwrap();
        }
        if i % 5 == 0 {
            let after = killed(&path, &dir.path().join(format!("copy{i}"))).await;
            assert_eq!(dump(&after), dump(&tree), "after {i}");
        }
    }
}

#[tokio::test]
async fn closing_commits_and_refuses_what_comes_after() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let tree = open(&path).await;
    create(&tree, Commitment::Committed, "f").await.unwrap();
    tree.close();
    tree.close();
    assert!(matches!(
        create(&tree, Commitment::Committed, "g").await,
        Err(TreeError::Unavailable(_))
    ));
    let after = killed(&path, &dir.path().join("copy")).await;
    after.read(|q| q.lookup(Ino::ROOT, b"f")).unwrap();
    // Reading goes on; and the same path opens again beside it.
    tree.read(|q| q.lookup(Ino::ROOT, b"f")).unwrap();
    drop(tree);
    let again = open(&path).await;
    again.read(|q| q.lookup(Ino::ROOT, b"f")).unwrap();
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    drop(open(&path).await);
    // With right checksums, as a newer program would leave it.
    let conn = schema::open_writer(&path).unwrap();
    conn.execute_batch("PRAGMA user_version=99").unwrap();
    drop(conn);
    let opened = Tree::open(&path, &NodeId("n1".into()), None, Box::new(|_, _| {})).await;
    assert!(matches!(opened, Err(TreeError::Database(e)) if e.contains("newer")));
}

/// SQLite rolls back the whole transaction when the disk is full, with changes that were answered long before.
#[tokio::test]
async fn regression_full_disk_undoes_nothing_that_was_answered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let tree = open(&path).await;
    create(&tree, Commitment::Committed, "before")
        .await
        .unwrap();
    limit_pages(&tree, true);
    for _ in 0..3 {
        let big = tree
            .submit(
                Origin::Kernel,
                Commitment::Committed,
                vec![big_xattr(200 << 10)],
            )
            .await;
        assert_eq!(big, Err(TreeError::NoSpace));
        tree.read(|q| q.lookup(Ino::ROOT, b"before")).unwrap();
        create(&tree, Commitment::Committed, "small").await.ok();
    }
    tree.read(|q| q.lookup(Ino::ROOT, b"small")).unwrap();
    let after = killed(&path, &dir.path().join("copy")).await;
    assert_eq!(dump(&after), dump(&tree));
    // Space again, and everything works.
    limit_pages(&tree, false);
    tree.submit(
        Origin::Kernel,
        Commitment::Durable,
        vec![big_xattr(200 << 10)],
    )
    .await
    .unwrap();
    tree.scan(|q| q.lookup(Ino::ROOT, b"before")).unwrap();
}

#[tokio::test]
async fn regression_full_disk_in_set_local_leaves_no_transaction_behind() {
    let dir = tempfile::tempdir().unwrap();
    let tree = open(&dir.path().join("t")).await;
    limit_pages(&tree, true);
    let long = "k".repeat(100_000);
    assert_eq!(tree.sequencer.set_local(&long, 1), Err(TreeError::NoSpace));
    limit_pages(&tree, false);
    create(&tree, Commitment::Committed, "f").await.unwrap();
    tree.read(|q| q.lookup(Ino::ROOT, b"f")).unwrap();
}

/// The WAL's length says how much there is to write back, so it must fall once that was done.
#[tokio::test]
async fn regression_the_wal_shrinks_after_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let tree = open(&path).await;
    let wal = || std::fs::metadata(dir.path().join("t-wal")).unwrap().len();
    let until = Instant::now() + Duration::from_secs(20);
    // Of a new length each time: SQLite writes no page that stays as it was.
    let mut lengths = (0..1000).cycle();
    let mut change = async |len: usize| {
        let op = big_xattr(len + lengths.next().unwrap());
        tree.submit(Origin::Kernel, Commitment::Committed, vec![op])
            .await
            .unwrap();
        assert!(Instant::now() < until, "the WAL is at {} bytes", wal());
    };
    // Seen for certain: nothing is written back before.
    while wal() <= 4 << 20 {
        change(20 << 10).await;
    }
    // With pauses in which a checkpoint comes to its end, as it does not while writing goes on without any.
    while wal() > 4 << 20 {
        change(1).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A COMMIT that fails costs nobody an answer: the journal has it, and it is tried again.
#[tokio::test]
async fn a_failed_commit_undoes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let tree = open(&path).await;
    // A deferred foreign key is checked by COMMIT, which then fails and leaves the transaction open.
    let break_commits = "PRAGMA foreign_keys=1;
        CREATE TEMP TABLE above(i INTEGER PRIMARY KEY);
        CREATE TEMP TABLE below(i INTEGER REFERENCES above(i) DEFERRABLE INITIALLY DEFERRED);
        CREATE TEMP TRIGGER breaks AFTER INSERT ON main.dentries BEGIN INSERT INTO below VALUES(1); END";
    let sql = |sql: &str| {
        let done = tree.sequencer.ask_writer(|q| Ok(q.0.execute_batch(sql)?));
        done.unwrap();
    };
    sql(break_commits);
    create(&tree, Commitment::Committed, "f").await.unwrap();
    assert!(tree.sync().is_err());
    tree.read(|q| q.lookup(Ino::ROOT, b"f")).unwrap();
    create(&tree, Commitment::Committed, "g").await.unwrap();
    assert!(create(&tree, Commitment::Durable, "h").await.is_err());
    let after = killed(&path, &dir.path().join("copy")).await;
    assert_eq!(after.read(|q| q.readdir(Ino::ROOT, 0, 9)).unwrap().len(), 3);
    tree.sequencer
        .ask_writer(|q| Ok(q.0.execute_batch("DROP TRIGGER breaks")?))
        .unwrap();
    tree.sync().ok();
    tree.sync().unwrap();
    let names = tree.scan(|q| q.readdir(Ino::ROOT, 0, 9)).unwrap();
    assert_eq!(names.len(), 3);
}
