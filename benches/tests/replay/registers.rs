//! Data of clients that do not wait long: writes in place that are overtaken by their own retries, and appends that are
//! given up.

use std::collections::BTreeMap;
use std::sync::Arc;

use larder_client::rpc::{Cause, Client, Failure};
use larder_protocol::attr::Credential;
use larder_protocol::ids::Fid;
use larder_protocol::payload::Payload;
use larder_protocol::service::file::{Op, Query, QueryReply, WriteRequest};
use larder_server::volume::Volume;
use rand::Rng;
use rand::rngs::SmallRng;

/// Writes higher and higher numbers to the start of a file. Once a number is acknowledged no lower one may be read,
/// however long a copy of its request lies in the network. Returns the last.
pub(crate) async fn count_up(client: Arc<Client>, fid: Fid, mut random: SmallRng, rounds: u64) -> u64 {
    let cred = Credential::root();
    // In some worlds the file is too large to lie in the metadata.
    let padding = if random.random_bool(0.5) { 0 } else { 20_000 };
    for number in 1..=rounds {
        let mut data = number.to_le_bytes().to_vec();
        data.resize(8 + padding, number as u8);
        let request = WriteRequest::one(fid, 0, Payload(data.into()), random.random_bool(0.3));
        let mut written = client.write(&cred, request.clone()).await.unwrap();
        // As a client must: written again until a commit has vouched for it.
        while !written.stable {
            if client.commit(&cred, fid).await.unwrap().verifier == written.verifier {
                break;
            }
            written = client.write(&cred, request.clone()).await.unwrap();
        }
        let query = Query::Read { fid, offset: 0, len: 8, touch: false };
        let QueryReply::Data { data, .. } = client.query(&cred, query).await.unwrap() else { panic!("not data") };
        assert_eq!(data.0[..], number.to_le_bytes(), "an older write came through after a newer one");
    }
    rounds
}

/// Reads a file whole, at the server.
pub(crate) async fn contents(volume: &Volume, fid: Fid) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let query = Query::Read { fid, offset: all.len() as u64, len: 1 << 20, touch: false };
        match volume.query(&Credential::root(), query).await {
            Ok(QueryReply::Data { data, .. }) if data.is_empty() => return all,
            Ok(QueryReply::Data { data, .. }) => all.extend_from_slice(&data.0),
            other => panic!("reading {fid}: {other:?}"),
        }
    }
}

/// What became of a record that was to be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is there once.
    Acknowledged,
    /// It is not there.
    NotSent,
    /// It is there once, or not.
    Unknown,
}

/// The record with this number by this writer. It says whose it is and how long.
pub(crate) fn record(writer: u8, number: u16, random: &mut SmallRng) -> Vec<u8> {
    let len: u16 = random.random_range(5..3000);
    let mut record = vec![writer];
    record.extend(number.to_le_bytes());
    record.extend(len.to_le_bytes());
    record.resize(len.into(), writer ^ number as u8);
    record
}

/// Appends, with little patience.
pub(crate) async fn append_impatiently(
    client: Arc<Client>,
    fid: Fid,
    writer: u8,
    mut random: SmallRng,
    records: u16,
) -> Vec<Fate> {
    let mut fates = Vec::new();
    for number in 0..records {
        let data = Payload(record(writer, number, &mut random).into());
        fates.push(match client.mutate(&Credential::root(), Op::Append { fid, data }).await {
            Ok(_) => Fate::Acknowledged,
            Err(Failure::NotSent(Cause::TimedOut)) => Fate::NotSent,
            Err(Failure::MaybeExecuted(Cause::TimedOut)) => Fate::Unknown,
            Err(other) => panic!("appending: {other:?}"),
        });
    }
    fates
}

/// Checks a file that was only appended to, against what its writers know.
///
/// # Panics
/// If a record is torn, there twice, missing or not to be there, or if one writer's are out of order.
pub(crate) fn check_log(log: &[u8], fates: &BTreeMap<u8, Vec<Fate>>) {
    let mut found: BTreeMap<u8, Vec<u16>> = BTreeMap::new();
    let mut rest = log;
    while !rest.is_empty() {
        assert!(rest.len() >= 5, "a torn record at the end");
        let (writer, number) = (rest[0], u16::from_le_bytes([rest[1], rest[2]]));
        let len = usize::from(u16::from_le_bytes([rest[3], rest[4]]));
        assert!((5..=rest.len()).contains(&len), "a torn record of writer {writer}");
        let (this, next) = rest.split_at(len);
        assert!(this[5..].iter().all(|byte| *byte == writer ^ number as u8), "record {number} of {writer} is torn");
        found.entry(writer).or_default().push(number);
        rest = next;
    }
    for (writer, fates) in fates {
        let mut numbers = found.remove(writer).unwrap_or_default();
        let certain = |number: &u16| fates[usize::from(*number)] == Fate::Acknowledged;
        assert!(numbers.iter().copied().filter(certain).is_sorted(), "records of {writer} are out of order");
        numbers.sort_unstable();
        for (number, fate) in fates.iter().enumerate() {
            let times = numbers.iter().filter(|found| usize::from(**found) == number).count();
            let good = match fate {
                Fate::Acknowledged => times == 1,
                Fate::NotSent => times == 0,
                Fate::Unknown => times <= 1,
            };
            assert!(good, "record {number} of {writer} ({fate:?}) is there {times} times");
        }
    }
    assert!(found.is_empty(), "records of unknown writers: {found:?}");
}
