//! What a program does with names.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use larder_client::vfs::{DirItem, DirName, Error, LookupResult};
use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::service::file::RenameHow;
use rand::Rng;
use rustix::fs::OFlags;

use super::{NAMES, Program, flags, name, root, written};
use crate::DIRS;
use crate::spec::{Done, NameOp, Place};

impl Program {
    pub(super) async fn names(&mut self) {
        let at: Place = (self.random.random_range(0..DIRS.len()), self.random.random_range(0..NAMES));
        match self.random.random_range(0..25) {
            0..7 => self.create(at).await,
            7..12 => self.unlink(at).await,
            12..17 => self.rename(at).await,
            17..22 => self.lookup(at).await,
            _ => self.list(at.0).await,
        }
    }

    /// What the answer to a change says of the names.
    fn done<T>(&self, result: &Result<T, Error>, no: &[ErrorCode]) -> Done {
        match result {
            Ok(_) => Done::Yes,
            Err(Error::Refused(code)) if no.contains(code) => Done::No,
            Err(error) => {
                self.failed("a change of names", *error);
                Done::Unknown
            }
        }
    }

    /// The object is marked with the number of what makes it, as its owner.
    async fn create(&mut self, at: Place) {
        let host = self.host.clone();
        let history = &host.plan.history;
        let object = history.new_id();
        let cred = Credential { uid: object, gid: object, groups: Vec::new() };
        let ticket = history.may_change(host.number, at.0, NameOp::Create { at, object, done: Done::Unknown });
        let (dir, called) = (self.dirs[at.0], name(at.1));
        let made = if self.chance(50) {
            let how = flags(OFlags::CREATE | OFlags::EXCL | OFlags::RDWR);
            match self.ask().create(&cred, dir, called.as_bytes(), 0o644, 0, how).await {
                Ok((entry, opened)) => {
                    let entry = written(entry);
                    self.ask().release(opened.handle).await;
                    Ok(entry)
                }
                Err(error) => Err(error),
            }
        } else {
            self.ask().mknod(&cred, dir, called.as_bytes(), 0o644, 0, 0).await
        };
        if made.as_ref().is_err_and(|error| *error == ErrorCode::Stale.into()) {
            // It was made, and removed by another client before it was opened.
            host.plan.stale.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let done = self.done(&made, &[ErrorCode::Exists]);
        if done != Done::Unknown {
            history.changed(ticket, NameOp::Create { at, object, done });
        }
        if let Ok(entry) = made {
            assert_eq!(entry.attr.uid, object, "what was made is another's");
            history.is(entry.attr.fid.inode_number(), object);
            self.let_go(entry.node);
        }
    }

    async fn unlink(&mut self, at: Place) {
        let host = self.host.clone();
        let ticket = host.plan.history.may_change(host.number, at.0, NameOp::Unlink { at, done: Done::Unknown });
        let result = self.ask().unlink(&root(), self.dirs[at.0], name(at.1).as_bytes()).await;
        let done = self.done(&result, &[ErrorCode::NotFound]);
        if done != Done::Unknown {
            host.plan.history.changed(ticket, NameOp::Unlink { at, done });
        }
    }

    async fn rename(&mut self, from: Place) {
        let host = self.host.clone();
        // The first directory is by itself; between the other two names are moved.
        let dir = if from.0 == 0 { 0 } else { self.random.random_range(1..DIRS.len()) };
        let to = (dir, self.random.random_range(0..NAMES));
        if to == from {
            return;
        }
        let how = [RenameHow::Replace, RenameHow::NoReplace, RenameHow::Exchange][self.random.random_range(0..3)];
        let op = |done| NameOp::Rename { from, to, how, done };
        let ticket = host.plan.history.may_change(host.number, from.0, op(Done::Unknown));
        let (from_name, to_name) = (name(from.1), name(to.1));
        let (from_dir, to_dir) = (self.dirs[from.0], self.dirs[to.0]);
        let result = self.ask().rename(&root(), from_dir, from_name.as_bytes(), to_dir, to_name.as_bytes(), how).await;
        let done = self.done(&result, &[ErrorCode::NotFound, ErrorCode::Exists]);
        if done != Done::Unknown {
            host.plan.history.changed(ticket, op(done));
        }
    }

    pub(super) async fn lookup(&mut self, at: Place) {
        let host = self.host.clone();
        let history = &host.plan.history;
        let began = history.now();
        match self.ask().lookup(&root(), self.dirs[at.0], name(at.1).as_bytes()).await {
            Ok(LookupResult::Found(entry)) => {
                history.looked_up(host.number, at, began, Some(entry.attr.uid));
                history.is(entry.attr.fid.inode_number(), entry.attr.uid);
                self.let_go(entry.node);
            }
            Ok(LookupResult::Missing { .. }) => history.looked_up(host.number, at, began, None),
            Err(error) => self.failed("a lookup", error),
        }
    }

    pub(super) async fn list(&mut self, dir: usize) {
        let host = self.host.clone();
        let began = host.plan.history.now();
        let plus = self.chance(50);
        let handle = self.ask().opendir(&root(), self.dirs[dir]).await.unwrap();
        let (mut found, mut offset, mut nodes) = (BTreeMap::new(), 0, Vec::new());
        loop {
            let before = offset;
            let mut sink = |item: DirItem| {
                offset = item.offset;
                if let DirName::Entry(name) = &item.name {
                    let text = String::from_utf8_lossy(name.as_bytes()).into_owned();
                    let number: usize = text.strip_prefix('n').and_then(|n| n.parse().ok()).expect("one of the names");
                    let inode = item.entry.as_ref().map_or(item.node, |entry| entry.attr.fid.inode_number());
                    assert!(found.insert(number, inode).is_none(), "{text} is listed twice");
                    nodes.extend(item.entry.map(|entry| entry.node));
                }
                true
            };
            if let Err(error) = self.ask().readdir(handle, before, plus, &mut sink).await {
                self.failed("a listing", error);
                self.ask().releasedir(handle);
                return;
            }
            if offset == before {
                break;
            }
        }
        self.ask().releasedir(handle);
        nodes.into_iter().for_each(|node| self.let_go(node));
        host.plan.history.listed(host.number, dir, began, found);
    }
}
