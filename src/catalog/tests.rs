//! The catalog as a whole: the same commands give the same state whatever keeps the rows, and snapshots and caches are
//! never more than a shortcut to it. Here commands are made; the tests stand by subject.

mod commands;
mod recovery;
mod rows;

use pontoon_raft::log::frame::FrameKind;
use pontoon_raft::types::{BrokerId, ClusterId, DirectoryId, GroupId, log_id};

use super::command::*;
use super::state::{ReplicaState, TopicId};
use super::*;

fn frame(index: u64, payload: Vec<u8>) -> Frame {
    let header = FrameHeader {
        payload_bytes: payload.len() as u32,
        ..FrameHeader::bare(FrameKind::Records, log_id(1, index), 0)
    };
    Frame::new(header, payload.into())
}

fn apply(application: &CatalogApplication, index: u64, command: &Command) -> CommandResult {
    let answer = application.apply(log_id(1, index), &frame(index, command.encode()));
    codec::decode::<CommandResult>(&answer).unwrap()
}

fn registration(broker: u32, directory: u128, incarnation: u64) -> BrokerRegistration {
    BrokerRegistration {
        broker: BrokerId(broker),
        directory: DirectoryId(directory),
        incarnation,
        peer_address: format!("127.0.0.1:{}", 7000 + broker),
        http_address: format!("127.0.0.1:{}", 8000 + broker),
        catalog_replica: ReplicaId(directory as u64 + 1000),
        feature_level: 1,
    }
}

fn place(broker: u32, replica: u64) -> Placement {
    Placement { broker: BrokerId(broker), directory: DirectoryId(u128::from(broker)), replica: ReplicaId(replica) }
}

fn partition(group: u64, brokers: &[u32], first_replica: u64) -> NewPartition {
    let replicas = brokers.iter().zip(first_replica..).map(|(broker, replica)| place(*broker, replica)).collect();
    NewPartition { group: GroupId(group), replicas }
}

fn create(topic: u128, name: &str, partitions: Vec<NewPartition>) -> Command {
    Command::CreateTopic { topic: TopicId(topic), name: name.to_owned(), config: BTreeMap::new(), partitions }
}

fn execute(state: &mut CatalogState, command: Command) -> CommandResult {
    apply::execute(state, &command).0
}

/// A state with brokers 1..=4 on directories of the same numbers.
fn with_brokers() -> CatalogState {
    let mut state = CatalogState::default();
    for broker in 1..=4 {
        execute(&mut state, Command::RegisterBroker(registration(broker, u128::from(broker), 1))).unwrap();
    }
    state
}

fn recovery(cluster: u128, broker: u32, unusable: &[u64], empty_lost: bool) -> Command {
    let (broker, directory) = (BrokerId(broker), DirectoryId(u128::from(broker)));
    let unusable = unusable.iter().copied().map(ReplicaId).collect();
    Command::Recover(Recovery { cluster: ClusterId(cluster), broker, directory, unusable, empty_lost })
}
