//! Which channel a request takes.
//!
//! Requests that carry much data take the data channels, so that they hold up no small one. What carries little takes
//! the control channel: requests that follow one another on one connection are served by one thread at either end,
//! which has just done the last one, and that is worth more than the data costs. Once many are on their way there, the
//! others are used too.
//!
//! - **W1** All writes of a file, and what moves its bytes at the server, take one channel: a later one is sent only
//!   after the channel that may still carry an earlier one is fenced.
//! - **W2** A store of the whole file may take any channel. But while one is under way, or was given up and may still be
//!   executed, further ones of that file take its channel, whose next connection fences it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use larder_protocol::ids::Fid;
use larder_protocol::service::file::{NewContents, Op, Query};
use parking_lot::Mutex;

/// Channels for data, beside the one for small requests.
const DATA_CHANNELS: u32 = 2;
/// Channels that carry requests of programs.
pub const CHANNELS: usize = 1 + DATA_CHANNELS as usize;
/// The channel for leases and breaks, which nothing else may hold up.
pub(super) const PROMISES: u32 = CHANNELS as u32;

/// Bytes of file data that take longer to send than another thread takes to wake up.
pub(crate) const MUCH: usize = 64 << 10;
/// Requests on their way on the control channel from which on data takes the others.
const FEW: u32 = 4;

/// What must be known to choose a channel.
#[derive(Default)]
pub(super) struct Routing {
    next_read: AtomicU32,
    /// Stores that may yet be executed: on which channel, and how many (W2).
    stores: Mutex<HashMap<Fid, (u32, u32)>>,
}

/// The way of a mutation, kept until it is certain that it is not executed any more.
pub(super) struct Route {
    pub(super) channel: u32,
    routing: Arc<Routing>,
    /// What is stored.
    fid: Option<Fid>,
}

impl Routing {
    /// The channel of a query, while the control channel carries so many.
    pub(super) fn of_query(&self, query: &Query, on_control: u32) -> u32 {
        match query {
            Query::Read { len, .. } | Query::Fetch { len, .. } if !is_beside(*len as usize, on_control) => {
                // Reads have no order.
                1 + self.next_read.fetch_add(1, Ordering::Relaxed) % DATA_CHANNELS
            }
            _ => 0,
        }
    }

    /// The way of a mutation, while the control channel carries so many.
    pub(super) fn of_op(self: &Arc<Routing>, op: &Op, on_control: u32) -> Route {
        let route = |channel, fid| Route { channel, routing: self.clone(), fid };
        match op {
            Op::Append { fid, .. } | Op::Allocate { fid, .. } | Op::CopyRange { to: fid, .. } => {
                route(of_file(*fid), None)
            }
            Op::Store { fid, contents, .. } => {
                let is_little = match contents {
                    NewContents::Whole(data) => is_beside(data.len(), on_control),
                    NewContents::Staged { .. } => false,
                };
                let mut stores = self.stores.lock();
                let (channel, count) = stores.entry(*fid).or_insert((if is_little { 0 } else { of_file(*fid) }, 0));
                *count += 1;
                route(*channel, Some(*fid))
            }
            _ => route(0, None),
        }
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        let Some(fid) = self.fid else { return };
        let mut stores = self.routing.stores.lock();
        if let Some((_, count)) = stores.get_mut(&fid) {
            *count -= 1;
            if *count == 0 {
                stores.remove(&fid);
            }
        }
    }
}

/// The channel of a file's writes (W1).
pub(super) fn of_file(fid: Fid) -> u32 {
    1 + (fid.vnode % u64::from(DATA_CHANNELS)) as u32
}

/// Whether so many bytes go beside the small requests.
fn is_beside(len: usize, on_control: u32) -> bool {
    len <= MUCH && on_control < FEW
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use larder_protocol::ids::VolumeId;
    use larder_protocol::payload::Payload;

    use super::*;

    const FID: Fid = Fid { volume: VolumeId(1), vnode: 9, generation: 3 };

    fn fetch(len: usize) -> Query {
        Query::Fetch { fid: FID, offset: 0, len: len as u32, version: None, copy: false }
    }

    fn store(len: usize) -> Op {
        Op::Store { fid: FID, contents: NewContents::Whole(Payload(Bytes::from(vec![0; len]))), base: None }
    }

    #[test]
    fn little_data_goes_where_small_requests_go_until_there_are_many() {
        let routing = Arc::new(Routing::default());
        let of_op = |op: &Op, on_control| routing.of_op(op, on_control).channel;
        assert_eq!(routing.of_query(&Query::Getattr { fid: FID }, 1000), 0);
        assert_eq!(routing.of_query(&fetch(MUCH), FEW - 1), 0);
        assert_eq!(of_op(&store(MUCH), FEW - 1), 0);
        assert_eq!(of_op(&store(MUCH), FEW), of_file(FID));
        assert_eq!(of_op(&store(MUCH + 1), 0), of_file(FID));
        assert_eq!(of_op(&Op::Forget { fids: vec![FID] }, 1000), 0);
        let staged = Op::Store { fid: FID, contents: NewContents::Staged { stage: 1, size: 1 }, base: None };
        assert_eq!(of_op(&staged, 0), of_file(FID), "W1");
        let turns = [fetch(MUCH + 1), fetch(MUCH + 1)].map(|query| routing.of_query(&query, 0));
        assert_eq!(turns, [1, 2]);
        assert_ne!(routing.of_query(&fetch(1), FEW), 0);
        assert!(routing.stores.lock().is_empty());
    }

    #[test]
    fn stores_of_one_file_share_a_channel_until_all_are_certain() {
        let routing = Arc::new(Routing::default());
        for (first, on_control) in [(0, 0), (of_file(FID), 100)] {
            let small = routing.of_op(&store(1), on_control);
            let large = routing.of_op(&store(MUCH + 1), on_control);
            assert_eq!([small.channel, large.channel], [first; 2], "W2");
            drop(small);
            assert_eq!(routing.of_op(&store(1), 100 - on_control).channel, first, "W2");
            drop(large);
            assert!(routing.stores.lock().is_empty());
        }
    }
}
