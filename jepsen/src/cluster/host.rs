//! The cluster: hosts with a network, a disk and a broker each.
//!
//! It starts, stops and asks; which of that is a fault, and when, is the nemesis's affair. A broker that ends without having been
//! told to is noticed here and remembered until somebody asks.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::admin::{Admin, Comparison, Topic, compare};
use super::broker::Broker;
use super::disk::Disk;
use super::network::{self, Network};
use super::{Doing as _, Harness, HarnessError, isolation, preflight};

/// The port of clients.
const HTTP_PORT: u16 = 8090;
/// The port of Kafka clients.
const KAFKA_PORT: u16 = 9092;
/// The port of brokers.
const PEER_PORT: u16 = 7090;
/// How long a broker may take to stop when asked to.
const STOP_PATIENCE: Duration = Duration::from_secs(32);
/// What a panic says in a log.
const PANIC: &[u8] = b"panicked at";
/// Between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(100);

/// How brokers are set up.
#[derive(Clone, Debug)]
pub struct Tuning {
    /// Bytes of each disk.
    pub disk_bytes: u64,
    /// `--set` of every broker.
    pub settings: Vec<String>,
    /// Brokers take their time from a file, so that it can be made to lie.
    pub clocks: bool,
}

/// One host.
pub struct Host {
    /// Counted from 0.
    pub number: usize,
    /// Its disk.
    pub disk: Disk,
    /// It stands still.
    pub paused: bool,
    broker: Option<Broker>,
    log: PathBuf,
    /// How much of the log was looked at.
    log_seen: u64,
}

/// All of them.
pub struct Cluster {
    /// In order.
    pub hosts: Vec<Host>,
    /// Between them.
    pub network: Network,
    /// Asks them.
    pub admin: Admin,
    binary: PathBuf,
    tuning: Tuning,
}

impl Cluster {
    /// Makes the hosts; no broker runs yet. `dir` is the run's folder: logs go there.
    pub async fn create(hosts: usize, binary: &Path, dir: &Path, tuning: Tuning) -> Harness<Self> {
        isolation::prepare().await?;
        let network = Network::create(hosts).await?;
        let admin = Admin::new(Self::urls(hosts))?;
        let mut made = Vec::with_capacity(hosts);
        for number in 0..hosts {
            let name = network::name(number);
            let disk = Disk::create(dir, &name, tuning.disk_bytes).await?;
            made.push(Host {
                number,
                disk,
                paused: false,
                broker: None,
                log: dir.join(format!("{name}.log")),
                log_seen: 0,
            });
        }
        let mut cluster = Self { hosts: made, network, admin, binary: binary.to_owned(), tuning };
        for host in 0..hosts {
            cluster.set_clock(host, "+0")?;
        }
        Ok(cluster)
    }

    /// Where clients reach each broker.
    pub fn urls(hosts: usize) -> Vec<String> {
        (0..hosts).map(|host| format!("http://{}:{HTTP_PORT}", network::address(host))).collect()
    }

    /// Where Kafka clients reach each broker.
    pub fn kafka_addresses(hosts: usize) -> Vec<String> {
        (0..hosts).map(|host| format!("{}:{KAFKA_PORT}", network::address(host))).collect()
    }

    /// What libfaketime makes of a broker's time, in its own words: `+0` is the truth.
    pub fn set_clock(&mut self, host: usize, offset: &str) -> Harness<()> {
        let path = clock_path(host);
        let aside = path.with_extension("new");
        std::fs::write(&aside, format!("{offset}\n"))
            .and_then(|()| std::fs::rename(&aside, &path))
            .doing(path.display())
    }

    /// Starts a broker; no error says that it will get anywhere.
    pub fn start(&mut self, host: usize) -> Harness<()> {
        if self.hosts[host].broker.is_some() {
            return Ok(());
        }
        let words = self.command_line(host);
        let mut environment = Vec::new();
        if self.tuning.clocks {
            let library = preflight::faketime().ok_or_else(|| HarnessError("libfaketime is gone".to_owned()))?;
            let clock = clock_path(host).display().to_string();
            // Monotonic clocks stay true: no machine turns those back.
            let lies = [
                ("LD_PRELOAD", library),
                ("FAKETIME_TIMESTAMP_FILE", clock.as_str()),
                ("FAKETIME_CACHE_DURATION", "1"),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ("DONT_FAKE_MONOTONIC", "1"),
                ("FAKETIME_DONT_RESET", "1"),
            ];
            environment.extend(lies.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
        let name = network::name(host);
        let started = &mut self.hosts[host];
        started.broker = Some(Broker::start(&name, &words, &environment, &started.log)?);
        started.paused = false;
        Ok(())
    }

    fn command_line(&self, host: usize) -> Vec<String> {
        let peer = |host: usize| format!("{}@{}:{PEER_PORT}", host + 1, network::address(host));
        let bootstrap = (0..self.hosts.len()).map(peer).collect::<Vec<_>>().join(",");
        let address = network::address(host);
        let mut words = vec![
            self.binary.display().to_string(),
            "serve".to_owned(),
            format!("--broker-id={}", host + 1),
            format!("--data-dir={}", self.hosts[host].disk.data().display()),
            format!("--bootstrap={bootstrap}"),
            format!("--http-listen={address}:{HTTP_PORT}"),
            format!("--kafka-listen={address}:{KAFKA_PORT}"),
            format!("--peer-listen={address}:{PEER_PORT}"),
            "--allow-insecure".to_owned(),
        ];
        words.extend(self.tuning.settings.iter().map(|setting| format!("--set={setting}")));
        words
    }

    /// Ends a broker at once. `None`: it was not running.
    pub async fn kill(&mut self, host: usize) -> Harness<Option<ExitStatus>> {
        self.hosts[host].paused = false;
        match self.hosts[host].broker.take() {
            Some(broker) => broker.kill().await.map(Some),
            None => Ok(None),
        }
    }

    /// Asks a broker to stop, and kills it if it does not. Returns what was wrong with that.
    pub async fn stop(&mut self, host: usize) -> Harness<Option<String>> {
        let Some(broker) = self.hosts[host].broker.take() else { return Ok(None) };
        match broker.stop(STOP_PATIENCE).await {
            Ok(status) if status.success() => Ok(None),
            Ok(status) => Ok(Some(format!("{} ended with {status} when it was asked to stop", network::name(host)))),
            Err(broker) => {
                broker.kill().await?;
                Ok(Some(format!("{} did not stop within {} s", network::name(host), STOP_PATIENCE.as_secs())))
            }
        }
    }

    /// Makes a broker stand still. False: none is running.
    pub fn pause(&mut self, host: usize) -> Harness<bool> {
        let Some(broker) = &self.hosts[host].broker else { return Ok(false) };
        broker.signal(Signal::STOP)?;
        self.hosts[host].paused = true;
        Ok(true)
    }

    /// Lets it go on.
    pub fn resume(&mut self, host: usize) -> Harness<()> {
        self.hosts[host].paused = false;
        match &self.hosts[host].broker {
            Some(broker) => broker.signal(Signal::CONT),
            None => Ok(()),
        }
    }

    /// The running broker of a host.
    pub fn broker(&self, host: usize) -> Option<&Broker> {
        self.hosts[host].broker.as_ref()
    }

    /// How a broker ended that nobody ended; told once. It counts as not running from then on.
    pub fn ended_by_itself(&mut self, host: usize) -> Harness<Option<ExitStatus>> {
        let host = &mut self.hosts[host];
        let Some(broker) = &mut host.broker else { return Ok(None) };
        let ended = broker.ended()?;
        if ended.is_some() {
            host.broker = None;
        }
        Ok(ended)
    }

    /// The first panic in a broker's log since the last look.
    pub fn new_panic(&mut self, host: usize) -> Harness<Option<String>> {
        let host = &mut self.hosts[host];
        let Ok(mut log) = File::open(&host.log) else { return Ok(None) };
        log.seek(SeekFrom::Start(host.log_seen)).doing(host.log.display())?;
        let mut log = BufReader::new(log);
        let (mut line, mut found) = (Vec::new(), None);
        while log.read_until(b'\n', &mut line).doing(host.log.display())? > 0 {
            host.log_seen += line.len() as u64;
            if found.is_none() && line.windows(PANIC.len()).any(|words| words == PANIC) {
                found = Some(String::from_utf8_lossy(&line).trim().to_owned());
            }
            line.clear();
        }
        Ok(found)
    }

    /// Waits until a broker is ready; `Err`: what it said last.
    pub async fn await_ready(&self, host: usize, patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            match self.admin.ready(host).await {
                Ok(()) => return Ok(()),
                Err(why) if Instant::now() >= deadline => return Err(why),
                Err(_) => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Waits until every replica of these topics is in sync, by the word of a leader; `Err`: what was missing last.
    pub async fn await_in_sync(&self, topics: &[String], patience: Duration) -> Result<(), String> {
        let deadline = Instant::now() + patience;
        loop {
            let missing = self.not_in_sync(topics).await;
            if missing.is_empty() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(missing.join("; "));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until every broker tells the same of all topics; otherwise what came of the last look.
    pub async fn await_same_topics(&self, patience: Duration) -> Comparison {
        let deadline = Instant::now() + patience;
        loop {
            let found = compare(self.topics().await);
            if matches!(found, Comparison::Same(_)) || Instant::now() >= deadline {
                return found;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What each broker tells.
    async fn topics(&self) -> Result<Vec<Vec<Topic>>, String> {
        let mut told = Vec::with_capacity(self.hosts.len());
        for host in 0..self.hosts.len() {
            let topics = self.admin.topics(host).await;
            told.push(topics.map_err(|why| format!("{} tells nothing: {why}", network::name(host)))?);
        }
        Ok(told)
    }

    async fn not_in_sync(&self, topics: &[String]) -> Vec<String> {
        let mut missing = Vec::new();
        for topic in topics {
            match self.admin.describe(0, topic).await {
                Err(why) => missing.push(format!("{topic}: {why}")),
                Ok(partitions) => missing.extend(partitions.iter().filter_map(|found| {
                    let sound = found.leader.is_some() && found.replicas.iter().all(|id| found.in_sync.contains(id));
                    let (leader, replicas, in_sync) = (found.leader, &found.replicas, &found.in_sync);
                    let state = format!("leader {leader:?}, replicas {replicas:?}, in sync {in_sync:?}");
                    (!sound).then(|| format!("{topic}/{}: {state}", found.partition))
                })),
            }
        }
        missing
    }

    /// The host that leads a partition, by any broker's word.
    pub async fn leader(&self, topic: &str, partition: u32) -> Option<usize> {
        for broker in 0..self.hosts.len() {
            let Ok(partitions) = self.admin.describe(broker, topic).await else { continue };
            let found = partitions.into_iter().find(|found| found.partition == partition);
            if let Some(leader) = found.and_then(|found| found.leader) {
                return Some(leader as usize - 1);
            }
        }
        None
    }
}

fn clock_path(host: usize) -> PathBuf {
    Path::new(isolation::PRIVATE).join(format!("{}.clock", network::name(host)))
}
