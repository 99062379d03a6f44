//! Slow and unruly links, where the kernel has no netem: packets between hosts take a way through this process.
//!
//! Each host gets a device (TUN) and routes to the other hosts through it; what the kernel hands over there is kept for a while, and then
//! put into the other host's device. Connections that are open go on over the new way and back, since only the route changes: when this is
//! dropped the devices are gone and packets take the bridge again. The packet filter of [`super::network`] works beside it.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::command::run;
use super::isolation::PRIVATE;
use super::network::{address, name};
use super::{Doing as _, Harness, HarnessError, kernel};
use crate::random::Random;

/// The name of the device in each host.
const DEVICE: &str = "slow0";
/// The largest packet; the devices' MTU is 1500.
const PACKET_BYTES_MAX: usize = 2048;
/// How many packets may be on their way. More are lost, as in any queue.
const PACKETS_MAX: usize = 8192;
/// Where an IPv4 header has its destination's last byte.
const DESTINATION: usize = 19;

/// What happens to packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// They take at least so long.
    pub delay_min: Duration,
    /// And at most so long.
    pub delay_max: Duration,
    /// They stay in order, whatever each one's delay.
    pub in_order: bool,
    /// Percent that come twice.
    pub twice: usize,
    /// Percent that have a bit flipped; checksums turn most of these into losses.
    pub garbled: usize,
}

/// Delay with some jitter.
pub const DELAY: Manner = Manner {
    delay_min: Duration::from_millis(40),
    delay_max: Duration::from_millis(60),
    in_order: true,
    twice: 0,
    garbled: 0,
};

/// Packets overtake each other, come twice or garbled.
pub const UNRULY: Manner = Manner {
    delay_min: Duration::from_millis(0),
    delay_max: Duration::from_millis(25),
    in_order: false,
    twice: 10,
    garbled: 2,
};

/// What has passed.
#[derive(Debug, Default)]
pub struct Counters {
    packets: AtomicU64,
    delay_us: AtomicU64,
    overtaken: AtomicU64,
    twice: AtomicU64,
    garbled: AtomicU64,
}

impl Counters {
    /// In words; `None` if nothing has.
    pub fn evidence(&self) -> Option<String> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let packets = load(&self.packets);
        let mean_ms = load(&self.delay_us) as f64 / 1000.0 / packets.max(1) as f64;
        let (overtaken, twice, garbled) = (load(&self.overtaken), load(&self.twice), load(&self.garbled));
        let unruly = format!("{overtaken} overtaken, {twice} twice, {garbled} garbled");
        (packets > 0).then(|| format!("{packets} packets took {mean_ms:.1} ms each, {unruly}"))
    }
}

/// Packets on their way. Dropping it puts the links right.
pub struct Netem {
    /// What has passed.
    pub counters: Arc<Counters>,
    _tasks: JoinSet<()>,
}

/// A packet, when it is due, and the order in which it came.
struct Packet {
    to: usize,
    bytes: Vec<u8>,
}

/// What is kept until it is due: soonest first, and in order of arrival.
type Queue = BinaryHeap<Reverse<(Instant, u64)>>;

impl Netem {
    /// Puts all packets between these hosts into this manner.
    pub async fn start(hosts: usize, manner: Manner, mut random: Random) -> Harness<Self> {
        let counters = Arc::new(Counters::default());
        let (sender, receiver) = mpsc::channel(PACKETS_MAX);
        let mut devices = Vec::with_capacity(hosts);
        for host in 0..hosts {
            devices.push(Arc::new(open_device(host)?));
        }
        for host in 0..hosts {
            run(&format!("ip -n {} link set {DEVICE} mtu 1500 up", name(host))).await?;
        }
        let mut tasks = JoinSet::new();
        for (host, device) in devices.iter().enumerate() {
            tasks.spawn(take(host, hosts, device.clone(), sender.clone()));
        }
        let link = Link { manner, random: random.split(), last: BTreeMap::new(), counters: counters.clone() };
        tasks.spawn(give(devices, receiver, link));
        for host in 0..hosts {
            for other in (0..hosts).filter(|other| *other != host) {
                let (to, from) = (address(other), address(host));
                run(&format!("ip -n {} route replace {to}/32 dev {DEVICE} src {from}", name(host))).await?;
            }
        }
        Ok(Self { counters, _tasks: tasks })
    }
}

/// Opens the device in a host's network. A thread of its own goes there and ends: threads of the runtime must stay where they are.
fn open_device(host: usize) -> Harness<AsyncFd<File>> {
    let open = move || -> io::Result<File> {
        let namespace = File::open(format!("{PRIVATE}/netns/{}", name(host)))?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))?;
        let device = kernel::open_tun(DEVICE)?;
        let flags = rustix::fs::fcntl_getfl(&device)?;
        rustix::fs::fcntl_setfl(&device, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(device)
    };
    let opened = std::thread::spawn(open).join().map_err(|_| HarnessError("a thread panicked".to_owned()))?;
    kernel::watch(opened.doing("opening a TUN device")?).doing("watching a TUN device")
}

/// Takes packets from a host's device until it is gone.
async fn take(host: usize, hosts: usize, device: Arc<AsyncFd<File>>, queue: mpsc::Sender<Packet>) {
    let mut buffer = [0; PACKET_BYTES_MAX];
    loop {
        let Ok(mut ready) = device.readable().await else { return };
        match ready.try_io(|device| device.get_ref().read(&mut buffer)) {
            Err(_) => {} // Not readable after all.
            Ok(Err(_)) => return,
            Ok(Ok(length)) => {
                let bytes = &buffer[..length];
                let to = bytes.get(DESTINATION).map(|last| usize::from(*last).wrapping_sub(1));
                if let Some(to) = to.filter(|to| bytes[0] >> 4 == 4 && *to < hosts && *to != host) {
                    // A full queue loses packets.
                    let _ = queue.try_send(Packet { to, bytes: bytes.to_vec() });
                }
            }
        }
    }
}

/// How packets are treated.
struct Link {
    manner: Manner,
    random: Random,
    /// When the last packet to each host is due.
    last: BTreeMap<usize, Instant>,
    counters: Arc<Counters>,
}

impl Link {
    /// When a packet that comes now is due.
    fn due(&mut self, to: usize, now: Instant) -> Instant {
        let (min, max) = (self.manner.delay_min.as_micros() as u64, self.manner.delay_max.as_micros() as u64);
        let mut due = now + Duration::from_micros(self.random.between(min, max));
        let last = self.last.entry(to).or_insert(due);
        if due < *last {
            if self.manner.in_order {
                due = *last;
            } else {
                self.counters.overtaken.fetch_add(1, Ordering::Relaxed);
            }
        }
        *last = due.max(*last);
        self.counters.packets.fetch_add(1, Ordering::Relaxed);
        self.counters.delay_us.fetch_add((due - now).as_micros() as u64, Ordering::Relaxed);
        due
    }

    /// Flips a bit behind the headers, now and then.
    fn garble(&mut self, bytes: &mut [u8]) {
        if !self.random.percent(self.manner.garbled) {
            return;
        }
        let at = 20 + self.random.below(bytes.len().saturating_sub(20));
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << self.random.below(8);
            self.counters.garbled.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Gives packets to their devices when they are due.
async fn give(devices: Vec<Arc<AsyncFd<File>>>, mut queue: mpsc::Receiver<Packet>, mut link: Link) {
    let (mut due, mut packets): (Queue, BTreeMap<u64, Packet>) = (BinaryHeap::new(), BTreeMap::new());
    let mut next = 0;
    loop {
        let soonest = due.peek().map(|Reverse((at, _))| *at);
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(soonest.unwrap_or_else(Instant::now)), if soonest.is_some() => {
                let Some(Reverse((_, number))) = due.pop() else { continue };
                if let Some(packet) = packets.remove(&number) {
                    // A device without room loses the packet.
                    let _ = devices[packet.to].get_ref().write(&packet.bytes);
                }
            }
            packet = queue.recv() => {
                let Some(mut packet) = packet else { return };
                let copies = if link.random.percent(link.manner.twice) { 2 } else { 1 };
                link.counters.twice.fetch_add(copies - 1, Ordering::Relaxed);
                link.garble(&mut packet.bytes);
                for _ in 0..copies {
                    let at = link.due(packet.to, Instant::now());
                    due.push(Reverse((at, next)));
                    packets.insert(next, Packet { to: packet.to, bytes: packet.bytes.clone() });
                    next += 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(manner: Manner) -> Link {
        Link { manner, random: Random::new(5), last: BTreeMap::new(), counters: Arc::default() }
    }

    #[test]
    fn delayed_packets_stay_in_order_and_unruly_ones_do_not() {
        let now = Instant::now();
        let mut delayed = link(DELAY);
        let dues: Vec<Instant> = (0..200).map(|_| delayed.due(1, now)).collect();
        assert!(dues.is_sorted() && dues[0] >= now + DELAY.delay_min && dues[199] <= now + DELAY.delay_max);
        let mut unruly = link(UNRULY);
        let dues: Vec<Instant> = (0..200).map(|_| unruly.due(1, now)).collect();
        assert!(!dues.is_sorted());
        assert!(unruly.counters.evidence().is_some_and(|text| text.starts_with("200 packets took ")));
        assert_eq!(link(DELAY).counters.evidence(), None);
    }

    #[test]
    fn headers_are_never_garbled() {
        let mut unruly = link(Manner { garbled: 100, ..UNRULY });
        for _ in 0..100 {
            let mut bytes = [0; 60];
            unruly.garble(&mut bytes);
            assert_eq!(bytes.iter().map(|byte| byte.count_ones()).sum::<u32>(), 1);
            assert!(bytes[..20].iter().all(|byte| *byte == 0));
            unruly.garble(&mut [0; 20]);
        }
    }
}
