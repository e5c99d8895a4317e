//! Which nodes there are.

use super::*;

both_sides!(a_member_sees_itself,);

fn me(name: &str) -> Member {
    Member {
        node: node(name),
        mountpoint: "/mnt".to_string(),
        peer: String::new(),
        api: String::new(),
        version: "1".to_string(),
        started_at: Time(5),
        load: Default::default(),
    }
}

async fn a_member_sees_itself(side: Side) {
    side.node(0).membership.join(me("a")).await.unwrap();
    assert!(side.node(0).membership.members().await.contains(&me("a")));
    let health = side.node(0).membership.health().await;
    assert_eq!(
        (health.etcd, health.mongo),
        (side.database.is_some(), side.database.is_some())
    );
    if side.database.is_some() {
        side.node(1).membership.join(me("b")).await.unwrap();
        let both = vec![me("a"), me("b")];
        eventually(5, async || side.node(0).membership.members().await == both).await;
        eventually(5, async || side.node(1).membership.members().await == both).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_ends_is_a_member_no_more() {
    let Side { nodes: [a, b], .. } = Side::cluster().await;
    a.membership.join(me("a")).await.unwrap();
    b.membership.join(me("b")).await.unwrap();
    eventually(5, async || a.membership.members().await.len() == 2).await;
    // Long before its lease of 30 s would run out.
    drop(b);
    eventually(5, async || a.membership.members().await == [me("a")]).await;
}
