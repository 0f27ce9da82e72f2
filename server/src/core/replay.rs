//! Replay slots: how a volume recognises the retry of a mutation.
//!
//! Rules, cited by the tests:
//!
//! - **R1** A sequence number above the slot's last one is a new operation. It need not be the next one: an operation
//!   that failed is recorded in memory only, so a crash can leave a gap; and since a client never has two operations
//!   outstanding in one slot, a higher number cannot overtake a lower one.
//! - **R2** The last number again gets the recorded result, or joins the operation if it still runs.
//! - **R3** A number below the last one is out of order, and so are number 0 and a slot past [`MAX_SLOTS`].
//! - **R4** A higher incarnation retires what lower ones left in their slots; a lower one is fenced. An operation of a
//!   lower incarnation that still runs is not recorded when it finishes. (That none runs any more when its successor
//!   is served is for the sessions to ensure, see [`net::sessions`](crate::net::sessions).)
//! - **R5** The first operation of an incarnation in a volume has the number 1. With a higher one the client relies on
//!   records that the volume does not have, because it was forgotten or the volume was put back to an older copy.
//!   So the volume must write a durable record of the client with its first mutation, whatever that one's result.

use std::collections::BTreeMap;

use larder_protocol::error::ErrorCode;
use larder_protocol::failpoint::Planted;
use larder_protocol::ids::{ClientId, OpId};
use larder_protocol::limits::MAX_SLOTS;

/// What to do with a mutation that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission<T> {
    /// It is new: run it, then tell [`Replay::finish`].
    Run,
    /// It was run: answer this.
    Replay(Result<T, ErrorCode>),
    /// It is running: answer what that run answers.
    Join,
    /// Its number is out of order.
    BadSequence,
    /// Its client's records are gone.
    UnknownClient,
    /// A newer incarnation of its client has been here.
    Fenced,
}

/// The replay slots of all clients of one volume. `T` is the result of a mutation that succeeded.
#[derive(Clone, Debug)]
pub struct Replay<T> {
    clients: BTreeMap<ClientId, Client<T>>,
}

#[derive(Clone, Debug)]
struct Client<T> {
    incarnation: u64,
    slots: BTreeMap<u32, Slot<T>>,
}

/// The last operation of a slot; without a result while it runs.
#[derive(Clone, Debug)]
struct Slot<T> {
    seq: u64,
    result: Option<Result<T, ErrorCode>>,
}

impl<T> Default for Replay<T> {
    fn default() -> Replay<T> {
        Replay { clients: BTreeMap::new() }
    }
}

impl<T: Clone> Replay<T> {
    /// Takes in a durable record of a client. Records of clients come before those of slots.
    pub fn load_client(&mut self, client: ClientId, incarnation: u64) {
        self.clients.insert(client, Client { incarnation, slots: BTreeMap::new() });
    }

    /// Takes in a durable record of a slot's last operation. One that an incarnation other than its client's latest
    /// left behind is ignored.
    pub fn load_slot(&mut self, id: OpId, result: Result<T, ErrorCode>) {
        if let Some(client) = self.clients.get_mut(&id.client)
            && client.incarnation == id.incarnation
        {
            client.slots.insert(id.slot, Slot { seq: id.seq, result: Some(result) });
        }
    }

    /// The latest incarnation of a client that has records here.
    pub fn incarnation(&self, client: ClientId) -> Option<u64> {
        self.clients.get(&client).map(|client| client.incarnation)
    }

    /// Decides about a mutation. After [`Admission::Run`] the operation counts as running until
    /// [`finish`](Replay::finish).
    pub fn admit(&mut self, id: OpId) -> Admission<T> {
        let known = self.incarnation(id.client);
        if known.is_some_and(|known| id.incarnation < known) {
            return Admission::Fenced;
        }
        if id.seq == 0 || id.slot >= MAX_SLOTS {
            return Admission::BadSequence;
        }
        if known != Some(id.incarnation) {
            if id.seq > 1 {
                return Admission::UnknownClient;
            }
            self.clients.insert(id.client, Client { incarnation: id.incarnation, slots: BTreeMap::new() });
        }
        let Some(client) = self.clients.get_mut(&id.client) else {
            return Admission::UnknownClient;
        };
        match client.slots.get(&id.slot) {
            Some(slot) if id.seq < slot.seq => Admission::BadSequence,
            Some(slot) if id.seq == slot.seq => match &slot.result {
                Some(result) => Admission::Replay(result.clone()),
                None => Admission::Join,
            },
            _ => {
                client.slots.insert(id.slot, Slot { seq: id.seq, result: None });
                Admission::Run
            }
        }
    }

    /// Records the result of an operation that was admitted to run. Returns whether it is kept: not if its client has
    /// a newer incarnation by now, or was forgotten.
    pub fn finish(&mut self, id: OpId, result: Result<T, ErrorCode>) -> bool {
        let slot = self
            .clients
            .get_mut(&id.client)
            .filter(|client| client.incarnation == id.incarnation)
            .and_then(|client| client.slots.get_mut(&id.slot))
            .filter(|slot| slot.seq == id.seq && slot.result.is_none());
        match slot {
            Some(slot) if Planted::ForgetSlot.is_on() => {
                // As if nothing of it had been run.
                slot.seq -= 1;
                true
            }
            Some(slot) => {
                slot.result = Some(result);
                true
            }
            None => false,
        }
    }

    /// Drops the records of a client, or only those of incarnations below `below`. Returns whether there were any.
    pub fn forget(&mut self, client: ClientId, below: Option<u64>) -> bool {
        let gone = |record: &Client<T>| below.is_none_or(|below| record.incarnation < below);
        if self.clients.get(&client).is_some_and(gone) { self.clients.remove(&client).is_some() } else { false }
    }

    /// Number of clients with records.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLIENT: ClientId = ClientId(7);

    fn id(incarnation: u64, slot: u32, seq: u64) -> OpId {
        OpId { client: CLIENT, incarnation, slot, seq }
    }

    #[test]
    fn r1_a_higher_number_runs_even_after_a_gap() {
        let mut replay = Replay::<u32>::default();
        assert_eq!(replay.admit(id(1, 0, 1)), Admission::Run);
        assert!(replay.finish(id(1, 0, 1), Ok(10)));
        assert_eq!(replay.admit(id(1, 0, 2)), Admission::Run);
        assert!(replay.finish(id(1, 0, 2), Err(ErrorCode::Exists)));
        assert_eq!(replay.admit(id(1, 0, 9)), Admission::Run);
    }

    #[test]
    fn r2_the_last_number_joins_while_it_runs_and_is_replayed_after() {
        let mut replay = Replay::<u32>::default();
        assert_eq!(replay.admit(id(1, 3, 1)), Admission::Run);
        assert_eq!(replay.admit(id(1, 3, 1)), Admission::Join);
        assert!(replay.finish(id(1, 3, 1), Ok(10)));
        assert_eq!(replay.admit(id(1, 3, 1)), Admission::Replay(Ok(10)));
        assert_eq!(replay.admit(id(1, 3, 2)), Admission::Run);
        assert!(replay.finish(id(1, 3, 2), Err(ErrorCode::NotEmpty)));
        assert_eq!(replay.admit(id(1, 3, 2)), Admission::Replay(Err(ErrorCode::NotEmpty)));
    }

    #[test]
    fn r3_numbers_and_slots_out_of_order_are_refused() {
        let mut replay = Replay::<u32>::default();
        assert_eq!(replay.admit(id(1, 0, 1)), Admission::Run);
        assert_eq!(replay.admit(id(1, 0, 5)), Admission::Run);
        assert_eq!(replay.admit(id(1, 0, 4)), Admission::BadSequence);
        assert_eq!(replay.admit(id(1, 1, 0)), Admission::BadSequence);
        assert_eq!(replay.admit(id(1, MAX_SLOTS, 1)), Admission::BadSequence);
        assert_eq!(replay.admit(id(1, MAX_SLOTS - 1, 1)), Admission::Run);
    }

    #[test]
    fn r4_incarnations_replace_each_other_in_one_direction() {
        let mut replay = Replay::<u32>::default();
        assert_eq!(replay.admit(id(5, 0, 1)), Admission::Run);
        assert_eq!(replay.admit(id(6, 1, 1)), Admission::Run);
        assert_eq!(replay.admit(id(5, 0, 1)), Admission::Fenced);
        assert!(!replay.finish(id(5, 0, 1), Ok(1)), "a result of the old life is dropped");
        assert_eq!(replay.admit(id(6, 0, 1)), Admission::Run, "its slot is free");
        assert_eq!(replay.incarnation(CLIENT), Some(6));
    }

    #[test]
    fn r5_a_client_without_records_begins_at_one() {
        let mut replay = Replay::<u32>::default();
        assert_eq!(replay.admit(id(1, 0, 2)), Admission::UnknownClient);
        assert_eq!(replay.incarnation(CLIENT), None, "a refused operation leaves no record");
        replay.load_client(CLIENT, 1);
        assert_eq!(replay.admit(id(1, 0, 2)), Admission::Run, "its record says that it has begun");
        assert_eq!(replay.admit(id(2, 0, 2)), Admission::UnknownClient);
        assert_eq!(replay.incarnation(CLIENT), Some(1), "nor does it retire an older life");
    }

    #[test]
    fn durable_records_of_older_lives_are_not_loaded() {
        let mut replay = Replay::<u32>::default();
        replay.load_client(CLIENT, 2);
        replay.load_slot(id(1, 0, 4), Ok(1));
        replay.load_slot(id(2, 1, 3), Ok(2));
        assert_eq!(replay.admit(id(2, 0, 1)), Admission::Run);
        assert_eq!(replay.admit(id(2, 1, 3)), Admission::Replay(Ok(2)));
    }

    #[test]
    fn forgetting_can_spare_the_latest_life() {
        let mut replay = Replay::<u32>::default();
        assert_eq!(replay.admit(id(3, 0, 1)), Admission::Run);
        assert!(!replay.forget(CLIENT, Some(3)));
        assert!(replay.forget(CLIENT, Some(4)));
        assert!(!replay.finish(id(3, 0, 1), Ok(1)));
        assert_eq!(replay.admit(id(3, 0, 2)), Admission::UnknownClient);
        assert_eq!(replay.clients(), 0);
    }

    /// What a volume's history may look like from outside.
    #[derive(Clone, Debug)]
    enum Event {
        Admit {
            client: u128,
            incarnation: u64,
            slot: u32,
            seq: u64,
        },
        /// Finishes the running operation with this index.
        Finish {
            which: usize,
            ok: bool,
        },
        /// Restarts from what is durable: clients, and operations that succeeded.
        Crash,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let event = prop_oneof![
            6 => (0u128..2, 1u64..4, 0u32..3, 0u64..5)
                .prop_map(|(client, incarnation, slot, seq)| Event::Admit { client, incarnation, slot, seq }),
            5 => (any::<usize>(), any::<bool>()).prop_map(|(which, ok)| Event::Finish { which, ok }),
            1 => Just(Event::Crash),
        ];
        prop::collection::vec(event, 0..80)
    }

    proptest! {
        /// Against a model of what is in memory and what is durable: nothing recorded as succeeded runs twice, what
        /// was recorded is what comes back, and only retries are refused.
        #[test]
        fn histories_match_a_model(events in events()) {
            let mut replay = Replay::<usize>::default();
            let mut running: Vec<OpId> = Vec::new();
            let mut memory = Model::default();
            let mut durable = Model::default();
            let mut succeeded = std::collections::BTreeSet::new();
            for (step, event) in events.into_iter().enumerate() {
                match event {
                    Event::Admit { client, incarnation, slot, seq } => {
                        let id = OpId { client: ClientId(client), incarnation, slot, seq };
                        let expected = memory.expect(id);
                        let got = replay.admit(id);
                        prop_assert_eq!(&got, &expected, "{:?}", id);
                        if got == Admission::Run {
                            prop_assert!(!succeeded.contains(&id), "{:?} ran twice", id);
                            memory.record(id, None);
                            running.push(id);
                        }
                    }
                    Event::Finish { which, ok } => {
                        if running.is_empty() {
                            continue;
                        }
                        let id = running.remove(which % running.len());
                        let result = if ok { Ok(step) } else { Err(ErrorCode::NotFound) };
                        let kept = memory.expect(id) == Admission::Join;
                        prop_assert_eq!(replay.finish(id, result), kept, "{:?}", id);
                        if kept {
                            memory.record(id, Some(result));
                            durable.begin(id);
                            if ok {
                                durable.record(id, Some(result));
                                succeeded.insert(id);
                            }
                        }
                    }
                    Event::Crash => {
                        running.clear();
                        memory = durable.clone();
                        replay = Replay::default();
                        for (client, incarnation) in &durable.lives {
                            replay.load_client(*client, *incarnation);
                        }
                        for (id, result) in durable.slots.values() {
                            replay.load_slot(*id, result.expect("only finished operations are durable"));
                        }
                    }
                }
            }
        }
    }

    type Outcome = Option<Result<usize, ErrorCode>>;

    /// The rules, written down flat: each client's latest life, and each slot's last operation.
    #[derive(Clone, Default)]
    struct Model {
        lives: BTreeMap<ClientId, u64>,
        slots: BTreeMap<(ClientId, u32), (OpId, Outcome)>,
    }

    impl Model {
        fn expect(&self, id: OpId) -> Admission<usize> {
            let life = self.lives.get(&id.client).copied().unwrap_or(0);
            let last = self.slots.get(&(id.client, id.slot));
            match last.map_or(0, |(last, _)| last.seq) {
                _ if id.incarnation < life => Admission::Fenced,
                _ if id.seq == 0 => Admission::BadSequence,
                _ if id.incarnation > life && id.seq == 1 => Admission::Run,
                _ if id.incarnation > life => Admission::UnknownClient,
                last if id.seq < last => Admission::BadSequence,
                last if id.seq > last => Admission::Run,
                _ => match last.and_then(|(_, outcome)| *outcome) {
                    Some(result) => Admission::Replay(result),
                    None => Admission::Join,
                },
            }
        }

        fn begin(&mut self, id: OpId) {
            if self.lives.insert(id.client, id.incarnation) != Some(id.incarnation) {
                self.slots.retain(|(client, _), _| *client != id.client);
            }
        }

        fn record(&mut self, id: OpId, outcome: Outcome) {
            self.begin(id);
            self.slots.insert((id.client, id.slot), (id, outcome));
        }
    }
}
