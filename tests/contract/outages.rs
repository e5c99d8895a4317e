//! Answers that do not come.

use super::*;

/// Makes the next insert into `collection` of this side's database fail in the given way.
async fn fail_next_insert(side: &Side, collection: &str, how: Document) {
    let database = side.database.as_ref().unwrap();
    let mut data = doc! {
        "failCommands": ["insert"],
        "namespace": format!("{}.{collection}", database.name()),
    };
    data.extend(how);
    let admin = database.client().database("admin");
    let point = doc! { "configureFailPoint": "failCommand", "mode": { "times": 1 }, "data": data };
    admin.run_command(point).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_outcome_is_found_out() {
    // A server of its own: a fail point is the server's, and the next one replaces it.
    let mongod = Mongod::start();
    let side = Side::of(&mongod, &shared_etcd().uri(), 30).await;
    let unacknowledged = || doc! { "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" } };

    // Published, but the acknowledgement was lost: reading back finds it.
    fail_next_insert(&side, "fs.files", unacknowledged()).await;
    let put = side.put(0, b"unacknowledged").await.unwrap();
    assert!(matches!(put, Put::Stored(_)), "{put:?}");
    assert_eq!(side.read(1, put.blob()).await.unwrap(), b"unacknowledged");

    // The connection breaks before anything happens: the driver's retry publishes.
    fail_next_insert(&side, "fs.files", doc! { "closeConnection": true }).await;
    let put = side.put(0, b"broken off").await.unwrap();
    assert_eq!(side.read(1, put.blob()).await.unwrap(), b"broken off");

    // The server takes the insert, but acts on it only after we gave up. Whatever wins, nothing published lacks bytes.
    let late = doc! { "blockConnection": true, "blockTimeMS": 7000 };
    fail_next_insert(&side, "fs.files", late).await;
    let put = side.put(0, b"too late").await;
    assert!(matches!(put, Err(BackendError::Unavailable(_))), "{put:?}");
    tokio::time::sleep(Duration::from_secs(3)).await;
    let again = side.put(1, b"too late").await.unwrap();
    // It did arrive, and needs the chunks that a rash clean-up would have removed.
    assert!(matches!(again, Put::Duplicate(_)), "{again:?}");
    assert_eq!(side.read(0, again.blob()).await.unwrap(), b"too late");

    // The same for the log.
    fail_next_insert(&side, "log", unacknowledged()).await;
    let append = side.log(0).append(&entry(1, "x")).await;
    assert!(
        matches!(append, Err(BackendError::Unavailable(_))),
        "{append:?}"
    );
    assert_eq!(
        side.log(1).append(&entry(1, "y")).await.unwrap(),
        Append::Conflict
    );
    assert_eq!(
        side.log(0).append(&entry(1, "x")).await.unwrap(),
        Append::Appended
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_etcd_costs_a_moment_and_no_more() {
    let etcd = Etcd::start();
    let side = Side::of(shared_mongod(), &etcd.uri(), 30).await;
    let hash = hash_of(b"frozen");
    let before = side.node(0).locks.acquire(&hash).await.unwrap().fence;
    assert!(before > 0);
    etcd.freeze();
    let begun = Instant::now();
    let lock = side.node(0).locks.acquire(&hash).await.unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(4),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(lock.fence, 0);
    assert!(lock.is_valid());
    // Known to be away: the next ones do not wait for it.
    let begun = Instant::now();
    for i in 0..10u8 {
        let lock = side.node(0).locks.acquire(&hash_of(&[i])).await.unwrap();
        assert_eq!(lock.fence, 0);
    }
    assert!(
        begun.elapsed() < Duration::from_millis(200),
        "{:?}",
        begun.elapsed()
    );
    assert!(!side.node(0).membership.health().await.etcd);
    drop(lock);
    etcd.thaw();
    // What the frozen server was sent must not keep the lock either.
    eventually(10, async || {
        side.node(0).locks.acquire(&hash).await.unwrap().fence > before
    })
    .await;
    eventually(10, async || {
        side.node(1).locks.acquire(&hash).await.unwrap().fence > before
    })
    .await;
    assert!(side.node(0).membership.health().await.etcd);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_is_not_valid_past_its_lease() {
    let etcd = Etcd::start();
    let side = Side::of(shared_mongod(), &etcd.uri(), 2).await;
    let hash = hash_of(b"expiring");
    let lock = side.node(0).locks.acquire(&hash).await.unwrap();
    // Renewed while etcd answers.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(lock.is_valid());
    etcd.freeze();
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert!(!lock.is_valid());
    // After a thaw etcd finds the lease expired. (A restart would not do: etcd gives every lease its full time then.)
    tokio::time::sleep(Duration::from_secs(1)).await;
    etcd.thaw();
    let newer = async {
        loop {
            let next = side.node(1).locks.acquire(&hash).await.unwrap();
            if next.fence > lock.fence {
                return next;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let next = tokio::time::timeout(Duration::from_secs(15), newer)
        .await
        .unwrap();
    assert!(!lock.is_valid());
    // Giving up the lost lock does not take the new one away.
    drop(lock);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let third = side.node(0).locks.acquire(&hash);
    assert!(
        tokio::time::timeout(Duration::from_millis(500), third)
            .await
            .is_err()
    );
    assert!(next.is_valid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_opens_while_etcd_is_away() {
    let port = free_port();
    let side = Side::of(shared_mongod(), &format!("http://127.0.0.1:{port}"), 30).await;
    let hash = hash_of(b"later");
    let begun = Instant::now();
    assert_eq!(side.node(0).locks.acquire(&hash).await.unwrap().fence, 0);
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert!(matches!(
        side.put(0, b"later").await.unwrap(),
        Put::Stored(_)
    ));
    let _etcd = Etcd::start_on(port);
    eventually(10, async || {
        side.node(0).locks.acquire(&hash).await.unwrap().fence > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_mongod_is_an_answer_within_seconds() {
    let mongod = Mongod::start();
    let side = Side::of(&mongod, &shared_etcd().uri(), 30).await;
    let first = side.put(0, b"before").await.unwrap();
    side.log(0).append(&entry(1, "x")).await.unwrap();
    mongod.freeze();
    let begun = Instant::now();
    let appended = entry(2, "y");
    let (put, append, read, health, changed) = tokio::join!(
        side.put(0, b"during"),
        side.log(0).append(&appended),
        side.read(1, first.blob()),
        side.node(0).membership.health(),
        side.log(0).changed(Seq(1)),
    );
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "{:?}",
        begun.elapsed()
    );
    assert!(matches!(put, Err(BackendError::Unavailable(_))), "{put:?}");
    assert!(
        matches!(append, Err(BackendError::Unavailable(_))),
        "{append:?}"
    );
    assert!(
        matches!(read, Err(BackendError::Unavailable(_))),
        "{read:?}"
    );
    assert!(!health.mongo && health.etcd);
    changed.unwrap();
    mongod.thaw();
    eventually(20, async || side.put(0, b"during").await.is_ok()).await;
    eventually(20, async || side.log(0).append(&appended).await.is_ok()).await;
    assert_eq!(side.log(1).read(Seq(1), 10).await.unwrap().len(), 2);
    assert!(matches!(
        side.put(1, b"during").await.unwrap(),
        Put::Duplicate(_)
    ));
    // Followers find their way back as well.
    side.log(0).append(&entry(3, "z")).await.unwrap();
    eventually(20, async || {
        let begun = Instant::now();
        side.log(1).changed(Seq(2)).await.unwrap();
        begun.elapsed() < Duration::from_millis(500)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_mongod_is_met_again() {
    let mongod = Mongod::start();
    let side = Side::of(&mongod, &shared_etcd().uri(), 30).await;
    let bytes = random_bytes(600_000);
    let put = side.put(0, &bytes).await.unwrap();
    side.log(0).append(&entry(1, "x")).await.unwrap();
    mongod.kill();
    let away = side.put(0, b"away").await;
    assert!(
        matches!(away, Err(BackendError::Unavailable(_))),
        "{away:?}"
    );
    mongod.restart();
    // Acknowledged means still there after a kill.
    assert!(side.read(1, put.blob()).await.unwrap() == bytes);
    assert_eq!(side.log(1).read(Seq(1), 10).await.unwrap(), [entry(1, "x")]);
    assert!(matches!(
        side.put(0, b"away").await.unwrap(),
        Put::Stored(_)
    ));
}
