//! Journals whose ends are torn, as by a disk that wrote a part of what it was told to.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

use crate::crash::world::World;
use crate::mount::Mode;
use crate::wal::{Tear, tear};

/// Kills the server, and the client of a seat that has a journal, and tears the journals of both.
pub(super) fn strike(world: &World, seat: usize, random: &mut SmallRng) -> Result<String> {
    let how = *Tear::ALL.choose(random).unwrap_or(&Tear::Garbage);
    let mut torn = 0;
    world.kill_server(|store| {
        for volume in fs::read_dir(store.join("volumes"))? {
            torn += u32::from(tear(&volume?.path().join("meta.sqlite-wal"), how, random)?);
        }
        Ok(())
    })?;
    if world.seats[seat].mode() == Mode::Afs {
        world.kill_client(seat, |cache: &Path| {
            torn += u32::from(tear(&cache.join("index.sqlite-wal"), how, random)?);
            Ok(())
        })?;
    }
    Ok(format!("the ends of {torn} journals were torn ({how:?})"))
}
