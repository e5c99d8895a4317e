//! Nodes for which the log no longer reaches back far enough.

use std::time::{Duration, Instant};

use super::outages::{Node, pair, same};
use super::replicas::HostileLog;
use super::*;

/// Makes files until the log has lost its beginning.
async fn grow_until_trimmed(log: &HostileLog, node: &Node) {
    let (before, patience) = (log.trimmed(), Instant::now() + Duration::from_secs(20));
    while log.trimmed() == before {
        assert!(Instant::now() < patience, "never trimmed");
        let name = format!("m{}", log.head().await.unwrap());
        node.make(&name, FILE, 600).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A node that is new starts from a checkpoint, and one that did something else meanwhile merges with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checkpoints_let_the_log_be_short() {
    let log = HostileLog::with_checkpoints(5, 20);
    let (dir, a, b) = pair(&log).await;
    let keep = a.make("kept", FILE, 1).await;
    b.tree().catch_up().await.unwrap();
    b.cut();
    let mine = b.make("of-b", FILE, 2).await;
    b.write(mine, 5, 3).await.unwrap();
    b.write(keep, 6, 4).await.unwrap();
    for i in 0..130 {
        a.make(&format!("n{i}"), FILE, 10 + i).await;
    }
    a.unlink("n0", 500).await.unwrap();
    grow_until_trimmed(&log, &a).await;
    let new = Node::new(&dir, "new", &log).await;
    new.tree().catch_up().await.unwrap();
    same(&a, &new);
    b.heal().await;
    a.tree().catch_up().await.unwrap();
    same(&a, &b);
    assert_eq!(a.find("of-b").unwrap().size, 5);
    assert_eq!(a.find("kept").unwrap().size, 6);
    assert!(b.find("n0").is_none() && b.find("n129").is_some());
}

/// What belongs to a node alone stays its own when a checkpoint takes the place of its replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_down_for_long_keeps_what_is_its_own() {
    let log = HostileLog::with_checkpoints(5, 20);
    let (_dir, a, mut b) = pair(&log).await;
    let first = b.make("of-b", FILE, 1).await;
    b.tree().note_unjudged(true).unwrap();
    // The outbox has been used, so its numbers go on.
    b.cut();
    b.make("alone", FILE, 2).await;
    b.heal().await;
    a.tree().catch_up().await.unwrap();
    let own = |b: &Node| {
        b.tree()
            .sequencer
            .ask_writer(|q| {
                q.0.execute_batch("INSERT OR REPLACE INTO given_up VALUES(77,3)")?;
                let sql = "SELECT group_concat(name||seq) FROM sqlite_sequence";
                let numbers: Option<String> = q.0.query_row(sql, [], |r| r.get(0))?;
                Ok((q.local("range")?, numbers))
            })
            .unwrap()
    };
    let before = own(&b);
    assert!(before.1.is_some());
    b.stop().await;

    a.unlink("of-b", 3).await.unwrap();
    grow_until_trimmed(&log, &a).await;
    let marker = b.path().with_extension("checkpoint-fetched");
    std::fs::write(&marker, b"of a start that was killed").unwrap();
    b.start().await;
    b.tree().catch_up().await.unwrap();
    same(&a, &b);
    assert!(b.find("of-b").is_none() && b.find("alone").is_some());
    assert!(!marker.exists());
    assert_eq!(b.tree().given_up().unwrap(), [(Ino(77), Generation(3))]);
    assert_eq!(own(&b), before);
    assert!(b.tree().is_unjudged().unwrap());
    let next = b.tree().new_ino().unwrap();
    assert_eq!(next.range(), first.range());
    assert!(next > first);
    // It works on, and so do the others.
    b.make("later", FILE, 700).await;
    a.tree().catch_up().await.unwrap();
    same(&a, &b);
}

/// A checkpoint of a large tree takes longer than it takes until the next one is due.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_checkpoints_do_not_overtake_each_other() {
    let log = HostileLog::with_checkpoints(5, 20);
    log.slow.store(true, Ordering::SeqCst);
    let (dir, a, _b) = pair(&log).await;
    let begun = Instant::now();
    let mut most = 0;
    for i in 0..400 {
        a.make(&format!("n{i}"), FILE, i).await;
        most = most.max(log.checkpoints().0);
    }
    assert_eq!(most, 1, "in {:?}", begun.elapsed());
    log.slow.store(false, Ordering::SeqCst);
    grow_until_trimmed(&log, &a).await;
    assert!(log.checkpoints().1 > 0);
    let new = Node::new(&dir, "new", &log).await;
    a.tree().catch_up().await.unwrap();
    new.tree().catch_up().await.unwrap();
    same(&a, &new);
}

/// A machine that joins may have more to apply than it takes seconds until a silent log is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_catching_up_is_waited_for_as_long_as_it_moves() {
    const ENTRIES: u64 = 45;
    let dir = tempfile::tempdir().unwrap();
    let log = HostileLog::grown_readable(ENTRIES);
    let slow: Listener = Box::new(|_, _| std::thread::sleep(Duration::from_millis(400)));
    let begun = Instant::now();
    let (path, node) = (dir.path().join("t"), NodeId("t".into()));
    let opened = Tree::open(&path, &node, Some(log), slow);
    assert_eq!(opened.await.unwrap().applied().unwrap(), Seq(ENTRIES));
    assert!(
        begun.elapsed() > Duration::from_secs(16),
        "too fast to tell"
    );
}

/// The log still has what lies behind the checkpoint before the newest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_damaged_checkpoint_keeps_nobody_out() {
    let log = HostileLog::with_checkpoints(5, 20);
    let (dir, a, _b) = pair(&log).await;
    grow_until_trimmed(&log, &a).await;
    log.damage_newest_checkpoint();
    let new = Node::new(&dir, "new", &log).await;
    a.tree().catch_up().await.unwrap();
    new.tree().catch_up().await.unwrap();
    same(&a, &new);
}
