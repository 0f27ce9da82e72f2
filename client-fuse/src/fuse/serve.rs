//! Running the answer to one request.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};

use async_task::Runnable;
use tokio::runtime::Handle;

/// Runs `answer`, which holds the request's reply: here and now as far as it gets without waiting, and then wherever it
/// is woken. What is cached is so answered by the thread that read the request; and what waited for the server, by the
/// thread that took the server's answer. No other has to wake up.
///
/// A panic ends that request alone: its reply is dropped, which answers EIO.
pub(super) fn serve(tokio: &Handle, answer: impl Future<Output = ()> + Send + 'static) {
    let _inside = tokio.enter();
    let executor = tokio.clone();
    // A task spawned by a worker thread is the next that this worker runs.
    let schedule = move |woken: Runnable| {
        drop(executor.spawn(async move {
            let _ = woken.run();
        }))
    };
    let (first, task) = async_task::spawn(answer, schedule);
    task.detach();
    // Nothing that the future touched is looked at again after a panic: it is dropped whole.
    if catch_unwind(AssertUnwindSafe(|| first.run())).is_err() {
        tracing::error!("a request met a defect and was answered with EIO; the panic is reported above");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    struct AnsweredWhenDropped(Arc<AtomicBool>);

    impl Drop for AnsweredWhenDropped {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn what_need_not_wait_is_done_at_once_by_the_caller() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        serve(runtime.handle(), async move {
            sender.send(std::thread::current().id()).unwrap();
        });
        assert_eq!(receiver.try_recv().unwrap(), std::thread::current().id());
    }

    #[test]
    fn what_waits_goes_on_as_a_task() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
        let (go, wait) = oneshot::channel::<u32>();
        let (done, result) = std::sync::mpsc::channel();
        serve(runtime.handle(), async move {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            done.send(wait.await.unwrap()).unwrap();
        });
        assert!(result.try_recv().is_err());
        go.send(7).unwrap();
        assert_eq!(result.recv_timeout(std::time::Duration::from_secs(10)).unwrap(), 7);
    }

    #[test]
    fn a_panic_drops_the_reply_and_nothing_else() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let answered = Arc::new(AtomicBool::new(false));
        let reply = AnsweredWhenDropped(Arc::clone(&answered));
        serve(runtime.handle(), async move {
            let _reply = reply;
            panic!("on purpose");
        });
        assert!(answered.load(Ordering::SeqCst));
    }
}
