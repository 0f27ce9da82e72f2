//! What goes on without being asked: sending old data, letting go of orphans, looking after data when the server was
//! restarted.

use std::sync::Arc;
use std::time::Duration;

use larder_protocol::attr::Credential;
use larder_protocol::limits::MAX_FORGET;
use larder_protocol::service::file::Op;

use super::Vfs;

/// How often there is a look at the age of data, while there is any. Orphans are let go in batches of this length too.
const TICK: Duration = Duration::from_secs(1);

/// Starts the task. It ends with the mount.
pub(super) fn start(vfs: &Arc<Vfs>) {
    let (weak, runtime, wake) = (Arc::downgrade(vfs), vfs.runtime.clone(), vfs.wake.clone());
    let client = vfs.client.clone();
    let letting_go = Arc::new(tokio::sync::Mutex::new(()));
    let task = async move {
        let shared = client.shared();
        loop {
            let Some(vfs) = weak.upgrade() else { return };
            let idle = !vfs.unsent.any() && !vfs.removals.has_forgets();
            drop(vfs);
            let restarted = tokio::select! {
                // The rare ones first; none of them is ready again at once.
                biased;
                () = shared.aborted.cancelled() => return,
                () = shared.new_epoch.notified() => true,
                () = wake.notified(), if idle => false,
                () = runtime.sleep(TICK), if !idle => false,
            };
            let Some(vfs) = weak.upgrade() else { return };
            if restarted {
                vfs.removals.try_again();
                vfs.check_sent();
            } else if !idle {
                vfs.send_old();
                // The server may be away for long, and age goes on meanwhile. One at a time suffices.
                if let Ok(turn) = letting_go.clone().try_lock_owned() {
                    vfs.runtime.clone().spawn(Box::pin(async move {
                        vfs.let_go().await;
                        drop(turn);
                    }));
                }
            }
        }
    };
    vfs.runtime.spawn(Box::pin(task));
}

impl Vfs {
    /// Tells the server which orphans it need not keep. What fails is tried again with the server's
    /// next process, and freed at the latest when the client leaves.
    async fn let_go(&self) {
        loop {
            let mut fids = self.removals.take_forgets(MAX_FORGET);
            if fids.is_empty() {
                return;
            }
            // One that is being opened after all is let go when it is closed.
            fids.retain(|fid| !self.nodes.keep(*fid));
            if fids.is_empty() {
                continue;
            }
            if let Err(error) = self.client.mutate(&Credential::root(), Op::Forget { fids: fids.clone() }).await {
                tracing::debug!("orphans could not be let go: {error:?}");
                self.removals.refused(fids);
                return;
            }
        }
    }
}
