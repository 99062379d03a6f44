//! What a broker shows of itself at the moment it is asked (`/metrics`): what it leads, what lags, how its disk is.
//!
//! Nothing here is kept up to date between two questions, so that it costs nothing while nobody asks.

use std::sync::Arc;

use pontoon_raft::instruments;
use pontoon_raft::instruments::Instrument;
use pontoon_raft::transport::Liveness;
use pontoon_raft::types::BrokerId;

use super::shared::Shared;
use super::{Broker, PartitionDescription};
use crate::partition::PartitionInstruments;
use crate::telemetry::recorder::write_family;

instruments! {
    /// Set when somebody asks.
    pub(super) struct BrokerGauges {
        /// 1 while this broker leads the catalog.
        gauge controller = "pontoon_controller";
        /// 1 while this broker knows a controller that is alive and can decide: most of the catalog's voters are alive.
        gauge controller_known = "pontoon_controller_known";
        /// Topics in the catalog.
        gauge topics = "pontoon_topics";
        /// Partitions that this broker leads.
        gauge leads = "pontoon_broker_leads";
        /// Replicas that the catalog places on this broker.
        gauge replicas = "pontoon_broker_replicas";
        /// Of those, the ones that are behind their leader, or whose leader is not known.
        gauge lagging = "pontoon_broker_lagging_replicas";
        /// Records that the follower furthest behind lacks, of the partitions that this broker leads.
        gauge lag_records = "pontoon_replica_lag_records_max";
        /// Bytes that the follower furthest behind lacks, of the partitions that this broker leads.
        gauge lag_bytes = "pontoon_replica_lag_bytes_max";
        /// Partitions of the cluster without a leader, or whose leader has lost its majority, as this broker knows it.
        gauge leaderless = "pontoon_partitions_without_leader";
        /// Partitions that this broker leads with fewer replicas in sync than they should have.
        gauge under_replicated = "pontoon_partitions_under_replicated";
        /// Replicas on this broker that do not run: corrupt, or their cores kept ending.
        gauge lost = "pontoon_replicas_lost";
        /// Replicas on this broker in whose files rot was found.
        gauge corrupt = "pontoon_replicas_corrupt";
        /// Folders on this broker that are kept of rotten or lost replicas, until a person removes them; `pontoon status` names them.
        gauge quarantined_folders = "pontoon_quarantined_folders";
        /// Files that the scrub found rotten and that are not made anew yet; `pontoon status` names them.
        gauge rotten_files = "pontoon_rotten_files";
        /// Files that were rotten since this broker started and are whole again, or not needed any more; `pontoon status` names them.
        gauge rotten_files_healed = "pontoon_rotten_files_healed";
        /// Free bytes on the data directory's disk.
        gauge available_bytes = "pontoon_disk_available_bytes";
        /// Free bytes below which produce is refused.
        gauge reserve_bytes = "pontoon_disk_reserve_bytes";
        /// Bytes of journal files in use.
        gauge journal_bytes = "pontoon_journal_live_bytes";
        /// Since the last checkpoint. It also grows while nothing is written.
        gauge checkpoint_age_seconds = "pontoon_checkpoint_age_seconds";
        /// Bytes of newest records held in memory.
        gauge tail_cache_bytes = "pontoon_tail_cache_bytes";
    }
}

/// Reads what is shown.
type Value = fn(&PartitionDescription) -> u64;

/// What is shown of a partition, by its leader, if `metrics.partitions` says so.
const OF_PARTITIONS: &[(Instrument, Value)] = &[
    (gauge("pontoon_partition_log_start_offset", "Oldest readable offset."), |of| of.log_start_offset.0),
    (gauge("pontoon_partition_high_watermark", "One past the last committed offset."), |of| of.high_watermark.0),
    (gauge("pontoon_partition_leader_epoch", "The leader's term."), |of| of.leader_epoch),
    (gauge("pontoon_partition_in_sync", "Replicas that are alive and not behind."), |of| of.in_sync.len() as u64),
    (gauge("pontoon_partition_lag_bytes_max", "Bytes that the replica furthest behind lacks."), |of| {
        of.lagging.iter().filter_map(|lagging| lagging.bytes).max().unwrap_or(0)
    }),
];

const fn gauge(name: &'static str, help: &'static str) -> Instrument {
    Instrument { kind: "gauge", name, help }
}

/// A broker's handles.
pub(super) struct BrokerInstruments {
    gauges: BrokerGauges,
    pub(super) partitions: Arc<PartitionInstruments>,
}

impl BrokerInstruments {
    pub(super) fn new(broker: BrokerId) -> Self {
        Self { gauges: BrokerGauges::new(broker), partitions: Arc::new(PartitionInstruments::new(broker)) }
    }
}

/// Whatever a broker shows, whichever door asks.
pub fn instruments() -> impl Iterator<Item = Instrument> {
    let own = BrokerGauges::ALL.iter().chain(PartitionInstruments::ALL).copied();
    own.chain(super::group_lag::INSTRUMENTS).chain(pontoon_raft::instruments::all())
}

impl Broker {
    /// Brings the gauges up to date.
    pub fn observe(&self) {
        let gauges = &self.shared.instruments.gauges;
        self.shared.observe_cluster(gauges);
        self.shared.observe_store(gauges);
        self.shared.observe_peers();
    }
}

impl Broker {
    /// The partitions that this broker leads, in Prometheus' text format; nothing unless `metrics.partitions` is set.
    /// They have no handles: topics come and go.
    pub fn partition_metrics(&self) -> String {
        let mut text = String::new();
        if !self.config().metrics_partitions {
            return text;
        }
        let topics = self.topics();
        for (instrument, value) in OF_PARTITIONS {
            let led = topics.iter().flat_map(|topic| topic.partitions.iter().map(|partition| (&topic.name, partition)));
            let led = led.filter(|(_, partition)| partition.leader == Some(self.id()));
            // A topic's name needs no escaping: its characters are few.
            let samples = led.map(|(topic, partition)| {
                let labels =
                    format!("broker=\"{}\",topic=\"{topic}\",partition=\"{}\"", self.id(), partition.partition);
                (labels, value(partition))
            });
            write_family(&mut text, instrument, samples);
        }
        text
    }
}

impl Shared {
    fn observe_cluster(&self, gauges: &BrokerGauges) {
        let controller = self.known_controller().map(|(broker, _)| broker);
        gauges.controller.set(f64::from(u8::from(controller == Some(self.broker))));
        gauges.controller_known.set(f64::from(u8::from(controller.is_some())));
        let topics = self.topics();
        gauges.topics.set(topics.len() as f64);
        let (mut leads, mut replicas, mut lagging, mut leaderless, mut under) = (0u32, 0u32, 0u32, 0u32, 0u32);
        let (mut records, mut bytes) = (0, 0);
        for partition in topics.iter().flat_map(|topic| &topic.partitions) {
            leaderless += u32::from(!partition.takes_writes);
            if partition.leader == Some(self.broker) {
                leads += 1;
                under +=
                    u32::from(partition.in_sync.len() < partition.replicas.len() || partition.replicas_missing > 0);
                for lagging in &partition.lagging {
                    records = records.max(lagging.records.unwrap_or(0));
                    bytes = bytes.max(lagging.bytes.unwrap_or(0));
                }
            }
            if partition.replicas.contains(&self.broker) {
                replicas += 1;
                lagging += u32::from(!partition.in_sync.contains(&self.broker));
            }
        }
        gauges.leads.set(leads);
        gauges.replicas.set(replicas);
        gauges.lagging.set(lagging);
        gauges.lag_records.set(records as f64);
        gauges.lag_bytes.set(bytes as f64);
        gauges.leaderless.set(leaderless);
        gauges.under_replicated.set(under);
        gauges.lost.set(self.groups.lost().len() as f64);
    }

    fn observe_store(&self, gauges: &BrokerGauges) {
        let usage = self.store.usage();
        gauges.available_bytes.set(usage.available_bytes as f64);
        gauges.reserve_bytes.set(self.config.raft.reserve_produce_bytes as f64);
        gauges.journal_bytes.set(usage.journal_bytes as f64);
        gauges.checkpoint_age_seconds.set(usage.checkpoint_age.as_secs_f64());
        gauges.tail_cache_bytes.set(usage.tail_cache_bytes as f64);
        gauges.corrupt.set(usage.corrupt as f64);
        gauges.quarantined_folders.set(self.store.quarantined().len() as f64);
        gauges.rotten_files.set(self.store.scrub_findings().len() as f64);
        gauges.rotten_files_healed.set(self.healed().len() as f64);
    }

    /// One series per peer; there are few.
    fn observe_peers(&self) {
        for peer in self.transport().peers() {
            let alive = self.transport().liveness(peer) == Liveness::Alive;
            let labels = [("broker", self.broker.to_string()), ("peer", peer.to_string())];
            metrics::gauge!("pontoon_peer_alive", &labels).set(f64::from(u8::from(alive)));
        }
    }
}
