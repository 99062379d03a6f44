//! What is done to the brokers.
//!
//! [`kind`] is the table of faults, [`schedule`] which happen when, [`scenario`] those that are told by hand, [`targets`] to whom;
//! [`faults`] does each, sees that it really happened, and takes it back; [`recovery`] waits until the cluster is itself again. What happened goes into the timeline. It judges
//! nothing: a fault that was not seen to happen, or a cluster that does not recover, is left out of the timeline, and the checkers
//! reject the run.

mod disks;
pub mod faults;
mod hosts;
pub mod kind;
mod links;
pub mod recovery;
pub mod rot;
pub mod scenario;
pub mod schedule;
pub mod targets;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::client::Connector;
use crate::client::http::Place;
use crate::cluster::network::{self, Way};
use crate::cluster::{Cluster, Harness};
use crate::random::Random;
use crate::recorder::Recorder;
use crate::workload::Values;
use faults::Open;
use recovery::Probe;
use schedule::Period;

/// How long a fault may take to show, once it should.
const SEEN_PATIENCE: Duration = Duration::from_secs(8);

/// Does things to a cluster.
pub struct Nemesis<C: Connector> {
    /// To this one.
    pub cluster: Cluster,
    /// Writes it down.
    pub recorder: Arc<Recorder>,
    /// Its choices.
    pub random: Random,
    /// Where the partitions are, by key.
    pub places: Vec<Place>,
    /// Told to stop.
    pub stop: watch::Receiver<bool>,
    /// Tells people what happens.
    pub progress: fn(&Recorder, &str),
    /// Which kinds of files rot; none named: any.
    pub rot_kinds: &'static [&'static str],
    /// Where the log of the topic with retention starts, as last seen.
    pub log_start: Box<dyn Fn() -> u64 + Send + Sync>,
    probe: Probe<C>,
    /// Hosts whose brokers may end by themselves, or panic, until the next recovery: something was done to their disks.
    fragile: Vec<usize>,
    /// What was synced may be gone after a power cut: brokers need not start on that, and the harness must find the loss elsewhere.
    disks_lie: bool,
}

impl<C: Connector> Nemesis<C> {
    /// For a cluster whose partitions are at these places.
    pub fn new(
        cluster: Cluster,
        recorder: Arc<Recorder>,
        random: Random,
        places: Vec<Place>,
        stop: watch::Receiver<bool>,
        (connector, values): (C, Values),
        progress: fn(&Recorder, &str),
    ) -> Self {
        let probe = Probe::new(recorder.clone(), connector, values);
        Self {
            cluster,
            recorder,
            random,
            places,
            stop,
            progress,
            rot_kinds: &[],
            log_start: Box::new(|| 0),
            probe,
            fragile: Vec::new(),
            disks_lie: false,
        }
    }

    /// How many hosts there are.
    pub fn hosts(&self) -> usize {
        self.cluster.hosts.len()
    }

    /// True once the run is to end early.
    pub fn stopping(&self) -> bool {
        *self.stop.borrow()
    }

    /// Tells people.
    pub fn say(&self, text: &str) {
        (self.progress)(&self.recorder, text);
    }

    /// Lets time pass, unless the run is to end.
    pub async fn wait(&mut self, time: Duration) {
        if self.stopping() {
            return;
        }
        tokio::select! {
            biased;
            _ = self.stop.changed() => {}
            () = tokio::time::sleep(time) => {}
        }
    }

    /// Goes through a schedule. Ends early, with everything healed, if the run is to end.
    pub async fn run(&mut self, periods: &[Period]) -> Harness<()> {
        for period in periods {
            if self.stopping() {
                break;
            }
            let mut open = Vec::with_capacity(period.faults.len());
            for kind in &period.faults {
                let taken: Vec<usize> = open.iter().flat_map(Open::hosts).collect();
                open.push(self.inject(*kind, &taken).await?);
            }
            if open.is_empty() {
                self.say("nothing happens");
            }
            self.wait(period.hold).await;
            self.end(open).await?;
            self.wait(period.rest).await;
        }
        Ok(())
    }

    /// Sees what was still to be seen of these faults, takes them back and waits for the recovery. Hosts come back first: perhaps nobody
    /// was there to send packets that could be dropped. Rotten ones run already, and are looked at when nothing else keeps them from being
    /// ready.
    pub async fn end(&mut self, mut open: Vec<Open>) -> Harness<()> {
        open.sort_by_key(|fault| (fault.kind.rots(), fault.kind.class()));
        let ids: Vec<u64> = open.iter().map(|fault| fault.id).collect();
        for fault in &mut open {
            self.confirm(fault, Duration::ZERO).await?;
        }
        for mut fault in open {
            self.confirm(&mut fault, SEEN_PATIENCE).await?;
            self.heal(fault).await?;
        }
        if !ids.is_empty() {
            self.recover(&ids).await?;
        }
        Ok(())
    }

    /// Which hosts lead partitions now.
    pub async fn leaders(&self) -> Vec<usize> {
        let mut leaders = Vec::new();
        let mut topics: Vec<&str> = self.places.iter().map(|place| place.topic.as_str()).collect();
        topics.dedup();
        for topic in topics {
            for broker in 0..self.hosts() {
                let Ok(partitions) = self.cluster.admin.describe(broker, topic).await else { continue };
                leaders.extend(partitions.iter().filter_map(|found| found.leader).map(|leader| leader as usize - 1));
                break;
            }
        }
        leaders.sort_unstable();
        leaders.dedup();
        leaders
    }

    /// Brokers that ended without being told to, or panicked: those that were not meant to are an accusation.
    pub fn note_ends(&mut self) -> Harness<()> {
        for host in 0..self.hosts() {
            let panic = self.cluster.new_panic(host)?.map(|line| format!("it panicked: {line}"));
            let end = self.cluster.ended_by_itself(host)?.map(|status| format!("it ended by itself: {status}"));
            for what in [panic, end].into_iter().flatten() {
                let broker = network::name(host);
                self.say(&format!("{broker}: {what}"));
                if !self.fragile.contains(&host) {
                    self.recorder.accuse(&broker, what);
                    // One that ends again and again until the next recovery says nothing new.
                    self.fragile.push(host);
                }
            }
        }
        Ok(())
    }
}

/// Hosts by their names.
pub(crate) fn names(hosts: &[usize]) -> Vec<String> {
    hosts.iter().map(|host| network::name(*host)).collect()
}

/// Ways by the names of their ends.
pub(crate) fn way_names(ways: &[Way]) -> Vec<String> {
    ways.iter().map(|way| format!("{}->{}", network::name(way.from), network::name(way.to))).collect()
}
