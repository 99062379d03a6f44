//! What the harness asks brokers for its own sake: are they ready, who leads what, what time do they have. Never part of the history.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::{Doing as _, Harness, HarnessError};

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// How long creating a topic may take.
const CREATE_TIMEOUT: Duration = Duration::from_secs(30);

/// Asks brokers.
pub struct Admin {
    http: reqwest::Client,
    brokers: Vec<String>,
}

/// A partition as a broker describes it; brokers are counted from 1.
#[derive(Clone, Debug, Deserialize)]
pub struct Partition {
    /// Its number.
    pub partition: u32,
    /// Who leads it.
    pub leader: Option<u32>,
    /// Who should have it.
    pub replicas: Vec<u32>,
    /// Who has all of it, by the leader's word.
    pub in_sync: Vec<u32>,
}

#[derive(Deserialize)]
struct Description {
    partitions: Vec<Partition>,
}

/// A topic as a broker lists it, as far as every broker must say the same once all have applied the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Topic {
    name: String,
    topic_id: String,
    config: BTreeMap<String, String>,
    partitions: Vec<Assigned>,
}

/// A partition of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct Assigned {
    partition: u32,
    leader: Option<u32>,
    leader_epoch: u64,
    replicas: Vec<u32>,
}

#[derive(Deserialize)]
struct Topics {
    topics: Vec<Topic>,
}

/// What came of asking every broker for its topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// All tell the same, of so many topics.
    Same(usize),
    /// They do not: how.
    Differ(String),
    /// One did not tell anything, and why.
    Unanswered(String),
}

/// Compares what each broker told.
pub fn compare(told: Result<Vec<Vec<Topic>>, String>) -> Comparison {
    match told {
        Err(why) => Comparison::Unanswered(why),
        Ok(told) => match difference(&told) {
            None => Comparison::Same(told.first().map_or(0, Vec::len)),
            Some(how) => Comparison::Differ(how),
        },
    }
}

/// Where brokers differ in what they say of topics: the first and another, by the first topic of which they do.
fn difference(told: &[Vec<Topic>]) -> Option<String> {
    let (first, others) = told.split_first()?;
    for (at, other) in (2..).zip(others) {
        let only = |one: &[Topic], other: &[Topic]| one.iter().find(|topic| !other.contains(topic)).cloned();
        let (here, there) = (only(first, other), only(other, first));
        if here.is_some() || there.is_some() {
            let name =
                |topic: Option<Topic>| topic.map_or("nothing of the kind".to_owned(), |topic| format!("{topic:?}"));
            return Some(format!("broker 1 tells {}, broker {at} {}", name(here), name(there)));
        }
    }
    None
}

impl Admin {
    /// For brokers at these URLs.
    pub fn new(brokers: Vec<String>) -> Harness<Self> {
        let builder = reqwest::Client::builder().timeout(TIMEOUT).connect_timeout(TIMEOUT).no_proxy();
        // A broker that was paused or killed must not be judged by an old connection.
        let http = builder.pool_max_idle_per_host(0).build().doing("an HTTP client")?;
        Ok(Self { http, brokers })
    }

    /// Why a broker is not ready; `Ok` if it is.
    pub async fn ready(&self, broker: usize) -> Result<(), String> {
        let answer = self.http.get(format!("{}/readyz", self.brokers[broker])).send().await;
        let answer =
            answer.map_err(|error| if error.is_connect() { "no connection".to_owned() } else { error.to_string() })?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(answer.text().await.unwrap_or_default())
    }

    /// Whether the process answers within a short while.
    pub async fn answers(&self, broker: usize, within: Duration) -> bool {
        let request = self.http.get(format!("{}/healthz", self.brokers[broker])).timeout(within);
        request.send().await.is_ok()
    }

    /// The time a broker has, in seconds since 1970, by the `Date` of its answers.
    pub async fn time_s(&self, broker: usize) -> Result<i64, String> {
        let request = self.http.get(format!("{}/healthz", self.brokers[broker]));
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let date = answer.headers().get("date").and_then(|date| date.to_str().ok()).ok_or("no Date in its answer")?;
        http_date_s(date).ok_or_else(|| format!("an odd Date: {date}"))
    }

    /// Makes a topic; one that is there already will do.
    pub async fn create_topic(
        &self,
        name: &str,
        partitions: u32,
        replicas: usize,
        config: &BTreeMap<String, String>,
    ) -> Harness<()> {
        let body =
            json!({ "name": name, "partitions": partitions, "replicas": replicas, "config": config }).to_string();
        let deadline = std::time::Instant::now() + CREATE_TIMEOUT;
        for attempt in 0.. {
            let url = format!("{}/v1/topics", self.brokers[attempt % self.brokers.len()]);
            let request = self.http.post(url).header("content-type", "application/json").body(body.clone());
            let why = match request.timeout(CREATE_TIMEOUT).send().await {
                Ok(answer) if answer.status().is_success() || answer.status().as_u16() == 409 => return Ok(()),
                Ok(answer) => answer.text().await.unwrap_or_default(),
                Err(error) => error.to_string(),
            };
            if std::time::Instant::now() >= deadline {
                return Err(HarnessError::new(format!("creating topic {name}"), why));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(())
    }

    /// All topics as one broker lists them, by name.
    pub async fn topics(&self, broker: usize) -> Result<Vec<Topic>, String> {
        let answer = self.http.get(format!("{}/v1/topics", self.brokers[broker])).send().await;
        let answer = answer.map_err(|error| error.to_string())?;
        let (status, body) = (answer.status(), answer.text().await.map_err(|error| error.to_string())?);
        if !status.is_success() {
            return Err(body);
        }
        let mut told: Topics = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        told.topics.sort();
        Ok(told.topics)
    }

    /// The partitions of a topic as one broker sees them.
    pub async fn describe(&self, broker: usize, topic: &str) -> Result<Vec<Partition>, String> {
        let request = self.http.get(format!("{}/v1/topics/{topic}", self.brokers[broker]));
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let (status, body) = (answer.status(), answer.text().await.map_err(|error| error.to_string())?);
        if !status.is_success() {
            return Err(body);
        }
        let description: Description = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        Ok(description.partitions)
    }
}

/// The seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date_s(text: &str) -> Option<i64> {
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let words: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = words[..] else { return None };
    let month = MONTHS.iter().position(|name| *name == month)? as i64 + 1;
    let (day, year): (i64, i64) = (day.parse().ok()?, year.parse().ok()?);
    let clock: Vec<i64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = clock[..] else { return None };
    // Days since 1970-01-01 in the Gregorian calendar, years that begin in March (Hinnant, "days_from_civil").
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = year.div_euclid(400) * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_that_tell_other_topics_are_named_with_the_topic() {
        let topic = |name: &str, leader: u32| -> Topic {
            let partition =
                json!({ "partition": 0, "leader": leader, "leader_epoch": 3, "replicas": [1, 2], "in_sync": [leader] });
            serde_json::from_value(json!({ "name": name, "topic_id": "7", "config": {}, "partitions": [partition] }))
                .unwrap()
        };
        let all = || vec![topic("a", 1), topic("b", 2)];
        assert_eq!(difference(&[all(), all(), all()]), None);
        let told = difference(&[all(), all(), vec![topic("a", 1)]]).unwrap();
        assert!(told.contains("\"b\"") && told.ends_with("broker 3 nothing of the kind"), "{told}");
        let told = difference(&[all(), vec![topic("a", 1), topic("b", 1)]]).unwrap();
        assert!(told.contains("leader: Some(2)") && told.contains("leader: Some(1)"), "{told}");
        assert!(difference(&[vec![], all()]).is_some());
        assert_eq!(compare(Ok(vec![all(), all()])), Comparison::Same(2));
        assert!(matches!(compare(Ok(vec![all(), vec![]])), Comparison::Differ(_)));
        let silent = compare(Err("n2 tells nothing: timed out".to_owned()));
        assert_eq!(silent, Comparison::Unanswered("n2 tells nothing: timed out".to_owned()));
    }

    #[test]
    fn dates_of_http_are_read() {
        assert_eq!(http_date_s("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date_s("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date_s("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        for wrong in ["", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Noz 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49 GMT"] {
            assert_eq!(http_date_s(wrong), None, "{wrong}");
        }
    }
}
