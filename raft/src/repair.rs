//! Repair in place (RULES.md R7): what is rotten in a log is fetched from a peer, verified against what Raft knows, and put back. The
//! replica keeps its id and its vote; until it is whole it does not lead, if another can.
//!
//! One task per broker, woken when a reader, the scrub or recovery finds rot, and again while something is left. Reading and writing
//! segments is [`crate::log`]'s; here it is decided whom to ask, when to try again, who leads meanwhile, and when a replica is
//! given up: what is rotten *above* the commit index and nobody else has may not be made up for by anyone, and what the others have
//! purged nobody will ever give, so such a replica is set aside, and the controller gives the group another one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream;
use tokio::time::{Instant, sleep, timeout};

use crate::journal::SegmentName;
use crate::log::frame::{Frame, FrameHeader};
use crate::log::mend::{FrameSource, MendError, Mended, NoFrame, Wanted};
use crate::log::{Log, Rot};
use crate::raft_groups::Hosted;
use crate::recovery::ReplicaKey;
use crate::store::Replica;
use crate::transport::{FramesRequest, Liveness, Transport};
use crate::types::{BrokerId, GroupId};

/// How often the end of the broker, and what is due, is looked for.
const POLL: Duration = Duration::from_millis(250);
/// Before the second attempt; it doubles up to [`PAUSE_MAX`].
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How long a peer may take for an answer.
const ANSWER_WAIT: Duration = Duration::from_secs(10);
/// Logs that are repaired at the same time.
const CONCURRENT: usize = 4;
/// Attempts after which a replica is set aside that is rotten above its commit index, or where there is little hope of a repair.
const ATTEMPTS_MAX: u32 = 4;
/// The same for one that runs, and cannot be read where the others have purged: half a minute.
const STAYING_ATTEMPTS_MAX: u32 = 8;
/// The same for one that does not run yet and so cannot know who leads, if there is hope that a peer returns with what it lacks:
/// some minutes.
const OPENING_ATTEMPTS_MAX: u32 = 20;

/// When something is tried again.
struct Attempt {
    due: Instant,
    count: u32,
}

/// Repairs until the groups are gone.
pub(crate) async fn run(hosted: Weak<Hosted>) {
    let mut attempts: BTreeMap<(ReplicaKey, SegmentName), Attempt> = BTreeMap::new();
    loop {
        // Held only for a moment at a time: a directory that is dropped without being closed must let go of its lock.
        let Some(context) = hosted.upgrade().filter(|hosted| !hosted.is_closed()).map(|hosted| hosted.store.context())
        else {
            return;
        };
        let _ = timeout(POLL, context.rot_found.notified()).await;
        drop(context);
        let Some(hosted) = hosted.upgrade().filter(|hosted| !hosted.is_closed()) else { return };
        round(&hosted, &mut attempts).await;
    }
}

async fn round(hosted: &Arc<Hosted>, attempts: &mut BTreeMap<(ReplicaKey, SegmentName), Attempt>) {
    let logs: Vec<Arc<Log>> = hosted.store.replicas().into_iter().map(|replica| replica.log).collect();
    let rotten: Vec<Arc<Log>> = logs.into_iter().filter(|log| log.is_rotten()).collect();
    hosted.store.context().instruments.rotten_replicas.set(rotten.len() as f64);
    let now = Instant::now();
    let due = |log: &Log, segment: SegmentName| {
        let attempt = attempts.get(&((log.group(), log.replica()), segment));
        attempt
            .is_none_or(|attempt| attempt.due <= now)
            .then_some((segment, attempt.map_or(0, |attempt| attempt.count)))
    };
    let mut work = Vec::new();
    for log in &rotten {
        let segments: Vec<_> = log.rot().into_iter().filter_map(|rot| due(log, rot.segment)).collect();
        if !segments.is_empty() {
            work.push((log.clone(), segments));
        }
    }
    attempts
        .retain(|((group, replica), _), _| rotten.iter().any(|log| (log.group(), log.replica()) == (*group, *replica)));
    let repairs = stream::iter(work).map(|(log, segments)| async move {
        hosted.stand_aside(&log, true).await;
        let mut failed = Vec::new();
        for (segment, count) in segments {
            if !repair(hosted, &log, segment, count).await {
                failed.push((segment, count + 1));
            }
        }
        hosted.stand_aside(&log, failed.is_empty()).await;
        ((log.group(), log.replica()), failed)
    });
    let done: Vec<_> = repairs.buffer_unordered(CONCURRENT).collect().await;
    for (key, failed) in done {
        for (segment, count) in failed {
            let pause = PAUSE.saturating_mul(1 << count.min(10)).min(PAUSE_MAX);
            attempts.insert((key, segment), Attempt { due: Instant::now() + pause, count });
        }
    }
}

/// One attempt. True: there is nothing left to do.
async fn repair(hosted: &Arc<Hosted>, log: &Arc<Log>, segment: SegmentName, count: u32) -> bool {
    let (group, replica) = (log.group(), log.replica());
    let rot = log.rot().into_iter().find(|rot| rot.segment == segment);
    let mut peers = PeerFrames::new(hosted, log);
    let mut mended = log.mend_segment(segment, &mut peers).await;
    // While a core runs, its leader sees to that.
    if let Err(MendError::Superseded { index, why }) = &mended
        && hosted.is_opening(group, replica)
    {
        let index = *index;
        // One may be starting just now, and it reads the log. Others share the lock, and one of them may wait for room on the disk with it.
        let Ok(alone) = timeout(POLL, hosted.lifecycle_of(group).lock()).await else { return false };
        if !hosted.is_opening(group, replica) {
            return false;
        }
        tracing::warn!(%group, %replica, ?segment, index, why, "rotten entries were superseded: the log ends before them");
        let ended = log.end_before(index).await;
        drop(alone);
        mended = match ended {
            Ok(()) => log.mend_segment(segment, &mut peers).await,
            // It is replaced, then. Whoever else might answer does not have it either.
            Err(error) => Err(MendError::NotFound { index, why: error.to_string(), everybody: true, needless: false }),
        };
    }
    let error = match mended {
        Ok(mended) => {
            let repaired = mended.frames > 0;
            note_repaired(log, segment, mended);
            if let Some(Rot { file, why, .. }) = rot.filter(|_| repaired) {
                log.context().healed.note(&file, &why, "repaired from another replica");
            }
            return true;
        }
        Err(MendError::Changed) => return false,
        Err(error) => error,
    };
    if count == 0 {
        tracing::error!(%group, %replica, ?segment, %error, "rotten segment not repaired yet");
    } else {
        tracing::debug!(%group, %replica, ?segment, %error, count, "rotten segment not repaired yet");
    }
    log.context().instruments.repair_failures.increment(1);
    let hopeless = matches!(error, MendError::NotFound { everybody, .. } if everybody || peers.brokers.is_empty());
    log.note_outlook(segment, &error.to_string(), hopeless);
    if let MendError::NotFound { index, everybody, needless, .. } = error {
        let above = log.committed_log_id().is_none_or(|committed| committed.index < index);
        let why = || format!("rotten where nobody can repair it: {error}");
        let hopeless = needless || (above && everybody);
        let opening_max = if hopeless { ATTEMPTS_MAX } else { OPENING_ATTEMPTS_MAX };
        if (above || needless) && count >= opening_max && hosted.take_opening(group, replica) {
            hosted.report_lost(group, replica, why());
            return true;
        }
        // One that runs does not need what the others have purged: it will purge it, too. Unless it cannot go on before, for what it
        // has yet to apply stands behind, in the same segment; or unless that segment ends elsewhere than theirs, and stays.
        let purged = needless && everybody;
        let stuck = purged && log.is_stuck_at(segment);
        let stays = purged && log.holds_records(segment) && count >= STAYING_ATTEMPTS_MAX;
        if stays || (above || stuck) && count >= ATTEMPTS_MAX {
            if above && everybody {
                hosted.end_futile_leadership(log);
            }
            return hosted.set_aside(log, &why()).await;
        }
    }
    false
}

fn note_repaired(log: &Log, segment: SegmentName, mended: Mended) {
    let (group, replica) = (log.group(), log.replica());
    tracing::warn!(%group, %replica, ?segment, mended.frames, mended.bytes, "rotten segment repaired");
    log.context().instruments.repairs.increment(1);
    log.context().instruments.repaired_bytes.increment(mended.bytes);
}

/// Starts a replica that could not be, once nothing in it is rotten any more. `failed`: attempts that are held against it; with each the
/// pause is four times as long.
pub(crate) fn open_when_mended(hosted: Weak<Hosted>, replica: Replica, failed: usize) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let mut pause = POLL * 4u32.pow(failed as u32);
        loop {
            sleep(std::mem::replace(&mut pause, POLL)).await;
            let Some(hosted) = hosted.upgrade().filter(|hosted| !hosted.is_closed()) else { return };
            if !hosted.is_opening(replica.group, replica.replica) {
                return;
            }
            if !replica.log.is_rotten() {
                return hosted.host_mended(replica, failed).await;
            }
        }
    })
}

impl Hosted {
    /// Keeps a rotten replica from leading: it does not run, and after a first attempt that failed it hands over what it
    /// leads. Once it is whole it may again.
    async fn stand_aside(&self, log: &Log, hope: bool) {
        let Some(group) = self.get(log.group()).filter(|group| group.replica() == log.replica()) else { return };
        group.raft().runtime_config().elect(group.may_lead());
        if hope || group.may_lead() || group.leading_term().is_none() {
            return;
        }
        for (to, _) in group.status().heirs(|_, broker| self.is_live_peer(broker), |_| 0) {
            match group.transfer_leader(to).await {
                Ok(()) => return tracing::warn!(group = %log.group(), %to, "its log is rotten: leadership handed over"),
                Err(error) => {
                    tracing::info!(group = %log.group(), %to, %error, "leadership of a rotten log not taken over")
                }
            }
        }
        if group.leading_term().is_some() {
            tracing::warn!(group = %log.group(), "its log is rotten, and still it leads: nobody can take leadership over");
        }
    }

    /// A leader that cannot send its own last entries leads for nothing, and its heartbeats keep the others from electing one that could:
    /// its readers wait no longer, which ends its core, and it comes back as a follower. Nothing committed rests on it alone.
    fn end_futile_leadership(&self, log: &Log) {
        let group = self.get(log.group()).filter(|group| group.replica() == log.replica());
        if group.is_some_and(|group| !group.is_stopped() && group.own_term().is_some()) {
            tracing::warn!(group = %log.group(), "it leads, and nobody can be sent the end of its log: its core is ended");
            log.release_readers();
        }
    }

    /// Ends a replica that cannot be repaired in place. It is reported lost; its files stay. Not if its group would be left without a
    /// leader that can do without it. Returns whether it was.
    pub(crate) async fn set_aside(&self, log: &Log, why: &str) -> bool {
        let Some(group) = self.get(log.group()).filter(|group| group.replica() == log.replica()) else { return false };
        let status = group.status();
        let led_elsewhere = status.leader.is_some_and(|leader| leader.replica != log.replica());
        // Whoever votes keeps the group writable, rotten or not; without a majority of the others nobody could replace it.
        let mut voters: Vec<_> = status.members.into_iter().filter(|(_, member)| member.voter).collect();
        let all = voters.len();
        voters.retain(|(replica, _)| *replica != log.replica());
        // A broker that lives need not run its replica. One that does not say so does not count. Nor does this one count for others who
        // ask the same now: not all of them must go.
        group.set_leaving(true);
        let asked = voters.iter().map(|(replica, member)| group.may_lead_at(*replica, member.broker));
        let running = join_all(asked).await.into_iter().filter(Result::is_ok).count();
        if !led_elsewhere || running * 2 <= all {
            group.set_leaving(false);
            return false;
        }
        self.end_lost(&group, why).await;
        true
    }
}

/// A group's entries, from the brokers of its other members.
struct PeerFrames {
    transport: Transport,
    group: GroupId,
    /// Whom to ask, the likeliest first.
    brokers: Vec<BrokerId>,
    /// What came with the last answer and has not been wanted yet.
    ready: VecDeque<Frame>,
}

impl PeerFrames {
    fn new(hosted: &Hosted, log: &Log) -> Self {
        let transport = hosted.transport.clone();
        let leader = hosted.get(log.group()).and_then(|group| group.status().leader).map(|leader| leader.broker);
        let membership = log.membership_at(Some(u64::MAX));
        let mut brokers: Vec<BrokerId> = membership.membership().nodes().map(|(_, home)| home.broker).collect();
        brokers.retain(|broker| *broker != transport.broker());
        brokers.sort_by_cached_key(|broker| {
            (Some(*broker) != leader, transport.liveness(*broker) != Liveness::Alive, *broker)
        });
        brokers.dedup();
        Self { transport, group: log.group(), brokers, ready: VecDeque::new() }
    }

    async fn find(&mut self, wanted: Wanted) -> Result<Frame, NoFrame> {
        while self.ready.front().is_some_and(|frame| frame.header.index < wanted.index) {
            self.ready.pop_front();
        }
        if let Some(frame) = self.ready.pop_front().filter(|frame| wanted.fits(&frame.header)) {
            return Ok(frame);
        }
        let (mut said, mut everybody, mut needless) = (Vec::new(), !self.brokers.is_empty(), false);
        for at in 0..self.brokers.len() {
            let broker = self.brokers[at];
            match self.ask(broker, wanted).await {
                Ok(Asked::Here(frame, rest)) => {
                    self.ready = rest;
                    self.brokers.swap(0, at);
                    return Ok(frame);
                }
                Ok(Asked::Ends) => said.push(format!("broker {broker}'s log ends before it")),
                Ok(Asked::Other(other)) => {
                    let found = (other.term, other.index, other.base_offset);
                    let other = format!("broker {broker} has another entry there: {found:?}");
                    if self.is_superseded(broker, wanted).await {
                        return Err(NoFrame::Superseded(other + ", committed"));
                    }
                    needless |= found.1 > wanted.index || (found.1 == wanted.index && found.0 > wanted.term);
                    said.push(other);
                }
                Err(why) => {
                    everybody = false;
                    said.push(why);
                }
            }
        }
        let why = if said.is_empty() { "there is no other replica".to_owned() } else { said.join("; ") };
        Err(NoFrame::Nowhere { why, everybody, needless })
    }

    /// Whether another entry is committed where this one stands, by what a broker knows for certain.
    async fn is_superseded(&self, broker: BrokerId, wanted: Wanted) -> bool {
        let (from, to) = (wanted.index, wanted.index + 1);
        let request = FramesRequest { group: self.group, from, to, skip: 0, committed: true };
        let answer = self.transport.frames(broker, request, ANSWER_WAIT).await;
        let header = answer.ok().and_then(|answer| FrameHeader::decode(&answer).ok());
        header.is_some_and(|header| header.index == wanted.index && header.term != wanted.term)
    }

    /// What a broker has there: the wanted frame whole, however long it is, and what else one answer holds.
    async fn ask(&self, broker: BrokerId, wanted: Wanted) -> Result<Asked, String> {
        let mut bytes = BytesMut::new();
        loop {
            let (from, skip) = (wanted.index, bytes.len() as u64);
            // Of a long frame's rest nothing else is wanted.
            let to = if skip == 0 { wanted.until } else { wanted.index + 1 };
            let request = FramesRequest { group: self.group, from, to, skip, committed: false };
            let answer =
                self.transport.frames(broker, request, ANSWER_WAIT).await.map_err(|error| error.to_string())?;
            if answer.is_empty() && skip == 0 {
                return Ok(Asked::Ends);
            }
            bytes.extend_from_slice(&answer);
            let header = FrameHeader::decode(&bytes).map_err(|error| format!("broker {broker}: {error}"))?;
            if !wanted.fits(&header) {
                return Ok(Asked::Other(header));
            }
            if bytes.len() as u64 >= header.frame_bytes() {
                let mut frames = split(bytes.freeze());
                let frame = frames.pop_front().ok_or_else(|| format!("broker {broker} gave a frame that is rotten"))?;
                return Ok(Asked::Here(frame, frames));
            }
            if answer.is_empty() {
                return Err(format!("broker {broker} gave {} of {} bytes", bytes.len(), header.frame_bytes()));
            }
        }
    }
}

/// What a broker was found to have where a frame is wanted.
enum Asked {
    /// The frame, and some that follow it.
    Here(Frame, VecDeque<Frame>),
    /// Another.
    Other(FrameHeader),
    /// Nothing: its log ends before.
    Ends,
}

impl FrameSource for PeerFrames {
    fn frame(&mut self, wanted: Wanted) -> BoxFuture<'_, Result<Frame, NoFrame>> {
        Box::pin(self.find(wanted))
    }
}

/// The whole, sound frames at the front. A payload keeps the memory of its answer alive, 1 MiB or one frame.
fn split(mut bytes: Bytes) -> VecDeque<Frame> {
    let mut frames = VecDeque::new();
    while let Ok(frame) = Frame::decode(&mut bytes) {
        frames.push_back(frame);
    }
    frames
}
