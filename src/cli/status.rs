//! `pontoon status`: brokers and partitions at a glance, and why something is not right. With `--groups`: consumer groups, and how far they
//! are behind ([`groups`]).

mod groups;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use indicatif::HumanBytes;
use pontoon_raft::types::BrokerId;
use serde_json::json;
use tokio::time::Instant;

use crate::api::{BrokerDescription, ClusterDescription, LagReason, PartitionDescription, TopicDescription};
use crate::cli::{Failure, output};
use crate::client::{Client, ClientError};

/// Most troubles shown as text: a dead broker is one of thousands of partitions.
const TROUBLES_SHOWN: usize = 40;

/// How long it tries unless `--patience` says: it is a look at what is, not a wait for what should be.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// How often `--wait` looks.
const WAIT_STEP: Duration = Duration::from_millis(500);
/// How long it tries without a word.
const SILENCE: Duration = Duration::from_secs(1);

/// Flags of `status`.
#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// Again every second, until interrupted
    #[arg(long)]
    watch: bool,
    /// Wait until all is well, at most so long; if it is not by then, show why and exit with 1
    #[arg(long, value_name = "SECONDS", conflicts_with_all = ["watch", "groups"], value_parser = clap::value_parser!(u64).range(1..=86400))]
    wait: Option<u64>,
    /// Consumer groups instead: members, committed offsets, lag per partition
    #[arg(long)]
    groups: bool,
}

/// What it is at one moment.
struct View {
    json: serde_json::Value,
    text: String,
    /// Whether there are no troubles.
    well: bool,
    /// What it may lack, so that nobody takes it for all there is.
    lacks: Option<String>,
}

impl View {
    fn show(&self, as_json: bool, clear: &str) -> Result<(), Failure> {
        if as_json { output::print_json(&self.json) } else { output::print(&format!("{clear}{}", self.text)) }
    }
}

/// Shows it once, or again and again: who watches wants to see the brokers come back.
pub(super) async fn run(args: StatusArgs, client: &Client, as_json: bool) -> Result<(), Failure> {
    if let Some(seconds) = args.wait {
        return wait(&args, client, as_json, seconds).await;
    }
    loop {
        match look(&args, client).await {
            Ok(view) => {
                let clear = if args.watch && std::io::stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
                view.show(as_json, clear)?;
                if !args.watch {
                    return view.lacks.map_or(Ok(()), |lacks| Err(Failure::Unsure(lacks)));
                }
            }
            Err(failure) if args.watch => {
                output::say(&format!("pontoon: {}; watching goes on", failure.verdict().1.unwrap_or_default()));
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Looks until all is well. Servers that are away are waited for, too: one of them may be the one that is being restarted.
async fn wait(args: &StatusArgs, client: &Client, as_json: bool, seconds: u64) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let seen = look(args, client).await;
        let over = Instant::now() >= deadline;
        match seen {
            Ok(view) if view.well => return view.show(as_json, ""),
            Ok(view) if over => {
                view.show(as_json, "")?;
                return Err(Failure::Failed(format!("not all is well after {seconds} s")));
            }
            Err(failure) if over => return Err(failure),
            _ => tokio::time::sleep_until(deadline.min(Instant::now() + WAIT_STEP)).await,
        }
    }
}

/// What it is now, for programs and for people. If that takes a while, it says whom it waits for.
async fn look(args: &StatusArgs, client: &Client) -> Result<View, Failure> {
    let looking = async { if args.groups { groups::view(client).await } else { brokers(client).await } };
    tokio::pin!(looking);
    match tokio::time::timeout(SILENCE, &mut looking).await {
        Ok(found) => found,
        Err(_) => {
            let (servers, patience) = (client.servers().join(", "), client.patience().as_secs());
            output::say(&format!("no answer yet from {servers}; trying for {patience} s"));
            looking.await
        }
    }
}

/// Brokers and partitions, for programs and for people.
async fn brokers(client: &Client) -> Result<View, Failure> {
    let cluster = client.cluster().await?;
    let (topics, refused) = match client.topics().await {
        Ok(topics) => (Some(topics), None),
        // Who has not joined yet knows something of the cluster, and nothing of topics.
        Err(error @ ClientError::Refused { .. }) => {
            (None, Some(format!("which topics there are is not known: {error}")))
        }
        Err(error) => return Err(error.into()),
    };
    let mut troubles = troubles(&cluster, topics.as_deref().unwrap_or_default());
    troubles.extend(refused);
    let notes = notes(&cluster);
    let text = text(&cluster, topics.as_deref(), &troubles, &notes);
    let json = json!({"cluster": cluster, "topics": topics, "troubles": troubles, "notes": notes});
    Ok(View { json, text, well: troubles.is_empty(), lacks: None })
}

fn text(
    cluster: &ClusterDescription,
    topics: Option<&[TopicDescription]>,
    troubles: &[String],
    notes: &[String],
) -> String {
    let rows: Vec<Vec<String>> = cluster
        .brokers
        .iter()
        .map(|broker| {
            // A dead one leads nothing; what it said of itself last is stale.
            let said = |count: u32| if broker.alive { count.to_string() } else { "-".to_owned() };
            vec![
                broker.broker_id.to_string(),
                if broker.alive { "alive" } else { "DEAD" }.into(),
                broker.http_address.clone(),
                broker.peer_address.clone(),
                said(broker.leads),
                broker.replicas.to_string(),
                said(broker.lagging),
            ]
        })
        .collect();
    let controller = cluster.controller.map_or("none".into(), |id| format!("broker {id}"));
    let head = ["BROKER", "STATE", "HTTP", "PEERS", "LEADS", "REPLICAS", "LAGGING"];
    let mut text = format!("cluster {}, controller {controller}\n{}", cluster.cluster_id, output::table(&head, &rows));
    if let Some(topics) = topics {
        let partitions: usize = topics.iter().map(|topic| topic.partitions.len()).sum();
        text += &format!("{}, {}\n", counted(topics.len(), "topic"), counted(partitions, "partition"));
    }
    if troubles.is_empty() {
        text += "all is well\n";
    }
    for (mark, lines) in [("!", troubles), ("note:", notes)] {
        for line in lines.iter().take(TROUBLES_SHOWN) {
            text += &format!("{mark} {line}\n");
        }
        if let Some(more @ 1..) = lines.len().checked_sub(TROUBLES_SHOWN) {
            text += &format!("{mark} and {more} more; --json shows all\n");
        }
    }
    text
}

fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// What is not right, and why, as far as it can be seen from outside.
fn troubles(cluster: &ClusterDescription, topics: &[TopicDescription]) -> Vec<String> {
    let alive: BTreeMap<BrokerId, bool> =
        cluster.brokers.iter().map(|broker| (broker.broker_id, broker.alive)).collect();
    let mut found = Vec::new();
    for broker in cluster.brokers.iter().filter(|broker| !broker.alive) {
        found.push(format!("broker {} is dead: nothing answers at {}", broker.broker_id, broker.peer_address));
    }
    for broker in &cluster.brokers {
        found.extend(broker.damage.iter().map(|damage| format!("broker {}: {damage}", broker.broker_id)));
    }
    if cluster.controller.is_none() {
        found.push("there is no controller: topics cannot be created, changed or repaired".into());
    }
    for topic in topics {
        for partition in &topic.partitions {
            found.extend(trouble(&topic.name, partition, &alive));
        }
    }
    found
}

/// What a person should look at some day. All is well in spite of it.
fn notes(cluster: &ClusterDescription) -> Vec<String> {
    let of = |broker: &BrokerDescription| {
        let id = broker.broker_id;
        let note = |path| format!("broker {id}: {path}: kept of a rotten or lost replica, to be looked at and removed");
        let healed = |line| format!("broker {id}: {line}; nothing is missing, but its disk may be failing");
        broker.healed.iter().map(healed).chain(broker.kept.iter().map(note)).collect::<Vec<_>>()
    };
    cluster.brokers.iter().flat_map(of).collect()
}

fn trouble(topic: &str, partition: &PartitionDescription, alive: &BTreeMap<BrokerId, bool>) -> Option<String> {
    let name = format!("{topic}/{}", partition.partition);
    let lives = |id: &BrokerId| alive.get(id).copied().unwrap_or(false);
    let (up, down): (Vec<BrokerId>, Vec<BrokerId>) = partition.replicas.iter().partition(|id| lives(id));
    if partition.leader.is_none() {
        return Some(format!("{name} has no leader: {}", why_no_leader(partition, &up, &down)));
    }
    if !partition.takes_writes {
        let (live, all) = (up.len(), partition.replicas.len());
        return Some(format!("{name} takes no writes: only {live} of {all} replicas live; start {}", list(&down)));
    }
    let behind = |id: &&BrokerId| !partition.in_sync.contains(id);
    let mut whys: Vec<String> =
        partition.replicas.iter().filter(behind).map(|id| lag(*id, partition, lives(id))).collect();
    if partition.replicas_missing > 0 {
        whys.push(format!("recovered, {} more replicas wait for brokers", partition.replicas_missing));
    }
    (!whys.is_empty()).then(|| {
        format!(
            "{name} has {} of {} replicas in sync: {}",
            partition.in_sync.len(),
            partition.replicas.len(),
            whys.join("; ")
        )
    })
}

/// An election needs most of the replicas: those on brokers that are up, but for the lost ones.
fn why_no_leader(partition: &PartitionDescription, up: &[BrokerId], down: &[BrokerId]) -> String {
    let (all, lost) = (partition.replicas.len(), &partition.lost);
    let able = up.iter().filter(|broker| !lost.contains(broker)).count();
    if able * 2 > all {
        return "an election is under way".into();
    }
    let dead: Vec<BrokerId> = down.iter().filter(|broker| !lost.contains(broker)).copied().collect();
    match (lost.as_slice(), dead.as_slice()) {
        ([only], _) if all == 1 => format!(
            "its only replica, on broker {only}, is lost, and with it the records; `pontoon topic delete` and `create` bring the topic \
             back empty (docs/OPERATIONS.md)"
        ),
        (_, [only]) if all == 1 => format!("its only replica is on broker {only}, which is dead: start it"),
        ([], dead) => format!("only {able} of {all} replicas live; start {}", list(dead)),
        (lost, []) => {
            format!(
                "what was on {} is lost, and {able} of {all} replicas are no majority (docs/OPERATIONS.md)",
                list(lost)
            )
        }
        (lost, dead) => {
            format!("only {able} of {all} replicas live; start {}; what was on {} is lost", list(dead), list(lost))
        }
    }
}

/// "broker 2", "brokers 2, 3".
fn list(ids: &[BrokerId]) -> String {
    let numbers = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    format!("broker{} {numbers}", if ids.len() == 1 { "" } else { "s" })
}

/// How far behind a replica is, and why.
fn lag(broker: BrokerId, partition: &PartitionDescription, lives: bool) -> String {
    let Some(lagging) = partition.lagging.iter().find(|lagging| lagging.broker == broker) else {
        let why = if lives { "has said nothing yet" } else { "is dead" };
        return format!("broker {broker} {why}");
    };
    let behind = match lagging.records.zip(lagging.bytes) {
        None => "has not been heard of since the last election".to_owned(),
        Some((0, 0)) if lagging.reason == LagReason::Dead => "had everything".to_owned(),
        Some((0, 0)) => "lacks nothing any more".to_owned(),
        Some((records, bytes)) => format!("lags {} ({records} records)", HumanBytes(bytes)),
    };
    let why = match lagging.reason {
        LagReason::Dead => "it is dead",
        LagReason::Lost => "its files are lost, a replacement is on its way",
        LagReason::New => "a new replica there is being filled",
        LagReason::CatchingUp => "catching up",
        LagReason::Stalled => "it takes nothing: look at its disk and its log",
    };
    format!("broker {broker} {behind}, {why}")
}

#[cfg(test)]
mod tests {
    use pontoon_raft::types::Offset;

    use super::*;
    use crate::api::LaggingReplica;

    fn cluster(alive: [bool; 3]) -> ClusterDescription {
        let broker = |(at, alive): (usize, bool)| BrokerDescription {
            broker_id: BrokerId(at as u32 + 1),
            http_address: format!("h:{at}"),
            kafka_address: None,
            peer_address: format!("p:{at}"),
            alive,
            leads: 1,
            replicas: 3,
            lagging: 0,
            damage: Vec::new(),
            kept: Vec::new(),
            healed: Vec::new(),
        };
        ClusterDescription {
            cluster_id: "c".into(),
            controller: Some(BrokerId(1)),
            brokers: alive.into_iter().enumerate().map(broker).collect(),
        }
    }

    fn topic(leader: Option<u32>, in_sync: &[u32]) -> TopicDescription {
        TopicDescription {
            name: "orders".into(),
            topic_id: "t".into(),
            config: BTreeMap::new(),
            partitions: vec![PartitionDescription {
                partition: 3,
                leader: leader.map(BrokerId),
                leader_epoch: 1,
                replicas: [1, 2, 3].map(BrokerId).to_vec(),
                replicas_missing: 0,
                lost: Vec::new(),
                takes_writes: leader.is_some() && in_sync.len() > 1,
                in_sync: in_sync.iter().copied().map(BrokerId).collect(),
                lagging: Vec::new(),
                log_start_offset: Offset(0),
                high_watermark: Offset(9),
            }],
        }
    }

    #[test]
    fn a_healthy_cluster_has_no_troubles() {
        let (cluster, topics) = (cluster([true; 3]), [topic(Some(1), &[1, 2, 3])]);
        assert!(troubles(&cluster, &topics).is_empty());
        assert!(text(&cluster, Some(&topics), &[], &[]).ends_with("1 topic, 1 partition\nall is well\n"));
    }

    #[test]
    fn what_is_kept_for_a_person_is_shown_and_is_no_trouble() {
        let mut cluster = cluster([true; 3]);
        cluster.brokers[1].kept = vec!["/data/groups/quarantined-1-11".into()];
        assert!(troubles(&cluster, &[]).is_empty());
        let text = text(&cluster, Some(&[]), &[], &notes(&cluster));
        let note = "note: broker 2: /data/groups/quarantined-1-11: kept of a rotten or lost replica";
        assert!(text.contains(&format!("all is well\n{note}")), "{text}");
    }

    #[test]
    fn of_a_dead_broker_nothing_stale_is_shown() {
        let text = text(&cluster([true, false, true]), Some(&[]), &[], &[]);
        let row = |broker: &str| text.lines().find(|line| line.starts_with(broker)).unwrap().split_whitespace();
        assert_eq!(row("1 ").collect::<Vec<_>>(), ["1", "alive", "h:0", "p:0", "1", "3", "0"]);
        assert_eq!(row("2 ").collect::<Vec<_>>(), ["2", "DEAD", "h:1", "p:1", "-", "3", "-"]);
    }

    #[test]
    fn each_trouble_says_why() {
        let seen = |alive, leader, in_sync: &[u32]| troubles(&cluster(alive), &[topic(leader, in_sync)]).join("\n");
        let dead = seen([true, false, true], Some(1), &[1, 3]);
        assert!(dead.contains("broker 2 is dead") && dead.contains("orders/3 has 2 of 3 replicas"), "{dead}");
        assert!(seen([true; 3], Some(1), &[1, 3]).contains("broker 2 has said nothing yet"));
        assert!(seen([true; 3], None, &[]).contains("an election is under way"));
        let minority = seen([true, false, false], None, &[]);
        assert!(minority.contains("only 1 of 3 replicas live; start brokers 2, 3"), "{minority}");
        // Nobody is elected by those who have lost what they had, however alive their brokers are.
        let told = |alive, replicas: &[u32], lost: &[u32]| {
            let mut topic = topic(None, &[]);
            topic.partitions[0].replicas = replicas.iter().copied().map(BrokerId).collect();
            topic.partitions[0].lost = lost.iter().copied().map(BrokerId).collect();
            troubles(&cluster(alive), &[topic]).pop().unwrap()
        };
        for (alive, replicas, lost, words) in [
            ([true; 3], &[2][..], &[2][..], "its only replica, on broker 2, is lost, and with it the records"),
            ([true, false, true], &[2], &[], "its only replica is on broker 2, which is dead: start it"),
            ([true; 3], &[1, 2, 3], &[2], "an election is under way"),
            ([true; 3], &[1, 2, 3], &[1, 2], "what was on brokers 1, 2 is lost, and 1 of 3 replicas are no majority"),
            (
                [true, false, true],
                &[1, 2, 3],
                &[3],
                "only 1 of 3 replicas live; start broker 2; what was on broker 3 is lost",
            ),
        ] {
            let told = told(alive, replicas, lost);
            assert!(told.starts_with("orders/3 has no leader: ") && told.contains(words), "{words}: {told}");
        }
        let led = seen([true, false, false], Some(1), &[1]);
        assert!(led.contains("takes no writes: only 1 of 3 replicas live; start brokers 2, 3"), "{led}");
    }

    #[test]
    fn a_lag_is_told_in_bytes_and_records_with_its_reason() {
        let told = |reason, records, bytes| {
            let mut topic = topic(Some(1), &[1, 3]);
            topic.partitions[0].lagging =
                vec![LaggingReplica { broker: BrokerId(2), records: Some(records), bytes: Some(bytes), reason }];
            troubles(&cluster([true; 3]), &[topic]).join("\n")
        };
        assert_eq!(
            told(LagReason::CatchingUp, 12_345, 40 << 20),
            "orders/3 has 2 of 3 replicas in sync: broker 2 lags 40.00 MiB (12345 records), catching up"
        );
        assert!(told(LagReason::CatchingUp, 0, 0).contains("lacks nothing any more, catching up"));
        for (reason, words) in [
            (LagReason::Dead, "it is dead"),
            (LagReason::Lost, "its files are lost"),
            (LagReason::New, "is being filled"),
            (LagReason::Stalled, "it takes nothing"),
        ] {
            assert!(told(reason, 1, 1).contains(words), "{reason:?}");
        }
    }

    #[test]
    fn a_recovered_partition_says_what_it_waits_for() {
        let mut topic = topic(Some(1), &[1, 2, 3]);
        topic.partitions[0].replicas_missing = 2;
        let told = troubles(&cluster([true; 3]), &[topic]).join("\n");
        assert_eq!(told, "orders/3 has 3 of 3 replicas in sync: recovered, 2 more replicas wait for brokers");
    }

    #[test]
    fn a_flood_of_troubles_is_cut() {
        let many: Vec<String> = (0..1000).map(|at| at.to_string()).collect();
        let text = text(&cluster([true; 3]), Some(&[]), &many, &[]);
        assert!(text.lines().count() < 60 && text.contains("and 960 more"), "{text}");
    }
}
