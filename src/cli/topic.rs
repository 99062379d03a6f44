//! `pontoon topic …`

use std::collections::BTreeMap;

use clap::Subcommand;
use serde_json::{Value, json};

use crate::api::{AlterTopic, CreateTopic, TopicDescription};
use crate::cli::{Failure, output};
use crate::client::Client;

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub(super) enum TopicCommand {
    /// Create a topic
    Create {
        /// Its name
        name: String,
        /// How many partitions
        #[arg(long, default_value_t = 1)]
        partitions: u32,
        /// How many replicas of each [default: 3, or as many as there are brokers]
        #[arg(long)]
        replicas: Option<u32>,
        /// Configuration, by Kafka's names
        #[arg(long = "config", value_name = "KEY=VALUE", value_parser = key_value)]
        config: Vec<(String, String)>,
    },
    /// List all topics
    List,
    /// Describe a topic
    Describe {
        /// Its name
        name: String,
    },
    /// Change a topic's configuration, or grow it
    Alter {
        /// Its name
        name: String,
        /// Grow to so many partitions
        #[arg(long)]
        partitions: Option<u32>,
        /// Set a configuration key
        #[arg(long = "config", value_name = "KEY=VALUE", value_parser = key_value)]
        config: Vec<(String, String)>,
        /// Reset a configuration key to its default
        #[arg(long = "reset", value_name = "KEY")]
        reset: Vec<String>,
    },
    /// Delete a topic and its records
    Delete {
        /// Its name
        name: String,
    },
}

fn key_value(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// What is set, and what is back at its default. A key twice would mean one of two things.
fn settings(set: Vec<(String, String)>, reset: Vec<String>) -> Result<BTreeMap<String, Value>, Failure> {
    let set = set.into_iter().map(|(key, value)| (key, Value::String(value)));
    let mut config = BTreeMap::new();
    for (key, value) in set.chain(reset.into_iter().map(|key| (key, Value::Null))) {
        if config.contains_key(&key) {
            return Err(Failure::Usage(format!("{key} is named twice")));
        }
        config.insert(key, value);
    }
    Ok(config)
}

/// Does it.
pub(super) async fn run(command: TopicCommand, client: &Client, as_json: bool) -> Result<(), Failure> {
    match command {
        TopicCommand::Create { name, partitions, replicas, config } => {
            let topic = CreateTopic { name, partitions, replicas, config: settings(config, Vec::new())? };
            show(&client.create_topic(&topic).await?, as_json)
        }
        TopicCommand::List => list(&client.topics().await?, as_json),
        TopicCommand::Describe { name } => show(&client.topic(&name).await?, as_json),
        TopicCommand::Alter { name, partitions, config, reset } => {
            let config = settings(config, reset)?;
            if partitions.is_none() && config.is_empty() {
                return Err(Failure::Usage("nothing to alter: --partitions, --config or --reset".into()));
            }
            show(&client.alter_topic(&name, &AlterTopic { partitions, config }).await?, as_json)
        }
        TopicCommand::Delete { name } => {
            client.delete_topic(&name).await?;
            if as_json {
                return output::print_json(&json!({"deleted": name}));
            }
            output::say(&format!("topic {name} is deleted"));
            Ok(())
        }
    }
}

fn list(topics: &[TopicDescription], as_json: bool) -> Result<(), Failure> {
    if as_json {
        return topics.iter().try_for_each(output::print_json);
    }
    let rows: Vec<Vec<String>> = topics
        .iter()
        .map(|topic| {
            let replicas = topic.partitions.first().map_or(0, |partition| partition.replicas.len());
            vec![topic.name.clone(), topic.partitions.len().to_string(), replicas.to_string(), config_text(topic)]
        })
        .collect();
    output::print(&output::table(&["TOPIC", "PARTITIONS", "REPLICAS", "CONFIG"], &rows))
}

fn config_text(topic: &TopicDescription) -> String {
    topic.config.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}

fn show(topic: &TopicDescription, as_json: bool) -> Result<(), Failure> {
    if as_json {
        return output::print_json(topic);
    }
    // A partition without a leader may have none in sync.
    let brokers = |ids: &[pontoon_raft::types::BrokerId]| match ids {
        [] => "-".to_owned(),
        ids => ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    };
    let rows: Vec<Vec<String>> = topic
        .partitions
        .iter()
        .map(|partition| {
            vec![
                partition.partition.to_string(),
                partition.leader.map_or("none".into(), |leader| leader.to_string()),
                partition.leader_epoch.to_string(),
                brokers(&partition.replicas),
                brokers(&partition.in_sync),
                partition.log_start_offset.to_string(),
                partition.high_watermark.to_string(),
            ]
        })
        .collect();
    let head = ["PARTITION", "LEADER", "EPOCH", "REPLICAS", "IN SYNC", "LOG START", "HIGH WATERMARK"];
    let config = config_text(topic);
    let config = if config.is_empty() { String::new() } else { format!("config: {config}\n") };
    output::print(&format!("{} (id {})\n{config}{}", topic.name, topic.topic_id, output::table(&head, &rows)))
}
