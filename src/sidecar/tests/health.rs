//! `/health` and `/metrics` under those who ask all the time.

use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::*;
use crate::backend::{self, Health, Load, Member, Membership};

/// Servers that answer when they may, and count how often they are asked.
struct Asked {
    times: AtomicU32,
    go: Semaphore,
}

#[async_trait]
impl Membership for Asked {
    async fn join(&self, _: Member) -> backend::Result<()> {
        Ok(())
    }

    fn report(&self, _: Load) {}

    async fn members(&self) -> Vec<Member> {
        Vec::new()
    }

    async fn health(&self) -> Health {
        self.times.fetch_add(1, Ordering::Relaxed);
        let _go = self.go.acquire().await;
        Health::default()
    }
}

#[tokio::test]
async fn who_asks_all_the_time_asks_the_servers_once_a_second() {
    let asked = Arc::new(Asked {
        times: AtomicU32::new(0),
        go: Semaphore::new(0),
    });
    let servers = asked.clone();
    let node = Node::start_as("127.0.0.1:0", quick(), |ctx| {
        ctx.backends.membership = servers;
    })
    .await;
    // Those who go away without waiting.
    for _ in 0..30 {
        let left = tokio::time::timeout(Duration::from_millis(10), node.get("/health"));
        assert!(left.await.is_err());
    }
    let begun = Instant::now();
    let callers = (0..60).map(|n| node.get(["/health", "/metrics"][n % 2]));
    let (answers, ()) = tokio::join!(futures_util::future::join_all(callers), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        asked.go.add_permits(1);
    });
    assert!(answers.iter().all(|a| a.status == StatusCode::OK));
    for _ in 0..60 {
        assert_eq!(node.get("/health").await.json()["status"], "ok");
    }
    let most = 1 + begun.elapsed().as_secs() as u32;
    let times = asked.times.load(Ordering::Relaxed);
    assert!((1..=most).contains(&times), "{times} times");
    // The command line hears what is so now.
    for n in 1..=3 {
        let (status, _) = client::get_json(&node.data.control(), "/health")
            .await
            .unwrap();
        assert_eq!(
            (status, asked.times.load(Ordering::Relaxed)),
            (200, times + n)
        );
    }
    node.end().await;
}
