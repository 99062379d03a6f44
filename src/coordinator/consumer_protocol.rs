//! The two structures that consumers keep inside group metadata, as far as a coordinator looks into them: which topics a member
//! subscribes to, and which partitions it was given. Clients' bytes: anything malformed is `None`.
//!
//! Both begin with a 16-bit version and an array; what follows is the clients' own business.

use bytes::Buf;

/// The protocol type of consumers.
pub(super) const CONSUMER: &str = "consumer";

/// The topics of a subscription.
pub(super) fn subscribed_topics(mut bytes: &[u8]) -> Option<Vec<String>> {
    let _version = bytes.try_get_i16().ok()?;
    array(&mut bytes, text)
}

/// The partitions of an assignment. An empty one has none.
pub(super) fn assigned_partitions(mut bytes: &[u8]) -> Option<Vec<(String, Vec<u32>)>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let _version = bytes.try_get_i16().ok()?;
    array(&mut bytes, |bytes| {
        let topic = text(bytes)?;
        let partitions = array(bytes, |bytes| u32::try_from(bytes.try_get_i32().ok()?).ok())?;
        Some((topic, partitions))
    })
}

fn text(bytes: &mut &[u8]) -> Option<String> {
    let length = usize::try_from(bytes.try_get_i16().ok()?).ok()?;
    let (text, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    String::from_utf8(text.to_vec()).ok()
}

/// Every element takes two bytes at least: a lying count ends with the bytes, and gets no memory before.
fn array<T>(bytes: &mut &[u8], mut element: impl FnMut(&mut &[u8]) -> Option<T>) -> Option<Vec<T>> {
    let count = bytes.try_get_i32().ok()?;
    let mut elements = Vec::new();
    for _ in 0..count.max(0) {
        elements.push(element(bytes)?);
    }
    Some(elements)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_members_say_is_read_within_its_bytes(
            count in prop_oneof![0..9i32, any::<i32>()],
            bytes in proptest::collection::vec(prop_oneof![Just(0), 0..4u8, any::<u8>()], 0..60),
        ) {
            let said = [&[0, 0][..], &count.to_be_bytes(), &bytes].concat();
            if let Some(topics) = subscribed_topics(&said) {
                prop_assert!(topics.iter().map(|topic| 2 + topic.len()).sum::<usize>() <= bytes.len());
            }
            if let Some(topics) = assigned_partitions(&said) {
                let bytes_of = |(topic, partitions): &(String, Vec<u32>)| 6 + topic.len() + 4 * partitions.len();
                prop_assert!(topics.iter().map(bytes_of).sum::<usize>() <= bytes.len());
            }
        }
    }

    #[test]
    fn subscriptions_and_assignments_are_read_and_lies_are_not() {
        let subscription = [&[0, 1, 0, 0, 0, 2, 0, 1, b'a', 0, 2, b'b', b'c'][..], &[255, 255, 255, 255]].concat();
        assert_eq!(subscribed_topics(&subscription).unwrap(), ["a", "bc"]);
        let assignment = [0, 0, 0, 0, 0, 1, 0, 1, b'a', 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 7];
        assert_eq!(assigned_partitions(&assignment).unwrap(), [("a".to_owned(), vec![5, 7])]);
        assert_eq!(assigned_partitions(&[]), Some(vec![]));
        for lie in [
            &[][..],
            &[0],
            &[0, 1, 0x7f, 255, 255, 255],
            &[0, 1, 0, 0, 0, 1, 0x7f, 255],
            &[0, 1, 0, 0, 0, 1, 0, 1, 255],
        ] {
            assert_eq!(subscribed_topics(lie), None, "{lie:?}");
        }
    }
}
