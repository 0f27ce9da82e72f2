//! File contents that travel beside a message instead of in it.
//!
//! serde would copy the bytes of a read or a write once per layer. Inside a frame a [`Payload`] therefore encodes to
//! its length alone; the bytes go out by a vectored write behind the header, and come in as a slice of the buffer
//! that the socket was read into. Encoder and decoder pass them by a thread-local, set for the duration of one
//! (synchronous) call of bincode. Outside of a frame a payload is a plain byte string.

use std::cell::RefCell;
use std::fmt;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

thread_local! {
    static OUTGOING: RefCell<Option<Vec<Bytes>>> = const { RefCell::new(None) };
    static INCOMING: RefCell<Option<Bytes>> = const { RefCell::new(None) };
}

/// Bytes of a file, or of an extended attribute.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl Payload {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Payload {
        Payload(bytes)
    }
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let beside = OUTGOING.with_borrow_mut(|out| match out {
            Some(list) => {
                list.push(self.0.clone());
                true
            }
            None => false,
        });
        if beside { serializer.serialize_u32(self.0.len() as u32) } else { serializer.serialize_bytes(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Payload, D::Error> {
        if INCOMING.with_borrow(Option::is_none) {
            return Bytes::deserialize(deserializer).map(Payload);
        }
        let len = u32::deserialize(deserializer)? as usize;
        INCOMING.with_borrow_mut(|rest| match rest {
            Some(rest) if rest.remaining() >= len => Ok(Payload(rest.split_to(len))),
            _ => Err(de::Error::custom("the frame's payload is shorter than its header says")),
        })
    }
}

/// Runs `encode` and returns with its result the payloads it met, in order.
pub(crate) fn collect<T>(encode: impl FnOnce() -> T) -> (T, Vec<Bytes>) {
    OUTGOING.with_borrow_mut(|out| *out = Some(Vec::new()));
    let _reset = Reset;
    let result = encode();
    let payloads = OUTGOING.with_borrow_mut(Option::take).unwrap_or_default();
    (result, payloads)
}

/// Runs `decode` with `bytes` as the frame's payload and returns with its result how many were left over.
pub(crate) fn supply<T>(bytes: Bytes, decode: impl FnOnce() -> T) -> (T, usize) {
    INCOMING.with_borrow_mut(|rest| *rest = Some(bytes));
    let _reset = Reset;
    let result = decode();
    let left = INCOMING.with_borrow_mut(Option::take).map_or(0, |rest| rest.len());
    (result, left)
}

/// Ends a frame's context even when an encoder panics.
struct Reset;

impl Drop for Reset {
    fn drop(&mut self) {
        OUTGOING.with_borrow_mut(|out| *out = None);
        INCOMING.with_borrow_mut(|rest| *rest = None);
    }
}
