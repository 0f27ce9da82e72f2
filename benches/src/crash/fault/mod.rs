//! What is broken, and how it is mended.

mod failpoint;
mod flip;
mod torn;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use super::world::World;
use crate::medium::Failure;
use crate::mount::Mode;
use crate::proxy::{End, Link, Way};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Fault {
    /// `kill -9` of the server, which is started again.
    ServerKill,
    /// The power of the server's machine is cut, and comes back.
    ServerPower,
    /// `kill -9` of a client's process, which is mounted again.
    ClientKill,
    /// The power of a client's disk cache is cut while its process dies.
    ClientPower,
    /// A client's process is stopped for longer than its lease, and goes on.
    ClientStop,
    /// `kill -9` of the server and of all clients at once.
    AllKill,
    /// Nothing passes between some clients and the server, for longer than a lease.
    Partition,
    /// Nothing passes between some clients and the server in one direction.
    OneWay,
    /// Connections of some clients are reset.
    Reset,
    /// Connections of some clients end in the middle of a message.
    Truncate,
    /// Connections of some clients are closed in one direction.
    HalfClose,
    /// What the server says to some clients is lost until their connections are ended.
    Mute,
    /// 1 Mbit/s and 300 ms between some clients and the server.
    SlowLink,
    /// The disk of the server is full for a while.
    DiskFull,
    /// The disk of the server fails: no write arrives, or nothing can be read, either. It is mended, and the server started
    /// again.
    IoError,
    /// The server is killed, and so is a client; the ends of the journals of both are torn.
    TornJournal,
    /// The server, or a client in `afs` mode, dies at a failpoint.
    Failpoint,
    /// The calendar of the server or of a client jumps by a day, either way, and back.
    WallClock,
    /// A bit of a file's contents flips on the server's disk while the server is down.
    FlippedContent,
    /// A bit of a file's record flips there.
    FlippedMetadata,
    /// A bit of a copy flips in a client's cache while the client is dead.
    FlippedCache,
    /// A second server is started on the same store, and a second client on the same cache.
    Twice,
}

/// The least and the most that a fault lasts which does not end by itself.
const LASTS: (u64, u64) = (100, 700);
/// Bytes of a message that still pass before it is cut off, at most.
const CUT_AFTER: u64 = 5000;

impl Fault {
    /// Whether it can happen in this mode.
    pub fn is_of(self, mode: Mode) -> bool {
        match self {
            Fault::ClientPower | Fault::FlippedCache => mode == Mode::Afs,
            _ => true,
        }
    }

    /// Its name on the command line.
    pub fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Whether the server's disk must be such as can lose its power, be full or fail.
    pub fn needs_medium_of_server(self) -> bool {
        matches!(self, Fault::ServerPower | Fault::DiskFull | Fault::IoError)
    }

    /// Whether the disks of the clients must be such as can lose their power.
    pub fn needs_medium_of_client(self) -> bool {
        self == Fault::ClientPower
    }

    /// Whether acknowledgements must survive a power cut.
    pub fn needs_power(self) -> bool {
        matches!(self, Fault::ServerPower | Fault::IoError)
    }

    /// Breaks it and mends it again. Says what was done.
    ///
    /// # Errors
    /// If what is broken does not come back, or is not refused that should be.
    pub(super) fn strike(self, world: &World, random: &mut SmallRng) -> Result<Struck> {
        let lasts = Duration::from_millis(random.random_range(LASTS.0..LASTS.1));
        let longer_than_a_lease = world.lease() + world.lease() / 2 + lasts;
        let seats: Vec<usize> = (0..world.seats.len()).filter(|seat| self.is_of(world.seats[*seat].mode())).collect();
        let seat = *seats.choose(random).context("it can happen in none of the modes")?;
        let ways = [(Way::Up, [true, false]), (Way::Down, [false, true])];
        let (way, one) = ways[random.random_range(0..2)];
        // Some of the clients: what the others change meanwhile they must not miss.
        let mut some: Vec<usize> = (0..world.seats.len()).filter(|_| random.random()).collect();
        if some.is_empty() {
            some = (0..world.seats.len()).collect();
        }
        let whom = format!("seats {some:?}");
        let what = match self {
            Fault::ServerKill => {
                world.kill_server(|_| {
                    std::thread::sleep(lasts / 4);
                    Ok(())
                })?;
                "the server was killed".to_owned()
            }
            Fault::ServerPower => {
                world.cut_server_power()?;
                "the server's power was cut".to_owned()
            }
            Fault::ClientKill => {
                world.kill_client(seat, |_| Ok(()))?;
                format!("the client of seat {seat} was killed")
            }
            Fault::ClientPower => {
                world.cut_client_power(seat)?;
                format!("the power of the client of seat {seat} was cut")
            }
            Fault::ClientStop => {
                world.stop_client(seat, longer_than_a_lease)?;
                format!("the client of seat {seat} was stopped for {longer_than_a_lease:.1?}")
            }
            Fault::AllKill => {
                world.kill_all()?;
                "all processes were killed".to_owned()
            }
            Fault::Partition => {
                world.link(&some, Link { is_cut: [true, true], ..Link::default() }, longer_than_a_lease);
                format!("nothing passed to and from {whom} for {longer_than_a_lease:.1?}")
            }
            Fault::OneWay => {
                world.link(&some, Link { is_cut: one, ..Link::default() }, longer_than_a_lease);
                format!("nothing passed {way:?} of {whom} for {longer_than_a_lease:.1?}")
            }
            Fault::Reset => {
                world.end_connections(&some, End::Reset);
                format!("connections of {whom} were reset")
            }
            Fault::Truncate => {
                let bytes = random.random_range(1..CUT_AFTER);
                world.end_connections(&some, End::After(way, bytes));
                format!("connections of {whom} ended after {bytes} more bytes {way:?}")
            }
            Fault::HalfClose => {
                world.end_connections(&some, End::Half(way));
                format!("connections of {whom} were closed {way:?}")
            }
            Fault::Mute => {
                world.link(&some, Link { is_mute: true, ..Link::default() }, lasts);
                world.end_connections(&some, End::Reset);
                format!("nothing that the server said arrived at {whom} for {lasts:.1?}")
            }
            Fault::SlowLink => {
                let slow = Link { delay: Duration::from_millis(300), rate: 125_000, ..Link::default() };
                world.link(&some, slow, lasts * 4);
                format!("the links of {whom} were slow for {:.1?}", lasts * 4)
            }
            Fault::DiskFull => {
                world.fill_disk(lasts)?;
                format!("the disk was full for {lasts:.1?}")
            }
            Fault::IoError => {
                let how = if random.random_bool(0.5) { Failure::NoWrites } else { Failure::Gone };
                world.fail_disk(how, lasts)?;
                format!("the disk failed ({how:?}) for {lasts:.1?} and was mended")
            }
            Fault::TornJournal => torn::strike(world, seat, random)?,
            Fault::Failpoint => return failpoint::strike(world, seat, random),
            Fault::WallClock => {
                let who = (random.random_bool(0.5)).then_some(seat);
                let days = [-1, 1][random.random_range(0..2)];
                world.set_clock(who, days * 86_400)?;
                // It begins with that calendar, or is taken by surprise.
                match who {
                    None if random.random() => world.kill_server(|_| Ok(()))?,
                    Some(seat) if random.random() => world.kill_client(seat, |_| Ok(()))?,
                    _ => {}
                }
                std::thread::sleep(longer_than_a_lease);
                world.set_clock(who, 0)?;
                let whose = who.map_or("the server".to_owned(), |seat| format!("the client of seat {seat}"));
                format!("the calendar of {whose} was off by {days:+} day for {longer_than_a_lease:.1?}")
            }
            Fault::FlippedContent => flip::contents(world, seat, random)?,
            Fault::FlippedMetadata => flip::metadata(world, seat, random)?,
            Fault::FlippedCache => flip::cache(world, seat, random)?,
            Fault::Twice => {
                let refused = world.start_twice(seat)?;
                ensure!(!refused.is_empty(), "a second server or client was not refused");
                format!("a second one was refused: {refused}")
            }
        };
        Ok(Struck { what, place: None })
    }
}

/// What was broken.
pub(super) struct Struck {
    /// What was done.
    pub(super) what: String,
    /// The failpoint at which a process was to die, and whether it did.
    pub(super) place: Option<(&'static str, bool)>,
}
