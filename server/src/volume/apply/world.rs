//! A volume's metadata in memory, for tests of what reads and changes it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;

use larder_protocol::attr::{Attr, Credential, SetAttr, Timestamp};
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{ClientId, Fid, ROOT_VNODE, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::service::file::{CreateHow, Op, OpReply, Query, QueryReply};

use super::apply;
use crate::volume::context::{ChangeCounter, Context, Effects};
use crate::volume::data::unsettled::UnsettledMap;
use crate::volume::error::StoreResult;
use crate::volume::keys::{self, Table};
use crate::volume::meta::{Row, Snapshot};
use crate::volume::query::Reader;
use crate::volume::record::{Body, FORMAT, HeaderRecord, VnodeRecord};
use crate::volume::view::{Draft, Records, Verified, View};

pub(crate) const CLIENT: ClientId = ClientId(7);
pub(crate) const VOLUME: VolumeId = VolumeId(1);

/// Sealed rows.
#[derive(Clone, Default)]
pub(crate) struct Rows(BTreeMap<(Table, Vec<u8>), Vec<u8>>);

impl Snapshot for Rows {
    fn get(&self, table: Table, key: &[u8]) -> StoreResult<Option<Vec<u8>>> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }

    fn range(&self, table: Table, from: Bound<&[u8]>, to: Bound<&[u8]>, limit: usize) -> StoreResult<Vec<Row>> {
        let inside = |key: &[u8]| {
            (match from {
                Bound::Included(from) => key >= from,
                Bound::Excluded(from) => key > from,
                Bound::Unbounded => true,
            }) && (match to {
                Bound::Included(to) => key <= to,
                Bound::Excluded(to) => key < to,
                Bound::Unbounded => true,
            })
        };
        let rows = self.0.iter().filter(|((at, key), _)| *at == table && inside(key));
        Ok(rows.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
}

/// A volume, and the one who works on it.
pub(crate) struct World {
    pub(crate) rows: Rows,
    pub(crate) header: HeaderRecord,
    pub(crate) unsettled: UnsettledMap,
    pub(crate) has_room: bool,
    pub(crate) cred: Credential,
    pub(crate) client: ClientId,
    /// What the last mutation left to do.
    pub(crate) effects: Effects,
    changes: ChangeCounter,
    seconds: Cell<i64>,
}

impl World {
    pub(crate) fn new() -> World {
        let mut world = World {
            rows: Rows::default(),
            header: HeaderRecord {
                format: FORMAT,
                id: VOLUME,
                name: "root".to_owned(),
                incarnation: 3,
                next_vnode: ROOT_VNODE + 1,
                vnodes: 0,
                blocks: 0,
                sequence: 0,
                created: Timestamp::default(),
            },
            unsettled: UnsettledMap::default(),
            has_room: true,
            cred: Credential::root(),
            client: CLIENT,
            effects: Effects::default(),
            changes: ChangeCounter::new(3),
            seconds: Cell::new(1000),
        };
        let root = VnodeRecord {
            generation: 3,
            mode: 0o777,
            nlink: 2,
            size: 4096,
            blocks: 8,
            ..VnodeRecord::empty(Body::Directory { parent: ROOT_VNODE, entries: 0, next_cookie: 1 })
        };
        world.with(|cx| Ok(cx.insert(ROOT_VNODE, &root)?)).unwrap();
        world
    }

    pub(crate) fn root(&self) -> Fid {
        Fid { volume: VOLUME, vnode: ROOT_VNODE, generation: 3 }
    }

    /// The time of the last mutation.
    pub(crate) fn now(&self) -> Timestamp {
        Timestamp { secs: self.seconds.get(), nanos: 5 }
    }

    /// Runs something in a mutation of its own: all or nothing, as the writer does.
    pub(crate) fn with<T>(
        &mut self,
        work: impl FnOnce(&mut Context<'_, '_>) -> Result<T, ErrorCode>,
    ) -> Result<T, ErrorCode> {
        self.seconds.set(self.seconds.get() + 1);
        let now = self.now();
        let view = Verified(&self.rows);
        let mut draft = Draft::new(&view);
        let mut header = self.header.clone();
        let mut cx = Context {
            draft: &mut draft,
            now,
            header: &mut header,
            taken: 0,
            has_room: self.has_room,
            effects: Effects::default(),
            changed: Vec::new(),
            changes: &self.changes,
            unsettled: &self.unsettled,
        };
        let result = work(&mut cx)?;
        self.effects = cx.effects;
        let batch = draft.into_batch();
        self.header = header;
        for (table, key, value) in batch.changes {
            match value {
                Some(value) => self.rows.0.insert((table, key), value),
                None => self.rows.0.remove(&(table, key)),
            };
        }
        Ok(result)
    }

    pub(crate) fn apply(&mut self, op: Op) -> Result<OpReply, ErrorCode> {
        let (cred, client) = (self.cred.clone(), self.client);
        self.with(|cx| apply(cx, &cred, client, &op))
    }

    pub(crate) fn query(&self, query: Query) -> Result<QueryReply, ErrorCode> {
        let snapshot = || Ok(Box::new(self.rows.clone()) as Box<dyn Snapshot>);
        Reader { snapshot: &snapshot, volume: VOLUME, unsettled: &self.unsettled }.query(&self.cred, &query)
    }

    /// Works as this user from here on.
    pub(crate) fn become_user(&mut self, uid: u32, gid: u32) {
        self.cred = Credential { uid, gid, groups: Vec::new() };
    }

    pub(crate) fn become_root(&mut self) {
        self.cred = Credential::root();
    }

    pub(crate) fn record(&self, fid: Fid) -> Option<VnodeRecord> {
        Verified(&self.rows).vnode(fid.vnode).unwrap()
    }

    /// The rows of a table that belong to a vnode.
    pub(crate) fn rows_of(&self, table: Table, vnode: u64) -> usize {
        Verified(&self.rows).with_prefix(table, &keys::vnode(vnode), usize::MAX).unwrap().len()
    }

    pub(crate) fn all(&self, table: Table) -> Vec<Row> {
        Verified(&self.rows).range(table, Bound::Unbounded, Bound::Unbounded, usize::MAX).unwrap()
    }

    pub(crate) fn create(&mut self, dir: Fid, name: &str, mode: u32) -> Result<Attr, ErrorCode> {
        let how = CreateHow::Exclusive;
        entry(self.apply(Op::Create { dir, name: self::name(name), mode, umask: 0, how }))
    }

    pub(crate) fn open(&mut self, dir: Fid, name: &str, access: u32, truncate: bool) -> Result<Attr, ErrorCode> {
        let how = CreateHow::Open { access, truncate };
        entry(self.apply(Op::Create { dir, name: self::name(name), mode: 0o644, umask: 0, how }))
    }

    pub(crate) fn mkdir(&mut self, dir: Fid, name: &str, mode: u32) -> Result<Attr, ErrorCode> {
        entry(self.apply(Op::Mkdir { dir, name: self::name(name), mode, umask: 0 }))
    }

    pub(crate) fn link(&mut self, fid: Fid, dir: Fid, name: &str) -> Result<Attr, ErrorCode> {
        entry(self.apply(Op::Link { fid, dir, name: self::name(name) }))
    }

    pub(crate) fn remove(&mut self, dir: Fid, name: &str, keep: bool) -> Result<Attr, ErrorCode> {
        removed(self.apply(Op::Remove { dir, name: self::name(name), keep }))
    }

    pub(crate) fn rmdir(&mut self, dir: Fid, name: &str) -> Result<Attr, ErrorCode> {
        removed(self.apply(Op::Rmdir { dir, name: self::name(name) }))
    }

    pub(crate) fn chmod(&mut self, fid: Fid, mode: u32) -> Result<Attr, ErrorCode> {
        self.set(fid, SetAttr { mode: Some(mode), ..SetAttr::default() })
    }

    pub(crate) fn chown(&mut self, fid: Fid, uid: Option<u32>, gid: Option<u32>) -> Result<Attr, ErrorCode> {
        self.set(fid, SetAttr { uid, gid, ..SetAttr::default() })
    }

    pub(crate) fn set(&mut self, fid: Fid, set: SetAttr) -> Result<Attr, ErrorCode> {
        match self.apply(Op::Setattr { fid, set, open: false })? {
            OpReply::Attr(change) => Ok(change.attr),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn getattr(&self, fid: Fid) -> Result<Attr, ErrorCode> {
        match self.query(Query::Getattr { fid })? {
            QueryReply::Attr(attr) => Ok(attr),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn lookup(&self, dir: Fid, name: &str) -> Result<Option<Attr>, ErrorCode> {
        match self.query(Query::Lookup { dir, name: self::name(name) })? {
            QueryReply::Entry { attr, .. } => Ok(attr),
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn name(name: &str) -> Name {
    Name::new(name.as_bytes()).unwrap()
}

fn entry(reply: Result<OpReply, ErrorCode>) -> Result<Attr, ErrorCode> {
    match reply? {
        OpReply::Entry { attr, .. } => Ok(attr),
        other => panic!("{other:?}"),
    }
}

fn removed(reply: Result<OpReply, ErrorCode>) -> Result<Attr, ErrorCode> {
    match reply? {
        OpReply::Removed { object, .. } => Ok(object),
        other => panic!("{other:?}"),
    }
}
