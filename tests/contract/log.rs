//! The log of the namespace, and its checkpoints.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_is_appended_by_compare_and_swap() {
    let side = Side::cluster().await;
    assert_eq!(side.log(0).head().await.unwrap(), Seq(0));
    assert_eq!(side.log(0).read(Seq(1), 10).await.unwrap(), []);
    assert_eq!(
        side.log(0).append(&entry(1, "x")).await.unwrap(),
        Append::Appended
    );
    assert_eq!(
        side.log(1).append(&entry(1, "x")).await.unwrap(),
        Append::Appended
    );
    assert_eq!(
        side.log(1).append(&entry(1, "y")).await.unwrap(),
        Append::Conflict
    );
    assert_eq!(
        side.log(1).append(&entry(2, "y")).await.unwrap(),
        Append::Appended
    );
    let gap = side.log(0).append(&entry(4, "z")).await;
    assert!(matches!(gap, Err(BackendError::Unusable(_))), "{gap:?}");
    assert_eq!(side.log(0).head().await.unwrap(), Seq(2));
    let all = vec![entry(1, "x"), entry(2, "y")];
    assert_eq!(side.log(1).read(Seq(1), 10).await.unwrap(), all);
    assert_eq!(side.log(1).read(Seq(1), 1).await.unwrap(), all[..1]);
    assert_eq!(side.log(1).read(Seq(1), 0).await.unwrap(), []);
    assert_eq!(side.log(1).read(Seq(3), 10).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_positions_have_one_winner() {
    let side = Arc::new(Side::cluster().await);
    for seq in 1..=5 {
        let racers = (0..16).map(|i| {
            let side = side.clone();
            tokio::spawn(async move {
                side.log(i)
                    .append(&entry(seq, &format!("{seq}-{i}")))
                    .await
                    .unwrap()
            })
        });
        let outcomes = join_all(racers).await;
        let won = outcomes
            .iter()
            .filter(|o| matches!(o, Ok(Append::Appended)))
            .count();
        assert_eq!(won, 1, "{outcomes:?}");
    }
    assert_eq!(side.log(0).read(Seq(1), 100).await.unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_start_moves_by_trim_only() {
    let side = Side::cluster().await;
    for seq in 1..=6 {
        side.log(0)
            .append(&entry(seq, &format!("b{seq}")))
            .await
            .unwrap();
    }
    side.log(0).trim(Seq(4)).await.unwrap();
    side.log(1).trim(Seq(2)).await.unwrap();
    for from in [1, 4] {
        let read = side.log(1).read(Seq(from), 10).await;
        assert!(
            matches!(read, Err(BackendError::NotFound)),
            "{from}: {read:?}"
        );
    }
    assert_eq!(side.log(1).read(Seq(5), 10).await.unwrap().len(), 2);
    // A freed position is not free, neither for a new batch nor for the one that was there.
    for batch in ["new", "b3"] {
        let late = side.log(1).append(&entry(3, batch)).await;
        assert!(matches!(late, Err(BackendError::NotFound)), "{late:?}");
    }
    assert_eq!(
        side.collection("log")
            .count_documents(doc! {})
            .await
            .unwrap(),
        2
    );
    // Also when nothing is left, and when more is asked for than there is.
    side.log(0).trim(Seq(100)).await.unwrap();
    assert_eq!(side.log(1).head().await.unwrap(), Seq(6));
    assert_eq!(
        side.log(1).append(&entry(7, "b7")).await.unwrap(),
        Append::Appended
    );
    assert_eq!(
        side.log(0).read(Seq(7), 10).await.unwrap(),
        [entry(7, "b7")]
    );
}

/// A node that has much to catch up with takes it in pieces that fit its memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_log_entries_are_read_a_few_at_a_time() {
    let side = Side::cluster().await;
    let large = |seq: u64| LogEntry {
        payload: vec![seq as u8; 3 << 20],
        ..entry(seq, &seq.to_string())
    };
    for seq in 1..=7 {
        let appended = side.log(0).append(&large(seq)).await.unwrap();
        assert_eq!(appended, Append::Appended);
    }
    let (mut next, mut pieces) = (1, 0);
    loop {
        let piece = side.log(1).read(Seq(next), 256).await.unwrap();
        assert!(piece.len() <= 3, "{} entries at once", piece.len());
        for (entry, seq) in piece.iter().zip(next..) {
            assert_eq!(*entry, large(seq));
        }
        if piece.is_empty() {
            break;
        }
        next += piece.len() as u64;
        pieces += 1;
    }
    assert_eq!((next, pieces), (8, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_followers_wake() {
    let side = Side::cluster().await;
    side.log(0).append(&entry(1, "x")).await.unwrap();
    side.log(1).changed(Seq(0)).await.unwrap();
    // Nothing new: it comes back after a second.
    let begun = Instant::now();
    side.log(1).changed(Seq(1)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3));
    // The change stream is open by now: something new comes at once.
    let mut fastest = Duration::MAX;
    for seq in 2..8 {
        let wait = async {
            side.log(1).changed(Seq(seq - 1)).await.unwrap();
            Instant::now()
        };
        let append = async {
            side.log(0)
                .append(&entry(seq, &seq.to_string()))
                .await
                .unwrap();
            Instant::now()
        };
        let (woken, appended) = tokio::join!(wait, append);
        fastest = fastest.min(woken.saturating_duration_since(appended));
        assert_eq!(side.log(1).read(Seq(seq), 1).await.unwrap().len(), 1);
        // It says how far it knows, so that a node can tell its own entries from news.
        for log in [0, 1] {
            let heard = side.log(log).changed(Seq(seq - 1)).await.unwrap();
            assert_eq!(heard, Seq(seq));
        }
    }
    assert!(fastest < Duration::from_millis(300), "{fastest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn node_ranges_differ_and_last() {
    let side = Arc::new(Side::cluster().await);
    let calls = (0..16).map(|i| {
        let side = side.clone();
        tokio::spawn(async move {
            let name = format!("n{}", i / 2);
            (i / 2, side.log(i).register(&node(&name)).await.unwrap())
        })
    });
    let mut ranges: Vec<(usize, u32)> = join_all(calls)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    ranges.sort();
    ranges.dedup();
    assert_eq!(ranges.len(), 8, "one range per node: {ranges:?}");
    let mut numbers: Vec<u32> = ranges.iter().map(|r| r.1).collect();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), 8, "no range twice: {ranges:?}");
    assert!(numbers[0] >= 1);
    assert_eq!(
        side.log(1).register(&node("n0")).await.unwrap(),
        ranges[0].1
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newest_checkpoint_wins() {
    let side = Side::cluster().await;
    assert!(side.log(0).checkpoint(None).await.unwrap().is_none());
    // 9 and 10: as text the order would be another.
    for seq in [2, 9, 10] {
        let (_, path) = side.source(format!("state after {seq}").as_bytes());
        side.log(0).put_checkpoint(Seq(seq), &path).await.unwrap();
        side.log(1).put_checkpoint(Seq(seq), &path).await.unwrap();
    }
    let (seq, mut reader) = side.log(1).checkpoint(None).await.unwrap().unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).await.unwrap();
    assert_eq!((seq, text.as_str()), (Seq(10), "state after 10"));
    // And the one before, for whom the newest is of no use.
    let older = |before| side.log(1).checkpoint(Some(before));
    assert_eq!(older(Seq(10)).await.unwrap().unwrap().0, Seq(9));
    assert!(older(Seq(9)).await.unwrap().is_none());
    let kept = side
        .collection("checkpoints.files")
        .count_documents(doc! {})
        .await
        .unwrap();
    let chunks = side
        .collection("checkpoints.chunks")
        .count_documents(doc! {})
        .await
        .unwrap();
    assert_eq!((kept, chunks), (2, 2));
}
