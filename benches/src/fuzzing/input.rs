//! Requests made from a fuzzer's bytes: mostly sensible ones, on few objects and names, so that they meet each other.

use bytes::Bytes;
use larder_protocol::attr::{Credential, FileType, SetAttr, SetTime, Timestamp};
use larder_protocol::ids::{Fid, VolumeId};
use larder_protocol::limits::{MAX_NAME, MAX_PAYLOAD};
use larder_protocol::name::Name;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{
    AllocateHow, CreateHow, Op, Query, RenameHow, SeekWhat, WritePart, WriteRequest, XattrHow,
};

/// Places where something changes: inline limit, checksum block, largest request, largest file.
const EDGES: [u64; 16] = [
    0,
    1,
    4095,
    4096,
    16_383,
    16_384,
    16_385,
    65_535,
    65_536,
    65_537,
    1 << 20,
    1 << 32,
    1 << 62,
    i64::MAX as u64 - 1,
    i64::MAX as u64,
    u64::MAX,
];

/// A fuzzer's bytes. Past their end there are zeros.
#[derive(Debug)]
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// Whether there are none left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[usize::from(self.byte()) % of.len()].clone()
    }

    /// An offset or length: near an edge, or anything up to 2^24.
    pub fn number(&mut self) -> u64 {
        let (high, low) = (self.byte(), self.byte());
        match high {
            0..64 => u64::from(low),
            64..192 => EDGES[usize::from(high) % EDGES.len()].saturating_add(u64::from(low % 3)),
            _ => u64::from(high & 63) << 18 | u64::from(low) << 10,
        }
    }

    /// One of few names.
    pub fn name(&mut self) -> Name {
        let long = [b'n'; MAX_NAME];
        let bytes = self.pick(&[&b"a"[..], b"b", b"c", b"d", b"\xff\n", &long]);
        Name::new(bytes).unwrap_or_else(|code| unreachable!("{code}: all of these are names"))
    }

    /// One of the known objects, seldom a forged one.
    pub fn fid(&mut self, known: &[Fid]) -> Fid {
        let fid = self.pick(known);
        match self.byte() {
            255 => Fid { vnode: self.number(), ..fid },
            254 => Fid { generation: self.number(), ..fid },
            253 => Fid { volume: VolumeId(self.byte().into()), ..fid },
            _ => fid,
        }
    }

    /// The superuser or one of two others.
    pub fn credential(&mut self) -> Credential {
        match self.byte() {
            0..192 => Credential::root(),
            id => Credential { uid: (id % 2).into(), gid: (id % 3).into(), groups: vec![(id % 5).into()] },
        }
    }

    /// Contents of up to 128 KiB.
    pub fn payload(&mut self) -> Payload {
        let (len, fill) = (self.number() % (128 << 10), self.byte());
        Payload(Bytes::from(vec![fill; len as usize]))
    }

    fn xattr_name(&mut self) -> Bytes {
        let long = [b'x'; 300];
        Bytes::copy_from_slice(self.pick(&[
            &b"user.a"[..],
            b"user.b",
            b"trusted.c",
            b"system.posix_acl_access",
            b"",
            &long,
        ]))
    }

    fn mode(&mut self) -> u32 {
        u32::from(self.byte()) << 4 | u32::from(self.byte() & 15)
    }

    fn set_time(&mut self) -> Option<SetTime> {
        match self.byte() {
            0..160 => None,
            160..200 => Some(SetTime::Now),
            // Nanoseconds past the second too: what decodes may hold anything.
            _ => {
                Some(SetTime::At(Timestamp { secs: self.number().wrapping_neg() as i64, nanos: self.number() as u32 }))
            }
        }
    }

    /// A query.
    pub fn query(&mut self, known: &[Fid]) -> Query {
        let fid = self.fid(known);
        match self.byte() % 11 {
            0 => Query::Lookup { dir: fid, name: self.name() },
            1 => Query::Parent { dir: fid },
            2 => Query::Getattr { fid },
            3 => Query::Access { fid, mask: self.byte().into() },
            4 => Query::Readlink { fid },
            5 => Query::Read {
                fid,
                offset: self.number(),
                len: (self.number() as u32) % (MAX_PAYLOAD as u32 + 2),
                touch: self.byte().is_multiple_of(2),
            },
            6 => Query::Readdir {
                dir: fid,
                cookie: self.number(),
                max_bytes: self.number() as u32,
                plus: self.byte().is_multiple_of(2),
            },
            7 => Query::Statfs { fid },
            8 => Query::Getxattr { fid, name: self.xattr_name() },
            9 => Query::Listxattr { fid },
            _ => Query::Seek { fid, offset: self.number(), what: self.pick(&[SeekWhat::Data, SeekWhat::Hole]) },
        }
    }

    /// A mutation.
    pub fn op(&mut self, known: &[Fid]) -> Op {
        let fid = self.fid(known);
        match self.byte() % 18 {
            0 | 1 => {
                let opened = CreateHow::Open { access: self.byte().into(), truncate: self.byte().is_multiple_of(2) };
                let how = self.pick(&[CreateHow::Exclusive, opened]);
                Op::Create { dir: fid, name: self.name(), mode: self.mode(), umask: self.mode(), how }
            }
            2 | 3 => Op::Mkdir { dir: fid, name: self.name(), mode: self.mode(), umask: self.mode() },
            4 => Op::Mknod {
                dir: fid,
                name: self.name(),
                kind: self.pick(&[FileType::Fifo, FileType::CharDevice, FileType::Regular, FileType::Directory]),
                mode: self.mode(),
                umask: self.mode(),
                rdev: self.number() as u32,
            },
            5 => Op::Symlink { dir: fid, name: self.name(), target: self.payload().0 },
            6 => Op::Link { fid, dir: self.fid(known), name: self.name() },
            7 => Op::Remove { dir: fid, name: self.name(), keep: self.byte().is_multiple_of(2) },
            8 => Op::Rmdir { dir: fid, name: self.name() },
            9 => Op::Rename {
                from_dir: fid,
                from_name: self.name(),
                to_dir: self.fid(known),
                to_name: self.name(),
                how: self.pick(&[RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange]),
                keep: self.byte().is_multiple_of(2),
            },
            10 => {
                let which = self.byte();
                let set = SetAttr {
                    mode: (which & 1 != 0).then(|| self.number() as u32),
                    uid: (which & 2 != 0).then(|| self.byte().into()),
                    gid: (which & 4 != 0).then(|| self.byte().into()),
                    size: (which & 8 != 0).then(|| self.number()),
                    atime: self.set_time(),
                    mtime: self.set_time(),
                };
                Op::Setattr { fid, set, open: self.byte().is_multiple_of(2) }
            }
            11 => Op::Setxattr {
                fid,
                name: self.xattr_name(),
                value: self.payload(),
                how: self.pick(&[XattrHow::Set, XattrHow::Create, XattrHow::Replace]),
            },
            12 => Op::Removexattr { fid, name: self.xattr_name() },
            13 => Op::Append { fid, data: self.payload() },
            14 | 15 => Op::Allocate {
                fid,
                offset: self.number(),
                len: self.number(),
                how: self.pick(&[
                    AllocateHow::Reserve,
                    AllocateHow::ReserveKeepSize,
                    AllocateHow::Punch,
                    AllocateHow::Zero,
                    AllocateHow::ZeroKeepSize,
                ]),
            },
            16 => Op::CopyRange {
                from: fid,
                from_offset: self.number(),
                to: self.fid(known),
                to_offset: self.number(),
                len: self.number(),
            },
            _ => Op::Forget { fids: vec![fid; usize::from(self.byte() % 3)] },
        }
    }

    /// A write in place.
    pub fn write(&mut self, known: &[Fid]) -> WriteRequest {
        let (fid, count) = (self.fid(known), self.byte() % 4);
        let parts = (0..count).map(|_| WritePart { offset: self.number(), data: self.payload() }).collect();
        WriteRequest { fid, parts, stable: self.byte().is_multiple_of(2) }
    }
}
