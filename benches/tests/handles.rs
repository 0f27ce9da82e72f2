//! What a file handle names, asked over the protocol without a mount.
#![allow(clippy::unwrap_used, reason = "a failed call fails the test")]

use std::path::Path;
use std::process::Command;

use larder_benches::process::{run, scratch};
use larder_benches::raw::Raw;
use larder_benches::server::Server;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Fid, VolumeId};
use larder_protocol::name::Name;
use larder_protocol::service::file::{Op, OpReply, Query, QueryReply};

fn on_a_server<T>(server: &Server, work: impl AsyncFnOnce(&mut Raw) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { work(&mut Raw::connect(server.address()).await.unwrap()).await })
}

async fn is_stale(raw: &Raw, fid: Fid) {
    for query in [
        Query::Getattr { fid },
        Query::Read { fid, offset: 0, len: 100, touch: false },
        Query::Getxattr { fid, name: "user.x".into() },
    ] {
        assert_eq!(raw.query(query.clone()).await.unwrap(), Err(ErrorCode::Stale), "{query:?}");
    }
}

fn copy(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to)).unwrap();
}

#[test]
fn the_handle_of_a_removed_file_is_stale_also_after_a_restart() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "power").unwrap();
    let fid = on_a_server(&server, async |raw| {
        let fid = raw.create(raw.root, b"file").await.unwrap().fid;
        raw.append(fid, b"secret").await.unwrap();
        raw.remove(raw.root, b"file").await.unwrap();
        is_stale(raw, fid).await;
        // The same name again is another file.
        assert_ne!(raw.create(raw.root, b"file").await.unwrap().fid, fid);
        is_stale(raw, fid).await;
        fid
    });
    for end in [Server::stop, Server::kill] {
        end(&mut server).unwrap();
        server.restart().unwrap();
        on_a_server(&server, async |raw| is_stale(raw, fid).await);
    }
    server.check().unwrap();
}

#[test]
fn a_handle_from_the_future_of_a_restored_volume_is_stale() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "power").unwrap();
    let kept = on_a_server(&server, async |raw| raw.create(raw.root, b"kept").await.unwrap().fid);
    server.stop().unwrap();
    let backup = dir.path().join("backup");
    copy(server.store(), &backup);

    server.restart().unwrap();
    let lost = on_a_server(&server, async |raw| {
        let fid = raw.create(raw.root, b"lost").await.unwrap().fid;
        raw.append(fid, b"of the first history").await.unwrap();
        fid
    });
    server.stop().unwrap();
    std::fs::remove_dir_all(server.store()).unwrap();
    copy(&backup, server.store());

    server.restart().unwrap();
    on_a_server(&server, async |raw| {
        is_stale(raw, lost).await;
        // Give vnode numbers out until the lost file's comes round again.
        let mut again = None;
        for i in 0..1000 {
            let fid = raw.create(raw.root, format!("new-{i}").as_bytes()).await.unwrap().fid;
            raw.append(fid, b"of the second history").await.unwrap();
            if fid.vnode == lost.vnode {
                again = Some(fid);
            }
            if fid.vnode >= lost.vnode {
                break;
            }
        }
        if let Some(again) = again {
            assert_ne!(again.generation, lost.generation, "two files must not share a handle");
        }
        is_stale(raw, lost).await;
        assert!(matches!(raw.query(Query::Getattr { fid: kept }).await.unwrap(), Ok(QueryReply::Attr(_))));
    });
    server.check().unwrap();
}

#[test]
fn forged_handles_name_nothing() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "process").unwrap();
    on_a_server(&server, async |raw| {
        let fid = raw.create(raw.root, b"file").await.unwrap().fid;
        for forged in [
            Fid { vnode: 0, ..fid },
            Fid { vnode: u64::MAX, ..fid },
            Fid { vnode: fid.vnode + 1, ..fid },
            Fid { generation: fid.generation + 1, ..fid },
            Fid { generation: 0, ..fid },
        ] {
            is_stale(raw, forged).await;
        }
        for volume in [0, 2, u32::MAX] {
            let forged = Fid { volume: VolumeId(volume), ..fid };
            let answer = raw.query(Query::Getattr { fid: forged }).await.unwrap();
            assert!(matches!(answer, Err(ErrorCode::NoSuchVolume | ErrorCode::Stale)), "{answer:?}");
        }
        // The server has taken no harm.
        assert!(matches!(raw.query(Query::Getattr { fid }).await.unwrap(), Ok(QueryReply::Attr(_))));
    });
    server.check().unwrap();
}

#[test]
fn a_repeated_mutation_is_answered_from_its_slot_also_after_a_crash() {
    let dir = scratch().unwrap();
    let mut server = Server::start(dir.path(), "power").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut raw = Raw::connect(server.address()).await.unwrap();
        let op = Op::Mkdir { dir: raw.root, name: Name::new(b"once").unwrap(), mode: 0o755, umask: 0 };
        let first = raw.mutate(op.clone()).await.unwrap().unwrap();
        let id = raw.last_id();
        let again = raw.repeat(id, op.clone()).await.unwrap().unwrap();
        assert_eq!(again.reply, first, "the recorded result");

        server.kill().unwrap();
        server.restart().unwrap();
        raw.reconnect(server.address()).await.unwrap();
        let after = raw.repeat(id, op).await.unwrap().unwrap();
        assert_eq!(after.reply, first, "the recorded result, after a crash");
        assert!(matches!(first, OpReply::Entry { created: true, .. }));
        raw.mkdir(raw.root, b"next").await.unwrap();
        let stale = Op::Mkdir { dir: raw.root, name: Name::new(b"late").unwrap(), mode: 0o755, umask: 0 };
        assert_eq!(raw.repeat(id, stale).await.unwrap(), Err(ErrorCode::BadSequence), "behind the slot's last");
    });
    assert_eq!(server.stats().unwrap().replayed, 1);
    server.check().unwrap();
}
