//! How far consumer groups are behind what is committed: for `/metrics`, by the broker that coordinates them.
//!
//! Asked for, not kept: a committed offset against the high watermark that the partition's leader last told. The number of series is bounded
//! (`metrics.groups_max`): groups come from clients, and so do their names. Those furthest behind are shown first.

use std::collections::BTreeMap;
use std::time::Duration;

use pontoon_raft::instruments::Instrument;
use pontoon_raft::types::BrokerId;

use super::{Broker, TopicDescription};
use crate::coordinator::{GroupProgress, Progress};
use crate::telemetry::recorder::{escaped, write_family};

/// How long a scrape waits for groups that are just being written.
const PATIENCE: Duration = Duration::from_secs(1);

const fn gauge(name: &'static str, help: &'static str) -> Instrument {
    Instrument { kind: "gauge", name, help }
}

const GROUPS: Instrument = gauge("pontoon_groups", "Consumer groups that this broker coordinates.");
const LAG_MAX: Instrument = gauge(
    "pontoon_group_lag_records_max",
    "Records that the consumer group furthest behind has not read, of those this broker coordinates.",
);
const LAG: Instrument =
    gauge("pontoon_group_lag_records", "Committed records that a consumer group has not read, by group.");
const MEMBERS: Instrument = gauge("pontoon_group_members", "Members of a consumer group, by group.");
const BYTES: Instrument = gauge(
    "pontoon_groups_bytes",
    "Bytes that the consumer groups of the fullest partition of __consumer_offsets here take, of pontoon_groups_bytes_limit.",
);
const BYTES_LIMIT: Instrument = gauge(
    "pontoon_groups_bytes_limit",
    "Most bytes that the consumer groups of one partition of __consumer_offsets may take: limits.groups_bytes_max.",
);
const DROPPED: Instrument = gauge(
    "pontoon_group_series_dropped",
    "Consumer groups, and partitions of them, that are not shown because metrics.groups_max are.",
);
const PARTITION_LAG: Instrument = gauge(
    "pontoon_group_partition_lag_records",
    "Committed records that a consumer group has not read, by group and partition.",
);

/// What is shown of groups, always.
pub(super) const INSTRUMENTS: [Instrument; 7] = [GROUPS, BYTES, BYTES_LIMIT, LAG_MAX, LAG, MEMBERS, DROPPED];

/// A group and how far it is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
struct GroupLag {
    group: String,
    members: u64,
    /// Of all its partitions.
    records: u64,
    /// Topic, partition, records.
    partitions: Vec<(String, u32, u64)>,
}

impl Broker {
    /// The consumer groups that this broker coordinates and how far they are behind, in Prometheus' text format.
    pub async fn group_metrics(&self) -> String {
        let Progress { groups, bytes } = self.groups().progress(PATIENCE).await;
        let topics: BTreeMap<String, TopicDescription> =
            self.topics().into_iter().map(|topic| (topic.name.clone(), topic)).collect();
        let lags = groups.into_iter().map(|group| lag(group, &topics)).collect();
        let config = self.config();
        let mut shown = text(self.id(), lags, config.metrics_groups_max, config.metrics_partitions);
        for (gauge, value) in [(&BYTES, bytes), (&BYTES_LIMIT, config.limits.groups_bytes_max)] {
            write_family(&mut shown, gauge, std::iter::once((format!("broker=\"{}\"", self.id()), value as u64)));
        }
        shown
    }
}

/// A committed offset of a topic that was created again means nothing.
fn lag(group: GroupProgress, topics: &BTreeMap<String, TopicDescription>) -> GroupLag {
    let partitions = group.offsets.into_iter().filter_map(|offset| {
        let topic = topics.get(&offset.topic)?;
        let same = u128::from_str_radix(&topic.topic_id, 16).is_ok_and(|id| id == offset.topic_id);
        let partition = topic.partitions.get(offset.partition as usize).filter(|_| same)?;
        let records = partition.high_watermark.0.saturating_sub(offset.offset.max(0) as u64);
        Some((offset.topic, offset.partition, records))
    });
    let partitions: Vec<_> = partitions.collect();
    let records = partitions.iter().map(|(_, _, records)| records).sum();
    GroupLag { group: group.name, members: group.members as u64, records, partitions }
}

fn text(broker: BrokerId, mut lags: Vec<GroupLag>, groups_max: usize, with_partitions: bool) -> String {
    let mut text = String::new();
    let of_broker = format!("broker=\"{broker}\"");
    let one = |value: u64| std::iter::once((of_broker.clone(), value));
    write_family(&mut text, &GROUPS, one(lags.len() as u64));
    write_family(&mut text, &LAG_MAX, one(lags.iter().map(|lag| lag.records).max().unwrap_or(0)));
    // The furthest behind first; names decide between equals, so that two scrapes show the same.
    lags.sort_by(|a, b| b.records.cmp(&a.records).then_with(|| a.group.cmp(&b.group)));
    let mut dropped = lags.len().saturating_sub(groups_max);
    lags.truncate(groups_max);
    let labels = |lag: &GroupLag| format!("{of_broker},group=\"{}\"", escaped(&lag.group));
    write_family(&mut text, &LAG, lags.iter().map(|lag| (labels(lag), lag.records)));
    write_family(&mut text, &MEMBERS, lags.iter().map(|lag| (labels(lag), lag.members)));
    if with_partitions {
        let all: Vec<(String, u64)> = lags
            .iter()
            .flat_map(|lag| {
                let group = labels(lag);
                lag.partitions.iter().map(move |(topic, partition, records)| {
                    (format!("{group},topic=\"{}\",partition=\"{partition}\"", escaped(topic)), *records)
                })
            })
            .collect();
        dropped += all.len().saturating_sub(groups_max);
        write_family(&mut text, &PARTITION_LAG, all.into_iter().take(groups_max));
    }
    write_family(&mut text, &DROPPED, one(dropped as u64));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(name: &str, partitions: &[u64]) -> GroupLag {
        let partition = |(at, records): (usize, &u64)| ("orders".to_owned(), at as u32, *records);
        GroupLag {
            group: name.to_owned(),
            members: 2,
            records: partitions.iter().sum(),
            partitions: partitions.iter().enumerate().map(partition).collect(),
        }
    }

    fn series<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
        text.lines().filter(|line| line.starts_with(&format!("{name}{{"))).collect()
    }

    #[test]
    fn groups_are_shown_with_what_they_lack() {
        let lags = vec![group("a", &[3, 4]), group("\"odd\"\n", &[])];
        let shown = text(BrokerId(1), lags.clone(), 10, false);
        for line in [
            "pontoon_groups{broker=\"1\"} 2",
            "pontoon_group_lag_records_max{broker=\"1\"} 7",
            "pontoon_group_lag_records{broker=\"1\",group=\"a\"} 7",
            "pontoon_group_members{broker=\"1\",group=\"a\"} 2",
            "pontoon_group_lag_records{broker=\"1\",group=\"\\\"odd\\\"\\n\"} 0",
            "pontoon_group_series_dropped{broker=\"1\"} 0",
        ] {
            assert!(shown.contains(&format!("{line}\n")), "{line} is missing: {shown}");
        }
        assert!(series(&shown, PARTITION_LAG.name).is_empty(), "only where it is switched on");
        let shown = text(BrokerId(1), lags, 10, true);
        let line = "pontoon_group_partition_lag_records{broker=\"1\",group=\"a\",topic=\"orders\",partition=\"1\"} 4";
        assert!(shown.contains(&format!("{line}\n")), "{shown}");
    }

    #[test]
    fn however_many_groups_there_are_the_series_are_few_and_the_worst_are_shown() {
        let lags: Vec<_> = (0..1000).map(|number| group(&format!("g{number}"), &[number, 1])).collect();
        let shown = text(BrokerId(1), lags, 10, true);
        let groups = series(&shown, LAG.name);
        assert_eq!(groups.len(), 10);
        assert!(groups[0].contains("\"g999\"} 1000") && groups[9].contains("\"g990\""), "{groups:?}");
        assert_eq!(series(&shown, PARTITION_LAG.name).len(), 10);
        assert!(shown.contains("pontoon_groups{broker=\"1\"} 1000\n"));
        assert!(shown.contains("pontoon_group_series_dropped{broker=\"1\"} 1000\n"), "990 groups, 10 partitions");
        assert!(shown.lines().count() < 60);
    }
}
