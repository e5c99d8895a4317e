//! Who is there: a key per node at `/members/<database>/<node>`, on the node's lease, so it goes when the node does.
//!
//! The database's name is part of the key because several trees may share one etcd.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, PutOptions};
use mongodb::Database;
use mongodb::bson::doc;
use tokio::task::JoinHandle;

use super::etcd::{Etcd, call};
use crate::backend::{BackendError, Health, Member, Membership, Result};

/// The longest time that a key which could not be written stays so after etcd is back.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The cluster's membership.
pub(super) struct EtcdMembership {
    etcd: Arc<Etcd>,
    database: Database,
    joined: Mutex<Option<Joined>>,
}

struct Joined {
    me: Member,
    task: JoinHandle<()>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl EtcdMembership {
    pub(super) fn new(etcd: Arc<Etcd>, database: Database) -> EtcdMembership {
        EtcdMembership {
            etcd,
            database,
            joined: Mutex::new(None),
        }
    }

    fn prefix(&self) -> String {
        format!("/members/{}/", self.database.name())
    }

    async fn ask(&self) -> Option<Vec<Member>> {
        let session = self.etcd.session().await?;
        let mut client = session.client.clone();
        let all = client.get(self.prefix(), Some(GetOptions::new().with_prefix()));
        let answer = match call(all).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => {
                self.etcd.failed(&e.to_string());
                return None;
            }
            Err(why) => {
                self.etcd.failed(why);
                return None;
            }
        };
        let members = answer.kvs().iter();
        // A value that cannot be read is of a newer program; it is no member that this one could talk to.
        Some(
            members
                .filter_map(|kv| serde_json::from_slice(kv.value()).ok())
                .collect(),
        )
    }
}

#[async_trait]
impl Membership for EtcdMembership {
    async fn join(&self, me: Member) -> Result<()> {
        let key = format!("{}{}", self.prefix(), me.node);
        let value = serde_json::to_vec(&me)
            .map_err(|e| BackendError::Unusable(format!("this node cannot be described: {e}")))?;
        let task = tokio::spawn(stay(self.etcd.clone(), key, value));
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        *joined = Some(Joined { me, task });
        Ok(())
    }

    async fn members(&self) -> Vec<Member> {
        let mut members = self.ask().await.unwrap_or_default();
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(joined) = &*joined
            && !members.iter().any(|member| member.node == joined.me.node)
        {
            members.push(joined.me.clone());
        }
        members.sort_by(|a, b| a.node.cmp(&b.node));
        members
    }

    async fn health(&self) -> Health {
        let limit = Duration::from_secs(2);
        let etcd = async {
            let Some(session) = self.etcd.session().await else {
                return false;
            };
            // A linearizable read: only an etcd with a quorum answers it.
            let count = GetOptions::new().with_count_only();
            let answer = session.client.clone().get("/locks/", Some(count)).await;
            answer.is_ok()
        };
        let ping = self.database.run_command(doc! { "ping": 1 });
        let (etcd, mongo) = tokio::join!(
            tokio::time::timeout(limit, etcd),
            tokio::time::timeout(limit, ping.into_future()),
        );
        Health {
            etcd: etcd.unwrap_or(false),
            mongo: mongo.is_ok_and(|answer| answer.is_ok()),
        }
    }
}

/// Writes the key once on every lease that this node gets.
async fn stay(etcd: Arc<Etcd>, key: String, value: Vec<u8>) {
    let mut written = None;
    loop {
        if let Some(session) = etcd.session().await
            && written != Some(session.lease)
        {
            let options = PutOptions::new().with_lease(session.lease);
            let mut client = session.client.clone();
            let put = client.put(key.as_str(), value.clone(), Some(options));
            if let Ok(Ok(_)) = call(put).await {
                written = Some(session.lease);
            }
        }
        etcd.changed(LOOK_AGAIN).await;
    }
}
