//! What goes on without being asked: sending old data, letting go of orphans, looking after data when the server was
//! restarted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_protocol::attr::Credential;
use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{Epoch, Fid, VolumeId};
use larder_protocol::limits::MAX_FORGET;
use larder_protocol::runtime::BootTime;
use larder_protocol::service::file::Op;

use super::{Error, Vfs};
use crate::rpc::{Client, Failure};

/// How often there is a look at the age of data, while there is any. Orphans are let go in batches of this length too.
const TICK: Duration = Duration::from_secs(1);

/// How long until the server is asked again to forget what it failed to forget, at first and at most; it doubles each time.
/// Once the server was restarted it is asked at once.
const AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What comes next.
enum Next {
    /// The server was restarted.
    Restarted,
    /// The server is to be told again what it failed to do.
    Again,
    /// There may be something to do.
    Look,
    /// There is something to do, and it is time.
    Send,
}

/// Starts the task. It ends with the mount.
pub(super) fn start(vfs: &Arc<Vfs>) {
    let (weak, runtime, wake) = (Arc::downgrade(vfs), vfs.runtime.clone(), vfs.wake.clone());
    let servers = vfs.servers.clone();
    let task = async move {
        let (aborted, new_epoch) = servers.with_shared(|shared| (shared.aborted.clone(), shared.new_epoch.clone()));
        // What was last seen of each server.
        let mut epochs: BTreeMap<u32, Epoch> = BTreeMap::new();
        let (mut again, mut pause, succeeded) = (None, AGAIN.0, Arc::new(AtomicBool::new(false)));
        loop {
            let Some(vfs) = weak.upgrade() else { return };
            let idle = !vfs.unsent.any() && !vfs.removals.has_forgets();
            let now = runtime.boottime();
            if succeeded.swap(false, Ordering::Relaxed) {
                pause = AGAIN.0;
            }
            if vfs.removals.has_refused() {
                again.get_or_insert_with(|| {
                    let at = now + pause;
                    pause = AGAIN.1.min(pause * 2);
                    at
                });
            } else {
                again = None;
            }
            drop(vfs);
            let left = again.map_or(Duration::ZERO, |at: BootTime| at.saturating_sub(now));
            let next = tokio::select! {
                // The rare ones first; none of them is ready again at once.
                biased;
                () = aborted.cancelled() => return,
                () = new_epoch.notified() => Next::Restarted,
                () = runtime.sleep(left), if again.is_some() => Next::Again,
                () = wake.notified(), if idle => Next::Look,
                () = runtime.sleep(TICK), if !idle => Next::Send,
            };
            let Some(vfs) = weak.upgrade() else { return };
            match next {
                Next::Restarted => {
                    let is_new = |client: &&Arc<Client>| {
                        let epoch = client.shared().epoch();
                        epoch.is_some_and(|epoch| epochs.insert(client.number(), epoch) != Some(epoch))
                    };
                    let restarted: BTreeSet<u32> =
                        servers.all().iter().filter(is_new).map(|client| client.number()).collect();
                    vfs.unsure.server_restarted(vfs.runtime.boottime(), |dir| {
                        servers.known(dir.volume).is_some_and(|client| restarted.contains(&client.number()))
                    });
                    vfs.removals.try_again();
                    vfs.check_sent();
                }
                Next::Again => vfs.removals.try_again(),
                Next::Look => {}
                Next::Send => {
                    vfs.send_old();
                    // The server may be away for long, and age goes on meanwhile. One at a time suffices.
                    if let Ok(turn) = vfs.removals.letting_go.clone().try_lock_owned() {
                        let succeeded = succeeded.clone();
                        vfs.runtime.clone().spawn(Box::pin(async move {
                            if vfs.let_go().await && !vfs.removals.has_refused() {
                                succeeded.store(true, Ordering::Relaxed);
                            }
                            drop(turn);
                            // What was refused has its time from now on.
                            vfs.wake.notify_one();
                        }));
                    }
                }
            }
        }
    };
    vfs.runtime.spawn(Box::pin(task));
}

impl Vfs {
    /// Tells the server which orphans it need not keep, and says whether it forgot some and is to be told of none again. What
    /// fails is tried again later, and freed at the latest when the client leaves.
    async fn let_go(&self) -> bool {
        let (mut took, mut failed) = (false, false);
        while !failed {
            let fids = self.removals.take_forgets(MAX_FORGET);
            if fids.is_empty() {
                break;
            }
            let mut by_volume: BTreeMap<VolumeId, Vec<Fid>> = BTreeMap::new();
            fids.into_iter().for_each(|fid| by_volume.entry(fid.volume).or_default().push(fid));
            for mut fids in by_volume.into_values() {
                // One that is being opened after all is let go when it is closed.
                fids.retain(|fid| !self.nodes.keep(*fid));
                if fids.is_empty() {
                    continue;
                }
                if self.told_to_forget(fids.clone()).await {
                    took = true;
                    continue;
                }
                // One that is damaged must not keep the others.
                for fid in fids {
                    // The one before may have taken long, and this one may have been opened meanwhile.
                    if self.nodes.keep(fid) {
                        continue;
                    }
                    if self.told_to_forget(vec![fid]).await {
                        took = true;
                    } else {
                        self.removals.refused(fid);
                        failed = true;
                    }
                }
            }
        }
        took
    }

    /// Asks for something that takes room, and once more if there was none before this client let go of what it has removed.
    ///
    /// # Errors
    /// The last answer's.
    pub(super) async fn with_room<T, Answer: Future<Output = Result<T, Failure>>>(
        &self,
        ask: impl Fn() -> Answer,
    ) -> Result<T, Error> {
        match ask().await.map_err(Error::from) {
            Err(error) if error.is_full() && self.free_removed().await => Ok(ask().await?),
            answer => answer,
        }
    }

    /// Has the server forget at once what it need not keep any more: it may take the room that is missing. Whether there was
    /// any such thing.
    pub(super) async fn free_removed(&self) -> bool {
        let letting_go = &self.removals.letting_go;
        let (turn, by_another) = match letting_go.try_lock() {
            Ok(turn) => (turn, false),
            Err(_) => (letting_go.lock().await, true),
        };
        let took = self.let_go().await || by_another;
        drop(turn);
        took
    }

    async fn told_to_forget(&self, fids: Vec<Fid>) -> bool {
        match self.servers.mutate(&Credential::root(), Op::Forget { fids }).await {
            // With the volume went all that was in it.
            Ok(_) | Err(Failure::Refused(ErrorCode::NoSuchVolume)) => true,
            Err(error) => {
                tracing::debug!("orphans could not be let go: {error:?}");
                false
            }
        }
    }
}
