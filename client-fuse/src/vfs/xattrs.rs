//! Extended attributes.

use bytes::Bytes;
use larder_protocol::attr::{AttrChange, Credential};
use larder_protocol::error::ErrorCode;
use larder_protocol::limits::{MAX_XATTR_NAME, MAX_XATTR_VALUE};
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply, XattrHow};

use super::node::Node;
use super::{Error, Vfs, unexpected};

/// ACLs are refused until both ends enforce them; a program that was told yes would rely on it.
const ACLS: &[u8] = b"system.posix_acl_";

fn check_name(name: &[u8]) -> Result<(), Error> {
    if name.len() > MAX_XATTR_NAME {
        return Err(ErrorCode::NameTooLong.into());
    }
    if name.starts_with(ACLS) {
        return Err(ErrorCode::NotSupported.into());
    }
    Ok(())
}

impl Vfs {
    /// An extended attribute's value.
    ///
    /// # Errors
    /// `NoXattr` if it is not there; the server's, or that there is no answer.
    pub async fn getxattr(&self, cred: &Credential, node: u64, name: &[u8]) -> Result<Bytes, Error> {
        check_name(name)?;
        let node = self.node(node)?;
        // The kernel asks for `security.capability` before many a write; most objects have no attributes at all.
        if self.options.mode != super::Mode::Direct && !self.attributes(cred, &node).await?.attr.has_xattr {
            return Err(ErrorCode::NoXattr.into());
        }
        let query = Query::Getxattr { fid: node.fid, name: Bytes::copy_from_slice(name) };
        match self.servers.query(cred, query).await? {
            QueryReply::Xattr(value) => Ok(value.0),
            _ => Err(unexpected()),
        }
    }

    /// Sets an extended attribute. `flags` as in setxattr(2).
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn setxattr(
        &self,
        cred: &Credential,
        node: u64,
        name: &[u8],
        value: Bytes,
        flags: i32,
    ) -> Result<(), Error> {
        self.may_change()?;
        check_name(name)?;
        let how = match flags {
            0 => XattrHow::Set,
            libc::XATTR_CREATE => XattrHow::Create,
            libc::XATTR_REPLACE => XattrHow::Replace,
            _ => return Err(ErrorCode::Invalid.into()),
        };
        if value.len() > MAX_XATTR_VALUE {
            return Err(ErrorCode::TooBig.into());
        }
        let node = self.node(node)?;
        let name = Bytes::copy_from_slice(name);
        self.change_xattr(cred, &node, Op::Setxattr { fid: node.fid, name, value: Payload(value), how }).await
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoXattr` if it is not there; the server's, or that there is no answer.
    pub async fn removexattr(&self, cred: &Credential, node: u64, name: &[u8]) -> Result<(), Error> {
        self.may_change()?;
        check_name(name)?;
        let node = self.node(node)?;
        let name = Bytes::copy_from_slice(name);
        self.change_xattr(cred, &node, Op::Removexattr { fid: node.fid, name }).await
    }

    async fn change_xattr(&self, cred: &Credential, node: &Node, op: Op) -> Result<(), Error> {
        let (reply, asked) = self.change(cred, op).await?;
        match reply {
            OpReply::Attr(change) => {
                let change: AttrChange = change;
                self.learn_own(node, &change, &asked);
                Ok(())
            }
            _ => Err(unexpected()),
        }
    }

    /// The names of all extended attributes.
    ///
    /// # Errors
    /// The server's, or that there is no answer.
    pub async fn listxattr(&self, cred: &Credential, node: u64) -> Result<Vec<Bytes>, Error> {
        let node = self.node(node)?;
        if self.afs.is_some() && !self.attributes(cred, &node).await?.attr.has_xattr {
            return Ok(Vec::new());
        }
        match self.servers.query(cred, Query::Listxattr { fid: node.fid }).await? {
            QueryReply::XattrNames(names) => Ok(names),
            _ => Err(unexpected()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acls_and_long_names_are_refused_here() {
        assert_eq!(check_name(b"system.posix_acl_access"), Err(ErrorCode::NotSupported.into()));
        assert_eq!(check_name(&[b'a'; 256]), Err(ErrorCode::NameTooLong.into()));
        assert_eq!(check_name(b"user.x"), Ok(()));
    }
}
