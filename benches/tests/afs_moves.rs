//! What an afs client knows of a file moves between its table of nodes and what it keeps of files that the kernel has
//! forgotten, while breaks come in: on threads that do run beside each other, which no world in virtual time has.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use larder_benches::process::{SetAtEnd, scratch};
use larder_benches::raw::Raw;
use larder_benches::server::Server;
use larder_benches::size::Size;
use larder_client::rpc::{CHANNELS, TcpConnector};
use larder_client::vfs::{CacheOptions, LookupResult, Mode, MountOptions, Vfs};
use larder_protocol::attr::Credential;
use larder_protocol::runtime::{BusyPoll, SystemRuntime};
use tokio::runtime::{Builder, Runtime};

/// The volume's root directory, as the kernel has it.
const ROOT: u64 = 1;
const FILE: &[u8] = b"file";
/// Threads that look the file up and forget it.
const MOVERS: usize = 2;

fn executor() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// The file's size, as a program sees it that has it looked up; it is forgotten at once.
async fn size(vfs: &Vfs) -> u64 {
    let LookupResult::Found(entry) = vfs.lookup(&Credential::root(), ROOT, FILE).await.unwrap() else {
        panic!("it is not there")
    };
    let size = if entry.attr_ttl.is_zero() {
        // As the kernel does with attributes that are of no use any more.
        vfs.getattr(&Credential::root(), entry.node, None).await.unwrap().attr.size
    } else {
        entry.attr.size
    };
    vfs.forget(entry.node, 1);
    size
}

#[test]
fn no_break_is_missed_while_what_is_known_moves() {
    let appends = Size::get().pick(2_000, 5_000, 200_000) as u64;
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    let (runtime, executors) = SystemRuntime::start("client", CHANNELS, BusyPoll::none()).unwrap();
    let executor = executor();
    let mut raw = executor.block_on(Raw::connect(server.address())).unwrap();
    let root = raw.root;
    let file = executor.block_on(raw.create(root, FILE)).unwrap().fid;
    let cache = CacheOptions {
        dir: dir.path().join("cache"),
        size: 1 << 30,
        passthrough: None,
        keep_open: CacheOptions::KEEP_OPEN,
    };
    let options = MountOptions { mode: Mode::Afs, cache: Some(cache), ..MountOptions::default() };
    let connector = Arc::new(TcpConnector::new(server.address()));
    let vfs = executor.block_on(Vfs::attach(Arc::new(runtime), connector, "root", options)).unwrap();
    let (is_over, moves) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        // Also when something fails.
        let _end = SetAtEnd(&is_over);
        for _ in 0..MOVERS {
            scope.spawn(|| {
                let executor = self::executor();
                while !is_over.load(Ordering::Relaxed) {
                    executor.block_on(size(&vfs));
                    moves.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let late = (1..=appends).find_map(|appended| {
            executor.block_on(raw.append(file, b"x")).unwrap();
            let found = executor.block_on(size(&vfs));
            (found < appended).then_some((found, appended))
        });
        assert_eq!(late, None, "the size that was seen after so many appends");
    });
    println!("{appends} appends, {moves:?} times looked up and forgotten");
    assert!(moves.into_inner() > appends);
    executor.block_on(vfs.shutdown());
    drop(vfs);
    executors.stop(Duration::from_secs(5));
    drop(raw);
    server.check().unwrap();
}
