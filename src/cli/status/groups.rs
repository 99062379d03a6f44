//! `pontoon status --groups`: consumer groups, and how far they are behind.

use std::collections::BTreeSet;

use futures_util::{StreamExt, TryStreamExt, stream};
use parking_lot::Mutex;
use pontoon_raft::types::BrokerId;
use serde_json::json;

use super::{TROUBLES_SHOWN, View};
use crate::api::groups::{GroupDescription, GroupMember, GroupSummary};
use crate::cli::{Failure, output};
use crate::client::{Client, ClientError};

/// How many groups are asked for at a time.
const GROUPS_AT_ONCE: usize = 8;

/// A group that is listed, and nobody says more of.
struct Undescribed {
    listed: GroupSummary,
    why: String,
}

/// Consumer groups, for programs and for people.
pub(super) async fn view(client: &Client) -> Result<View, Failure> {
    let list = client.groups().await?;
    let silent = Mutex::new(BTreeSet::new());
    let told = stream::iter(list.groups.into_iter().map(|group| described(client, group, &silent)));
    let told: Vec<_> = told.buffered(GROUPS_AT_ONCE).try_collect().await?;
    let (mut groups, mut undescribed) = (Vec::new(), Vec::new());
    for told in told.into_iter().flatten() {
        match told {
            Ok(group) => groups.push(group),
            Err(group) => undescribed.push(group),
        }
    }
    let text = groups_text(&groups, &undescribed, &list.unavailable);
    let of = |of: &Undescribed| json!({"group": of.listed.group, "coordinator": of.listed.coordinator, "why": of.why});
    let of: Vec<serde_json::Value> = undescribed.iter().map(of).collect();
    let json = json!({"groups": groups, "undescribed": of, "unavailable": list.unavailable});
    let lacks = if !list.unavailable.is_empty() {
        let silent = super::list(&list.unavailable);
        Some(format!("there may be more groups: {silent} did not say which they coordinate"))
    } else {
        let one = undescribed.first();
        one.map(|one| format!("not all groups are described: {:?}: {}", one.listed.group, one.why))
    };
    Ok(View { json, text, well: lacks.is_none(), lacks })
}

/// A group of the list; `None`: it was deleted meanwhile. That one cannot be described is no reason to show none. `silent`: coordinators
/// that did not answer about one, and are not waited for over each of the others.
async fn described(
    client: &Client,
    listed: GroupSummary,
    silent: &Mutex<BTreeSet<BrokerId>>,
) -> Result<Option<Result<GroupDescription, Undescribed>>, ClientError> {
    if silent.lock().contains(&listed.coordinator) {
        let why = format!("its coordinator, broker {}, does not answer", listed.coordinator);
        return Ok(Some(Err(Undescribed { listed, why })));
    }
    match client.group(&listed.group).await {
        Ok(group) => Ok(Some(Ok(group))),
        Err(error) if error.code() == Some("UNKNOWN_GROUP") => Ok(None),
        Err(error @ (ClientError::Refused { .. } | ClientError::Protocol(_))) => {
            if matches!(error.code(), Some("NO_LEADER" | "NOT_LEADER" | "NOT_READY")) {
                silent.lock().insert(listed.coordinator);
            }
            Ok(Some(Err(Undescribed { listed, why: error.to_string() })))
        }
        Err(error) => Err(error),
    }
}

fn groups_text(groups: &[GroupDescription], undescribed: &[Undescribed], unavailable: &[BrokerId]) -> String {
    let mut rows: Vec<Vec<String>> = groups.iter().map(group_row).collect();
    rows.extend(undescribed.iter().map(|Undescribed { listed, .. }| {
        let (members, coordinator) = (listed.members.to_string(), listed.coordinator.to_string());
        vec![listed.group.clone(), listed.state.clone(), members, coordinator, "?".to_owned()]
    }));
    rows.sort();
    let mut text = output::table(&["GROUP", "STATE", "MEMBERS", "COORDINATOR", "LAG"], &rows);
    let rows: Vec<Vec<String>> = groups.iter().flat_map(lag_rows).collect();
    if !rows.is_empty() {
        text += "\n";
        text += &output::table(&["GROUP", "PARTITION", "OFFSET", "END", "LAG", "MEMBER"], &rows);
    }
    if groups.is_empty() && undescribed.is_empty() && unavailable.is_empty() {
        text += "no consumer groups\n";
    }
    for Undescribed { listed, why } in undescribed.iter().take(TROUBLES_SHOWN) {
        text += &format!("! group {:?} is not described: {why}\n", listed.group);
    }
    if !unavailable.is_empty() {
        text += &format!("! {} did not say which groups they coordinate\n", super::list(unavailable));
    }
    text
}

fn group_row(group: &GroupDescription) -> Vec<String> {
    vec![
        group.group.clone(),
        group.state.clone(),
        group.members.len().to_string(),
        group.coordinator.to_string(),
        group.lag.to_string(),
    ]
}

/// A row for each partition with an offset, with who reads it.
fn lag_rows(group: &GroupDescription) -> Vec<Vec<String>> {
    let reads = |member: &&GroupMember, topic: &str, partition: u32| {
        let holds = |of: &crate::api::groups::AssignedTopic| of.topic == topic && of.partitions.contains(&partition);
        member.assignment.iter().any(holds)
    };
    let row = |of: &crate::api::groups::GroupLag| {
        let member = group.members.iter().find(|member| reads(member, &of.topic, of.partition));
        vec![
            group.group.clone(),
            format!("{}/{}", of.topic, of.partition),
            of.offset.to_string(),
            of.high_watermark.to_string(),
            of.lag.to_string(),
            member.map_or("-".to_owned(), |member| member.member_id.clone()),
        ]
    };
    group.offsets.iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_shown_with_the_lag_of_each_partition_and_who_reads_it() {
        use crate::api::groups::{AssignedTopic, GroupLag};
        let lag = |partition, offset, high_watermark: u64| GroupLag {
            topic: "orders".into(),
            partition,
            offset,
            metadata: String::new(),
            high_watermark,
            lag: high_watermark - offset as u64,
        };
        let member = GroupMember {
            member_id: "m-1".into(),
            group_instance_id: None,
            client_id: "c".into(),
            client_host: "/127.0.0.1".into(),
            assignment: vec![AssignedTopic { topic: "orders".into(), partitions: vec![0] }],
        };
        let group = GroupDescription {
            group: "billing".into(),
            state: "Stable".into(),
            generation: 3,
            protocol_type: "consumer".into(),
            protocol: "range".into(),
            coordinator: BrokerId(2),
            members: vec![member],
            offsets: vec![lag(0, 5, 9), lag(1, 7, 7)],
            lag: 4,
        };
        assert_eq!(
            groups_text(&[group], &[], &[BrokerId(3)]),
            "GROUP    STATE   MEMBERS  COORDINATOR  LAG\n\
             billing  Stable  1        2            4\n\
             \n\
             GROUP    PARTITION  OFFSET  END  LAG  MEMBER\n\
             billing  orders/0   5       9    4    m-1\n\
             billing  orders/1   7       7    0    -\n\
             ! broker 3 did not say which groups they coordinate\n"
        );
        assert!(groups_text(&[], &[], &[]).contains("no consumer groups\n"));
        assert!(!groups_text(&[], &[], &[BrokerId(3)]).contains("no consumer groups"), "nobody knows");
    }
}
