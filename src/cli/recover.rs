//! `pontoon recover`: what is left of a cluster in one stopped data directory, and making that the cluster.
//!
//! Without `--confirm` it only says what would be kept and what would be given up. The work is [`crate::broker::recover`]'s.

use std::path::PathBuf;

use clap::Args;

use crate::broker::recover::{Fate, PartitionPlan, RecoverError, RecoverPlan, Survey};
use crate::cli::{Failure, output};

/// Flags of `recover`.
#[derive(Debug, Args)]
pub(super) struct RecoverArgs {
    /// The survivor's data directory; its broker must be stopped
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Do it. The id of the cluster that is given up, as the run without this flag shows it
    #[arg(long, value_name = "CLUSTER_ID")]
    confirm: Option<String>,
    /// Let partitions of which nothing is here begin anew, empty; without it they stay lost until their topic is deleted
    #[arg(long)]
    empty_lost: bool,
    /// Go on although other brokers of the cluster answer
    #[arg(long)]
    even_if_others_answer: bool,
}

impl From<RecoverError> for Failure {
    fn from(error: RecoverError) -> Self {
        match error {
            RecoverError::Missing(_) => Self::NotFound(error.to_string()),
            RecoverError::Stopped(_) => Self::Unsure(format!("{error}; run it again")),
            RecoverError::Open(_) | RecoverError::Refused(_) => Self::Failed(error.to_string()),
        }
    }
}

/// Runs the command.
pub(super) async fn run(args: RecoverArgs, as_json: bool) -> Result<(), Failure> {
    let path = std::path::absolute(&args.data_dir)
        .map_err(|error| Failure::Usage(format!("{}: {error}", args.data_dir.display())))?;
    let survey = Survey::open(&path).await?;
    let done = on(&survey, &args, as_json).await;
    let closed = survey.close().await;
    done.and_then(|()| Ok(closed?))
}

async fn on(survey: &Survey, args: &RecoverArgs, as_json: bool) -> Result<(), Failure> {
    let plan = survey.plan(args.empty_lost)?;
    if as_json {
        output::print_json(&plan)?;
    } else {
        output::print(&text(&plan))?;
    }
    if plan.needless {
        output::say("nothing to recover: this directory gives up nobody");
        return Ok(());
    }
    let answering = survey.who_answers().await?;
    for found in &answering {
        output::say(&format!("! {found}: as long as others of the cluster live, recovery would lose what they have"));
    }
    let Some(confirmed) = &args.confirm else {
        output::say(&format!(
            "the cluster is unchanged (the directory was recovered, as at a start); to do it, run again with --confirm {}",
            plan.cluster_id
        ));
        return Ok(());
    };
    if *confirmed != plan.cluster_id {
        return Err(Failure::Usage(format!("--confirm {confirmed}: this is cluster {}", plan.cluster_id)));
    }
    if !answering.is_empty() && !args.even_if_others_answer {
        return Err(Failure::Failed("other brokers answer: stop them first, or say --even-if-others-answer".into()));
    }
    let cluster = survey.carry_out(args.empty_lost).await?;
    output::say(&format!(
        "recovered: the cluster is {:032x} from now on. Start broker {}, and empty brokers to replace the others: replicas are \
         placed on them by themselves. Directories of the former cluster are refused; keep them aside, they may hold what is lost here",
        cluster.0, plan.broker
    ));
    Ok(())
}

fn text(plan: &RecoverPlan) -> String {
    let mut text = format!("cluster {}, from broker {} alone\n", plan.cluster_id, plan.broker);
    if plan.interrupted {
        text += "an earlier recovery did not get to its end: this one takes it up\n";
    }
    for broker in &plan.brokers_given_up {
        text += &format!("given up: broker {} at {}\n", broker.broker_id, broker.peer_address);
    }
    if plan.catalog_uncommitted > 0 {
        text += &format!(
            "the catalog's last {} entries were not known here to be committed; they are kept\n",
            plan.catalog_uncommitted
        );
    }
    for replica in &plan.unknown_replicas {
        text += &format!("put aside: {replica}, which the catalog here has never heard of\n");
    }
    let rows: Vec<Vec<String>> = plan.partitions.iter().map(row).collect();
    text += &output::table(&["PARTITION", "FATE", "OFFSETS", "COMMITTED", "LAST TERM/INDEX", "WAS ON"], &rows);
    for partition in &plan.partitions {
        text += &warnings(partition);
    }
    if !plan.needless {
        text += "Whatever the brokers that are given up acknowledged beyond these offsets is lost. Records between COMMITTED and the \
                 end are kept, though their producers may have been told that the outcome is unknown.\n";
    }
    text
}

fn row(partition: &PartitionPlan) -> Vec<String> {
    let fate = match partition.fate {
        Fate::Kept => "kept",
        Fate::Emptied => "EMPTIED",
        Fate::Lost => "LOST",
    };
    let (offsets, committed, last) = match &partition.here {
        Some(here) => (
            format!("{} to {}", here.log_start_offset, here.log_end_offset),
            here.committed_offset.map_or("unknown".to_owned(), |offset| offset.to_string()),
            format!("{}/{}", here.last_term, here.last_index),
        ),
        None => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
    };
    let replicas: Vec<String> = partition.replicas.iter().map(ToString::to_string).collect();
    let name = format!("{}/{}", partition.topic, partition.partition);
    vec![name, fate.to_owned(), offsets, committed, last, replicas.join(", ")]
}

fn warnings(partition: &PartitionPlan) -> String {
    let Some(here) = &partition.here else { return String::new() };
    let name = format!("{}/{}", partition.topic, partition.partition);
    let mut text = String::new();
    if !here.voted {
        text += &format!("! {name}: the replica here was still being filled, and may lack a great deal\n");
    }
    here.rotten.iter().for_each(|rot| text += &format!("! {name}: rotten: {rot}\n"));
    text
}

#[cfg(test)]
mod tests {
    use pontoon_raft::types::{BrokerId, Offset};

    use super::*;
    use crate::broker::recover::{GivenUp, Here};

    fn partition(fate: Fate, here: Option<Here>) -> PartitionPlan {
        let replicas = [1, 2, 3].map(BrokerId).to_vec();
        PartitionPlan { topic: "orders".into(), partition: 7, fate, replicas, here }
    }

    fn here() -> Here {
        Here {
            log_start_offset: Offset(5),
            committed_offset: Some(Offset(90)),
            log_end_offset: Offset(100),
            last_term: 3,
            last_index: 120,
            rotten: Vec::new(),
            voted: true,
        }
    }

    fn plan(partitions: Vec<PartitionPlan>) -> RecoverPlan {
        RecoverPlan {
            broker: BrokerId(1),
            cluster_id: "c1".into(),
            interrupted: false,
            catalog_uncommitted: 2,
            brokers_given_up: vec![GivenUp { broker_id: BrokerId(2), peer_address: "h:7".into() }],
            partitions,
            unknown_replicas: vec!["replica 9 of group 4".into()],
            needless: false,
        }
    }

    #[test]
    fn it_says_what_is_kept_and_what_is_given_up() {
        let text = text(&plan(vec![partition(Fate::Kept, Some(here())), partition(Fate::Lost, None)]));
        for part in [
            "given up: broker 2 at h:7",
            "last 2 entries were not known",
            "put aside: replica 9 of group 4",
            "orders/7   kept  5 to 100  90         3/120            1, 2, 3",
            "orders/7   LOST  -",
            "acknowledged beyond these offsets is lost",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn it_warns_of_a_survivor_that_is_not_whole() {
        let here = Here { voted: false, rotten: vec!["f at 7: crc".into()], committed_offset: None, ..here() };
        let text = text(&plan(vec![partition(Fate::Kept, Some(here))]));
        assert!(text.contains("still being filled") && text.contains("rotten: f at 7: crc"), "{text}");
        assert!(text.contains("unknown"), "{text}");
    }
}
