//! Who is there: a key per node at `/members/<database>/<node>`, on the node's lease, so it goes when the node does.
//!
//! The database's name is part of the key because several trees may share one etcd.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{GetOptions, PutOptions};
use mongodb::Database;
use mongodb::bson::doc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::etcd::{Etcd, call};
use crate::backend::{Health, Load, Member, Membership, Result};

/// The longest time that a key which could not be written stays so after etcd is back.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// The members as etcd knows them.
#[derive(Clone)]
pub(super) struct Directory {
    etcd: Arc<Etcd>,
    prefix: String,
}

impl Directory {
    pub(super) fn new(etcd: Arc<Etcd>, database: &Database) -> Directory {
        Directory {
            etcd,
            prefix: format!("/members/{}/", database.name()),
        }
    }

    /// `None` when etcd does not answer.
    pub(super) async fn ask(&self) -> Option<Vec<Member>> {
        let session = self.etcd.session().await?;
        let mut client = session.client.clone();
        let all = client.get(self.prefix.as_str(), Some(GetOptions::new().with_prefix()));
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

/// The cluster's membership.
pub(super) struct EtcdMembership {
    directory: Directory,
    database: Database,
    joined: Mutex<Option<Joined>>,
}

struct Joined {
    me: watch::Sender<Member>,
    task: JoinHandle<()>,
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl EtcdMembership {
    pub(super) fn new(directory: Directory, database: Database) -> EtcdMembership {
        EtcdMembership {
            directory,
            database,
            joined: Mutex::new(None),
        }
    }
}

#[async_trait]
impl Membership for EtcdMembership {
    async fn join(&self, me: Member) -> Result<()> {
        let key = format!("{}{}", self.directory.prefix, me.node);
        let me = watch::Sender::new(me);
        let task = tokio::spawn(stay(self.directory.etcd.clone(), key, me.subscribe()));
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        *joined = Some(Joined { me, task });
        Ok(())
    }

    fn report(&self, load: Load) {
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(joined) = &*joined {
            joined.me.send_if_modified(|me| {
                let news = me.load != load;
                me.load = load;
                news
            });
        }
    }

    async fn members(&self) -> Vec<Member> {
        let mut members = self.directory.ask().await.unwrap_or_default();
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        // Of itself it knows better than what it has told.
        if let Some(joined) = &*joined {
            let me = joined.me.borrow().clone();
            members.retain(|member| member.node != me.node);
            members.push(me);
        }
        members.sort_by(|a, b| a.node.cmp(&b.node));
        members
    }

    async fn health(&self) -> Health {
        let limit = Duration::from_secs(2);
        let etcd = async {
            let Some(session) = self.directory.etcd.session().await else {
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

/// Writes the key on every lease that this node gets, and when there is news.
async fn stay(etcd: Arc<Etcd>, key: String, mut me: watch::Receiver<Member>) {
    let mut written = None;
    loop {
        if let Some(session) = etcd.session().await {
            let member = me.borrow_and_update().clone();
            let now = Some((session.lease, member.load));
            if written != now
                && let Ok(value) = serde_json::to_vec(&member)
            {
                let options = PutOptions::new().with_lease(session.lease);
                let mut client = session.client.clone();
                let put = client.put(key.as_str(), value, Some(options));
                if let Ok(Ok(_)) = call(put).await {
                    written = now;
                }
            }
        }
        etcd.changed(LOOK_AGAIN).await;
    }
}
