//! Names in directories, checked once where they enter.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::limits::MAX_NAME;

/// One path component: 1 to 255 bytes of any kind but `/` and NUL, and neither `.` nor `..`.
///
/// The check runs at decoding too, so code that holds a `Name` need not repeat it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
pub struct Name(Box<[u8]>);

#[derive(Serialize, Deserialize)]
struct Raw(bytes::Bytes);

impl Name {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// `NameTooLong` past 255 bytes; `Invalid` for an empty name, `.`, `..`, or one with `/` or NUL.
    pub fn new(bytes: &[u8]) -> Result<Name, ErrorCode> {
        if bytes.len() > MAX_NAME {
            return Err(ErrorCode::NameTooLong);
        }
        if bytes.is_empty() || bytes == b"." || bytes == b".." || bytes.iter().any(|b| matches!(b, 0 | b'/')) {
            return Err(ErrorCode::Invalid);
        }
        Ok(Name(bytes.into()))
    }

    /// The name's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl TryFrom<Raw> for Name {
    type Error = ErrorCode;

    fn try_from(raw: Raw) -> Result<Name, ErrorCode> {
        Name::new(&raw.0)
    }
}

impl From<Name> for Raw {
    fn from(name: Name) -> Raw {
        Raw(name.0.into_vec().into())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_path_components_pass() {
        assert!(Name::new(b"a").is_ok());
        assert!(Name::new(&[0xff; MAX_NAME]).is_ok());
        assert_eq!(Name::new(&[b'a'; MAX_NAME + 1]), Err(ErrorCode::NameTooLong));
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(Name::new(bad), Err(ErrorCode::Invalid), "{bad:?}");
        }
    }

    #[test]
    fn a_forged_name_does_not_decode() {
        let forged = bincode::serialize(&Raw(bytes::Bytes::from_static(b"../etc"))).unwrap();
        assert!(bincode::deserialize::<Name>(&forged).is_err());
    }
}
