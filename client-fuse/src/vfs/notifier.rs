//! Telling the kernel. Where that may block until a request is answered, a thread of its own does it, because a task
//! that answers requests must not.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use larder_protocol::name::Name;
use parking_lot::{Condvar, Mutex};

use super::Kernel;

/// What is to be told, each node once.
#[derive(Default)]
pub(super) struct Notifier {
    queue: Arc<Queue>,
    kernel: OnceLock<Arc<dyn Kernel>>,
}

#[derive(Default)]
struct Queue {
    pending: Mutex<Pending>,
    filled: Condvar,
}

#[derive(Default)]
struct Pending {
    data: BTreeSet<u64>,
    /// By the number of their directory.
    names: BTreeSet<(u64, Name)>,
    running: bool,
    ended: bool,
}

impl Notifier {
    /// Starts the thread. A second kernel is not listened to.
    pub(super) fn start(&self, kernel: Arc<dyn Kernel>) -> std::io::Result<()> {
        if std::mem::replace(&mut self.queue.pending.lock().running, true) {
            return Ok(());
        }
        let (queue, listener) = (self.queue.clone(), kernel.clone());
        std::thread::Builder::new().name("larder-notify".to_owned()).spawn(move || queue.run(&*listener))?;
        // Only the first start comes here.
        let _ = self.kernel.set(kernel);
        Ok(())
    }

    /// A file's pages are no longer good.
    pub(super) fn inval_data(&self, node: u64) {
        let mut pending = self.queue.pending.lock();
        if pending.running && pending.data.insert(node) {
            self.queue.filled.notify_one();
        }
    }

    /// A name of a directory is to be looked up again.
    pub(super) fn inval_name(&self, dir: u64, name: &Name) {
        let mut pending = self.queue.pending.lock();
        if pending.running && pending.names.insert((dir, name.clone())) {
            self.queue.filled.notify_one();
        }
    }

    /// A file's attributes are no longer good. The kernel knows when this returns, unless it does not know the file
    /// yet: then false.
    pub(super) fn expire_attrs(&self, node: u64) -> bool {
        self.kernel.get().is_none_or(|kernel| kernel.expire_attrs(node))
    }

    /// Every name is to be looked up again before it is used. The kernel knows when this returns; false if it cannot.
    pub(super) fn expire_names(&self) -> bool {
        self.kernel.get().is_none_or(|kernel| kernel.expire_names())
    }

    /// Ends the thread after what it is doing.
    pub(super) fn stop(&self) {
        self.queue.pending.lock().ended = true;
        self.queue.filled.notify_all();
    }
}

impl Queue {
    fn run(&self, kernel: &dyn Kernel) {
        loop {
            let (data, name) = {
                let mut pending = self.pending.lock();
                loop {
                    if pending.ended {
                        return;
                    }
                    let next = (pending.data.pop_first(), pending.names.pop_first());
                    if next != (None, None) {
                        break next;
                    }
                    self.filled.wait(&mut pending);
                }
            };
            if let Some(node) = data {
                kernel.inval_data(node);
            }
            if let Some((dir, name)) = name {
                kernel.inval_name(dir, &name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    struct Told(Mutex<mpsc::Sender<u64>>);

    impl Kernel for Told {
        fn inval_data(&self, node: u64) {
            self.0.lock().send(node).expect("the test listens");
        }

        fn inval_name(&self, dir: u64, name: &Name) {
            self.0.lock().send(10_000 + dir + name.as_bytes().len() as u64).expect("the test listens");
        }

        fn expire_attrs(&self, node: u64) -> bool {
            self.0.lock().send(1000 + node).expect("the test listens");
            true
        }

        fn expire_names(&self) -> bool {
            false
        }
    }

    #[test]
    fn the_kernel_is_told_from_another_thread_until_the_end() {
        let notifier = Notifier::default();
        notifier.inval_data(1);
        let (tell, told) = mpsc::channel();
        notifier.start(Arc::new(Told(Mutex::new(tell)))).unwrap();
        notifier.inval_data(7);
        assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(7), "what came before there was a kernel is moot");
        notifier.inval_name(4, &Name::new(b"abc").unwrap());
        assert_eq!(told.recv_timeout(Duration::from_secs(5)), Ok(10_007));
        notifier.expire_attrs(8);
        assert_eq!(told.try_recv(), Ok(1008), "without the thread");
        notifier.stop();
        drop(notifier);
        assert_eq!(
            told.recv_timeout(Duration::from_secs(5)),
            Err(mpsc::RecvTimeoutError::Disconnected),
            "the thread and its sender are gone"
        );
    }
}
