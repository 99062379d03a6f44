//! Kafka's primitive types on the wire: a bounded reader of requests, a writer of responses, and [`message!`], which turns a
//! table of fields and versions into both.
//!
//! Bytes are hostile. Every count and length is compared with the bytes that are left before anything is allocated for it. A text
//! is no longer than [`TEXT_BYTES_MAX`]. A request
//! has at most [`ELEMENTS_MAX`] array elements in all, and together they take at most [`MEMORY_BASE`] and [`MEMORY_PER_BYTE`] times the
//! message's length (an element may take 80 bytes in memory and two on the wire); what they take is told, so that it can be counted. It
//! knows no API: the tables are in [`super::messages`].
//!
//! From a message's first *flexible* version on (KIP-482) lengths are unsigned varints of length + 1 and every struct ends with
//! tagged fields; before it lengths are 16 or 32 bits and null is -1. `"ab"` is `00 02 61 62`, or flexible `03 61 62`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Most array elements one request may have, nested ones included.
pub const ELEMENTS_MAX: usize = 200_000;
/// Longest text, in bytes: what the old form, with its 16 bits, can say.
pub const TEXT_BYTES_MAX: usize = i16::MAX as usize;
/// What array elements may take in memory however short the message is, in bytes.
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

/// Reads one message of one version.
#[derive(Debug)]
pub struct Reader {
    bytes: Bytes,
    /// The message's version.
    pub version: i16,
    /// Whether that version is flexible.
    pub flexible: bool,
    elements_left: usize,
    memory_left: usize,
    memory_max: usize,
}

impl Reader {
    /// Over a message's bytes.
    pub fn new(bytes: Bytes, version: i16, flexible: bool) -> Self {
        let memory_max = MEMORY_BASE + MEMORY_PER_BYTE * bytes.len();
        Self { bytes, version, flexible, elements_left: ELEMENTS_MAX, memory_left: memory_max, memory_max }
    }

    /// Bytes of memory that the array elements read so far take.
    pub fn memory_used(&self) -> usize {
        self.memory_max - self.memory_left
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// The next `length` bytes, shared, not copied.
    pub fn take(&mut self, length: usize) -> Result<Bytes, Malformed> {
        if length > self.bytes.len() {
            return Err(cut_short(self.bytes.len(), length));
        }
        Ok(self.bytes.split_to(length))
    }

    /// An unsigned varint of at most 32 bits.
    pub fn unsigned_varint(&mut self) -> Result<u32, Malformed> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.bytes.try_get_u8().map_err(|_| cut_short(0, 1))?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| Malformed(format!("varint {value} is over 32 bits")));
            }
        }
        Err(Malformed("varint of more than five bytes".to_owned()))
    }

    /// A length; `None` is null. `narrow`: 16 bits if not flexible, else 32.
    fn length(&mut self, narrow: bool) -> Result<Option<usize>, Malformed> {
        let length = if self.flexible {
            i64::from(self.unsigned_varint()?) - 1
        } else if narrow {
            i64::from(i16::read(self)?)
        } else {
            i64::from(i32::read(self)?)
        };
        if length == -1 {
            return Ok(None);
        }
        // Nothing takes less than a byte.
        match usize::try_from(length) {
            Ok(length) if length <= self.remaining() => Ok(Some(length)),
            _ => Err(Malformed(format!("length {length} with {} bytes left", self.remaining()))),
        }
    }

    fn elements<T: Field>(&mut self) -> Result<Option<Vec<T>>, Malformed> {
        let Some(count) = self.length(false)? else { return Ok(None) };
        self.elements_left = self
            .elements_left
            .checked_sub(count)
            .ok_or_else(|| Malformed(format!("more than {ELEMENTS_MAX} array elements")))?;
        self.memory_left = self
            .memory_left
            .checked_sub(count * size_of::<T>())
            .ok_or_else(|| Malformed(format!("{count} more array elements in so short a message")))?;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(T::read(self)?);
        }
        Ok(Some(elements))
    }

    fn text(&mut self) -> Result<Option<String>, Malformed> {
        let Some(length) = self.length(true)? else { return Ok(None) };
        // The flexible form could say more; Kafka takes no more either.
        if length > TEXT_BYTES_MAX {
            return Err(Malformed(format!("a text of {length} bytes; the limit is {TEXT_BYTES_MAX}")));
        }
        let bytes = self.take(length)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Some(text.to_owned())),
            Err(error) => Err(Malformed(format!("not UTF-8: {error}"))),
        }
    }

    /// The tagged fields at a struct's end, each shown to `known`, which reads it or says `false`: then it is skipped.
    pub fn tagged(
        &mut self,
        mut known: impl FnMut(u32, &mut Reader) -> Result<bool, Malformed>,
    ) -> Result<(), Malformed> {
        if !self.flexible {
            return Ok(());
        }
        let mut last = None;
        for _ in 0..self.unsigned_varint()? {
            let tag = self.unsigned_varint()?;
            if last.is_some_and(|last| last >= tag) {
                return Err(Malformed(format!("tagged field {tag} is out of order")));
            }
            last = Some(tag);
            let length = self.unsigned_varint()? as usize;
            let bytes = self.take(length)?;
            let (elements_left, memory_left) = (self.elements_left, self.memory_left);
            let mut field = Reader { bytes, elements_left, memory_left, ..*self };
            if known(tag, &mut field)? && field.remaining() > 0 {
                return Err(Malformed(format!("tagged field {tag} has {} bytes too many", field.remaining())));
            }
            (self.elements_left, self.memory_left) = (field.elements_left, field.memory_left);
        }
        Ok(())
    }

    /// The message must end here.
    pub fn finish(self) -> Result<(), Malformed> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(Malformed(format!("{left} bytes follow the message"))),
        }
    }
}

/// Writes one message of one version, as pieces: record batches are passed on, not copied.
#[derive(Debug)]
pub struct Writer {
    pieces: Vec<Bytes>,
    open: BytesMut,
    /// The message's version.
    pub version: i16,
    /// Whether that version is flexible.
    pub flexible: bool,
}

impl Writer {
    /// An empty one.
    pub fn new(version: i16, flexible: bool) -> Self {
        Self { pieces: Vec::new(), open: BytesMut::new(), version, flexible }
    }

    /// Where plain bytes go.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.open
    }

    /// An unsigned varint.
    pub fn unsigned_varint(&mut self, mut value: u32) {
        while value >= 0x80 {
            self.open.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.open.put_u8(value as u8);
    }

    fn length(&mut self, length: Option<usize>, narrow: bool) {
        let length = length.map_or(-1, |length| length as i64);
        if self.flexible {
            self.unsigned_varint((length + 1) as u32);
        } else if narrow {
            self.open.put_i16(length as i16);
        } else {
            self.open.put_i32(length as i32);
        }
    }

    fn share(&mut self, bytes: &Bytes) {
        if !self.open.is_empty() {
            self.pieces.push(self.open.split().freeze());
        }
        self.pieces.push(bytes.clone());
    }

    fn elements<T: Field>(&mut self, elements: Option<&[T]>) {
        self.length(elements.map(<[T]>::len), false);
        elements.into_iter().flatten().for_each(|element| element.write(self));
    }

    fn text(&mut self, text: Option<&str>) {
        // 32 KiB is all that the old form can say; only messages for people are ever that long.
        let text = text.map(|text| shorten(text, TEXT_BYTES_MAX));
        self.length(text.map(str::len), true);
        self.open.put_slice(text.unwrap_or_default().as_bytes());
    }

    /// The tagged fields at a struct's end: those that say something, in the order of their tags.
    pub fn tagged(&mut self, fields: &[(u32, Option<&dyn WriteField>)]) {
        if !self.flexible {
            return;
        }
        let fields: Vec<_> = fields.iter().filter_map(|(tag, field)| Some((*tag, (*field)?))).collect();
        self.unsigned_varint(fields.len() as u32);
        for (tag, field) in fields {
            let mut inner = Writer::new(self.version, self.flexible);
            field.write_field(&mut inner);
            let bytes = inner.into_bytes();
            self.unsigned_varint(tag);
            self.unsigned_varint(bytes.len() as u32);
            self.open.put_slice(&bytes);
        }
    }

    /// What was written, in pieces.
    pub fn finish(mut self) -> Vec<Bytes> {
        if !self.open.is_empty() {
            self.pieces.push(self.open.freeze());
        }
        self.pieces
    }

    /// What was written, in one piece.
    pub fn into_bytes(self) -> Bytes {
        let mut pieces = self.finish();
        match pieces.len() {
            1 => pieces.remove(0),
            _ => Bytes::from(pieces.concat()),
        }
    }
}

fn shorten(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
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

impl Field for Bytes {
    fn read(reader: &mut Reader) -> Result<Self, Malformed> {
        let length = reader.length(false)?.ok_or_else(|| Malformed("null".to_owned()))?;
        reader.take(length)
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

/// Record batches, never looked into here. Off a request they are one slice of its frame; a response has any number.
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
            Some(length) => Ok(Self(Some(vec![reader.take(length)?]))),
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
mod tests {
    use super::*;

    crate::kafka_message! {
        /// One of each.
        Sample {
            number: i32 [0..],
            later: i64 [2..] = -1,
            gone: i8 [0..=1] = 7,
            text: String [0..],
            maybe: Option<String> [0..],
            list: Vec<i32> [0..],
            bytes: Bytes [1..],
        } tagged { 3: extra: i32 [4..], 5: list_too: Vec<String> [4..], }
    }

    fn sample() -> Sample {
        Sample {
            number: 5,
            later: 9,
            gone: 1,
            text: "ab".to_owned(),
            maybe: None,
            list: vec![1, 2],
            bytes: Bytes::from_static(b"xyz"),
            extra: Some(17),
            list_too: None,
        }
    }

    fn encode(sample: &Sample, version: i16) -> Bytes {
        let mut writer = Writer::new(version, version >= 3);
        sample.write(&mut writer);
        writer.into_bytes()
    }

    fn decode(bytes: Bytes, version: i16) -> Result<Sample, Malformed> {
        let mut reader = Reader::new(bytes, version, version >= 3);
        let sample = Sample::read(&mut reader)?;
        reader.finish().map(|()| sample)
    }

    #[test]
    fn the_bytes_are_kafkas() {
        let old = encode(&sample(), 0);
        assert_eq!(old[..], [0, 0, 0, 5, 1, 0, 2, b'a', b'b', 255, 255, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
        let new = encode(&sample(), 4);
        let expected = [
            &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 3, b'a', b'b', 0, 3, 0, 0, 0, 1, 0, 0, 0, 2][..],
            &[4, b'x', b'y', b'z', 1, 3, 4, 0, 0, 0, 17],
        ];
        assert_eq!(new[..], expected.concat());
    }

    #[test]
    fn a_message_survives_the_round_trip_in_every_version() {
        for version in 0..=4 {
            let read = decode(encode(&sample(), version), version).unwrap();
            assert_eq!(read.later, if version >= 2 { 9 } else { -1 });
            assert_eq!(read.gone, if version <= 1 { 1 } else { 7 });
            assert_eq!(read.extra, (version >= 4).then_some(17));
            assert_eq!((read.number, read.text.as_str(), &read.list[..]), (5, "ab", &[1, 2][..]));
        }
    }

    #[test]
    fn every_cut_is_noticed_and_names_its_field() {
        for version in [0, 4] {
            let whole = encode(&sample(), version);
            for cut in 0..whole.len() {
                assert!(decode(whole.slice(..cut), version).is_err(), "version {version} cut at {cut}");
            }
            let longer = Bytes::from([&whole[..], &[0]].concat());
            assert!(decode(longer, version).unwrap_err().0.contains("1 bytes follow"));
        }
        let error = decode(encode(&sample(), 0).slice(..21), 0).unwrap_err();
        assert_eq!(error.0, "list: cut short: 2 of 4 bytes");
    }

    #[test]
    fn lying_counts_and_lengths_get_no_memory() {
        let lies: [&[u8]; 4] = [
            &[0, 0, 0, 5, 1, 0x7f, 0xff],                             // a text of 32767 bytes
            &[0, 0, 0, 5, 1, 0x80, 0],                                // of -32768
            &[0, 0, 0, 5, 1, 0, 0, 255, 255, 0x7f, 0xff, 0xff, 0xff], // a list of 2^31-1
            &[0, 0, 0, 5, 1, 0, 0, 255, 255, 0x80, 0, 0, 0],          // of -2^31
        ];
        for lie in lies {
            let error = decode(Bytes::copy_from_slice(lie), 0).unwrap_err();
            assert!(error.0.contains("bytes left"), "{error}");
        }
        let null_list = [0, 0, 0, 5, 1, 0, 0, 255, 255, 255, 255, 255, 255];
        assert_eq!(decode(Bytes::copy_from_slice(&null_list), 0).unwrap_err().0, "list: null");
    }

    #[test]
    fn too_many_elements_are_refused_even_if_their_bytes_are_there() {
        let sample = Sample { list: vec![0; ELEMENTS_MAX + 1], ..sample() };
        assert!(decode(encode(&sample, 0), 0).unwrap_err().0.contains("more than 200000"));
    }

    #[test]
    fn elements_that_take_far_more_memory_than_bytes_are_refused() {
        // In a flexible version an empty text is one byte, and a `String`.
        let texts = |count: usize| {
            let mut writer = Writer::new(4, true);
            vec![String::new(); count].write(&mut writer);
            Reader::new(writer.into_bytes(), 4, true)
        };
        let few = MEMORY_BASE / size_of::<String>();
        let mut reader = texts(few);
        Vec::<String>::read(&mut reader).unwrap();
        assert_eq!(reader.memory_used(), few * size_of::<String>());
        assert!(Vec::<String>::read(&mut texts(2 * few)).unwrap_err().0.contains("in so short a message"));
    }

    #[test]
    fn varints_are_at_most_32_bits() {
        let read = |bytes: &[u8]| Reader::new(Bytes::copy_from_slice(bytes), 0, true).unsigned_varint();
        assert_eq!(read(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(u32::MAX));
        assert!(read(&[0xff, 0xff, 0xff, 0xff, 0x1f]).is_err());
        assert!(read(&[0x80; 6]).is_err());
    }

    #[test]
    fn unknown_tagged_fields_are_skipped_and_disordered_ones_refused() {
        let mut bytes = encode(&Sample { extra: None, ..sample() }, 4).to_vec();
        bytes.pop(); // the count of tagged fields
        let unknown = [&bytes[..], &[2, 1, 2, 9, 9, 3, 4, 0, 0, 0, 8]].concat();
        assert_eq!(decode(unknown.into(), 4).unwrap().extra, Some(8));
        for wrong in
            [&[2, 3, 4, 0, 0, 0, 8, 3, 4, 0, 0, 0, 8][..], &[1, 3, 5, 0, 0, 0, 8, 1], &[255, 255, 255, 255, 15]]
        {
            assert!(decode([&bytes[..], wrong].concat().into(), 4).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn record_batches_are_shared_both_ways() {
        let frame = Bytes::from(vec![0, 0, 0, 4, 1, 2, 3, 4]);
        let read = RecordData::read(&mut Reader::new(frame.clone(), 0, false)).unwrap();
        let batch = read.0.unwrap().remove(0);
        assert_eq!(batch.as_ptr(), frame[4..].as_ptr());
        let mut writer = Writer::new(0, false);
        RecordData::some(vec![batch.clone(), batch.clone()]).write(&mut writer);
        let pieces = writer.finish();
        assert_eq!((pieces.len(), pieces[1].as_ptr()), (3, batch.as_ptr()));
        assert_eq!(pieces[0][..], [0, 0, 0, 8]);
    }
}
