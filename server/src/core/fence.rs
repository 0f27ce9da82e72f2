//! Fencing: which connections speak for a client, and which of them a `hello` ends.
//!
//! Rules, cited by the tests:
//!
//! - **F1** A `hello` of a lower incarnation, or of a lower generation of its channel, than were seen is fenced.
//! - **F2** A higher incarnation supersedes every connection of lower ones; a higher generation supersedes every
//!   connection of lower ones of its channel. They stay superseded until they have ended: whoever comes later waits
//!   for them too.
//! - **F3** The generation seen last is accepted again only on the connection that brought it: a duplicate, not a
//!   second connection.
//! - **F4** A connection speaks for one client, incarnation, channel and generation in its whole life.
//! - **F5** What was seen of a client outlives its connections, for as long as the caller says, so that a late `hello`
//!   cannot bring an older life back.

use std::collections::BTreeMap;

use larder_protocol::ids::ClientId;
use larder_protocol::runtime::BootTime;

/// The number of a connection in this server's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// For whom a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The client.
    pub client: ClientId,
    /// Its life.
    pub incarnation: u64,
    /// Which of its connections.
    pub channel: u32,
    /// How often it has opened this channel.
    pub generation: u64,
}

/// The answer to a `hello`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is accepted, once these connections are drained.
    Accept {
        /// Connections that must neither be read any more nor have handlers that run, in the order of their numbers.
        supersedes: Vec<ConnectionId>,
        /// Whether what lower incarnations left in the volumes may still be there; see [`Fence::settled`].
        unsettled: bool,
    },
    /// A newer incarnation or generation was here before.
    Fenced,
    /// The connection speaks for somebody else already.
    Mismatch,
    /// More clients are connected than there is room for.
    Full,
}

/// What was seen of all clients.
#[derive(Clone, Debug)]
pub struct Fence {
    clients: BTreeMap<ClientId, Client>,
    owners: BTreeMap<ConnectionId, Identity>,
    limit: usize,
}

#[derive(Clone, Debug)]
struct Client {
    incarnation: u64,
    settled: bool,
    generations: BTreeMap<u32, u64>,
    connections: BTreeMap<ConnectionId, Identity>,
    last_seen: BootTime,
}

impl Fence {
    /// Remembers up to `limit` clients; beyond that, those longest without a connection are forgotten.
    pub fn new(limit: usize) -> Fence {
        Fence { clients: BTreeMap::new(), owners: BTreeMap::new(), limit }
    }

    /// Decides about a `hello` on `connection`.
    pub fn hello(&mut self, connection: ConnectionId, identity: Identity, now: BootTime) -> Verdict {
        if self.owners.get(&connection).is_some_and(|owner| *owner != identity) {
            return Verdict::Mismatch;
        }
        let Identity { client: id, incarnation, channel, generation } = identity;
        if !self.clients.contains_key(&id) && !self.make_room() {
            return Verdict::Full;
        }
        let client = self.clients.entry(id).or_insert_with(|| Client {
            incarnation,
            settled: false,
            generations: BTreeMap::new(),
            connections: BTreeMap::new(),
            last_seen: now,
        });
        if incarnation < client.incarnation {
            return Verdict::Fenced;
        }
        if incarnation > client.incarnation {
            client.incarnation = incarnation;
            client.settled = false;
            client.generations.clear();
        }
        match client.generations.get(&channel) {
            Some(seen) if generation < *seen => return Verdict::Fenced,
            Some(seen) if generation == *seen && !client.connections.contains_key(&connection) => {
                return Verdict::Fenced;
            }
            _ => {}
        }
        client.generations.insert(channel, generation);
        client.connections.insert(connection, identity);
        client.last_seen = now;
        self.owners.insert(connection, identity);
        let superseded = |other: &Identity| {
            other.incarnation < incarnation || (other.channel == channel && other.generation < generation)
        };
        let supersedes = client.connections.iter().filter(|(_, other)| superseded(other)).map(|(id, _)| *id).collect();
        Verdict::Accept { supersedes, unsettled: !client.settled }
    }

    /// What incarnations of this client below this one left in the volumes is freed.
    pub fn settled(&mut self, identity: Identity) {
        if let Some(client) = self.clients.get_mut(&identity.client)
            && client.incarnation == identity.incarnation
        {
            client.settled = true;
        }
    }

    /// A client leaves for good: all its connections but this one have to be drained.
    pub fn goodbye(&self, connection: ConnectionId) -> Vec<ConnectionId> {
        let client = self.owners.get(&connection).and_then(|owner| self.clients.get(&owner.client));
        let others = client.into_iter().flat_map(|client| client.connections.keys());
        others.filter(|other| **other != connection).copied().collect()
    }

    /// A connection has ended: it is not read any more, and no handler of it runs.
    pub fn ended(&mut self, connection: ConnectionId, now: BootTime) {
        if let Some(owner) = self.owners.remove(&connection)
            && let Some(client) = self.clients.get_mut(&owner.client)
        {
            client.connections.remove(&connection);
            client.last_seen = now;
        }
    }

    /// Forgets clients that have had no connection since `before`.
    pub fn expire(&mut self, before: BootTime) {
        self.clients.retain(|_, client| !client.connections.is_empty() || client.last_seen >= before);
    }

    /// The clients that have connections, or had one and have not expired.
    pub fn known(&self) -> impl Iterator<Item = ClientId> + '_ {
        self.clients.keys().copied()
    }

    /// The lives of those clients.
    pub fn incarnations(&self) -> impl Iterator<Item = (ClientId, u64)> + '_ {
        self.clients.iter().map(|(id, client)| (*id, client.incarnation))
    }

    /// Whether a client has a connection, or had one since `moment`.
    pub fn is_heard_since(&self, client: ClientId, moment: BootTime) -> bool {
        let known = self.clients.get(&client);
        known.is_some_and(|client| !client.connections.is_empty() || client.last_seen >= moment)
    }

    /// Number of clients that have connections.
    pub fn connected(&self) -> usize {
        self.clients.values().filter(|client| !client.connections.is_empty()).count()
    }

    fn make_room(&mut self) -> bool {
        if self.clients.len() < self.limit {
            return true;
        }
        let idle = self.clients.iter().filter(|(_, client)| client.connections.is_empty());
        let longest = idle.min_by_key(|(id, client)| (client.last_seen, **id)).map(|(id, _)| *id);
        longest.is_some_and(|id| self.clients.remove(&id).is_some())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const NOW: BootTime = Duration::from_secs(100);

    fn who(incarnation: u64, channel: u32, generation: u64) -> Identity {
        Identity { client: ClientId(1), incarnation, channel, generation }
    }

    fn accept(supersedes: &[u64]) -> Verdict {
        Verdict::Accept { supersedes: supersedes.iter().map(|id| ConnectionId(*id)).collect(), unsettled: true }
    }

    fn hello(fence: &mut Fence, connection: u64, identity: Identity) -> Verdict {
        fence.hello(ConnectionId(connection), identity, NOW)
    }

    #[test]
    fn f1_older_lives_and_generations_are_fenced() {
        let mut fence = Fence::new(8);
        assert_eq!(hello(&mut fence, 1, who(2, 0, 5)), accept(&[]));
        assert_eq!(hello(&mut fence, 2, who(1, 1, 9)), Verdict::Fenced);
        assert_eq!(hello(&mut fence, 3, who(2, 0, 4)), Verdict::Fenced);
        assert_eq!(hello(&mut fence, 4, who(2, 1, 1)), accept(&[]), "another channel counts by itself");
    }

    #[test]
    fn f2_newer_ones_supersede_and_wait_for_all_that_have_not_ended() {
        let mut fence = Fence::new(8);
        hello(&mut fence, 1, who(1, 0, 1));
        hello(&mut fence, 2, who(1, 1, 1));
        assert_eq!(hello(&mut fence, 3, who(1, 0, 2)), accept(&[1]));
        assert_eq!(hello(&mut fence, 4, who(1, 0, 3)), accept(&[1, 3]), "1 has not ended yet");
        fence.ended(ConnectionId(1), NOW);
        assert_eq!(hello(&mut fence, 5, who(2, 0, 1)), accept(&[2, 3, 4]));
        assert_eq!(hello(&mut fence, 6, who(2, 1, 1)), accept(&[2, 3, 4]), "and so does the next channel");
    }

    #[test]
    fn f3_a_duplicate_is_accepted_on_its_own_connection_only() {
        let mut fence = Fence::new(8);
        hello(&mut fence, 1, who(1, 0, 1));
        hello(&mut fence, 2, who(1, 0, 2));
        assert_eq!(hello(&mut fence, 2, who(1, 0, 2)), accept(&[1]));
        assert_eq!(hello(&mut fence, 3, who(1, 0, 2)), Verdict::Fenced);
        assert_eq!(hello(&mut fence, 1, who(1, 0, 1)), Verdict::Fenced, "the older one's duplicate comes too late");
    }

    #[test]
    fn f4_a_connection_keeps_its_identity() {
        let mut fence = Fence::new(8);
        hello(&mut fence, 1, who(1, 0, 1));
        assert_eq!(hello(&mut fence, 1, who(1, 0, 2)), Verdict::Mismatch);
        assert_eq!(hello(&mut fence, 1, who(2, 0, 1)), Verdict::Mismatch);
    }

    #[test]
    fn f5_what_was_seen_outlives_connections_until_it_expires() {
        let mut fence = Fence::new(8);
        hello(&mut fence, 1, who(2, 0, 3));
        fence.ended(ConnectionId(1), NOW);
        assert_eq!(fence.connected(), 0);
        assert_eq!(hello(&mut fence, 2, who(2, 0, 3)), Verdict::Fenced);
        fence.expire(NOW);
        assert_eq!(fence.known().collect::<Vec<_>>(), [ClientId(1)]);
        assert_eq!(hello(&mut fence, 3, who(1, 0, 3)), Verdict::Fenced);
        fence.expire(NOW + Duration::from_secs(1));
        assert_eq!(fence.known().count(), 0);
        assert_eq!(hello(&mut fence, 4, who(1, 0, 3)), accept(&[]));
        fence.expire(NOW * 2);
        assert_eq!(fence.connected(), 1, "a connected client does not expire");
    }

    #[test]
    fn room_is_made_by_forgetting_who_was_away_longest() {
        let client = |id| Identity { client: ClientId(id), incarnation: 5, channel: 0, generation: 1 };
        let mut fence = Fence::new(2);
        hello(&mut fence, 1, client(1));
        hello(&mut fence, 2, client(2));
        assert_eq!(hello(&mut fence, 3, client(3)), Verdict::Full);
        fence.ended(ConnectionId(2), NOW);
        assert_eq!(hello(&mut fence, 3, client(3)), accept(&[]));
        assert_eq!(fence.connected(), 2);
    }

    #[test]
    fn each_incarnation_is_settled_once() {
        let unsettled = |verdict| match verdict {
            Verdict::Accept { unsettled, .. } => unsettled,
            refused => panic!("{refused:?}"),
        };
        let mut fence = Fence::new(8);
        assert!(unsettled(hello(&mut fence, 1, who(1, 0, 1))));
        assert!(unsettled(hello(&mut fence, 2, who(1, 1, 1))), "the first may have been cut before it was done");
        fence.settled(who(1, 0, 1));
        assert!(!unsettled(hello(&mut fence, 3, who(1, 0, 2))));
        assert!(unsettled(hello(&mut fence, 4, who(2, 0, 1))));
        fence.settled(who(1, 0, 2));
        assert!(unsettled(hello(&mut fence, 5, who(2, 1, 1))), "an older life settles nothing for a newer one");
    }

    #[test]
    fn goodbye_names_the_clients_other_connections() {
        let mut fence = Fence::new(8);
        hello(&mut fence, 1, who(1, 0, 1));
        hello(&mut fence, 2, who(1, 1, 1));
        fence.hello(ConnectionId(3), Identity { client: ClientId(2), ..who(1, 0, 1) }, NOW);
        assert_eq!(fence.goodbye(ConnectionId(1)), [ConnectionId(2)]);
        assert_eq!(fence.goodbye(ConnectionId(9)), []);
    }

    proptest! {
        /// Of all connections that were accepted and neither ended nor were named to be drained, no two speak for one
        /// channel, and all are of one incarnation.
        #[test]
        fn one_connection_speaks_for_a_channel(
            events in prop::collection::vec((1u64..3, 0u32..2, 0u64..4, prop::option::of(0usize..8)), 1..60),
        ) {
            let mut fence = Fence::new(8);
            let mut live: BTreeMap<ConnectionId, Identity> = BTreeMap::new();
            for (number, (incarnation, channel, generation, end)) in events.into_iter().enumerate() {
                if let Some(end) = end && let Some(id) = live.keys().nth(end).copied() {
                    live.remove(&id);
                    fence.ended(id, NOW);
                }
                let id = ConnectionId(number as u64);
                if let Verdict::Accept { supersedes, .. } = hello(&mut fence, id.0, who(incarnation, channel, generation)) {
                    for old in supersedes {
                        live.remove(&old);
                    }
                    live.insert(id, who(incarnation, channel, generation));
                    for (other, identity) in &live {
                        prop_assert_eq!(identity.incarnation, incarnation);
                        prop_assert!(*other == id || identity.channel != channel);
                    }
                }
            }
        }
    }
}
