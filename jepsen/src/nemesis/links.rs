//! What happens to packets between hosts, as far as counting goes; the filter is in [`crate::cluster::network`].

use super::Nemesis;
use crate::client::Connector;
use crate::cluster::Harness;
use crate::cluster::network::Way;

impl<C: Connector> Nemesis<C> {
    /// What the filters have dropped on these ways; `None` if nothing.
    pub(super) async fn packets_lost(&self, ways: &[Way]) -> Harness<Option<String>> {
        let lost = self.cluster.network.lost().await?;
        let packets: u64 = ways.iter().filter_map(|way| lost.get(way)).sum();
        let hit = ways.iter().filter(|way| lost.get(way).is_some_and(|count| *count > 0)).count();
        Ok((packets > 0).then(|| format!("{packets} packets were dropped, on {hit} of {} ways", ways.len())))
    }
}
