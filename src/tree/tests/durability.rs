//! What is left when the daemon is killed, and when the disk is full.

use std::time::{Duration, Instant};

use super::*;

/// The tree as it would be found if the daemon were killed now: the files as they are, without any closing.
pub(super) async fn killed(path: &Path, copy: &Path) -> Tree {
    for suffix in ["", "-wal"] {
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
            .query(|q| {
                let pages: i64 = q.0.query_row("PRAGMA page_count", [], |r| r.get(0))?;
                Ok(pages)
            })
            .unwrap()
    } else {
        1 << 30
    };
    tree.sequencer
        .query(|q| {
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
    create(&tree, Commitment::Visible, "visible").await.unwrap();
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

#[tokio::test]
async fn what_is_visible_is_committed_soon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let tree = open(&path).await;
    create(&tree, Commitment::Visible, "f").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let after = killed(&path, &dir.path().join("copy")).await;
    after.read(|q| q.lookup(Ino::ROOT, b"f")).unwrap();
}

#[tokio::test]
async fn closing_commits_what_is_visible() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let tree = open(&path).await;
    create(&tree, Commitment::Visible, "f").await.unwrap();
    tree.close();
    tree.close();
    assert!(matches!(
        create(&tree, Commitment::Visible, "g").await,
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
    let conn = Connection::open(&path).unwrap();
    conn.execute_batch("PRAGMA user_version=99").unwrap();
    drop(conn);
    let opened = Tree::open(&path, &NodeId("n1".into()), None, Box::new(|_, _| {})).await;
    assert!(matches!(opened, Err(TreeError::Database(e)) if e.contains("newer")));
}

/// SQLite rolls back the whole transaction when the disk is full. What follows in the batch must not be applied outside
/// of one, nor what came before be answered as done.
#[tokio::test]
async fn regression_full_disk_fails_the_whole_batch() {
    use futures_util::FutureExt;
    use std::sync::{OnceLock, Weak};
    let dir = tempfile::tempdir().unwrap();
    let door: Arc<OnceLock<Weak<Tree>>> = Arc::default();
    let (its_door, heard) = (door.clone(), Arc::new(Mutex::new(Vec::new())));
    let its_heard = heard.clone();
    let listener: Listener = Box::new(move |origin, effects| {
        its_heard.lock().push((origin, effects.to_vec()));
        let Some(tree) = its_door.get().and_then(Weak::upgrade) else {
            return;
        };
        if its_heard.lock().len() == 1 {
            // One batch: while the leader answers, nobody else can lead.
            for op in [
                create_op(Ino(500_001), Ino::ROOT, b"before", FILE, Time(1)),
                big_xattr(200 << 10),
                create_op(Ino(500_002), Ino::ROOT, b"after", FILE, Time(1)),
            ] {
                let submitted = tree.submit(Origin::Kernel, Commitment::Visible, vec![op]);
                assert!(submitted.now_or_never().is_none());
            }
        }
    });
    let tree = Tree::open(&dir.path().join("t"), &NodeId("n1".into()), None, listener)
        .await
        .unwrap();
    let tree = Arc::new(tree);
    limit_pages(&tree, true);
    door.set(Arc::downgrade(&tree)).unwrap();
    create(&tree, Commitment::Visible, "visible").await.unwrap();
    let names = tree.read(|q| q.readdir(Ino::ROOT, 0, 9)).unwrap();
    assert_eq!(names, []);
    // Who cached the lost change is told, as it was told of the change.
    let entry = Effect::Entry {
        parent: Ino::ROOT,
        name: b"visible".to_vec(),
    };
    let heard = std::mem::take(&mut *heard.lock());
    assert_eq!(heard.len(), 2);
    assert!(heard[0].0 == Origin::Kernel && heard[0].1.contains(&entry));
    assert!(heard[1].0 == Origin::Node && heard[1].1.contains(&entry));
    // Space again, and everything works.
    limit_pages(&tree, false);
    create(&tree, Commitment::Committed, "f").await.unwrap();
    tree.submit(
        Origin::Kernel,
        Commitment::Committed,
        vec![big_xattr(200 << 10)],
    )
    .await
    .unwrap();
    tree.read(|q| q.lookup(Ino::ROOT, b"f")).unwrap();
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

/// A COMMIT that fails undoes the transaction; everyone in it is told, and the tree goes on.
#[tokio::test]
async fn a_failed_commit_is_everyones_error() {
    let dir = tempfile::tempdir().unwrap();
    let undone = Arc::new(AtomicU64::new(0));
    let counter = undone.clone();
    let listener: Listener = Box::new(move |origin, _| {
        counter.fetch_add((origin == Origin::Node) as u64, Ordering::SeqCst);
    });
    let tree = Tree::open(&dir.path().join("t"), &NodeId("n1".into()), None, listener)
        .await
        .unwrap();
    // A deferred foreign key is checked by COMMIT, which then fails and leaves the transaction open.
    let break_commits = "PRAGMA foreign_keys=1;
        CREATE TEMP TABLE above(i INTEGER PRIMARY KEY);
        CREATE TEMP TABLE below(i INTEGER REFERENCES above(i) DEFERRABLE INITIALLY DEFERRED);
        CREATE TEMP TRIGGER breaks AFTER INSERT ON main.dentries BEGIN INSERT INTO below VALUES(1); END";
    let sql = |sql: &str| {
        let done = tree.sequencer.query(|q| Ok(q.0.execute_batch(sql)?));
        done.unwrap();
    };
    sql(break_commits);
    let failed = create(&tree, Commitment::Committed, "f").await;
    assert!(matches!(failed, Err(TreeError::Database(_))));
    assert_eq!(undone.load(Ordering::SeqCst), 0);
    // A visible change that cannot be committed: the first reader hears of it, the next ones see the state before.
    create(&tree, Commitment::Visible, "g").await.unwrap();
    assert!(tree.read(|q| q.applied()).is_err());
    assert_eq!(undone.load(Ordering::SeqCst), 1);
    assert_eq!(tree.read(|q| q.readdir(Ino::ROOT, 0, 9)).unwrap(), []);
    create(&tree, Commitment::Visible, "g").await.unwrap();
    assert!(create(&tree, Commitment::Committed, "h").await.is_err());
    assert_eq!(undone.load(Ordering::SeqCst), 2);
    sql("DROP TRIGGER breaks");
    create(&tree, Commitment::Committed, "f").await.unwrap();
    let names = tree.read(|q| q.readdir(Ino::ROOT, 0, 9)).unwrap();
    assert_eq!(names.len(), 1);
}
