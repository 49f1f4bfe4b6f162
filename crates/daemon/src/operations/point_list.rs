//! Shows the recovery points of a replica.

use understudy_model::Refusal;

use super::owner::PointReport;
use super::{Operations, Permit, View};

impl Operations {
    /// The recovery points of a VM replicated to this host, oldest first.
    pub async fn point_list(&self, _permit: &Permit<View>, vm: &str, leg: u8) -> Result<Vec<PointReport>, Refusal> {
        self.find_owner(vm, leg).await?.points().await
    }
}
