//! A whole run, inside its namespaces: cluster, clients, nemesis, final reads; then everything is stopped.
//!
//! It writes the history, the timeline and the brokers' logs, and judges nothing. What it cannot do itself goes into the timeline as an
//! error of the harness, which makes the run unknown.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::checkers::generations;
use crate::checkers::workloads::Workload;
use crate::client::any::AnyConnector;
use crate::client::http::HttpConnector;
use crate::client::kafka::KafkaConnector;
use crate::client::retries::Counted;
use crate::cluster::admin::Comparison;
use crate::cluster::{Cluster, Doing as _, Harness, HarnessError, Tuning, isolation, network};
use crate::nemesis::Nemesis;
use crate::nemesis::scenario::RETRIES;
use crate::plan::Plan;
use crate::recorder::Recorder;
use crate::replicas;
use crate::run_dir;
use crate::timeline::{Entry, FINAL_READS};
use crate::verdict::{Verdict, judge};
use crate::workload::churn::Churn;
use crate::workload::registers::{RegisterClients, Subject};
use crate::workload::retained::{self, Retained, Summary};
use crate::workload::worker::Worker;
use crate::workload::{Values, final_reads, record_bytes};

/// How long brokers may take to form a cluster, and topics to come up.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Without faults, before and after them.
const CALM: Duration = Duration::from_secs(3);
/// How long a final reader may take.
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// How long brokers may differ in what they tell of topics once everything is healed.
const SAME_PATIENCE: Duration = Duration::from_secs(30);
/// How many final readers there are, each at another broker.
const READERS: usize = 2;
/// How long a run that was asked to stop may take to do so.
const STOP_PATIENCE: Duration = Duration::from_secs(40);
/// Between two lines about how it goes.
const PROGRESS: Duration = Duration::from_secs(10);

/// Runs the plan in `dir`. Returns what the harness failed at; the timeline has it, too.
pub async fn run(dir: &Path) -> Result<(), String> {
    let stop = isolation::until_told_to_stop();
    let plan = Plan::load(dir).map_err(|error| error.to_string())?;
    let recorder = Arc::new(Recorder::begin(dir).map_err(|error| error.to_string())?);
    let (mut watch, mut brokers) = (stop.clone(), None);
    let result = tokio::select! {
        biased;
        played = play(&plan, dir, &recorder, stop, &mut brokers) => played.map_err(|error| error.to_string()),
        // Asked to stop: everything has a while to end in its own time.
        () = async {
            let _ = watch.wait_for(|stop| *stop).await;
            tokio::time::sleep(STOP_PATIENCE).await;
        } => Err("interrupted".to_owned()),
    };
    if let Err(message) = &result {
        let message = message.clone();
        recorder.tell(|time_ns| Entry::HarnessError { time_ns, message });
    }
    let result = recorder.end().and(result);
    let valid = run_dir::load(dir).is_ok_and(|run| judge(&run).verdict == Verdict::Valid);
    if let Some(nemesis) = brokers.filter(|_| !valid && !*watch.borrow()) {
        keep_disks(nemesis.cluster, dir).await;
    }
    result
}

/// What the brokers had on their disks, for whoever wants to know why.
async fn keep_disks(mut cluster: Cluster, dir: &Path) {
    for host in 0..cluster.hosts.len() {
        let name = network::name(host);
        let stopped = cluster.kill(host).await.map(|_| ());
        let kept = match (stopped, cluster.hosts[host].disk.unmount().await) {
            (Ok(()), Ok(())) => cluster.hosts[host].disk.keep(&dir.join(format!("{name}.ext4"))).await,
            (stopped, unmounted) => stopped.and(unmounted),
        };
        if let Err(error) = kept {
            eprintln!("the disk of {name} is not kept: {error}");
        }
    }
}

fn progress(recorder: &Recorder, text: &str) {
    eprintln!("{:7.1} s  {text}", recorder.now_ns() as f64 / 1e9);
}

fn phase(recorder: &Recorder, name: &str) {
    progress(recorder, &format!("-- {name}"));
    recorder.tell(|time_ns| Entry::Phase { time_ns, name: name.to_owned() });
}

fn note(recorder: &Recorder, text: String) {
    progress(recorder, &format!("  {text}"));
    recorder.tell(|time_ns| Entry::Note { time_ns, text });
}

async fn play(
    plan: &Plan,
    dir: &Path,
    recorder: &Arc<Recorder>,
    stop: watch::Receiver<bool>,
    brokers: &mut Option<Nemesis<AnyConnector>>,
) -> Harness<()> {
    phase(recorder, "cluster");
    let tuning = Tuning { disk_bytes: plan.disk_bytes(), settings: plan.settings(), clocks: plan.clocks() };
    let mut cluster = Cluster::create(plan.nodes, &plan.binary, dir, tuning).await?;
    form(&mut cluster, plan).await?;
    let values = Values::new(plan.places().len());
    let http = HttpConnector::new(Cluster::urls(plan.nodes), plan.places(), record_bytes, recorder.clone());
    let kafka =
        KafkaConnector::new(Cluster::kafka_addresses(plan.nodes), plan.places(), record_bytes, recorder.clone());
    let connector = AnyConnector::new(plan.client, http, kafka);
    let nemesis = brokers.insert(Nemesis::new(
        cluster,
        recorder.clone(),
        plan.random(2),
        plan.places(),
        stop.clone(),
        (connector.clone(), values.clone()),
        progress,
    ));
    phase(recorder, "faults");
    let (halt, halted) = watch::channel(false);
    let mut workers = start_workers(plan, recorder, &connector, &values, &halted);
    let churn = Churn::new(Cluster::urls(plan.nodes), recorder.clone(), plan.random(4));
    let churn = tokio::spawn(churn.run(halted.clone()));
    let retained = Retained::new(Cluster::urls(plan.nodes), recorder.clone());
    let of_log = retained.clone();
    nemesis.log_start = Box::new(move || of_log.start());
    workers.spawn(retained.clone().run(plan.random(5), halted.clone()));
    let registers = RegisterClients::new(Cluster::urls(plan.nodes), subject(plan), recorder.clone());
    let registers =
        if plan.client.can_subscribe() { registers.with_kafka(connector.kafka().clone()) } else { registers };
    workers.spawn(registers.clone().run(plan.random(6), halted.clone()));
    workers.spawn(tell_progress(recorder.clone(), halted));
    nemesis.wait(CALM).await;
    let faults = match plan.scenario().map_err(HarnessError)? {
        Some(scenario) => nemesis.play(scenario, Duration::from_secs(plan.time_s)).await,
        None => nemesis.run(&plan.schedule().map_err(HarnessError)?).await,
    };
    if faults.is_ok() {
        nemesis.wait(CALM).await;
    }
    let _ = halt.send(true);
    while let Some(ended) = workers.join_next().await {
        ended.doing("a client")?;
    }
    let churn = churn.await.doing("the client of topics")?;
    faults?;
    if nemesis.stopping() {
        return Err(HarnessError("interrupted".to_owned()));
    }
    phase(recorder, FINAL_READS);
    nemesis.recover(&[]).await?;
    read_everything(recorder, &connector, &values).await?;
    judge_topics(recorder, nemesis.cluster.await_same_topics(SAME_PATIENCE).await);
    judge_groups(plan, recorder, connector.kafka());
    look_at_retries(plan, recorder, &connector);
    let (came, went) = churn.last_look().await;
    note(recorder, format!("{came} topics came, {went} went"));
    if came.min(went) == 0 {
        recorder.untested("no topic came, or none went");
    }
    look_at_retention(plan, recorder, retained).await?;
    let (count, answered) = registers.last_reads().await;
    note(recorder, format!("{count} offsets of consumer groups were read once more at the end"));
    if !answered {
        recorder.accuse("groups", "a group's offset cannot be read though everything is healed".to_owned());
    }
    phase(recorder, "stop");
    nemesis.note_ends()?;
    stop_all(&mut nemesis.cluster, recorder).await?;
    nemesis.note_ends()?;
    compare_disks(plan, &nemesis.cluster, recorder).await
}

/// With everything healed and nobody changing topics any more: brokers that have applied the same tell the same. One that tells nothing
/// differs from nobody.
fn judge_topics(recorder: &Recorder, found: Comparison) {
    match found {
        Comparison::Same(topics) => note(recorder, format!("every broker tells the same of {topics} topics")),
        Comparison::Differ(how) => {
            let what = format!(
                "brokers differ in what they tell of topics, {} s after everything: {how}",
                SAME_PATIENCE.as_secs()
            );
            progress(recorder, &format!("  {what}"));
            recorder.accuse("brokers", what);
        }
        Comparison::Unanswered(why) => {
            let what = format!("what brokers tell of topics is not compared: {why}");
            progress(recorder, &format!("  {what}"));
            recorder.untested(&what);
        }
    }
}

/// What the registers are offsets of.
fn subject(plan: &Plan) -> Subject {
    let place = plan.places().swap_remove(0);
    Subject { topic: place.topic, partition: place.partition }
}

/// Idempotent producers must have got somewhere; where retries are what a run is about, some must have met what they sent before.
fn look_at_retries(plan: &Plan, recorder: &Recorder, connector: &AnyConnector) {
    let (http, kafka) = connector.retries();
    let acknowledged = http.acknowledged + kafka.acknowledged;
    let over_http = format!("{} over HTTP, of which {} met their original", http.again, http.met);
    let over_kafka = format!("{} over Kafka, which does not say", kafka.again);
    note(
        recorder,
        format!("{acknowledged} idempotent sends were acknowledged; sent again of these: {over_http}, {over_kafka}"),
    );
    let retries = plan.scenario.as_deref() == Some(RETRIES);
    Counted::untested(http, kafka, retries).into_iter().for_each(|what| recorder.untested(what));
}

/// The topic with retention must be readable, and something must have happened in it: a run that needs that makes no sense without.
async fn look_at_retention(plan: &Plan, recorder: &Arc<Recorder>, retained: Retained) -> Harness<()> {
    let Summary { start, end, remembered, read } = retained.last_look().await;
    let again = format!("{remembered} batches that were sent again after they were gone were known");
    note(recorder, format!("of {end} records of the topic with retention the first {start} went; {again}"));
    if !read {
        recorder.accuse("retention", "the retained topic cannot be read though everything is healed".to_owned());
    }
    let scenario = plan.scenario().map_err(HarnessError)?;
    match scenario.map(|scenario| scenario.name) {
        _ if end == 0 => recorder.untested("no record was acknowledged to the topic with retention"),
        Some("rot-in-snapshot" | "crash-in-retention" | "retry-after-eviction") if start == 0 => {
            recorder.untested("no record of the topic with retention went");
        }
        Some("retry-after-eviction") if remembered == 0 => recorder.untested("nobody sent again what was gone"),
        _ => {}
    }
    Ok(())
}

/// With everything stopped: every replica has the same log, and every file is sound (unless files were made to rot).
async fn compare_disks(plan: &Plan, cluster: &Cluster, recorder: &Arc<Recorder>) -> Harness<()> {
    if !replicas::can_tell(&plan.binary).await {
        recorder.untested("disks are not compared, since this broker has no `log dump`");
        return Ok(());
    }
    let disks: Vec<(String, PathBuf)> =
        cluster.hosts.iter().map(|host| (network::name(host.number), host.disk.data())).collect();
    let mut accusations = Vec::new();
    let rotten = plan.kinds().map_err(HarnessError)?.iter().any(|kind| kind.rots());
    for (name, data) in disks.iter().filter(|_| !rotten) {
        accusations.extend(replicas::unsound(&plan.binary, name, data).await?);
    }
    let (disagreements, entries) = replicas::disagreements(&plan.binary, &disks).await?;
    if entries == 0 {
        return Err(HarnessError("the disks have no entries in common: nothing was compared".to_owned()));
    }
    accusations.extend(disagreements);
    note(recorder, format!("{entries} entries compared between the disks: {} disagreements", accusations.len()));
    accusations.into_iter().for_each(|what| recorder.accuse("disks", what));
    Ok(())
}

/// Starts the brokers and makes the topics.
async fn form(cluster: &mut Cluster, plan: &Plan) -> Harness<()> {
    for host in 0..plan.nodes {
        cluster.start(host)?;
    }
    for host in 0..plan.nodes {
        cluster.await_ready(host, START_PATIENCE).await.doing(format!("{} is not ready", network::name(host)))?;
    }
    let mut names = Vec::new();
    for (topic, partitions, replicas) in plan.topics() {
        cluster.admin.create_topic(&topic, partitions, replicas, &BTreeMap::new()).await?;
        names.push(topic);
    }
    cluster.admin.create_topic(retained::TOPIC, 1, plan.nodes.min(3), &retained::config()).await?;
    names.push(retained::TOPIC.to_owned());
    cluster.await_in_sync(&names, START_PATIENCE).await.doing("the topics do not come up")
}

fn start_workers(
    plan: &Plan,
    recorder: &Arc<Recorder>,
    connector: &AnyConnector,
    values: &Values,
    halted: &watch::Receiver<bool>,
) -> JoinSet<()> {
    let mut random = plan.random(3);
    let pause = Duration::from_micros(1_000_000 * plan.clients as u64 / plan.rate.max(1));
    let mut workers = JoinSet::new();
    for _ in 0..plan.clients {
        let worker = Worker {
            workload: plan.workload,
            random: random.split(),
            recorder: recorder.clone(),
            connector: connector.clone(),
            values: values.clone(),
            pause,
        };
        workers.spawn(worker.run(halted.clone()));
    }
    workers
}

async fn tell_progress(recorder: Arc<Recorder>, mut halted: watch::Receiver<bool>) {
    while !*halted.borrow() {
        tokio::select! {
            biased;
            _ = halted.changed() => {}
            () = tokio::time::sleep(PROGRESS) => {
                let tally = recorder.tally();
                progress(&recorder, &format!("operations: {} ok, {} failed, {} unknown", tally.ok, tally.fail, tally.info));
                recorder.flush();
            }
        }
    }
}

/// Consumer groups: what they must not show accuses the brokers.
fn judge_groups(plan: &Plan, recorder: &Arc<Recorder>, connector: &KafkaConnector) {
    let kept = connector.ledger().kept();
    generations::accusations(&kept).into_iter().for_each(|what| recorder.accuse("groups", what));
    if plan.workload != Workload::SingleSubscribe {
        return;
    }
    let (shares, groups) = (kept.assigned.len(), kept.first_commits.len());
    progress(recorder, &format!("  {shares} shares of consumer groups were given; {groups} groups committed offsets"));
    if shares.min(groups) == 0 {
        recorder.untested("no share of a group was given, or no offset committed by a member");
    }
}

async fn read_everything(recorder: &Arc<Recorder>, connector: &AnyConnector, values: &Values) -> Harness<()> {
    let mut readers = JoinSet::new();
    for broker in 0..READERS {
        let (recorder, connector, keys) = (recorder.clone(), connector.clone(), values.keys());
        readers.spawn(
            async move { final_reads::read_everything(&recorder, &connector, broker, keys, READ_PATIENCE).await },
        );
    }
    while let Some(reached) = readers.join_next().await {
        if !reached.doing("a final reader")? {
            progress(recorder, "  A FINAL READER DID NOT REACH WHAT WAS ACKNOWLEDGED");
        }
    }
    Ok(())
}

/// Asks every broker to stop: that they do is part of the promise.
async fn stop_all(cluster: &mut Cluster, recorder: &Arc<Recorder>) -> Harness<()> {
    for host in 0..cluster.hosts.len() {
        if let Some(what) = cluster.stop(host).await? {
            progress(recorder, &format!("  {what}"));
            recorder.accuse(&network::name(host), what);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Accusations;

    #[test]
    fn brokers_that_differ_are_accused_and_one_that_tells_nothing_is_not() {
        let accusations = Accusations::new();
        judge_topics(&accusations.recorder(), Comparison::Same(3));
        assert_eq!((accusations.told(), accusations.untested()), (vec![], vec![]));
        judge_topics(&accusations.recorder(), Comparison::Unanswered("n2 tells nothing: timed out".to_owned()));
        let untested = "what brokers tell of topics is not compared: n2 tells nothing: timed out: nothing was tested";
        assert_eq!((accusations.told(), accusations.untested()), (vec![], vec![untested.to_owned()]));
        judge_topics(&accusations.recorder(), Comparison::Differ("broker 1 tells more".to_owned()));
        let accused = "brokers: brokers differ in what they tell of topics, 30 s after everything: broker 1 tells more";
        assert_eq!(accusations.told(), [accused]);
    }
}
