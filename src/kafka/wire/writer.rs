//! The writer of responses, in pieces: record batches are passed on, not copied.

use bytes::{BufMut, Bytes, BytesMut};

use super::{Field, TEXT_BYTES_MAX, WriteField};

/// Writes one message of one version, as pieces: record batches are passed on, not copied.
#[derive(Debug)]
pub struct Writer {
    pieces: Vec<Bytes>,
    pub(super) open: BytesMut,
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

    pub(super) fn length(&mut self, length: Option<usize>, narrow: bool) {
        let length = length.map_or(-1, |length| length as i64);
        if self.flexible {
            self.unsigned_varint((length + 1) as u32);
        } else if narrow {
            self.open.put_i16(length as i16);
        } else {
            self.open.put_i32(length as i32);
        }
    }

    pub(super) fn share(&mut self, bytes: &Bytes) {
        if !self.open.is_empty() {
            self.pieces.push(self.open.split().freeze());
        }
        self.pieces.push(bytes.clone());
    }

    pub(super) fn elements<T: Field>(&mut self, elements: Option<&[T]>) {
        self.length(elements.map(<[T]>::len), false);
        elements.into_iter().flatten().for_each(|element| element.write(self));
    }

    pub(super) fn text(&mut self, text: Option<&str>) {
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
