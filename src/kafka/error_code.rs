//! Kafka's error numbers, and which of them each of our codes is.
//!
//! What matters is what clients do with a number: retry, look for another leader, give up. `http` has the other such table.

use crate::error::{Code, Error};
use crate::record_batch::{BATCH_HEADER_BYTES, BatchError};

macro_rules! numbers {
    ($($name:ident = $number:literal,)+) => {
        /// An error as Kafka's clients know it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ErrorCode { $(#[doc = concat!("Number ", $number, " of Kafka's protocol guide.")] $name,)+ }

        impl ErrorCode {
            /// Its number.
            pub fn number(self) -> i16 {
                match self { $(Self::$name => $number,)+ }
            }

            #[cfg(test)]
            const ALL: &'static [Self] = &[$(Self::$name,)+];
        }
    };
}

numbers! {
    UnknownServerError = -1,
    None = 0,
    OffsetOutOfRange = 1,
    CorruptMessage = 2,
    UnknownTopicOrPartition = 3,
    LeaderNotAvailable = 5,
    NotLeaderOrFollower = 6,
    RequestTimedOut = 7,
    MessageTooLarge = 10,
    OffsetMetadataTooLarge = 12,
    CoordinatorLoadInProgress = 14,
    CoordinatorNotAvailable = 15,
    NotCoordinator = 16,
    InvalidTopic = 17,
    NotEnoughReplicas = 19,
    NotEnoughReplicasAfterAppend = 20,
    InvalidRequiredAcks = 21,
    IllegalGeneration = 22,
    InconsistentGroupProtocol = 23,
    InvalidGroupId = 24,
    UnknownMemberId = 25,
    InvalidSessionTimeout = 26,
    RebalanceInProgress = 27,
    InvalidCommitOffsetSize = 28,
    InvalidTimestamp = 32,
    UnsupportedVersion = 35,
    TopicAlreadyExists = 36,
    InvalidPartitions = 37,
    InvalidReplicationFactor = 38,
    InvalidReplicaAssignment = 39,
    InvalidConfig = 40,
    NotController = 41,
    InvalidRequest = 42,
    PolicyViolation = 44,
    OutOfOrderSequenceNumber = 45,
    InvalidProducerEpoch = 47,
    StorageError = 56,
    UnknownProducerId = 59,
    NonEmptyGroup = 68,
    GroupIdNotFound = 69,
    FetchSessionIdNotFound = 70,
    FencedLeaderEpoch = 74,
    UnknownLeaderEpoch = 75,
    UnsupportedCompressionType = 76,
    MemberIdRequired = 79,
    GroupMaxSizeReached = 81,
    FencedInstanceId = 82,
    GroupSubscribedToTopic = 86,
    InvalidRecord = 87,
    ThrottlingQuotaExceeded = 89,
    UnknownTopicId = 100,
}

impl From<Code> for ErrorCode {
    fn from(code: Code) -> Self {
        match code {
            Code::UnknownTopic | Code::UnknownPartition => Self::UnknownTopicOrPartition,
            Code::OffsetOutOfRange => Self::OffsetOutOfRange,
            Code::CorruptBatch => Self::CorruptMessage,
            // Not a leader here, not yet, or not now: clients ask for the metadata again, and come back.
            Code::NoLeader | Code::NotLeader | Code::NotReady => Self::NotLeaderOrFollower,
            Code::OutcomeUnknown | Code::RequestTimeout => Self::RequestTimedOut,
            Code::RecordTooLarge | Code::RequestTooLarge => Self::MessageTooLarge,
            Code::InvalidTopicName | Code::TopicNameCollision | Code::InternalTopic => Self::InvalidTopic,
            Code::NotEnoughReplicas => Self::NotEnoughReplicas,
            Code::NotEnoughReplicasAfterAppend => Self::NotEnoughReplicasAfterAppend,
            Code::TopicExists => Self::TopicAlreadyExists,
            Code::InvalidPartitions => Self::InvalidPartitions,
            Code::InvalidReplicationFactor => Self::InvalidReplicationFactor,
            Code::InvalidAssignment => Self::InvalidReplicaAssignment,
            Code::InvalidConfig => Self::InvalidConfig,
            Code::InvalidRequest
            | Code::ForeignOrigin
            | Code::NotFound
            | Code::MethodNotAllowed
            | Code::NotAcceptable
            | Code::UnsupportedMediaType => Self::InvalidRequest,
            Code::OutOfOrderSequence => Self::OutOfOrderSequenceNumber,
            Code::ProducerFenced => Self::InvalidProducerEpoch,
            Code::UnknownProducer => Self::UnknownProducerId,
            Code::StorageFull | Code::CorruptLog => Self::StorageError,
            Code::TooManyRequests => Self::ThrottlingQuotaExceeded,
            Code::UnknownGroup => Self::GroupIdNotFound,
            Code::GroupNotEmpty => Self::NonEmptyGroup,
            Code::OffsetMismatch | Code::HeadersTooLarge | Code::Internal => Self::UnknownServerError,
        }
    }
}

impl From<&Error> for ErrorCode {
    fn from(error: &Error) -> Self {
        error.code.into()
    }
}

/// What is wrong with a batch, more exactly than [`Code`] has it. CORRUPT_MESSAGE has clients send the same bytes again, for minutes: it is
/// only for what may have come to harm on its way. What the checksum vouches for is as its producer has made it, and stays so.
impl From<&BatchError> for ErrorCode {
    fn from(error: &BatchError) -> Self {
        match error {
            // Too short to be a batch at all; shorter than it says; or another one behind it.
            BatchError::Length { claimed, .. } if *claimed < BATCH_HEADER_BYTES as i64 => Self::CorruptMessage,
            BatchError::Timestamp { .. } => Self::InvalidTimestamp,
            BatchError::Attributes { .. }
            | BatchError::Compression(_)
            | BatchError::Counts { .. }
            | BatchError::Decompress { .. }
            | BatchError::Empty
            | BatchError::Length { .. }
            | BatchError::Magic(_)
            | BatchError::Producer { .. }
            | BatchError::Record { .. }
            | BatchError::Short { .. }
            | BatchError::TrailingBytes { .. } => Self::InvalidRecord,
            BatchError::Checksum { .. }
            | BatchError::RecordTooLarge { .. }
            | BatchError::BatchTooLarge { .. }
            | BatchError::DecompressedTooLarge { .. }
            | BatchError::RequestDecompressedTooLarge { .. }
            | BatchError::RecompressedTooLarge { .. }
            | BatchError::Compress { .. } => Error::from(error.clone()).code.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_refusal_looks_like_success() {
        for code in Code::ALL {
            assert_ne!(ErrorCode::from(*code).number(), 0, "{code}");
        }
    }

    #[test]
    fn each_number_stands_once() {
        let mut numbers: Vec<i16> = ErrorCode::ALL.iter().map(|code| code.number()).collect();
        numbers.dedup();
        assert!(numbers.is_sorted() && numbers.len() == ErrorCode::ALL.len());
    }

    #[test]
    fn what_may_have_been_written_is_never_called_refused() {
        // Clients take these for "nothing was written": they must not stand for an unknown outcome.
        for unknown in [Code::OutcomeUnknown, Code::NotEnoughReplicasAfterAppend] {
            let number = ErrorCode::from(unknown);
            assert!(matches!(number, ErrorCode::RequestTimedOut | ErrorCode::NotEnoughReplicasAfterAppend));
        }
    }
}
