//! placeholder
use super::*;
/// x
pub async fn open(_c: &crate::config::ClusterConfig, _n: &NodeId) -> Result<Backends> {
    Err(BackendError::NotFound)
}
