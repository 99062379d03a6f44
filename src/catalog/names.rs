//! Topic names: Kafka's rules, so that every name that is legal here is legal there.
//!
//! Knows no topics; whether a name is free is the catalog's business ([`super::state`]).

/// Longest name, in characters.
pub const TOPIC_NAME_CHARS_MAX: usize = 249;

/// Checks a topic's name. The error says what is wrong with it, value included.
pub fn check_topic_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a topic name must not be empty".to_owned());
    }
    if name == "." || name == ".." {
        return Err(format!("a topic must not be named {name:?}"));
    }
    let chars = name.chars().count();
    if chars > TOPIC_NAME_CHARS_MAX {
        return Err(format!("a topic name has at most {TOPIC_NAME_CHARS_MAX} characters, this one has {chars}"));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    match name.chars().find(|c| !legal(*c)) {
        Some(c) => Err(format!("topic name {name:?} holds {c:?}; allowed are a-z A-Z 0-9 . _ -")),
        None => Ok(()),
    }
}

/// The name under which two names collide: metrics replace `.` by `_`, so two topics must not differ in that only.
pub fn collision_key(name: &str) -> String {
    name.replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_legal_names_are_legal() {
        for name in ["a", "orders", "Orders.v2_final-1", "...", "_", "-", &"x".repeat(249)] {
            assert_eq!(check_topic_name(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn illegal_names_are_refused_with_the_reason() {
        for (name, reason) in [
            ("", "empty"),
            (".", "\".\""),
            ("..", "\"..\""),
            ("a/b", "'/'"),
            ("größe", "'ö'"),
            ("a b", "' '"),
            (&"x".repeat(250), "250"),
        ] {
            let error = check_topic_name(name).unwrap_err();
            assert!(error.contains(reason), "{error:?} lacks {reason:?}");
        }
    }

    #[test]
    fn names_that_differ_in_dot_and_underscore_collide() {
        assert_eq!(collision_key("a.b_c"), collision_key("a_b.c"));
        assert_ne!(collision_key("a-b"), collision_key("a_b"));
    }
}
