//! Kafka's primitive types on the wire: a bounded reader of requests, a writer of responses, and [`kafka_message!`](crate::kafka_message), which turns a
//! table of fields and versions into both.
//!
//! Bytes are hostile. Every count and length is compared with the bytes that are left before anything is allocated for it. A text
//! is no longer than [`TEXT_BYTES_MAX`]. A request
//! has at most [`ELEMENTS_MAX`] array elements in all, and together, with their texts and bytes, they take at most [`MEMORY_BASE`] and
//! [`MEMORY_PER_BYTE`] times the message's length (an element may take 80 bytes in memory and two on the wire); what they take is told, so
//! that it can be counted. Only record batches that are most of the message share its memory ([`RecordData`]); all else is copied out of it. It knows no API: the tables are in [`super::messages`].
//!
//! From a message's first *flexible* version on (KIP-482) lengths are unsigned varints of length + 1 and every struct ends with
//! tagged fields; before it lengths are 16 or 32 bits and null is -1. `"ab"` is `00 02 61 62`, or flexible `03 61 62`.

mod reader;
#[cfg(test)]
mod sample;
mod writer;

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};

pub use reader::Reader;
#[cfg(test)]
pub use sample::{Sample, Samples};
pub use writer::Writer;

/// Most array elements one request may have, nested ones included.
pub const ELEMENTS_MAX: usize = 200_000;
/// Longest text, in bytes: what the old form, with its 16 bits, can say.
pub const TEXT_BYTES_MAX: usize = i16::MAX as usize;
/// What array elements, texts and bytes may take in memory however short the message is, in bytes.
pub const MEMORY_BASE: usize = 256 << 10;
/// What they may take besides for each byte of the message.
pub const MEMORY_PER_BYTE: usize = 8;

/// Why bytes are not the message they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub String);

impl Malformed {
    /// The same, saying in which field.
    pub fn within(self, field: &str) -> Self {
        Self(format!("{field}: {}", self.0))
    }
}

fn cut_short(left: usize, need: usize) -> Malformed {
    Malformed(format!("cut short: {left} of {need} bytes"))
}

/// Something that can stand in a message.
pub trait Field: Sized {
    /// Takes it off the front.
    fn read(reader: &mut Reader) -> Result<Self, Malformed>;
    /// Puts it at the end.
    fn write(&self, writer: &mut Writer);
}

/// The writing half, for tables of fields of different types.
pub trait WriteField {
    /// See [`Field::write`].
    fn write_field(&self, writer: &mut Writer);
}

impl<T: Field> WriteField for T {
    fn write_field(&self, writer: &mut Writer) {
        self.write(writer);
    }
}

macro_rules! number {
    ($($type:ty, $get:ident, $put:ident;)+) => {$(
        impl Field for $type {
            fn read(reader: &mut Reader) -> Result<Self, Malformed> {
                let left = reader.remaining();
                reader.bytes.$get().map_err(|_| cut_short(left, size_of::<$type>()))
            }
            fn write(&self, writer: &mut Writer) {
                writer.open.$put(*self);
            }
        }
    )+};
}

number! {
    i8, try_get_i8, put_i8;
    i16, try_get_i16, put_i16;
    i32, try_get_i32, put_i32;
    i64, try_get_i64, put_i64;
}

impl Field for bool {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        Ok(i8::read(reader)? != 0)
    }
    fn write(&self, writer: &mut Writer) {
        i8::from(*self).write(writer);
    }
}

impl Field for String {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        reader.text()?.ok_or_else(|| Malformed("null".to_owned()))
    }
    fn write(&self, writer: &mut Writer) {
        writer.text(Some(self));
    }
}

impl Field for Option<String> {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        reader.text()
    }
    fn write(&self, writer: &mut Writer) {
        writer.text(self.as_deref());
    }
}

/// Off a request they are copied: its frame may be far larger, and is let go.
impl Field for Bytes {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let length = reader.length(false)?.ok_or_else(|| Malformed("null".to_owned()))?;
        reader.copy(length)
    }
    fn write(&self, writer: &mut Writer) {
        writer.length(Some(self.len()), false);
        writer.open.put_slice(self);
    }
}

impl<T: Field> Field for Vec<T> {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        reader.elements()?.ok_or_else(|| Malformed("null".to_owned()))
    }
    fn write(&self, writer: &mut Writer) {
        writer.elements(Some(self));
    }
}

impl<T: Field> Field for Option<Vec<T>> {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        reader.elements()
    }
    fn write(&self, writer: &mut Writer) {
        writer.elements(self.as_deref());
    }
}

/// An array that nobody looks at: read, and not kept. None is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PassedOver<T>(PhantomData<T>);

impl<T> Default for PassedOver<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Field> Field for PassedOver<T> {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        reader.pass_over::<T>().map(|()| Self::default())
    }
    fn write(&self, writer: &mut Writer) {
        writer.length(Some(0), false);
    }
}

/// A topic's id as it stands on the wire; zero means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Uuid(pub u128);

impl Field for Uuid {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let left = reader.remaining();
        reader.bytes.try_get_u128().map(Self).map_err(|_| cut_short(left, 16))
    }
    fn write(&self, writer: &mut Writer) {
        writer.open.put_u128(self.0);
    }
}

/// Record batches, never looked into here. Off a request they are one slice: of its frame if they are more than half of that, else of
/// their own, since what keeps a slice keeps the frame. A response has any number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordData(pub Option<Vec<Bytes>>);

impl RecordData {
    /// Record batches for a response.
    pub fn some(batches: Vec<Bytes>) -> Self {
        Self(Some(batches))
    }
}

impl Field for RecordData {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        match reader.length(false)? {
            Some(length) => Ok(Self(Some(vec![reader.take_for_long(length)?]))),
            None => Ok(Self(None)),
        }
    }
    fn write(&self, writer: &mut Writer) {
        writer.length(self.0.as_ref().map(|batches| batches.iter().map(Bytes::len).sum()), false);
        self.0.iter().flatten().for_each(|batch| writer.share(batch));
    }
}

/// Declares a message, or a struct within one: each field with the versions that have it, and what it is in the others.
///
/// `name: Type [versions] = default,` where the default may be left out; behind it `tagged { tag: name: Type [versions], }`,
/// which become options and are written only if there is something.
#[macro_export]
macro_rules! kafka_message {
    ($(#[$doc:meta])* $name:ident {
        $($field:ident: $type:ty [$($versions:tt)+] $(= $default:expr)?,)*
    } $(tagged { $($tag:literal: $tagged:ident: $tagged_type:ty [$($tagged_versions:tt)+],)+ })?) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $(pub $field: $type,)*
            $($(pub $tagged: Option<$tagged_type>,)+)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($field: $crate::kafka_message!(@default $($default)?),)*
                    $($($tagged: None,)+)?
                }
            }
        }

        #[cfg(test)]
        impl $crate::kafka::wire::Sample for $name {
            fn sample(samples: &mut $crate::kafka::wire::Samples) -> Self {
                Self {
                    $($field: $crate::kafka::wire::Sample::sample(samples),)*
                    $($($tagged: samples.tagged(),)+)?
                }
            }
        }

        impl $crate::kafka::wire::Field for $name {
            #[allow(unused_mut, unused_variables, clippy::field_reassign_with_default)]
            fn read(reader: &mut $crate::kafka::wire::Reader) -> Result<Self, $crate::kafka::wire::Malformed> {
                let version = reader.version;
                let mut out = Self::default();
                $(if ($($versions)+).contains(&version) {
                    out.$field = $crate::kafka::wire::Field::read(reader)
                        .map_err(|error: $crate::kafka::wire::Malformed| error.within(stringify!($field)))?;
                })*
                reader.tagged(|tag, field| {
                    $($(if tag == $tag && ($($tagged_versions)+).contains(&version) {
                        out.$tagged = Some($crate::kafka::wire::Field::read(field)
                            .map_err(|error: $crate::kafka::wire::Malformed| error.within(stringify!($tagged)))?);
                        return Ok(true);
                    })+)?
                    Ok(false)
                })?;
                Ok(out)
            }

            #[allow(unused_variables)]
            fn write(&self, writer: &mut $crate::kafka::wire::Writer) {
                let version = writer.version;
                $(if ($($versions)+).contains(&version) {
                    self.$field.write(writer);
                })*
                writer.tagged(&[$($((
                    $tag,
                    self.$tagged.as_ref().filter(|_| ($($tagged_versions)+).contains(&version))
                        .map(|field| field as &dyn $crate::kafka::wire::WriteField),
                ),)+)?]);
            }
        }
    };
    (@default) => { Default::default() };
    (@default $default:expr) => { $default };
}

#[cfg(test)]
#[allow(unreachable_pub)] // the macro's own
mod tests;
