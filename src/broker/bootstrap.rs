//! How a broker becomes part of its cluster, and how a cluster comes to be (RULES.md R6).
//!
//! Every start begins with asking the other initial brokers who they are. Then
//!
//! - a directory that has a cluster and its replica of group 0 only registers;
//! - a directory without one *joins* a cluster that some initial broker is part of, under a new random replica id, once
//!   that cluster's controller admits it;
//! - if there is none, the lowest of the initial brokers *forms* one: only if all the others answer, all of them empty, and
//!   all with the same list of initial brokers. Everyone else waits.
//!
//! A cluster begins as one voter; the others join it the same way as any later broker does. The cluster's id is written
//! into the directory *last* when forming (group 0 is there by then) and *before* the first word to the controller when
//! joining. So a directory with an id is part of that cluster, whatever became of its replica of group 0, and never forms
//! another; a directory without one has promised nothing, and may begin again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use pontoon_raft::raft_groups::Former;
use pontoon_raft::runtime::random_u64;
use pontoon_raft::transport::handshake::Turned;
use pontoon_raft::transport::{CallError, Caller};
use pontoon_raft::types::{BrokerId, ClusterId, DirectoryId, ReplicaHome, ReplicaId};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::peer::{self, Hello, PeerAnswer, PeerRequest};
use super::shared::{Progress, Shared};
use crate::catalog::command::{BrokerRegistration, FEATURE_LEVEL};
use crate::controller::requests::{ControlAnswer, ControlError, ControlRequest};
use crate::controller::{CATALOG_GROUP, Process};

/// How long an initial broker may take to answer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two rounds of asking.
const ROUND_WAIT: Duration = Duration::from_millis(200);
/// One request to the controller, and how long its effect may take to show here.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

/// What an initial broker was found to be.
#[derive(Clone, Debug)]
pub(super) enum Found {
    /// It answered.
    Answered(Hello),
    /// It could not be reached.
    Silent(String),
    /// It turned this broker away: it belongs to another cluster.
    Foreign(String),
}

/// This broker, as far as the decision needs it.
#[derive(Clone, Debug)]
pub(super) struct Own {
    pub(super) broker: BrokerId,
    pub(super) directory: DirectoryId,
    pub(super) cluster: Option<ClusterId>,
    /// Whether the replica of group 0 is here and sound.
    pub(super) has_catalog: bool,
    /// Whether the cluster was recovered from a survivor once: brokers of what it was before may still be about.
    pub(super) recovered: bool,
    /// The initial brokers, this one included if it is one.
    pub(super) bootstrap: BTreeMap<BrokerId, String>,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Form a cluster.
    Form,
    /// Join this one.
    Join(ClusterId),
    /// Part of it already: register.
    Register,
    /// Ask again later. Why.
    Wait(String),
    /// This directory must not be used here. Why.
    Refuse(String),
}

/// Decides, given what every other initial broker was found to be.
pub(super) fn decide(own: &Own, found: &BTreeMap<BrokerId, Found>) -> Decision {
    if let Some(trouble) = trouble(own, found) {
        return trouble;
    }
    let clusters: BTreeSet<_> = answers(found).filter_map(|(_, hello)| hello.cluster).collect();
    match own.cluster {
        Some(_) if own.has_catalog => Decision::Register,
        Some(cluster) if clusters.contains(&cluster) => Decision::Join(cluster),
        Some(cluster) => Decision::Wait(format!(
            "this directory's copy of the catalog is lost, and no broker of cluster {:032x} answers to replace it from",
            cluster.0
        )),
        None => match (clusters.first(), clusters.len()) {
            (Some(cluster), 1) => Decision::Join(*cluster),
            (None, _) => form_or_wait(own, found),
            _ => {
                let ids: Vec<_> = clusters.iter().map(|cluster| format!("{:032x}", cluster.0)).collect();
                Decision::Wait(format!("the bootstrap brokers belong to different clusters: {}", ids.join(", ")))
            }
        },
    }
}

fn answers(found: &BTreeMap<BrokerId, Found>) -> impl Iterator<Item = (BrokerId, &Hello)> {
    found.iter().filter_map(|(broker, found)| match found {
        Found::Answered(hello) => Some((*broker, hello)),
        _ => None,
    })
}

/// What makes any decision wrong.
fn trouble(own: &Own, found: &BTreeMap<BrokerId, Found>) -> Option<Decision> {
    for (broker, hello) in answers(found) {
        if hello.directory == own.directory {
            return Some(Decision::Refuse(format!(
                "broker {} has the same data directory {:032x}: one is a copy of the other",
                hello.broker, own.directory.0
            )));
        }
        if hello.broker != broker {
            let address = own.bootstrap.get(&broker).cloned().unwrap_or_default();
            let why = format!("bootstrap broker {broker} at {address} answers as broker {}", hello.broker);
            return Some(Decision::Wait(why));
        }
    }
    let cluster = own.cluster?;
    let foreign: Vec<_> = found
        .iter()
        .filter_map(|(broker, found)| match found {
            Found::Answered(Hello { cluster: Some(other), .. }) if *other != cluster => {
                Some(format!("broker {broker} belongs to cluster {:032x}", other.0))
            }
            Found::Foreign(why) => Some(why.clone()),
            _ => None,
        })
        .collect();
    // One stray broker must not bring down those that are right: only a majority against this one counts. After a recovery the
    // majority are those that were given up, and count for nothing.
    (foreign.len() * 2 > own.bootstrap.len() && !own.recovered).then(|| {
        let why = foreign.join("; ");
        Decision::Refuse(format!("the data directory belongs to cluster {:032x}; {why}", cluster.0))
    })
}

/// For an empty directory among brokers that are all empty as far as they answer.
fn form_or_wait(own: &Own, found: &BTreeMap<BrokerId, Found>) -> Decision {
    let Some(lowest) = own.bootstrap.keys().next().copied() else {
        return Decision::Wait("there are no bootstrap brokers to ask".to_owned());
    };
    let silent: Vec<_> = found.iter().filter(|(_, found)| !matches!(found, Found::Answered(_))).collect();
    if lowest != own.broker {
        let address = own.bootstrap.get(&lowest).cloned().unwrap_or_default();
        return Decision::Wait(format!("waiting for bootstrap broker {lowest} at {address} to form the cluster"));
    }
    if !silent.is_empty() {
        let name = |(broker, found): &(&BrokerId, &Found)| match found {
            Found::Silent(why) | Found::Foreign(why) => format!("broker {broker} ({why})"),
            Found::Answered(_) => String::new(),
        };
        let names: Vec<_> = silent.iter().map(name).collect();
        return Decision::Wait(format!(
            "waiting for every bootstrap broker before forming a cluster: {}",
            names.join(", ")
        ));
    }
    let list: Vec<_> = own.bootstrap.keys().copied().collect();
    match answers(found).find(|(_, hello)| hello.bootstrap != list) {
        Some((broker, hello)) => {
            let ids = |ids: &[BrokerId]| ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            let (theirs, ours) = (ids(&hello.bootstrap), ids(&list));
            Decision::Wait(format!("broker {broker} was told bootstrap brokers {theirs}, this one {ours}"))
        }
        None => Decision::Form,
    }
}

/// Brings the broker into its cluster and keeps it there: registers, and joins again if its replica of group 0 is lost.
/// Ends when `stop` says so.
pub(super) async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = join_and_stay(&shared) => {}
    }
}

async fn join_and_stay(shared: &Arc<Shared>) {
    loop {
        match attempt(shared).await {
            Ok(registered) => {
                shared.progress.send_if_modified(|progress| {
                    let first = matches!(progress, Progress::Joining(_));
                    first.then(|| *progress = Progress::Registered);
                    first
                });
                shared.routing.touch();
                while shared.has_catalog() {
                    if let Some(why) = shared.replaced_since(registered) {
                        shared.fail(why);
                        return;
                    }
                    sleep(ROUND_WAIT).await;
                }
                tracing::warn!("this broker's replica of the catalog is lost");
            }
            Err(Decision::Refuse(why)) => {
                shared.fail(why);
                return;
            }
            Err(Decision::Wait(why)) => {
                shared.progress.send_if_modified(|progress| {
                    let news = matches!(progress, Progress::Joining(before) if *before != why);
                    if news {
                        tracing::info!(why, "not part of the cluster yet");
                        *progress = Progress::Joining(why.clone());
                    }
                    news
                });
                sleep(ROUND_WAIT).await;
            }
            Err(_) => sleep(ROUND_WAIT).await,
        }
    }
}

/// One round: ask, decide, act. `Ok` when registered, with the index in the catalog's log since when.
async fn attempt(shared: &Arc<Shared>) -> Result<u64, Decision> {
    let found = ask(shared).await;
    let decision = decide(&shared.own(), &found);
    let controller = answers(&found).find_map(|(_, hello)| hello.controller.clone());
    match decision {
        Decision::Register => {}
        // It has a vote, and what nobody else may have: it is not replaced before it is lost. What an attempt to join has left behind has
        // none: then this directory is part of no cluster yet.
        Decision::Join(_) if shared.store.cluster().is_some() && shared.groups.is_opening(CATALOG_GROUP) => {
            return Err(wait(
                "the catalog's copy here cannot be opened yet: it is being repaired, or something is short",
            ));
        }
        Decision::Form => form(shared).await?,
        Decision::Join(cluster) => join(shared, cluster, controller.clone()).await?,
        other => return Err(other),
    }
    register(shared, controller).await
}

/// Asks every other initial broker, and those that the catalog's copy here knows beside them.
async fn ask(shared: &Arc<Shared>) -> BTreeMap<BrokerId, Found> {
    let mut addresses = shared.config.bootstrap.clone();
    if shared.store.cluster().is_some() {
        for known in shared.catalog.state().brokers().values() {
            addresses.entry(known.broker).or_insert_with(|| known.peer_address.clone());
        }
    }
    addresses.remove(&shared.broker);
    let request = PeerRequest::Hello(shared.hello());
    let asked = addresses.into_iter().map(|(broker, address)| {
        let request = &request;
        async move {
            let answer = peer::call_process(shared.transport(), &address, request, HELLO_TIMEOUT).await;
            let found = match answer {
                Ok((incarnation, PeerAnswer::Hello(hello))) => {
                    shared.take_hello(Caller { broker, incarnation }, &hello);
                    Found::Answered(hello)
                }
                Ok(_) => Found::Silent("it answered something else".to_owned()),
                // The transport's own word; a broker that is only starting is refused, too, with another.
                Err(CallError::Refused(_, why)) if why.contains(&Turned::ForeignCluster.to_string()) => {
                    Found::Foreign(format!("broker {broker} at {address} belongs to another"))
                }
                Err(CallError::Refused(_, why) | CallError::Unreachable(_, why) | CallError::NoAnswer(_, why)) => {
                    Found::Silent(why)
                }
            };
            (broker, found)
        }
    });
    join_all(asked).await.into_iter().collect()
}

impl Shared {
    fn own(&self) -> Own {
        Own {
            broker: self.broker,
            directory: self.directory(),
            cluster: self.store.cluster(),
            has_catalog: self.has_catalog(),
            recovered: self.transport().has_superseded(),
            bootstrap: self.config.bootstrap.clone(),
        }
    }

    /// Why this process must end, if another one has registered under its number since it did: both would answer for the same replicas.
    fn replaced_since(&self, registered: u64) -> Option<String> {
        let state = self.catalog.state();
        let other = state.brokers().get(&self.broker).filter(|known| known.incarnation != self.incarnation)?;
        state.applied.is_some_and(|applied| applied.1 > registered).then(|| {
            let (broker, at, directory) = (self.broker, &other.peer_address, other.directory.0);
            format!("another process, at {at} with data directory {directory:032x}, has registered as broker {broker} since this one did")
        })
    }

    /// Whether this broker's replica of group 0 is here and not lost.
    fn has_catalog(&self) -> bool {
        let lost = self.groups.lost().iter().any(|(group, ..)| *group == CATALOG_GROUP);
        !lost && self.groups.get(CATALOG_GROUP).is_some()
    }

    /// Which process answers at an address.
    pub(super) async fn probe(
        transport: pontoon_raft::transport::Transport,
        address: String,
        hello: Hello,
    ) -> Option<Process> {
        match peer::call_process(&transport, &address, &PeerRequest::Hello(hello), HELLO_TIMEOUT).await {
            Ok((incarnation, PeerAnswer::Hello(Hello { broker, directory, .. }))) => {
                Some(Process { broker, directory, incarnation })
            }
            _ => None,
        }
    }
}

/// A replica id of group 0: random, so that no catalog is needed to know that it is new.
fn random_replica() -> ReplicaId {
    ReplicaId((random_u64() >> 1).max(1))
}

fn wait(why: impl ToString) -> Decision {
    Decision::Wait(why.to_string())
}

/// Forms a cluster of one voter. Whatever an earlier attempt left behind is taken up: it has told nobody.
async fn form(shared: &Arc<Shared>) -> Result<(), Decision> {
    let group = match shared.groups.get(CATALOG_GROUP).filter(|_| shared.has_catalog()) {
        Some(group) => group,
        None => shared.groups.create(CATALOG_GROUP, random_replica(), Former::Delete).await.map_err(wait)?,
    };
    let home = ReplicaHome { broker: shared.broker };
    if group.status().last_index.is_none() {
        group.initialize(BTreeMap::from([(group.replica(), home)])).await.map_err(wait)?;
    }
    let leads = async {
        let mut leader = group.watch_leader();
        while !group.status().leading {
            tokio::select! {
                _ = leader.changed() => {}
                () = sleep(Duration::from_millis(10)) => {}
            }
        }
    };
    timeout(CONTROL_TIMEOUT * 5, leads).await.map_err(|_| wait("the new catalog has no leader yet"))?;
    let cluster = ClusterId((u128::from(random_u64()) << 64 | u128::from(random_u64())).max(1));
    enter(shared, cluster).await
}

/// Joins a cluster: asks its controller, takes a new replica id of group 0, and only then says so to anyone.
async fn join(
    shared: &Arc<Shared>,
    cluster: ClusterId,
    controller: Option<(BrokerId, String)>,
) -> Result<(), Decision> {
    if controller.is_none() {
        return Err(wait(format!("cluster {:032x} has no controller at the moment", cluster.0)));
    }
    let request = ControlRequest::Admit { broker: shared.broker, directory: shared.directory() };
    match shared.control_at(controller, request, CONTROL_TIMEOUT).await {
        Ok(ControlAnswer::Admitted(admitted)) if admitted == cluster => {}
        Ok(ControlAnswer::Admitted(other)) => {
            return Err(wait(format!("the controller is of cluster {:032x}, not {:032x}", other.0, cluster.0)));
        }
        Ok(_) => return Err(wait("the controller answered something else")),
        Err(error) => return Err(wait(format!("cluster {:032x} does not admit this broker yet: {error}", cluster.0))),
    }
    if shared.store.cluster().is_some() && shared.has_catalog() {
        return Err(wait("the catalog's copy here has been opened meanwhile"));
    }
    shared.groups.create(CATALOG_GROUP, random_replica(), Former::Delete).await.map_err(wait)?;
    enter(shared, cluster).await
}

/// Writes the cluster's id into the directory.
async fn enter(shared: &Arc<Shared>, cluster: ClusterId) -> Result<(), Decision> {
    shared.store.join_cluster(cluster).await.map_err(|error| Decision::Refuse(error.to_string()))?;
    shared.transport().set_cluster(cluster);
    tracing::info!(cluster = format!("{:032x}", cluster.0), "part of the cluster");
    Ok(())
}

/// Tells the controller that this process is here, and waits until the catalog's copy here shows it: since which index.
async fn register(shared: &Arc<Shared>, controller: Option<(BrokerId, String)>) -> Result<u64, Decision> {
    let group = shared.groups.get(CATALOG_GROUP).ok_or_else(|| wait("the catalog's replica is not open"))?;
    let registration = BrokerRegistration {
        broker: shared.broker,
        directory: shared.directory(),
        incarnation: shared.incarnation,
        peer_address: shared.peer_address.clone(),
        http_address: shared.http_address.clone(),
        catalog_replica: group.replica(),
        feature_level: FEATURE_LEVEL,
    };
    let request = ControlRequest::Register(registration.clone());
    let answer = shared.control_at(controller, request, CONTROL_TIMEOUT).await;
    let index = match answer {
        Ok(ControlAnswer::Done { index }) => index,
        Ok(_) => return Err(wait("the controller answered something else")),
        Err(ControlError::CopiedDirectory(why)) => return Err(Decision::Refuse(why)),
        Err(error) => return Err(wait(format!("not registered yet: {error}"))),
    };
    if !shared.await_catalog(index, Instant::now() + CONTROL_TIMEOUT).await {
        let (free, reserve) = (shared.store.available_bytes(), shared.config.raft.reserve_append_bytes);
        return Err(wait(match free < reserve {
            true => format!(
                "the catalog's copy here takes nothing: {free} bytes of the disk are free, and {reserve} are kept free (raft.reserve_append_bytes)"
            ),
            false => "the catalog's copy here is catching up".to_owned(),
        }));
    }
    match shared.catalog.state().brokers().get(&shared.broker) {
        Some(known) if *known == registration => Ok(index),
        _ => Err(wait("another process has registered as this broker")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: ClusterId = ClusterId(0xa);
    const Y: ClusterId = ClusterId(0xb);

    fn own(broker: u32, cluster: Option<ClusterId>, has_catalog: bool) -> Own {
        let bootstrap = (1..=3).map(|broker| (BrokerId(broker), format!("host:{broker}"))).collect();
        let (broker, directory) = (BrokerId(broker), DirectoryId(u128::from(broker)));
        Own { broker, directory, cluster, has_catalog, recovered: false, bootstrap }
    }

    fn answer(broker: u32, cluster: Option<ClusterId>) -> (BrokerId, Found) {
        let hello = Hello {
            broker: BrokerId(broker),
            directory: DirectoryId(u128::from(broker)),
            cluster,
            peer_address: String::new(),
            bootstrap: (1..=3).map(BrokerId).collect(),
            controller: None,
        };
        (BrokerId(broker), Found::Answered(hello))
    }

    fn silent(broker: u32) -> (BrokerId, Found) {
        (BrokerId(broker), Found::Silent("connection refused".to_owned()))
    }

    fn decided(own: &Own, found: [(BrokerId, Found); 2]) -> Decision {
        decide(own, &found.into_iter().collect())
    }

    #[track_caller]
    fn waits_for(decision: Decision, reason: &str) {
        match decision {
            Decision::Wait(why) => assert!(why.contains(reason), "{why:?} lacks {reason:?}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_lowest_forms_a_cluster_only_when_all_answer_empty() {
        let first = own(1, None, false);
        assert_eq!(decided(&first, [answer(2, None), answer(3, None)]), Decision::Form);
        waits_for(decided(&first, [answer(2, None), silent(3)]), "broker 3");
        waits_for(decided(&first, [silent(2), silent(3)]), "broker 2");
        for broker in [2, 3] {
            let other = own(broker, None, false);
            waits_for(decided(&other, [answer(1, None), answer(5 - broker, None)]), "broker 1");
        }
    }

    #[test]
    fn an_interrupted_forming_is_taken_up_again_by_the_same_rules() {
        let first = own(1, None, true);
        assert_eq!(decided(&first, [answer(2, None), answer(3, None)]), Decision::Form);
        waits_for(decided(&first, [answer(2, None), silent(3)]), "broker 3");
        assert_eq!(decided(&first, [answer(2, Some(X)), silent(3)]), Decision::Join(X));
    }

    #[test]
    fn a_wiped_broker_joins_and_never_forms_a_second_cluster() {
        for broker in 1..=3u32 {
            let wiped = own(broker, None, false);
            let others: Vec<_> = (1..=3).filter(|other| *other != broker).collect();
            let found = [answer(others[0], Some(X)), answer(others[1], Some(X))];
            assert_eq!(decided(&wiped, found), Decision::Join(X));
            assert_eq!(decided(&wiped, [silent(others[0]), answer(others[1], Some(X))]), Decision::Join(X));
            assert!(matches!(decided(&wiped, [silent(others[0]), silent(others[1])]), Decision::Wait(_)));
        }
        // Wiped together with another that has not heard of the cluster again yet.
        assert_eq!(decided(&own(1, None, false), [answer(2, None), answer(3, Some(X))]), Decision::Join(X));
    }

    #[test]
    fn a_directory_that_lost_its_catalog_joins_its_own_cluster_or_waits() {
        let lost = own(1, Some(X), false);
        assert_eq!(decided(&lost, [answer(2, Some(X)), silent(3)]), Decision::Join(X));
        waits_for(decided(&lost, [answer(2, None), answer(3, None)]), "lost");
    }

    #[test]
    fn a_directory_of_another_cluster_is_refused_by_name() {
        let foreign = own(3, Some(Y), true);
        match decided(&foreign, [answer(1, Some(X)), answer(2, Some(X))]) {
            Decision::Refuse(why) => assert!(why.contains("0b") && why.contains("0a"), "{why}"),
            other => panic!("{other:?}"),
        }
        let refused = |broker| (BrokerId(broker), Found::Foreign(format!("broker {broker} belongs to another")));
        assert!(matches!(decided(&foreign, [refused(1), refused(2)]), Decision::Refuse(_)));
        // Those that a recovery gave up do not drive out the survivor.
        let survivor = Own { recovered: true, ..own(3, Some(Y), true) };
        assert_eq!(decided(&survivor, [answer(1, Some(X)), answer(2, Some(X))]), Decision::Register);
        assert_eq!(decided(&survivor, [refused(1), refused(2)]), Decision::Register);
        // Those it came among go on.
        assert_eq!(decided(&own(1, Some(X), true), [silent(2), answer(3, Some(Y))]), Decision::Register);
        let empty = own(1, None, false);
        waits_for(decided(&empty, [answer(2, Some(X)), answer(3, Some(Y))]), "different clusters");
    }

    #[test]
    fn lists_and_numbers_that_disagree_are_named() {
        let (broker, Found::Answered(mut hello)) = answer(2, None) else { panic!() };
        hello.bootstrap = vec![BrokerId(2), BrokerId(3)];
        waits_for(decided(&own(1, None, false), [(broker, Found::Answered(hello)), answer(3, None)]), "2, 3");
        let (_, stranger) = answer(7, None);
        waits_for(decided(&own(1, None, false), [(BrokerId(2), stranger), answer(3, None)]), "answers as broker 7");
        let (_, copy) = answer(1, None);
        assert!(matches!(decided(&own(1, None, false), [(BrokerId(2), copy), answer(3, None)]), Decision::Refuse(_)));
    }

    #[test]
    fn a_later_broker_joins_by_asking_the_initial_ones() {
        let later = own(9, None, false);
        let found = |three: [(BrokerId, Found); 3]| decide(&later, &three.into_iter().collect());
        assert_eq!(found([silent(1), answer(2, Some(X)), silent(3)]), Decision::Join(X));
        waits_for(found([answer(1, None), answer(2, None), answer(3, None)]), "broker 1");
    }
}
