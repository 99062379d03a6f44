//! `pontoon consume`: prints records, once each, from one partition or all.
//!
//! The cursor is the server's `next_offset`, kept here: a fetch that fails is asked again at the same place, so nothing is
//! missed or printed twice while brokers come and go. It means nothing in another topic that has the name by then: every answer says
//! which topic it is of.

use std::io::{self, Write};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::api::OffsetsAnswer;
use crate::api::fetched::FetchedRecord;
use crate::cli::{Failure, output};
use crate::client::{Client, FetchRequest};

/// Bytes asked for at a time.
const FETCH_BYTES: usize = 4 << 20;
/// How long nothing is printed for want of an answer where the end is.
const END_WITHIN: Duration = Duration::from_secs(1);
/// Partitions whose offsets are asked for at a time.
const LOOKS_AT_ONCE: usize = 8;
/// How long the server waits for records when following.
const FOLLOW_WAIT: Duration = Duration::from_secs(5);
/// And at most for those that are there and do not show yet: data is sent at once.
const END_WAIT: Duration = Duration::from_millis(500);
/// How often a follower looks for partitions that were added.
const PARTITIONS_LOOK: Duration = Duration::from_secs(2);
/// Fetched chunks that may wait to be printed.
const CHUNKS_AHEAD: usize = 4;

/// How a record is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The value's bytes and a newline; nothing but the newline for a tombstone
    #[default]
    Value,
    /// Key, tab, value, newline
    KeyValue,
    /// One JSON object a line, as in the HTTP API, with its partition
    Json,
}

/// Flags of `consume`.
#[derive(Debug, Args)]
pub(super) struct ConsumeArgs {
    /// The topic
    topic: String,
    /// Where to begin in each partition: earliest, latest, an offset, or timestamp:MS
    #[arg(long, value_name = "OFFSET", default_value = "earliest", value_parser = start)]
    from: String,
    /// Go on waiting for more at the end
    #[arg(long)]
    follow: bool,
    /// Only this partition [default: all, one after the other; with --follow, as records come]
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// How to print a record
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Stop after so many records
    #[arg(long, value_name = "N")]
    max_records: Option<u64>,
}

fn start(text: &str) -> Result<String, String> {
    let number = text.strip_prefix("timestamp:").unwrap_or(text);
    if matches!(text, "earliest" | "latest") || number.parse::<u64>().is_ok() {
        return Ok(text.to_owned());
    }
    Err("not earliest, latest, an offset or timestamp:MS".into())
}

/// Prints until the end as of now, or for ever.
pub(super) async fn run(args: ConsumeArgs, client: Client, as_json: bool) -> Result<(), Failure> {
    let described = client.topic(&args.topic).await?;
    let (topic_id, count): (Arc<str>, _) = (described.topic_id.into(), described.partitions.len() as u32);
    let partitions: Vec<u32> = match args.partition {
        Some(partition) if partition >= count => {
            return Err(Failure::NotFound(format!("{} has {count} partitions, no {partition}", args.topic)));
        }
        Some(partition) => vec![partition],
        None => (0..count).collect(),
    };
    let format = if as_json { Format::Json } else { args.format };
    let mut printer = Printer { format, left: args.max_records.unwrap_or(u64::MAX), out: io::stdout() };
    let starts = starts(&client, &args.topic, &args.from, partitions).await?;
    let (client, topic): (_, Arc<str>) = (Arc::new(client), args.topic.into());
    let reader = |partition, cursor: String, floor| Reader {
        client: Arc::clone(&client),
        topic: Arc::clone(&topic),
        topic_id: Arc::clone(&topic_id),
        partition,
        cursor,
        floor,
    };
    let floor = args.from.parse().unwrap_or(0);
    let readers = starts.into_iter().map(|(partition, cursor)| reader(partition, cursor, floor));
    if !args.follow {
        for reader in readers {
            if !reader.read_to_end(&mut printer).await? {
                break;
            }
        }
        return Ok(());
    }
    let mut following = Following::new();
    readers.for_each(|reader| following.read(reader));
    if args.partition.is_none() {
        following.watch_for_more(Arc::clone(&client), Arc::clone(&topic), Arc::clone(&topic_id));
    }
    let later = from_later(&args.from);
    following.run(&mut printer, count, |partition| reader(partition, later.to_owned(), 0)).await
}

/// Where each partition is read from. An offset stands for another record in each of several: those that do not reach it, or
/// have let it go, are named, and the others read all the same. One partition alone is asked as it is, and refuses. The end is
/// looked up here, once: asked for again with each attempt at a fetch, it would pass over what came in between.
async fn starts(client: &Client, topic: &str, from: &str, partitions: Vec<u32>) -> Result<Vec<(u32, String)>, Failure> {
    let wanted = from.parse::<u64>().ok().filter(|_| partitions.len() > 1);
    if wanted.is_none() && from != "latest" {
        return Ok(partitions.into_iter().map(|partition| (partition, from.to_owned())).collect());
    }
    let asked = stream::iter(partitions)
        .map(|partition| async move { client.offsets(topic, partition).await.map(|offsets| (partition, offsets)) });
    let found: Vec<(u32, OffsetsAnswer)> = asked.buffered(LOOKS_AT_ONCE).try_collect().await?;
    let Some(wanted) = wanted else {
        return Ok(found.into_iter().map(|(at, offsets)| (at, offsets.high_watermark.to_string())).collect());
    };
    if found.iter().all(|(_, offsets)| offsets.high_watermark < wanted) {
        return Err(Failure::Failed(format!("no partition of {topic} reaches offset {wanted}")));
    }
    let start = |(partition, offsets): (u32, OffsetsAnswer)| {
        let OffsetsAnswer { log_start_offset: first, high_watermark: end, .. } = offsets;
        if end < wanted {
            output::say(&format!("{topic}/{partition} ends at {end}: it has nothing from {wanted} on"));
        } else if first > wanted {
            output::say(&format!("{topic}/{partition} begins at {first}: what was before is gone"));
        }
        (partition, wanted.clamp(first, end).to_string())
    };
    Ok(found.into_iter().map(start).collect())
}

/// Where a partition is read from that was added meanwhile: all in it is newer than the moment at which this began.
fn from_later(from: &str) -> &str {
    if from.starts_with("timestamp:") { from } else { "earliest" }
}

/// What following brings.
enum News {
    /// Some of a partition's records.
    Records(u32, Vec<FetchedRecord>),
    /// How many partitions there are.
    Partitions(u32),
}

/// Partitions that are read at the same time.
struct Following {
    /// Readers, which end only by an error.
    tasks: JoinSet<Result<(), Failure>>,
    news: mpsc::Sender<News>,
    heard: mpsc::Receiver<News>,
}

impl Following {
    fn new() -> Self {
        let (news, heard) = mpsc::channel(CHUNKS_AHEAD);
        Self { tasks: JoinSet::new(), news, heard }
    }

    fn read(&mut self, reader: Reader) {
        self.tasks.spawn(reader.follow(self.news.clone()));
    }

    /// Asks now and then how many partitions there are. What goes wrong is for the readers to tell.
    fn watch_for_more(&mut self, client: Arc<Client>, topic: Arc<str>, topic_id: Arc<str>) {
        let news = self.news.clone();
        self.tasks.spawn(async move {
            while !news.is_closed() {
                tokio::time::sleep(PARTITIONS_LOOK).await;
                if let Ok(found) = client.topic(&topic).await {
                    same(&topic, &topic_id, &found.topic_id)?;
                    let _ = news.send(News::Partitions(found.partitions.len() as u32)).await;
                }
            }
            Ok(())
        });
    }

    /// Prints what comes until no more is wanted or a reader fails: one partition that is missing makes the rest a lie.
    async fn run<W: Write>(
        mut self,
        printer: &mut Printer<W>,
        mut count: u32,
        reader: impl Fn(u32) -> Reader,
    ) -> Result<(), Failure> {
        let failed = loop {
            tokio::select! {
                Some(news) = self.heard.recv() => match news {
                    News::Records(partition, records) if !printer.print(partition, &records)? => return Ok(()),
                    News::Records(..) => {}
                    News::Partitions(found) => {
                        (count..found).for_each(|partition| self.read(reader(partition)));
                        count = count.max(found);
                    }
                },
                Some(ended) = self.tasks.join_next() => break ended,
            }
        };
        // What was fetched before the failure is printed before it is told.
        self.heard.close();
        while let Some(news) = self.heard.recv().await {
            if let News::Records(partition, records) = news
                && !printer.print(partition, &records)?
            {
                return Ok(());
            }
        }
        failed.map_err(|error| Failure::Failed(error.to_string()))?
    }
}

/// A failure if a topic of this name is not the one that it was: nobody says then where to go on.
fn same(topic: &str, before: &str, now: &str) -> Result<(), Failure> {
    match before == now {
        true => Ok(()),
        false => Err(Failure::Failed(format!("{topic} was deleted and created again meanwhile"))),
    }
}

/// Reads one partition.
struct Reader {
    client: Arc<Client>,
    topic: Arc<str>,
    topic_id: Arc<str>,
    partition: u32,
    cursor: String,
    /// Records before this offset are not wanted.
    floor: u64,
}

impl Reader {
    async fn fetch(&mut self, wait: Duration) -> Result<(Vec<FetchedRecord>, u64), Failure> {
        let fetch = FetchRequest {
            topic: &self.topic,
            partition: self.partition,
            offset: &self.cursor,
            bytes_max: FETCH_BYTES,
            wait,
        };
        let mut answer = self.client.fetch(&fetch).await?;
        if let Some(topic_id) = &answer.topic_id {
            same(&self.topic, &self.topic_id, topic_id)?;
        }
        answer.records.retain(|record| record.offset >= self.floor);
        self.cursor = answer.next_offset.to_string();
        Ok((answer.records, answer.next_offset))
    }

    /// Up to what was acknowledged when it began. Returns whether more is wanted. Nobody can say what that is while there is no
    /// majority; what is committed is printed meanwhile.
    async fn read_to_end<W: Write>(mut self, printer: &mut Printer<W>) -> Result<bool, Failure> {
        let (client, topic, partition) = (Arc::clone(&self.client), Arc::clone(&self.topic), self.partition);
        let mut asked = pin!(async move { client.offsets(&topic, partition).await });
        let mut known = match timeout(END_WITHIN, &mut asked).await {
            Ok(found) => Some(found?.high_watermark),
            Err(_) => None,
        };
        let mut wait = Duration::ZERO;
        loop {
            let fetched = tokio::select! {
                biased;
                found = &mut asked, if known.is_none() => {
                    known = Some(found?.high_watermark);
                    continue;
                }
                fetched = self.fetch(wait) => fetched,
            };
            let (mut records, next) = fetched?;
            let end = known.unwrap_or(u64::MAX);
            let none = records.is_empty() && next < end;
            records.retain(|record| record.offset < end);
            let more = printer.print(self.partition, &records)?;
            if !more || next >= end {
                return Ok(more);
            }
            wait = if none { END_WAIT } else { Duration::ZERO };
        }
    }

    async fn follow(mut self, news: mpsc::Sender<News>) -> Result<(), Failure> {
        loop {
            let (records, _) = self.fetch(FOLLOW_WAIT).await?;
            if !records.is_empty() && news.send(News::Records(self.partition, records)).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// Prints records as long as some are wanted.
struct Printer<W> {
    format: Format,
    left: u64,
    out: W,
}

/// A record with its partition, for JSON.
#[derive(Serialize)]
struct Line<'a> {
    partition: u32,
    #[serde(flatten)]
    record: &'a FetchedRecord,
}

impl<W: Write> Printer<W> {
    /// Returns whether more is wanted.
    fn print(&mut self, partition: u32, records: &[FetchedRecord]) -> Result<bool, Failure> {
        let mut text = Vec::new();
        for record in records.iter().take(usize::try_from(self.left).unwrap_or(usize::MAX)) {
            self.left -= 1;
            match self.format {
                Format::Value => text.extend(record.value_bytes().unwrap_or_default()),
                Format::KeyValue => {
                    text.extend(record.key_bytes().unwrap_or_default());
                    text.push(b'\t');
                    text.extend(record.value_bytes().unwrap_or_default());
                }
                Format::Json => serde_json::to_writer(&mut text, &Line { partition, record })
                    .map_err(|error| Failure::Failed(error.to_string()))?,
            }
            text.push(b'\n');
        }
        self.out.write_all(&text)?;
        self.out.flush()?;
        Ok(self.left > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: Option<&str>, value: Option<&str>) -> FetchedRecord {
        FetchedRecord {
            offset: 5,
            timestamp: 7,
            key: key.map(str::to_owned),
            value: value.map(str::to_owned),
            ..FetchedRecord::default()
        }
    }

    fn printed(format: Format, left: u64, records: &[FetchedRecord]) -> (String, bool) {
        let mut printer = Printer { format, left, out: Vec::new() };
        let more = printer.print(2, records).unwrap();
        (String::from_utf8(printer.out).unwrap(), more)
    }

    #[test]
    fn records_are_printed_as_asked() {
        let records = [record(Some("k"), Some("v")), record(None, None)];
        assert_eq!(printed(Format::Value, 9, &records), ("v\n\n".into(), true));
        assert_eq!(printed(Format::KeyValue, 9, &records), ("k\tv\n\t\n".into(), true));
        let (json, _) = printed(Format::Json, 9, &records[..1]);
        assert_eq!(
            json,
            "{\"partition\":2,\"offset\":5,\"timestamp\":7,\"key\":\"k\",\"value\":\"v\",\"headers\":[]}\n"
        );
        // Bytes that are no text in one form only, as over HTTP.
        let bytes = FetchedRecord { value_base64: Some("/w==".into()), ..record(None, None) };
        let (json, _) = printed(Format::Json, 9, &[bytes]);
        assert_eq!(
            json,
            "{\"partition\":2,\"offset\":5,\"timestamp\":7,\"key\":null,\"value_base64\":\"/w==\",\"headers\":[]}\n"
        );
    }

    #[test]
    fn no_more_are_printed_than_wanted() {
        let records = [record(None, Some("a")), record(None, Some("b"))];
        assert_eq!(printed(Format::Value, 1, &records), ("a\n".into(), false));
    }

    #[test]
    fn a_reader_that_left_is_no_failure() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut printer = Printer { format: Format::Value, left: 9, out: Closed };
        let failure = printer.print(0, &[record(None, Some("a"))]).unwrap_err();
        assert_eq!(failure.verdict(), (0, None));
    }

    #[test]
    fn starts_are_words_offsets_or_times() {
        for good in ["earliest", "latest", "0", "17", "timestamp:1700000000000"] {
            assert_eq!(start(good).as_deref(), Ok(good));
        }
        for wrong in ["", "first", "-1", "timestamp:x", "1.5"] {
            assert!(start(wrong).is_err(), "{wrong}");
        }
    }
}
