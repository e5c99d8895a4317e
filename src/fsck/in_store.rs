//! What a shared store has of the contents of files, against what the tree says it should. Objects are looked at without
//! being read.

use std::sync::Arc;

use super::paths_of_content;
use super::report::{Outcome, Report};
use crate::content::Sealed;
use crate::tree::{Content, Tree, TreeError};
use crate::types::ContentHash;

/// How many contents are looked at in one call.
const PAGE: usize = 500;

/// Adds to `report` what is wrong with the objects of the contents that files have.
pub async fn in_store(
    tree: &Arc<Tree>,
    sealed: &Sealed,
    report: &mut Report,
) -> Result<(), TreeError> {
    let mut after = None;
    loop {
        let page = asked(tree, move |tree| {
            tree.scan(|q| q.contents(after.as_ref(), PAGE))
        });
        let page = page.await?;
        let Some(last) = page.last() else {
            return Ok(());
        };
        after = Some(last.hash);
        let objects: Vec<_> = page.iter().map(|c| (c.hash, c.blob.clone())).collect();
        let faults = match sealed.faults(&objects).await {
            Ok(faults) => faults,
            Err(e) => {
                let what = format!("what is stored cannot be looked at: {e}");
                report.add(Outcome::Left, what, Vec::new());
                return Ok(());
            }
        };
        for (content, fault) in page.into_iter().zip(faults) {
            if let Some(fault) = fault {
                let what = said(&content.hash, &fault);
                // Removed, or stored anew, since the page was made.
                if let Some(paths) = asked(tree, move |tree| paths(tree, &content)).await? {
                    report.add(Outcome::Left, what, paths);
                }
            }
        }
    }
}

fn said(hash: &ContentHash, fault: &str) -> String {
    format!("the stored object of content {hash} {fault}; write the same content again")
}

/// The files with the content, while its object is still this one.
fn paths(tree: &Tree, content: &Content) -> Result<Option<Vec<String>>, TreeError> {
    tree.scan(|q| {
        let now = q.content(&content.hash)?;
        let same = now.is_some_and(|now| now.blob == content.blob);
        let paths = same.then(|| paths_of_content(q, &content.hash));
        Ok(paths.filter(|paths| !paths.is_empty()))
    })
}

/// Asks the tree where that may block.
async fn asked<T: Send + 'static>(
    tree: &Arc<Tree>,
    question: impl FnOnce(&Tree) -> Result<T, TreeError> + Send + 'static,
) -> Result<T, TreeError> {
    let tree = tree.clone();
    let asked = tokio::task::spawn_blocking(move || question(&tree)).await;
    asked.unwrap_or_else(|e| Err(TreeError::Database(e.to_string())))
}
