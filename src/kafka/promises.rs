//! Topic keys that are settings in Kafka, and here simply hold: `min.insync.replicas`, for what `acks=all` acknowledges a majority has,
//! and `unclean.leader.election.enable`, for nobody leads without what was acknowledged. Tools set them when they create a topic. A value
//! that holds is taken, any other refused with what would do it; nothing is stored, and they are described, read-only, as what they are.

use super::ErrorCode;
use super::topics::Refused;

const MIN_INSYNC: &str = "min.insync.replicas";
const UNCLEAN: &str = "unclean.leader.election.enable";

/// Every key, with what it is for a topic of so many replicas.
pub(super) fn of(replicas: u32) -> [(&'static str, String); 2] {
    [(MIN_INSYNC, majority(replicas).to_string()), (UNCLEAN, "false".to_owned())]
}

fn majority(replicas: u32) -> u32 {
    replicas / 2 + 1
}

/// `None`: it is not one of these keys. Otherwise whether a topic of so many replicas keeps it.
pub(super) fn check(key: &str, value: &str, replicas: u32) -> Option<Result<(), Refused>> {
    let value = value.trim();
    let (holds, why) = match key {
        MIN_INSYNC => {
            let most = majority(replicas);
            let holds = value.parse::<u32>().is_ok_and(|wanted| (1..=most).contains(&wanted));
            let why = "acks=all waits for a majority, whatever this says";
            (holds, format!("{key} is 1 to {most} for {replicas} replicas, not {value:?}: {why}"))
        }
        UNCLEAN => {
            (value == "false", format!("{key} is false, not {value:?}: nobody leads without what was acknowledged"))
        }
        _ => return None,
    };
    Some(if holds { Ok(()) } else { Err(Refused(ErrorCode::InvalidConfig, why)) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_is_taken_and_anything_else_refused_with_its_value() {
        let majorities = [
            ("1", 1, true),
            ("2", 1, false),
            ("2", 2, true),
            ("2", 3, true),
            ("3", 3, false),
            ("3", 5, true),
            ("4", 5, false),
        ];
        for (value, replicas, holds) in majorities {
            assert_eq!(check(MIN_INSYNC, value, replicas).unwrap().is_ok(), holds, "{value} of {replicas}");
        }
        assert!(check(UNCLEAN, "false", 3).unwrap().is_ok());
        let wrong = ["0", "-1", "", "two", "99999999999"].map(|value| (MIN_INSYNC, value));
        for (key, value) in wrong.into_iter().chain([(UNCLEAN, "true"), (UNCLEAN, "")]) {
            let Some(Err(Refused(code, why))) = check(key, value, 3) else { panic!("{key}={value:?} is taken") };
            assert!(code == ErrorCode::InvalidConfig && why.contains(&format!("{value:?}")), "{why}");
        }
        assert!(check("retention.ms", "1", 3).is_none());
    }

    #[test]
    fn what_is_described_is_taken() {
        for replicas in 1..=7 {
            assert!(of(replicas).iter().all(|(key, value)| check(key, value, replicas).unwrap().is_ok()));
        }
    }
}
