//! The reader of requests: every count and length is compared with the bytes that are left before anything is allocated for it.

use bytes::{Buf, Bytes};

use super::{ELEMENTS_MAX, Field, MEMORY_BASE, MEMORY_PER_BYTE, Malformed, TEXT_BYTES_MAX, cut_short};

/// Reads one message of one version.
#[derive(Debug)]
pub struct Reader {
    pub(super) bytes: Bytes,
    /// The message's version.
    pub version: i16,
    /// Whether that version is flexible.
    pub flexible: bool,
    /// How long the message is.
    length: usize,
    elements_left: usize,
    memory_left: usize,
    memory_max: usize,
}

impl Reader {
    /// Over a message's bytes.
    pub fn new(bytes: Bytes, version: i16, flexible: bool) -> Self {
        let length = bytes.len();
        let memory_max = MEMORY_BASE + MEMORY_PER_BYTE * length;
        Self { bytes, version, flexible, length, elements_left: ELEMENTS_MAX, memory_left: memory_max, memory_max }
    }

    /// Bytes of memory that the array elements, texts and bytes read so far take, but for record batches.
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

    /// The same, shared only if that is most of the message: what is kept keeps less than twice its own memory. Not counted as memory, for
    /// it stands for the message's own.
    pub(super) fn take_for_long(&mut self, length: usize) -> Result<Bytes, Malformed> {
        let bytes = self.take(length)?;
        Ok(if length > self.length / 2 { bytes } else { Bytes::copy_from_slice(&bytes) })
    }

    /// The next `length` bytes, copied.
    pub(super) fn copy(&mut self, length: usize) -> Result<Bytes, Malformed> {
        let bytes = self.take(length)?;
        self.take_memory(length, "more bytes")?;
        Ok(Bytes::copy_from_slice(&bytes))
    }

    fn take_memory(&mut self, bytes: usize, what: &str) -> Result<(), Malformed> {
        let left = self.memory_left.checked_sub(bytes);
        self.memory_left = left.ok_or_else(|| Malformed(format!("{what} in so short a message")))?;
        Ok(())
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
    pub(super) fn length(&mut self, narrow: bool) -> Result<Option<usize>, Malformed> {
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

    /// How many elements an array has.
    fn count(&mut self) -> Result<Option<usize>, Malformed> {
        let Some(count) = self.length(false)? else { return Ok(None) };
        let left = self.elements_left.checked_sub(count);
        self.elements_left = left.ok_or_else(|| Malformed(format!("more than {ELEMENTS_MAX} array elements")))?;
        Ok(Some(count))
    }

    /// An array of which nothing is kept, nor counted as memory.
    pub(super) fn pass_over<T: Field>(&mut self) -> Result<(), Malformed> {
        let memory_left = self.memory_left;
        for _ in 0..self.count()?.unwrap_or(0) {
            T::read(self)?;
            self.memory_left = memory_left;
        }
        Ok(())
    }

    pub(super) fn elements<T: Field>(&mut self) -> Result<Option<Vec<T>>, Malformed> {
        let Some(count) = self.count()? else { return Ok(None) };
        self.take_memory(count * size_of::<T>(), &format!("{count} more array elements"))?;
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(T::read(self)?);
        }
        Ok(Some(elements))
    }

    pub(super) fn text(&mut self) -> Result<Option<String>, Malformed> {
        let Some(length) = self.length(true)? else { return Ok(None) };
        // The flexible form could say more; Kafka takes no more either.
        if length > TEXT_BYTES_MAX {
            return Err(Malformed(format!("a text of {length} bytes; the limit is {TEXT_BYTES_MAX}")));
        }
        let bytes = self.take(length)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => {
                self.take_memory(length, "more text")?;
                Ok(Some(text.to_owned()))
            }
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
