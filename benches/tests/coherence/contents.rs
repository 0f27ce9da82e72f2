//! What is in the files: all of it says who wrote it and where it belongs, so that a mixture shows.

use std::fmt;

use bytes::Bytes;

/// Any odd number: multiplying by it loses nothing.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;
/// What undoes that.
const BACK: u64 = inverse(STRIDE);
/// Bytes that are made together.
const WORD: usize = 8;

/// The contents of a file: the first so many bytes of what one writer writes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Value {
    /// The writer. 0 if there are no bytes, which look the same whoever wrote none.
    id: u32,
    /// How many bytes.
    len: u32,
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Value::EMPTY { f.write_str("empty") } else { write!(f, "#{}[{}]", self.id, self.len) }
    }
}

const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut round = 0;
    // Newton's way: each round doubles the number of bits that are right, beginning with three.
    while round < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
}

fn word(id: u32, place: usize) -> [u8; WORD] {
    ((u64::from(id) << 32) | place as u64).wrapping_mul(STRIDE).to_le_bytes()
}

impl Value {
    /// No bytes.
    pub(crate) const EMPTY: Value = Value { id: 0, len: 0 };

    /// The first `len` bytes of a writer, enough to tell whose they are.
    pub(crate) fn new(id: u32, len: u32) -> Value {
        assert!(id > 0 && len as usize >= WORD, "{len} bytes do not tell that they are of {id}");
        Value { id, len }
    }

    /// Something that nobody wrote, of this size.
    pub(crate) fn nobodys(len: u32) -> Value {
        Value { id: u32::MAX, len }
    }

    pub(crate) fn len(self) -> u32 {
        self.len
    }

    /// A range of the bytes, as far as there are any.
    pub(crate) fn range(self, from: u32, to: u32) -> Bytes {
        let to = to.min(self.len) as usize;
        let from = (from as usize).min(to);
        let first = from / WORD;
        let mut bytes = Vec::with_capacity(to - first * WORD + WORD);
        for place in first..to.div_ceil(WORD) {
            bytes.extend_from_slice(&word(self.id, place));
        }
        Bytes::from(bytes).slice(from - first * WORD..to - first * WORD)
    }

    /// Whose bytes these are.
    ///
    /// # Panics
    /// If they are not of one writer, from the beginning.
    pub(crate) fn of(bytes: &[u8], file: &str) -> Value {
        Value::try_of(bytes).unwrap_or_else(|mixture| panic!("mixed contents in {file}: {mixture}"))
    }

    fn try_of(bytes: &[u8]) -> Result<Value, String> {
        if bytes.is_empty() {
            return Ok(Value::EMPTY);
        }
        let first: [u8; WORD] = bytes.get(..WORD).and_then(|first| first.try_into().ok()).unwrap_or_default();
        let key = u64::from_le_bytes(first).wrapping_mul(BACK);
        let value = Value { id: (key >> 32) as u32, len: bytes.len() as u32 };
        let (words, rest) = bytes.as_chunks::<WORD>();
        let is_own = words.iter().enumerate().all(|(place, found)| *found == word(value.id, place))
            && word(value.id, words.len())[..rest.len()] == *rest;
        if key as u32 == 0 && value.id > 0 && is_own {
            return Ok(value);
        }
        let wanted = value.range(0, value.len);
        let at = bytes.iter().zip(&wanted).position(|(found, wanted)| found != wanted).unwrap_or_default();
        let found = bytes.get(at..(at + WORD).min(bytes.len())).unwrap_or_default();
        Err(format!("{value:?} up to byte {at}, then {found:?}"))
    }
}

#[test]
fn contents_tell_whose_they_are() {
    for len in [8, 9, 16, 1000, 70_001] {
        let value = Value::new(77, len);
        let whole = value.range(0, len);
        assert_eq!((whole.len(), Value::of(&whole, "f")), (len as usize, value));
        assert_eq!(value.range(3, len - 1)[..], whole[3..len as usize - 1]);
    }
    assert_eq!(Value::of(&[], "f"), Value::EMPTY);
}

#[test]
fn mixtures_are_found() {
    let (one, other) = (Value::new(1, 100).range(0, 100), Value::new(2, 100).range(0, 100));
    let mixtures = [
        [&one[..64], &other[64..]].concat(),
        [&one[..64], &[0; 36]].concat(),
        [&one[..64], &one[56..]].concat(),
        one[8..].to_vec(),
        vec![0; 100],
        one[..5].to_vec(),
    ];
    for mixture in mixtures {
        assert!(Value::try_of(&mixture).is_err(), "{mixture:?}");
    }
}
