//! A program: opens, reads, writes and closes files, and makes, moves and removes names.

mod names;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_client::vfs::{Entry, Error, LookupResult, ROOT, Vfs};
use larder_protocol::attr::{Credential, SetAttr};
use larder_protocol::error::ErrorCode;
use rand::Rng;
use rand::rngs::SmallRng;
use rustix::fs::OFlags;
use tokio::time::sleep;

use crate::client::Host;
use crate::contents::Value;
use crate::history::{Moment, Ticket};
use crate::{DIRS, FILES};

/// Names in each directory.
const NAMES: usize = 4;
/// Lookups of one open. The kernel makes two at most; here nodes may change as fast as the weather.
const LOOKUPS: u32 = 8;
/// Nodes that the kernel keeps for later.
const KEPT: usize = 12;
/// The size of most reads.
const READ: u32 = 128 << 10;

pub(crate) fn file_name(file: usize) -> String {
    format!("f{file}")
}

fn name(name: usize) -> String {
    format!("n{name}")
}

fn root() -> Credential {
    Credential::root()
}

fn flags(flags: OFlags) -> i32 {
    flags.bits().cast_signed()
}

/// The reply with this is written to the kernel, which a break waits for.
fn written(entry: Entry) -> Entry {
    Entry { pass: None, ..entry }
}

/// One of several programs on a mount.
pub(crate) struct Program {
    vfs: Arc<Vfs>,
    host: Arc<Host>,
    random: SmallRng,
    /// Nodes that were looked up and are not forgotten, as the kernel keeps some.
    known: Vec<u64>,
    dirs: Vec<u64>,
}

impl Program {
    pub(crate) fn new(vfs: Arc<Vfs>, host: Arc<Host>, random: SmallRng) -> Program {
        Program { vfs, host, random, known: Vec::new(), dirs: Vec::new() }
    }

    async fn find_dirs(&mut self) {
        for dir in DIRS {
            let dir = self.ask().lookup(&root(), ROOT, dir.as_bytes()).await;
            let Ok(LookupResult::Found(entry)) = dir else { panic!("a directory: {dir:?}") };
            self.dirs.push(entry.node);
        }
    }

    /// Works until there is nothing left to do.
    pub(crate) async fn work(mut self) {
        self.find_dirs().await;
        while self.host.plan.left.fetch_sub(1, Ordering::Relaxed) > 0 {
            self.think().await;
            let file = self.a_file();
            match self.random.random_range(0..100) {
                0..40 => self.read(file).await,
                40..65 => self.write(file).await,
                65..72 => self.stat_name(file).await,
                72..76 => self.stat_node(file).await,
                _ => self.names().await,
            }
        }
    }

    /// Looks at every file and every name.
    pub(crate) async fn look_around(mut self) {
        self.find_dirs().await;
        for file in 0..FILES {
            self.read(file).await;
            self.stat_node(file).await;
        }
        for dir in 0..DIRS.len() {
            self.list(dir).await;
            for name in 0..NAMES {
                self.lookup((dir, name)).await;
            }
        }
    }

    /// For a request that the kernel would make. (It makes others that nobody waits for, to forget nodes.)
    fn ask(&self) -> &Vfs {
        self.host.plan.requests.fetch_add(1, Ordering::Relaxed);
        &self.vfs
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.random.random_range(0..100) < percent
    }

    /// Some files are used more than others.
    fn a_file(&mut self) -> usize {
        self.random.random_range(0..FILES).min(self.random.random_range(0..FILES))
    }

    async fn think(&mut self) {
        let most = match self.random.random_range(0..100) {
            0..50 => return,
            50..90 => 100,
            90..98 => 1000,
            _ => 6000,
        };
        sleep(Duration::from_millis(self.random.random_range(0..most))).await;
    }

    /// It failed in a way that tells nothing of the file.
    fn failed(&self, what: &str, error: Error) {
        assert_ne!(error, Error::Aborted, "{what}");
        self.host.plan.errors.lock().unwrap().push(format!("{what}: {error}"));
    }

    async fn look(&mut self, parent: u64, name: &str) -> Option<Entry> {
        match self.ask().lookup(&root(), parent, name.as_bytes()).await {
            Ok(LookupResult::Found(entry)) => Some(written(entry)),
            Ok(LookupResult::Missing { .. }) => panic!("{name} is gone"),
            Err(error) => {
                self.failed("a lookup", error);
                None
            }
        }
    }

    /// The kernel is done with a node, or keeps it for a while.
    fn let_go(&mut self, node: u64) {
        self.known.push(node);
        if self.known.len() > KEPT || self.chance(50) {
            let place = self.random.random_range(0..self.known.len());
            self.vfs.forget(self.known.swap_remove(place), 1);
        }
    }

    /// Opens a file by its name: its node and the handle.
    async fn open(&mut self, file: usize, how: OFlags) -> Option<(u64, u64)> {
        for _ in 0..LOOKUPS {
            let entry = self.look(ROOT, &file_name(file)).await?;
            match self.ask().open(&root(), entry.node, flags(how)).await {
                Ok(opened) => return Some((entry.node, opened.handle)),
                Err(Error::Refused(ErrorCode::Stale)) => {
                    self.host.plan.stale.fetch_add(1, Ordering::Relaxed);
                    self.let_go(entry.node);
                }
                Err(error) => {
                    self.failed("an open", error);
                    self.let_go(entry.node);
                    return None;
                }
            }
        }
        self.failed("an open", ErrorCode::Stale.into());
        None
    }

    async fn close(&mut self, node: u64, handle: u64) {
        self.ask().release(handle).await;
        self.let_go(node);
    }

    /// All of an open file.
    async fn whole(&mut self, file: usize, handle: u64) -> Option<Value> {
        let mut data = Vec::new();
        let piece = if self.chance(80) { READ } else { self.random.random_range(1000..300_000) };
        loop {
            match self.ask().read(handle, data.len() as u64, piece).await {
                Ok(more) if more.is_empty() => return Some(Value::of(&data, &file_name(file))),
                Ok(more) => data.extend_from_slice(&more),
                Err(error) => {
                    self.failed("a read", error);
                    return None;
                }
            }
            if self.chance(5) {
                self.think().await;
            }
        }
    }

    /// Opens, reads and closes a file. What it shows was in it while it was opened, and stays so for this handle.
    async fn read(&mut self, file: usize) {
        let host = self.host.clone();
        let _shared = host.files[file].read().await;
        let history = &host.plan.history;
        let began = history.now();
        let Some((node, handle)) = self.open(file, OFlags::RDONLY).await else { return };
        let ended = history.now();
        if self.chance(10) {
            self.think().await;
        }
        if let Some(value) = self.whole(file, handle).await {
            history.read(host.number, file, began, ended, value);
            for _ in 0..if self.chance(20) { 3 } else { 0 } {
                self.linger().await;
                self.read_again(node, handle, value).await;
            }
        }
        self.close(node, handle).await;
    }

    async fn linger(&mut self) {
        let most = if self.chance(80) { 500 } else { 20_000 };
        sleep(Duration::from_millis(self.random.random_range(0..most))).await;
    }

    async fn read_again(&mut self, node: u64, handle: u64, value: Value) {
        let from = self.random.random_range(0..=value.len());
        let most = self.random.random_range(0..100_000);
        match self.ask().read(handle, from.into(), most).await {
            Ok(data) => assert!(data == value.range(from, from + most), "what was opened as {value:?} has changed"),
            Err(error) => self.failed("a read", error),
        }
        match self.ask().getattr(&root(), node, Some(handle)).await {
            Ok(attributes) => {
                let size = attributes.attr.size;
                assert_eq!(size, u64::from(value.len()), "the size of what was opened as {value:?}");
            }
            Err(error) => self.failed("a stat", error),
        }
    }

    fn a_size(&mut self) -> u32 {
        // Small ones go through the same code as larger ones. The others are in the server's metadata or not, sent with
        // the close or before it, fetched at the open or beside it, of one piece or two.
        let from = if self.host.plan.large { 800 } else { 0 };
        match self.random.random_range(from..1000) {
            0..850 => self.random.random_range(100..3000),
            850..950 => self.random.random_range(100..70_000),
            950..990 => self.random.random_range(100..200_000),
            _ => self.random.random_range(900_000..2_500_000),
        }
    }

    /// Opens, writes and closes a file.
    async fn write(&mut self, file: usize) {
        let host = self.host.clone();
        let _alone = host.files[file].write().await;
        let history = &host.plan.history;
        let began = history.now();
        let mut writing = Writing { file, value: Value::EMPTY, ticket: None };
        let opened = if self.chance(70) {
            writing.ticket = Some(history.may_write(host.number, file, Value::EMPTY));
            self.open(file, OFlags::WRONLY | OFlags::TRUNC).await
        } else {
            self.open(file, OFlags::RDWR).await
        };
        let Some((node, handle)) = opened else { return };
        if writing.ticket.is_some() || self.empty_after_reading(file, began, node, handle, &mut writing).await {
            self.write_pieces(handle, &mut writing).await;
            // Nothing tells that a store at the last close has failed but that the file is kept as a conflict.
            let conflicts = |vfs: &Vfs| vfs.disk_cache().map(|cache| cache.usage().conflicts);
            let before = conflicts(&self.vfs);
            let flushes = self.chance(90);
            let storing = writing.stores(&host);
            if flushes && let Err(error) = self.ask().flush(handle).await {
                self.failed("a close", error);
                self.close(node, handle).await;
                return;
            }
            if flushes {
                writing.stored(&host, storing);
                self.close(node, handle).await;
            } else {
                self.close(node, handle).await;
                if conflicts(&self.vfs) == before {
                    writing.stored(&host, storing);
                }
            }
        } else {
            self.close(node, handle).await;
        }
    }

    /// A file that was opened to be read and written is read, and emptied.
    async fn empty_after_reading(
        &mut self,
        file: usize,
        began: Moment,
        node: u64,
        handle: u64,
        writing: &mut Writing,
    ) -> bool {
        let host = self.host.clone();
        let history = &host.plan.history;
        let ended = history.now();
        let Some(value) = self.whole(file, handle).await else { return false };
        history.read(host.number, file, began, ended, value);
        writing.ticket = Some(history.may_write(host.number, file, Value::EMPTY));
        let set = SetAttr { size: Some(0), ..SetAttr::default() };
        match self.ask().setattr(&root(), node, Some(handle), set).await {
            Ok(_) => true,
            Err(error) => {
                self.failed("a truncation", error);
                false
            }
        }
    }

    async fn write_pieces(&mut self, handle: u64, writing: &mut Writing) {
        let host = self.host.clone();
        let history = &host.plan.history;
        let id = history.new_id();
        let pieces = if self.chance(5) { 0 } else { self.random.random_range(1..4) };
        for _ in 0..pieces {
            let before = writing.value;
            let more = (self.a_size() / pieces).max(100);
            let size = history.new_size(writing.file, before.len() + more);
            let after = Value::new(id, size);
            // Until it is written the one or the other may survive a crash.
            let next = history.may_write(host.number, writing.file, after);
            let data = after.range(before.len(), size);
            match self.ask().write(handle, before.len().into(), data).await {
                Ok(written) => assert_eq!(written, size - before.len()),
                Err(error) => {
                    self.failed("a write", error);
                    return;
                }
            }
            writing.becomes(&host, after, next);
            if self.chance(30) {
                self.think().await;
            }
            if self.chance(10) {
                let storing = writing.stores(&host);
                match self.ask().fsync(handle, false).await {
                    Ok(()) => writing.stored(&host, storing),
                    Err(error) => self.failed("a sync", error),
                }
            }
        }
    }

    /// Asks for the size of a file by its name, as the kernel does: what a lookup shows may be for no time.
    async fn stat_name(&mut self, file: usize) {
        let host = self.host.clone();
        let _shared = host.files[file].read().await;
        let began = host.plan.history.now();
        let Some(entry) = self.look(ROOT, &file_name(file)).await else { return };
        if entry.attr_ttl.is_zero() {
            self.stat(file, began, entry.node).await;
        } else {
            host.plan.history.size(host.number, file, began, entry.attr.size as u32);
        }
        self.let_go(entry.node);
    }

    /// Asks for the size of a file that nobody here has open: a node that is open stands for what it was opened at.
    async fn stat_node(&mut self, file: usize) {
        let host = self.host.clone();
        let _alone = host.files[file].write().await;
        let Some(entry) = self.look(ROOT, &file_name(file)).await else { return };
        self.think().await;
        let began = host.plan.history.now();
        self.stat(file, began, entry.node).await;
        self.let_go(entry.node);
    }

    async fn stat(&mut self, file: usize, began: Moment, node: u64) {
        match self.ask().getattr(&root(), node, None).await {
            Ok(attributes) => {
                let host = &self.host;
                host.plan.history.size(host.number, file, began, attributes.attr.size as u32);
            }
            Err(error) => self.failed("a stat", error),
        }
    }
}

/// What a program has made of a file that it has open.
struct Writing {
    file: usize,
    value: Value,
    /// For what may be stored if this machine's process ends now; `None` if there is nothing to store.
    ticket: Option<Ticket>,
}

impl Writing {
    /// It was written to.
    fn becomes(&mut self, host: &Host, value: Value, ticket: Ticket) {
        self.value = value;
        if let Some(before) = self.ticket.replace(ticket) {
            host.plan.history.not_written(before);
        }
    }

    /// It is going to be stored, if there is anything to store: not before now.
    fn stores(&mut self, host: &Host) -> Option<Ticket> {
        let before = self.ticket.take()?;
        host.plan.history.not_written(before);
        Some(host.plan.history.may_write(host.number, self.file, self.value))
    }

    /// It was.
    fn stored(&mut self, host: &Host, ticket: Option<Ticket>) {
        if let Some(ticket) = ticket {
            host.plan.history.written(ticket);
        }
    }
}
