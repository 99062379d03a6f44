//! What somebody meant who wrote a name that there is not.

/// The name that `wrong` is most likely a slip of the pen for; none if it is like none of them.
pub(crate) fn nearest<S: AsRef<str>>(wrong: &str, names: impl IntoIterator<Item = S>) -> Option<S> {
    let slips = |name: &str| strsim::damerau_levenshtein(wrong, name);
    let within = (wrong.chars().count() / 3).max(2);
    let is_near = |name: &str| slips(name) <= within || (wrong.len() >= 4 && name.contains(wrong));
    names.into_iter().filter(|name| is_near(name.as_ref())).min_by_key(|name| slips(name.as_ref()))
}

/// `; did you mean …?`, or nothing.
pub(crate) fn hint<S: AsRef<str>>(wrong: &str, names: impl IntoIterator<Item = S>) -> String {
    nearest(wrong, names).map_or(String::new(), |name| format!("; did you mean {:?}?", name.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 6] = ["http.listen", "broker_id", "peer.listen", "offset", "timeout_ms", "retention.ms"];

    #[test]
    fn a_slip_of_the_pen_finds_its_name() {
        for (wrong, right) in [
            ("http.listn", "http.listen"),
            ("brokerid", "broker_id"),
            ("peer_listen", "peer.listen"),
            ("listen", "http.listen"),
            ("retention", "retention.ms"),
            ("ofset", "offset"),
        ] {
            assert_eq!(nearest(wrong, NAMES), Some(right), "{wrong}");
        }
    }

    #[test]
    fn what_is_like_nothing_finds_nothing() {
        for wrong in ["foo", "topic", "", "max_bytes"] {
            assert_eq!(nearest(wrong, NAMES), None, "{wrong}");
        }
        assert_eq!((hint("foo", NAMES), hint("ofset", NAMES)), (String::new(), "; did you mean \"offset\"?".into()));
    }
}
