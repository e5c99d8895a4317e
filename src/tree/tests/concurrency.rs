//! Many submitters and readers at once.

use std::sync::atomic::AtomicBool;
use std::sync::{OnceLock, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::*;

const COMMITMENTS: [Commitment; 3] = [
    Commitment::Visible,
    Commitment::Committed,
    Commitment::Durable,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_submitters_read_their_own_writes() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Arc::new(open(&dir.path().join("t")).await);
    let mut tasks = Vec::new();
    for task in 0..8usize {
        let tree = tree.clone();
        tasks.push(tokio::spawn(async move {
            for i in 0..40usize {
                let ino = tree.new_ino().unwrap();
                let own = format!("{task}-{i}");
                let op = create_op(ino, Ino::ROOT, own.as_bytes(), FILE, Time(i as i64));
                let commitment = COMMITMENTS[if i % 10 == 0 { 2 } else { (i + task) % 2 }];
                tree.submit(Origin::Kernel, commitment, vec![op])
                    .await
                    .unwrap();
                let seen = tree.read(|q| q.lookup(Ino::ROOT, own.as_bytes()));
                assert_eq!(seen.unwrap().ino, ino);
                // And one name that all of them fight for.
                let unlink = Op::Unlink {
                    parent: Ino::ROOT,
                    name: bytes("shared"),
                    now: Time(i as i64),
                };
                let create = create_op(
                    tree.new_ino().unwrap(),
                    Ino::ROOT,
                    b"shared",
                    FILE,
                    Time(i as i64),
                );
                for op in [create, unlink] {
                    match tree.submit(Origin::Kernel, commitment, vec![op]).await {
                        Ok(_) | Err(TreeError::Exists | TreeError::NotFound) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let names = tree.read(|q| q.readdir(Ino::ROOT, 0, 1000)).unwrap();
    assert_eq!(names.iter().filter(|d| d.name != b"shared").count(), 8 * 40);
    tree.read(|q| {
        check_tables(q.0);
        Ok(())
    })
    .unwrap();
}

/// A replaced name is the old file or the new one at every moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn regression_lookup_during_a_rename_over() {
    let dir = tempfile::tempdir().unwrap();
    let tree = Arc::new(open(&dir.path().join("t")).await);
    let stop = Arc::new(AtomicBool::new(false));
    let make = |n: &'static str, i| {
        create_op(
            tree.new_ino().unwrap(),
            Ino::ROOT,
            n.as_bytes(),
            FILE,
            Time(i),
        )
    };
    tree.submit(
        Origin::Kernel,
        Commitment::Committed,
        vec![make("config", 0)],
    )
    .await
    .unwrap();
    let readers: Vec<_> = (0..3)
        .map(|_| {
            let (tree, stop) = (tree.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut lookups = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    tree.read(|q| q.lookup(Ino::ROOT, b"config")).unwrap();
                    lookups += 1;
                }
                lookups
            })
        })
        .collect();
    let until = Instant::now() + Duration::from_millis(800);
    let mut i = 0;
    while Instant::now() < until {
        i += 1;
        let rename = Op::Rename {
            parent: Ino::ROOT,
            name: bytes("new"),
            new_parent: Ino::ROOT,
            new_name: bytes("config"),
            mode: RenameMode::Replace,
            now: Time(i),
        };
        let ops = vec![make("new", i), rename];
        tree.submit(Origin::Kernel, Commitment::Committed, ops)
            .await
            .unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        assert!(reader.join().unwrap() > 0);
    }
}

/// A tree whose listener submits `times` ops on the leader's thread, each while the batch before is being answered: the
/// queue is never empty when the leader looks.
async fn busy_tree(path: &Path, times: u64, heard: Arc<AtomicU64>) -> Arc<Tree> {
    let door: Arc<OnceLock<Weak<Tree>>> = Arc::default();
    let its_door = door.clone();
    let listener: Listener = Box::new(move |_, _| {
        let i = heard.fetch_add(1, Ordering::SeqCst);
        let tree = its_door.get().and_then(Weak::upgrade);
        if let Some(tree) = tree.filter(|_| i < times) {
            let op = create_op(
                Ino(500_000 + i),
                Ino::ROOT,
                format!("busy{i}").as_bytes(),
                FILE,
                Time(1),
            );
            let submitted = tree.submit(Origin::Kernel, Commitment::Visible, vec![op]);
            assert!(submitted.now_or_never().is_none());
        }
    });
    let tree = Tree::open(path, &NodeId("n1".into()), None, listener)
        .await
        .unwrap();
    let tree = Arc::new(tree);
    door.set(Arc::downgrade(&tree)).unwrap();
    tree
}

#[tokio::test]
async fn regression_a_leader_gets_its_own_answer_while_others_submit() {
    let dir = tempfile::tempdir().unwrap();
    let heard = Arc::new(AtomicU64::new(0));
    let tree = busy_tree(&dir.path().join("t"), 300, heard.clone()).await;
    let op = create_op(tree.new_ino().unwrap(), Ino::ROOT, b"first", FILE, Time(1));
    tree.submit(Origin::Kernel, Commitment::Visible, vec![op])
        .await
        .unwrap();
    assert!(heard.load(Ordering::SeqCst) < 50);
    // The rest is led on by the keeper.
    let until = Instant::now() + Duration::from_secs(10);
    while heard.load(Ordering::SeqCst) < 301 {
        assert!(Instant::now() < until, "submissions were left behind");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn regression_close_answers_everyone_and_keeps_what_it_answered() {
    for round in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let tree = Arc::new(open(&dir.path().join("t")).await);
        let tasks: Vec<_> = (0..4)
            .map(|task| {
                let tree = tree.clone();
                tokio::spawn(async move {
                    let mut done = Vec::new();
                    for i in 0.. {
                        let own = format!("{task}-{i}");
                        let op = create_op(
                            tree.new_ino().unwrap(),
                            Ino::ROOT,
                            own.as_bytes(),
                            FILE,
                            Time(i),
                        );
                        let submitted = tree.submit(Origin::Kernel, Commitment::Visible, vec![op]);
                        match tokio::time::timeout(Duration::from_secs(10), submitted).await {
                            Ok(Ok(_)) => done.push(own),
                            Ok(Err(e)) => {
                                assert!(matches!(e, TreeError::Unavailable(_)), "{e}");
                                break;
                            }
                            Err(_) => panic!("no answer"),
                        }
                    }
                    done
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(5 + round * 3)).await;
        tree.close();
        let mut done = Vec::new();
        for task in tasks {
            done.extend(task.await.unwrap());
        }
        let after =
            super::durability::killed(&dir.path().join("t"), &dir.path().join("copy")).await;
        for own in done {
            after.read(|q| q.lookup(Ino::ROOT, own.as_bytes())).unwrap();
        }
    }
}
