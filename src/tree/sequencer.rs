//! The single writer, in one of two orders: [`Local`], where whoever holds the writer comes next, or [`Logged`], where the
//! shared log decides. Chosen once, when the tree is opened.

use std::path::Path;
use std::sync::Arc;

use super::fork::Aside;
use super::local::Local;
use super::logged::Logged;
use super::op::Op;
use super::query::Query;
use super::{Applied, Commitment, Listener, Origin, Result};
use crate::backend::TreeLog;
use crate::types::{Generation, Ino, NodeId};

#[derive(Clone)]
pub(super) enum Sequencer {
    Local(Arc<Local>),
    Logged(Arc<Logged>),
}

impl Sequencer {
    pub(super) async fn open(
        path: &Path,
        node: &NodeId,
        log: Option<Arc<dyn TreeLog>>,
        listener: Listener,
    ) -> Result<Sequencer> {
        Ok(match log {
            None => Sequencer::Local(Local::open(path, listener)?),
            Some(log) => Sequencer::Logged(Logged::open(path, node, log, listener).await?),
        })
    }

    pub(super) async fn submit(
        &self,
        origin: Origin,
        commitment: Commitment,
        ops: Vec<Op>,
    ) -> Result<Applied> {
        match self {
            Sequencer::Local(local) => local.submit(origin, commitment, &ops),
            Sequencer::Logged(logged) => logged.submit(origin, commitment, ops).await,
        }
    }

    /// Asks on the writer's own connection where that is the cheaper one, or gives `f` back: every answered change is
    /// committed, and any reader's connection will do.
    pub(super) fn ask<T, F: FnOnce(Query<'_>) -> Result<T>>(&self, f: F) -> Result<Result<T>, F> {
        match self {
            Sequencer::Local(local) => local.query(f),
            // Between append and commit the writer sees what no one was told yet.
            Sequencer::Logged(_) => Err(f),
        }
    }

    /// Asks on the writer's own connection, whatever it waits for.
    pub(super) fn ask_writer<T>(&self, f: impl FnOnce(Query<'_>) -> Result<T>) -> Result<T> {
        match self {
            Sequencer::Local(local) => local.ask_writer(f),
            Sequencer::Logged(logged) => logged.query(f),
        }
    }

    /// Commits everything that was answered.
    pub(super) fn settle(&self) -> Result<()> {
        match self {
            Sequencer::Local(local) => local.settle(),
            Sequencer::Logged(_) => Ok(()),
        }
    }

    /// Makes everything that was answered survive power loss of this machine.
    pub(super) fn sync(&self) -> Result<()> {
        match self {
            Sequencer::Local(local) => local.sync(),
            Sequencer::Logged(logged) => logged.sync(),
        }
    }

    /// Frees the space that is set aside for removing files. True when there was some.
    pub(super) fn give_up_reserve(&self) -> bool {
        match self {
            Sequencer::Local(local) => local.give_up_reserve(),
            Sequencer::Logged(logged) => logged.give_up_reserve(),
        }
    }

    pub(super) fn set_local(&self, key: &str, value: u64) -> Result<()> {
        match self {
            Sequencer::Local(local) => local.set_local(key, value),
            Sequencer::Logged(logged) => logged.set_local(key, value),
        }
    }

    pub(super) async fn catch_up(&self) -> Result<()> {
        match self {
            Sequencer::Local(_) => Ok(()),
            Sequencer::Logged(logged) => logged.catch_up().await,
        }
    }

    /// Without a log nothing ever waits for one.
    pub(super) fn merge_with(&self, aside: Aside) {
        match self {
            Sequencer::Local(_) => {}
            Sequencer::Logged(logged) => logged.merge_with(aside),
        }
    }

    pub(super) fn waiting(&self) -> Result<u64> {
        match self {
            Sequencer::Local(_) => Ok(0),
            Sequencer::Logged(logged) => logged.waiting(),
        }
    }

    pub(super) async fn ended(&self) {
        match self {
            // Closing it is all.
            Sequencer::Local(_) => {}
            Sequencer::Logged(logged) => logged.ended().await,
        }
    }

    pub(super) fn is_behind(&self) -> bool {
        match self {
            Sequencer::Local(_) => false,
            Sequencer::Logged(logged) => logged.is_behind(),
        }
    }

    pub(super) fn given_up(&self) -> Result<Vec<(Ino, Generation)>> {
        match self {
            Sequencer::Local(_) => Ok(Vec::new()),
            Sequencer::Logged(logged) => logged.given_up(),
        }
    }

    pub(super) fn forget_given_up(&self) -> Result<()> {
        match self {
            Sequencer::Local(_) => Ok(()),
            Sequencer::Logged(logged) => logged.forget_given_up(),
        }
    }

    pub(super) fn close(&self) {
        match self {
            Sequencer::Local(local) => local.close(),
            Sequencer::Logged(logged) => logged.close(),
        }
    }
}
