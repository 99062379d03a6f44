//! The client: producers with sequences that try again until they know, and readers that want the confirmed end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join, join_all};
use pontoon_raft::codec;
use pontoon_raft::runtime::random_u64;
use pontoon_raft::testing::test_payload;
use pontoon_raft::transport::{CallError, Caller, PeerService, Transport, TransportIdentity};
use pontoon_raft::types::{BrokerId, ClusterId};
use tokio::time::sleep;

use crate::broker::{Answer, Ask, GROUPS, World, config};
use crate::machines::{BROKERS, CLIENT, host};
use crate::model::Acknowledged;
use crate::net::TracedNetwork;

/// Producers of each group.
const PRODUCERS: u8 = 2;
/// How long an answer may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(2);

struct NoCalls;

impl PeerService for NoCalls {
    fn call(&self, _from: Caller, _body: Bytes) -> BoxFuture<'static, Result<Bytes, String>> {
        Box::pin(async { Err("nobody calls the client".to_owned()) })
    }
}

/// The client's process.
pub(crate) async fn run(world: World) -> turmoil::Result {
    let who: Arc<str> = "client".into();
    let identity = TransportIdentity { broker: BrokerId(CLIENT), cluster: Some(ClusterId(7)) };
    let network = Arc::new(TracedNetwork::new(world.trace.clone(), who));
    let transport = Transport::start(network, "0.0.0.0:7000", identity, config(), Arc::new(NoCalls)).await?;
    for broker in 1..=BROKERS {
        transport.set_peer(BrokerId(broker), format!("{}:7000", host(broker)));
    }
    let producers = (1..=GROUPS).flat_map(|group| (0..PRODUCERS).map(move |producer| (group, producer)));
    let producers = producers.map(|(group, producer)| produce(world.clone(), transport.clone(), group, producer));
    let readers = (1..=GROUPS).map(|group| read(world.clone(), transport.clone(), group));
    join(join_all(producers), join_all(readers)).await;
    world.finish.lock().1 = true;
    // The process stays: a host that ends would be another event.
    std::future::pending().await
}

fn milliseconds(from: u64, to: u64) -> Duration {
    Duration::from_millis(from + random_u64() % (to - from))
}

/// Now and then a payload is large enough to bypass the journal.
fn body(attempt: u32) -> Vec<u8> {
    let bytes = if random_u64().is_multiple_of(24) { 9000 } else { 20 + random_u64() % 400 };
    let filler = random_u64() as u8;
    attempt.to_le_bytes().into_iter().chain(std::iter::repeat_n(filler, bytes as usize)).collect()
}

/// Whom to ask next.
fn next_broker(asked: u32, hint: Option<u32>) -> u32 {
    hint.filter(|hint| *hint != asked).unwrap_or(asked % BROKERS + 1)
}

async fn ask(transport: &Transport, broker: u32, ask: &Ask) -> Answer {
    match transport.call(BrokerId(broker), codec::encode(ask).into(), PATIENCE).await {
        Ok(answer) => codec::decode(&answer).expect("a broker's answer"),
        Err(CallError::Unreachable(..) | CallError::Refused(..)) => Answer::Refused { leader: None },
        Err(CallError::NoAnswer(..)) => Answer::Unknown,
    }
}

async fn produce(world: World, transport: Transport, group: u64, producer: u8) {
    let mut broker = (group % u64::from(BROKERS)) as u32 + 1;
    for sequence in 0.. {
        if world.finish.lock().0 {
            return;
        }
        deliver(&world, &transport, group, (producer, sequence), &mut broker).await;
        sleep(milliseconds(20, 160)).await;
    }
}

/// Tries until the payload is known to be in the log.
async fn deliver(world: &World, transport: &Transport, group: u64, (producer, sequence): (u8, u32), broker: &mut u32) {
    let mut unsure = false;
    for number in 1.. {
        let attempt = (producer, sequence, number);
        let span = 1 + (sequence % 3) as u8;
        let payload = test_payload(span, producer, sequence, &body(number)).to_vec();
        match ask(transport, *broker, &Ask::Propose { group, payload }).await {
            Answer::Appended { index, term, offset, span } => {
                return world.model.acknowledged(group, attempt, Acknowledged { index, term, offset, span });
            }
            // An attempt whose fate was unknown had come through.
            Answer::Void { verdict } if unsure && verdict == format!("sequence {sequence}, not {}", sequence + 1) => {
                return world.model.duplicate(group, producer, sequence);
            }
            Answer::Refused { leader } => {
                world.model.refused(group, attempt);
                *broker = next_broker(*broker, leader);
            }
            Answer::Unknown => {
                world.trace.note("client", format_args!("unknown {group} {attempt:?}"));
                unsure = true;
                *broker = next_broker(*broker, None);
            }
            answer @ (Answer::Void { .. } | Answer::End(_)) => {
                return world.model.broken(format!("group {group}: {attempt:?} was answered {answer:?}"));
            }
        }
        sleep(milliseconds(10, 60)).await;
    }
}

/// What a confirmed read shows is never older than what was acknowledged before it began.
async fn read(world: World, transport: Transport, group: u64) {
    let mut broker = 1;
    while !world.finish.lock().0 {
        sleep(milliseconds(80, 400)).await;
        let floor = world.model.acknowledged_end(group);
        match ask(&transport, broker, &Ask::End { group }).await {
            Answer::End(end) => {
                world.trace.note("client", format_args!("end {group} {end} at broker {broker}, floor {floor}"));
                if end < floor {
                    world.model.broken(format!("group {group}: broker {broker} confirmed {end}, below {floor}"));
                }
            }
            Answer::Refused { leader } => broker = next_broker(broker, leader),
            _ => broker = next_broker(broker, None),
        }
    }
}
