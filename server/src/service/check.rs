//! What can be said of a request without looking into a volume: its bounds, and which volume it goes to.

use larder_protocol::error::ErrorCode;
use larder_protocol::ids::{OpId, VolumeId};
use larder_protocol::limits::{MAX_FILE_SIZE, MAX_FORGET, MAX_PAYLOAD, MAX_RECHECK, MAX_WRITE_PARTS};
use larder_protocol::service::file::{NewContents, Op, Query, StageRequest, WriteRequest};

use crate::core::fence::Identity;

/// The volume of a query.
///
/// # Errors
/// `Invalid` for a read past the limit: cut short, its answer would mean the end of the file. `Invalid` for a recheck
/// of nothing, too much, or objects of several volumes.
pub fn query(query: &Query) -> Result<VolumeId, ErrorCode> {
    let volume = query.fid().ok_or(ErrorCode::Invalid)?.volume;
    match query {
        Query::Read { len, .. } | Query::Fetch { len, .. } if *len as usize > MAX_PAYLOAD => Err(ErrorCode::Invalid),
        Query::Recheck { items } if items.len() > MAX_RECHECK => Err(ErrorCode::Invalid),
        Query::Recheck { items } if items.iter().any(|(fid, _)| fid.volume != volume) => Err(ErrorCode::Invalid),
        _ => Ok(volume),
    }
}

/// The volume of a mutation.
///
/// # Errors
/// `CrossVolume` if it names objects of several; `TooBig` for data past the limit; `Invalid` for a `forget` of
/// nothing, too much, or objects of several volumes.
pub fn op(op: &Op) -> Result<VolumeId, ErrorCode> {
    let volume = op.fid().ok_or(ErrorCode::Invalid)?.volume;
    match op {
        Op::Link { fid, .. } if fid.volume != volume => Err(ErrorCode::CrossVolume),
        Op::Rename { to_dir, .. } if to_dir.volume != volume => Err(ErrorCode::CrossVolume),
        Op::CopyRange { from, .. } if from.volume != volume => Err(ErrorCode::CrossVolume),
        Op::Forget { fids } if fids.len() > MAX_FORGET => Err(ErrorCode::Invalid),
        Op::Forget { fids } if fids.iter().any(|fid| fid.volume != volume) => Err(ErrorCode::Invalid),
        Op::Append { data, .. } | Op::Store { contents: NewContents::Whole(data), .. } if data.len() > MAX_PAYLOAD => {
            Err(ErrorCode::TooBig)
        }
        Op::Store { contents: NewContents::Staged { size, .. }, .. } if *size > MAX_FILE_SIZE => {
            Err(ErrorCode::FileTooLarge)
        }
        _ => Ok(volume),
    }
}

/// The volume of a write.
///
/// # Errors
/// `TooBig` for data past the limit, `Invalid` for a write of nothing or of too many ranges.
pub fn write(request: &WriteRequest) -> Result<VolumeId, ErrorCode> {
    if !(1..=MAX_WRITE_PARTS).contains(&request.parts.len()) {
        return Err(ErrorCode::Invalid);
    }
    if request.bytes() > MAX_PAYLOAD { Err(ErrorCode::TooBig) } else { Ok(request.fid.volume) }
}

/// The volume of a piece to be staged.
///
/// # Errors
/// `TooBig` for data past the limit, `FileTooLarge` for a piece that lies past the largest file.
pub fn stage(request: &StageRequest) -> Result<VolumeId, ErrorCode> {
    let end = request.offset.checked_add(request.data.len() as u64);
    match end {
        _ if request.data.len() > MAX_PAYLOAD => Err(ErrorCode::TooBig),
        Some(end) if end <= MAX_FILE_SIZE => Ok(request.fid.volume),
        _ => Err(ErrorCode::FileTooLarge),
    }
}

/// Whether an operation's id belongs to who sends it.
///
/// # Errors
/// `Fenced` for an older life of the same client, `Invalid` for anybody else.
pub fn id(identity: Identity, id: OpId) -> Result<(), ErrorCode> {
    if id.client == identity.client && id.incarnation == identity.incarnation {
        Ok(())
    } else if id.client == identity.client && id.incarnation < identity.incarnation {
        Err(ErrorCode::Fenced)
    } else {
        Err(ErrorCode::Invalid)
    }
}

#[cfg(test)]
mod tests {
    use larder_protocol::ids::{ClientId, Fid};
    use larder_protocol::name::Name;
    use larder_protocol::payload::Payload;
    use larder_protocol::service::file::{RenameHow, WritePart};

    use super::*;

    fn fid(volume: u32) -> Fid {
        Fid { volume: VolumeId(volume), vnode: 1, generation: 1 }
    }

    #[test]
    fn an_operation_stays_in_one_volume() {
        let name = Name::new(b"a").unwrap();
        let rename = |to: u32| Op::Rename {
            from_dir: fid(1),
            from_name: name.clone(),
            to_dir: fid(to),
            to_name: name.clone(),
            how: RenameHow::Replace,
            keep: false,
        };
        assert_eq!(op(&rename(1)), Ok(VolumeId(1)));
        assert_eq!(op(&rename(2)), Err(ErrorCode::CrossVolume));
        let link = Op::Link { fid: fid(2), dir: fid(1), name: name.clone() };
        assert_eq!(op(&link), Err(ErrorCode::CrossVolume));
        let copy = Op::CopyRange { from: fid(2), from_offset: 0, to: fid(1), to_offset: 0, len: 1 };
        assert_eq!(op(&copy), Err(ErrorCode::CrossVolume));
        for fids in [vec![], vec![fid(1), fid(2)], vec![fid(1); MAX_FORGET + 1]] {
            assert_eq!(op(&Op::Forget { fids }), Err(ErrorCode::Invalid));
        }
        assert_eq!(op(&Op::Forget { fids: vec![fid(3); MAX_FORGET] }), Ok(VolumeId(3)));
    }

    #[test]
    fn data_past_the_limit_is_refused() {
        let data = |len: usize| Payload(vec![0; len].into());
        assert_eq!(op(&Op::Append { fid: fid(1), data: data(MAX_PAYLOAD) }), Ok(VolumeId(1)));
        assert_eq!(op(&Op::Append { fid: fid(1), data: data(MAX_PAYLOAD + 1) }), Err(ErrorCode::TooBig));
        let request = |lens: &[usize]| {
            let part = |len: &usize| WritePart { offset: 0, data: data(*len) };
            WriteRequest { fid: fid(1), parts: lens.iter().map(part).collect(), stable: false }
        };
        assert_eq!(write(&request(&[MAX_PAYLOAD])), Ok(VolumeId(1)));
        assert_eq!(write(&request(&[MAX_PAYLOAD - 5, 5])), Ok(VolumeId(1)));
        assert_eq!(write(&request(&[MAX_PAYLOAD + 1])), Err(ErrorCode::TooBig));
        assert_eq!(write(&request(&[MAX_PAYLOAD, 1])), Err(ErrorCode::TooBig));
        assert_eq!(write(&request(&[])), Err(ErrorCode::Invalid));
        assert_eq!(write(&request(&[1; MAX_WRITE_PARTS])), Ok(VolumeId(1)));
        assert_eq!(write(&request(&[1; MAX_WRITE_PARTS + 1])), Err(ErrorCode::Invalid));
        let read = |len| Query::Read { fid: fid(1), offset: 0, len, touch: false };
        assert_eq!(query(&read(MAX_PAYLOAD as u32)), Ok(VolumeId(1)));
        assert_eq!(query(&read(MAX_PAYLOAD as u32 + 1)), Err(ErrorCode::Invalid));
    }

    #[test]
    fn nobody_uses_another_ones_slots() {
        let identity = Identity { client: ClientId(1), incarnation: 5, channel: 0, generation: 1 };
        let with = |client, incarnation| OpId { client: ClientId(client), incarnation, slot: 0, seq: 1 };
        assert_eq!(id(identity, with(1, 5)), Ok(()));
        assert_eq!(id(identity, with(1, 4)), Err(ErrorCode::Fenced));
        assert_eq!(id(identity, with(1, 6)), Err(ErrorCode::Invalid));
        assert_eq!(id(identity, with(2, 5)), Err(ErrorCode::Invalid));
    }
}
