//! Processes that die at a place that says what must survive it.

use std::time::Duration;

use anyhow::Result;
use larder_client::failpoint::Failpoint as OfClient;
use larder_server::failpoint::Failpoint as OfServer;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::Struck;
use crate::crash::world::World;
use crate::mount::Mode;

/// Times that a place is passed before it is deadly, at most.
const PASSES: u32 = 30;
/// How long a process lives that does not come to its place as often.
const LIVES: Duration = Duration::from_millis(1500);

/// Lets the server die, or the client of a seat if it caches on disk.
pub(super) fn strike(world: &World, seat: usize, random: &mut SmallRng) -> Result<Struck> {
    let is_client = world.seats[seat].mode() == Mode::Afs && random.random_bool(0.4);
    // Some places are passed once in a life.
    let passes = if random.random_bool(0.3) { 0 } else { random.random_range(0..PASSES) };
    let failpoints = |name: &str| format!("{name}={passes}*off->return");
    let (who, name, died) = if is_client {
        let name = OfClient::ALL.choose(random).unwrap_or(&OfClient::Storing).name();
        (format!("the client of seat {seat}"), name, world.doom_client(seat, &failpoints(name), LIVES)?)
    } else {
        let name = OfServer::OF_FILES.choose(random).unwrap_or(&OfServer::Committing).name();
        ("the server".to_owned(), name, world.doom_server(&failpoints(name), LIVES)?)
    };
    let how = if died { "died" } else { "was killed, for it did not come" };
    Ok(Struck { what: format!("{who} {how} at {name} after {passes} passes"), place: Some((name, died)) })
}
