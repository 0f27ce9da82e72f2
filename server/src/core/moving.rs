//! What becomes of a volume's record while the volume moves. Each step is made by compare-and-swap.
//!
//! - **M1** The server that the record names has the volume, and nobody else serves it. That changes by one step alone
//!   ([`commit`]), from a record that is frozen, and with the token that it was frozen for.
//! - **M2** The source alone freezes and thaws. Once it has thawed, what was copied while it was frozen cannot be committed:
//!   the record must be frozen again for that, and its version is another one.
//! - **M3** Nobody serves a volume that is frozen.

use larder_protocol::cell::{Moving, ServerId, VolumeRecord, VolumeState};

/// Why a step is not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// It is where it is to be.
    #[error("the volume is there already")]
    There,
    /// It is at another server.
    #[error("the volume is at the server {0} now")]
    At(ServerId),
    /// It moves to another server.
    #[error("the volume is moving to the server {0}; `larder volume move --abort` gives that up")]
    MovesTo(ServerId),
    /// It does not move, or this is about an earlier move.
    #[error("the move was given up")]
    GivenUp,
    /// The source has begun to serve it again.
    #[error("the server that has the volume went on serving it")]
    Thawed,
    /// The source has not begun to serve it again.
    #[error("the server that has the volume has not gone on serving it yet")]
    Frozen,
    /// It is not online.
    #[error("only a volume that is online can be moved")]
    NotOnline,
}

/// The volume is to be at `to`. A move there that has begun goes on under its token.
///
/// # Errors
/// It is there, moves somewhere else, or is not online.
pub fn begin(record: &mut VolumeRecord, to: ServerId, token: u64) -> Result<u64, NotNow> {
    if record.server == to {
        return Err(NotNow::There);
    }
    match record.moving {
        Some(moving) if moving.to == to => Ok(moving.token),
        Some(moving) => Err(NotNow::MovesTo(moving.to)),
        None if record.state != VolumeState::Online => Err(NotNow::NotOnline),
        None => {
            record.moving = Some(Moving { to, token, frozen: false });
            Ok(token)
        }
    }
}

/// The move that a record is in, for who is its source.
fn of_source(record: &mut VolumeRecord, here: ServerId, token: u64) -> Result<&mut Moving, NotNow> {
    if record.server != here {
        return Err(NotNow::At(record.server));
    }
    match &mut record.moving {
        Some(moving) if moving.token == token => Ok(moving),
        _ => Err(NotNow::GivenUp),
    }
}

/// The source may send what the volume holds.
///
/// # Errors
/// It is not here, does not move, or is not online.
pub fn may_send(record: &VolumeRecord, here: ServerId, token: u64) -> Result<Moving, NotNow> {
    let moving = *of_source(&mut record.clone(), here, token)?;
    if record.state == VolumeState::Online { Ok(moving) } else { Err(NotNow::NotOnline) }
}

/// The source serves the volume no more (M2).
///
/// # Errors
/// As [`may_send`].
pub fn freeze(record: &mut VolumeRecord, here: ServerId, token: u64) -> Result<(), NotNow> {
    may_send(record, here, token)?;
    of_source(record, here, token)?.frozen = true;
    Ok(())
}

/// The source serves the volume again (M2).
///
/// # Errors
/// It has moved.
pub fn thaw(record: &mut VolumeRecord, here: ServerId) -> Result<(), NotNow> {
    if record.server != here {
        return Err(NotNow::At(record.server));
    }
    if let Some(moving) = &mut record.moving {
        moving.frozen = false;
    }
    Ok(())
}

/// The destination has all of it, durably, and has it from now on (M1).
///
/// # Errors
/// It was given up, or thawed.
pub fn commit(record: &mut VolumeRecord, here: ServerId, token: u64) -> Result<(), NotNow> {
    if record.server == here {
        // It was, and the answer was lost; it may be on its way to the next one already.
        return Ok(());
    }
    match record.moving {
        Some(moving) if moving.to == here && moving.token == token => {
            if !moving.frozen {
                return Err(NotNow::Thawed);
            }
            record.server = here;
            record.moving = None;
            Ok(())
        }
        _ => Err(NotNow::GivenUp),
    }
}

/// The source gives the move up.
///
/// # Errors
/// It has moved.
pub fn give_up(record: &mut VolumeRecord, here: ServerId) -> Result<(), NotNow> {
    if record.server != here {
        return Err(NotNow::At(record.server));
    }
    record.moving = None;
    Ok(())
}

/// The destination gives the move up, as long as nobody waits for it.
///
/// # Errors
/// It was given up before, or is frozen.
pub fn decline(record: &mut VolumeRecord, here: ServerId, token: u64) -> Result<(), NotNow> {
    match record.moving {
        Some(moving) if moving.to == here && moving.token == token && moving.frozen => Err(NotNow::Frozen),
        Some(moving) if moving.to == here && moving.token == token => {
            record.moving = None;
            Ok(())
        }
        _ => Err(NotNow::GivenUp),
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::ids::VolumeId;

    use super::*;

    const HERE: ServerId = ServerId(1);
    const THERE: ServerId = ServerId(2);
    const ELSEWHERE: ServerId = ServerId(3);

    fn record() -> VolumeRecord {
        let (id, name, state) = (VolumeId(5), "data".to_owned(), VolumeState::Online);
        VolumeRecord { id, name, server: HERE, state, mounted: None, moving: None }
    }

    #[test]
    fn a_volume_moves_by_one_step_from_a_frozen_record() {
        let mut record = record();
        assert_eq!(begin(&mut record, THERE, 7), Ok(7));
        assert_eq!(begin(&mut record, THERE, 8), Ok(7), "the one that has begun goes on");
        assert_eq!(commit(&mut record, THERE, 7), Err(NotNow::Thawed));
        freeze(&mut record, HERE, 7).unwrap();
        assert_eq!(record.server, HERE);
        commit(&mut record, THERE, 7).unwrap();
        assert_eq!((record.server, record.moving), (THERE, None));
        commit(&mut record, THERE, 7).unwrap();
        begin(&mut record, ELSEWHERE, 8).unwrap();
        commit(&mut record, THERE, 7).unwrap();
        give_up(&mut record, THERE).unwrap();
        assert_eq!(thaw(&mut record, HERE), Err(NotNow::At(THERE)));
        assert_eq!(freeze(&mut record, HERE, 7), Err(NotNow::At(THERE)));
        assert_eq!(begin(&mut record, THERE, 9), Err(NotNow::There));
    }

    #[test]
    fn what_was_thawed_cannot_be_committed() {
        let mut record = record();
        begin(&mut record, THERE, 7).unwrap();
        freeze(&mut record, HERE, 7).unwrap();
        thaw(&mut record, HERE).unwrap();
        assert_eq!(commit(&mut record, THERE, 7), Err(NotNow::Thawed));
        assert_eq!(record.server, HERE);
    }

    #[test]
    fn the_destination_gives_up_only_what_nobody_waits_for() {
        let mut record = record();
        begin(&mut record, THERE, 7).unwrap();
        freeze(&mut record, HERE, 7).unwrap();
        assert_eq!(decline(&mut record, THERE, 7), Err(NotNow::Frozen));
        thaw(&mut record, HERE).unwrap();
        assert_eq!(decline(&mut record, ELSEWHERE, 7), Err(NotNow::GivenUp));
        decline(&mut record, THERE, 7).unwrap();
        assert_eq!((record.server, record.moving), (HERE, None));
    }

    #[test]
    fn a_move_that_was_given_up_is_over_for_both() {
        let mut record = record();
        begin(&mut record, THERE, 7).unwrap();
        freeze(&mut record, HERE, 7).unwrap();
        give_up(&mut record, HERE).unwrap();
        assert_eq!(commit(&mut record, THERE, 7), Err(NotNow::GivenUp));
        assert_eq!(freeze(&mut record, HERE, 7), Err(NotNow::GivenUp));
        begin(&mut record, THERE, 8).unwrap();
        assert_eq!(freeze(&mut record, HERE, 7), Err(NotNow::GivenUp), "the token of another");
    }

    #[test]
    fn a_volume_moves_to_one_place_at_a_time_and_only_while_it_is_online() {
        let mut one = record();
        begin(&mut one, THERE, 7).unwrap();
        assert_eq!(begin(&mut one, ELSEWHERE, 8), Err(NotNow::MovesTo(THERE)));
        let mut two = VolumeRecord { state: VolumeState::Offline, ..record() };
        assert_eq!(begin(&mut two, THERE, 7), Err(NotNow::NotOnline));
        one.state = VolumeState::Offline;
        assert_eq!(freeze(&mut one, HERE, 7), Err(NotNow::NotOnline));
    }
}
