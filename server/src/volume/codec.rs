//! How records become bytes: bincode with variable-length integers, sealed with a checksum.
//!
//! The checksum (CRC32C) covers the table, the key and the value, so a flipped bit and a row in the wrong place are
//! both noticed. The only file of the store that names bincode.

use bincode::Options;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::{StoreError, StoreResult};
use super::keys::{self, Table};

/// Bytes of the checksum at the end of a sealed row.
const SEAL: usize = 4;

fn options() -> impl Options {
    bincode::DefaultOptions::new().with_varint_encoding()
}

/// Encodes a record.
///
/// # Errors
/// `Engine` if the type cannot be encoded, which would be a defect.
pub fn encode<T: Serialize>(record: &T) -> StoreResult<Vec<u8>> {
    options().serialize(record).map_err(|error| StoreError::Engine(format!("cannot encode a record: {error}")))
}

/// Decodes a record.
///
/// # Errors
/// `Corrupt` if the bytes are not exactly one record.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> StoreResult<T> {
    options().deserialize(bytes).map_err(|error| StoreError::Corrupt(format!("a record does not decode: {error}")))
}

fn checksum(table: Table, key: &[u8], value: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&[table as u8]);
    let crc = crc32c::crc32c_append(crc, &(key.len() as u32).to_le_bytes());
    let crc = crc32c::crc32c_append(crc, key);
    crc32c::crc32c_append(crc, value)
}

/// Adds the checksum that [`open`] verifies.
pub fn seal(table: Table, key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let crc = checksum(table, key, &value);
    value.extend_from_slice(&crc.to_le_bytes());
    value
}

/// Verifies and takes off the checksum.
///
/// # Errors
/// `Corrupt`, naming table and key, if it does not match.
pub fn open(table: Table, key: &[u8], mut sealed: Vec<u8>) -> StoreResult<Vec<u8>> {
    let corrupt = || {
        let whose = match key.get(..8).and_then(keys::number) {
            Some(vnode) if table.has_vnode_keys() => format!(", of vnode {vnode},"),
            _ => String::new(),
        };
        let key = key.escape_ascii();
        StoreError::Corrupt(format!("row \"{key}\" of table {}{whose} does not match its checksum", table.name()))
    };
    let value_len = sealed.len().checked_sub(SEAL).ok_or_else(corrupt)?;
    let crc = checksum(table, key, &sealed[..value_len]);
    if sealed[value_len..] != crc.to_le_bytes() {
        return Err(corrupt());
    }
    sealed.truncate(value_len);
    Ok(sealed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_row_opens_only_unchanged_and_in_its_place() {
        let sealed = seal(Table::Vnodes, b"key", b"value".to_vec());
        assert_eq!(open(Table::Vnodes, b"key", sealed.clone()).unwrap(), b"value");
        assert!(open(Table::Vnodes, b"kez", sealed.clone()).is_err());
        assert!(open(Table::Inline, b"key", sealed.clone()).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut flipped = sealed.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(open(Table::Vnodes, b"key", flipped).is_err(), "bit {bit}");
        }
        assert!(open(Table::Vnodes, b"key", vec![1, 2]).is_err());
    }
}
