//! The rules P1 to P7 one by one, and then all together against clients that keep a copy of what they read.

use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

const A: ClientId = ClientId(1);
const B: ClientId = ClientId(2);
const C: ClientId = ClientId(3);
const X: ObjectId = ObjectId(10);
const Y: ObjectId = ObjectId(11);
const Z: ObjectId = ObjectId(12);

/// A lease of 10 s with a margin of 0.5 s: the server keeps it for 10.5 s.
fn terms() -> LeaseTerms {
    LeaseTerms::new(Duration::from_secs(10))
}

fn at(millis: u64) -> BootTime {
    Duration::from_millis(millis)
}

fn promises() -> Promises {
    Promises::new(terms(), 1 << 60, [], at(0))
}

fn granted(renewed: Renewed) -> LeaseId {
    match renewed {
        Renewed::Granted { lease } => lease,
        other => panic!("no lease: {other:?}"),
    }
}

fn lease(promises: &mut Promises, client: ClientId, now: BootTime) -> LeaseId {
    granted(promises.renew(client, None, 0, now))
}

/// Reads objects with callbacks, at once.
fn read(promises: &mut Promises, client: ClientId, objects: &[ObjectId], now: BootTime) -> Grants {
    let since = promises.begin_read();
    promises.grant(client, objects.iter().copied(), since, now)
}

/// Asserts that a client gets callbacks on all of these.
fn hold(promises: &mut Promises, client: ClientId, objects: &[ObjectId], now: BootTime) {
    let grants = read(promises, client, objects, now);
    assert!(grants.lease.is_some() && grants.withheld.is_empty(), "{grants:?}");
}

fn outstanding(promises: &mut Promises, client: ClientId, lease: LeaseId, acked: u64, now: BootTime) -> Vec<Break> {
    match promises.breaks(client, lease, acked, now) {
        None => Vec::new(),
        Some(Breaks::Outstanding(breaks)) => breaks,
        Some(Breaks::Lapsed) => panic!("the lease has ended"),
    }
}

fn one(serial: u64, object: ObjectId) -> Vec<Break> {
    vec![Break { serial, object }]
}

/// Whether anybody is told when these objects change; the change itself is given up.
fn is_held(promises: &mut Promises, object: ObjectId, now: BootTime) -> bool {
    let mut breaking = promises.begin_break([object], None, now);
    let settled = promises.settled(&mut breaking, now);
    promises.applied(breaking, [], now);
    settled != Settled::Yes
}

#[test]
fn p1_a_request_for_a_lease_that_comes_late_or_twice_ends_no_lease() {
    let mut promises = promises();
    // The first was given up by the client and is still in the network.
    let lease = granted(promises.renew(A, None, 2, at(0)));
    hold(&mut promises, A, &[X], at(0));
    for late in [1, 2] {
        assert_eq!(promises.renew(A, None, late, at(100)), Renewed::Lapsed);
    }
    assert!(is_held(&mut promises, X, at(100)), "the client counts on it");
    assert_eq!(promises.renew(A, Some(lease), 1, at(200)), Renewed::Granted { lease });
    // One that is newer gives up what was held, and another life of the client counts anew.
    assert_ne!(granted(promises.renew(A, None, 3, at(300))), lease);
    promises.end_lease(A);
    granted(promises.renew(A, None, 1, at(400)));
}

#[test]
fn p1_a_callback_counts_for_the_term_and_the_margin_after_the_renewal_came_in() {
    let mut promises = promises();
    let lease = lease(&mut promises, A, at(1000));
    hold(&mut promises, A, &[X], at(2000));
    assert_eq!(promises.renew(A, Some(lease), 0, at(5000)), Renewed::Granted { lease });
    let mut breaking = promises.begin_break([X], Some(B), at(6000));
    assert_eq!(promises.settled(&mut breaking, at(6000)), Settled::NotBefore(at(15_500)));
    assert_eq!(promises.settled(&mut breaking, at(15_499)), Settled::NotBefore(at(15_500)));
    assert_eq!(promises.settled(&mut breaking, at(15_500)), Settled::Yes);
    promises.applied(breaking, [], at(15_500));
}

#[test]
fn p1_without_a_lease_there_are_no_callbacks() {
    let mut promises = promises();
    assert_eq!(read(&mut promises, A, &[X], at(0)), Grants::default());
    lease(&mut promises, A, at(0));
    assert_eq!(read(&mut promises, A, &[X], at(10_500)), Grants::default(), "it has ended");
    assert!(!is_held(&mut promises, X, at(10_500)));
    assert_eq!(promises.stats(at(10_500)).callbacks, 0);
}

#[test]
fn p1_a_lapsed_lease_revives_nothing() {
    let mut promises = promises();
    let first = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X], at(0));
    assert_eq!(promises.renew(A, Some(first), 0, at(10_500)), Renewed::Lapsed);
    assert_eq!(promises.renew(A, Some(first), 0, at(10_501)), Renewed::Lapsed, "nor later");
    assert_eq!(promises.breaks(A, first, 0, at(10_502)), Some(Breaks::Lapsed));
    let second = lease(&mut promises, A, at(11_000));
    assert_ne!(first, second);
    assert!(!is_held(&mut promises, X, at(11_000)), "the callback stood under the first lease");
    assert_eq!(promises.breaks(A, first, 0, at(11_000)), Some(Breaks::Lapsed));
    assert_eq!(promises.stats(at(11_000)).lapsed, 1);
}

#[test]
fn p1_a_lease_that_a_mutation_saw_end_is_over_for_good() {
    let mut promises = promises();
    let first = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X], at(0));
    let mut breaking = promises.begin_break([X], Some(B), at(100));
    assert_eq!(promises.settled(&mut breaking, at(10_500)), Settled::Yes);
    promises.applied(breaking, [], at(10_500));
    // Even if the renewal looked at the clock before, and came in behind.
    assert_eq!(promises.renew(A, Some(first), 1, at(10_499)), Renewed::Lapsed);
}

#[test]
fn p1_asking_for_a_new_lease_gives_up_the_old_one() {
    let mut promises = promises();
    let first = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X], at(0));
    let mut breaking = promises.begin_break([X], Some(B), at(100));
    assert_eq!(promises.settled(&mut breaking, at(100)), Settled::NotBefore(at(10_500)));
    let second = lease(&mut promises, A, at(200));
    assert_eq!(promises.settled(&mut breaking, at(200)), Settled::Yes, "it has dropped what it held");
    promises.applied(breaking, [], at(200));
    assert_eq!(promises.breaks(A, first, 0, at(200)), Some(Breaks::Lapsed));
    assert_eq!(outstanding(&mut promises, A, second, 0, at(200)), []);
}

#[test]
fn p1_a_belated_renewal_of_an_older_lease_leaves_the_newer_one_alone() {
    let mut promises = promises();
    let first = lease(&mut promises, A, at(0));
    let second = lease(&mut promises, A, at(100));
    hold(&mut promises, A, &[X], at(100));
    assert_eq!(promises.renew(A, Some(first), 0, at(200)), Renewed::Lapsed);
    assert!(is_held(&mut promises, X, at(300)), "its client counts on it");
    assert_eq!(promises.renew(A, Some(second), 1, at(400)), Renewed::Granted { lease: second });
}

#[test]
fn p1_leases_of_another_process_are_not_mistaken_for_ones_own() {
    let mut before = Promises::new(terms(), 77, [], at(0));
    let old = lease(&mut before, A, at(0));
    let mut after = Promises::new(terms(), 12_345_678_901, [A], at(0));
    assert_eq!(after.renew(A, Some(old), 0, at(0)), Renewed::Lapsed);
    let new = lease(&mut after, A, at(0));
    assert_ne!(old, new);
    assert_eq!(after.breaks(A, old, 0, at(0)), Some(Breaks::Lapsed));
}

#[test]
fn p2_a_mutation_waits_for_every_acknowledgement() {
    let mut promises = promises();
    let (a, b) = (lease(&mut promises, A, at(0)), lease(&mut promises, B, at(0)));
    hold(&mut promises, A, &[X, Y], at(0));
    hold(&mut promises, B, &[X], at(0));
    assert!(promises.take_fresh().is_empty());
    let mut breaking = promises.begin_break([X], Some(C), at(1000));
    assert_eq!(promises.take_fresh(), BTreeSet::from([A, B]));
    assert_eq!(outstanding(&mut promises, A, a, 0, at(1000)), one(1, X));
    assert_eq!(outstanding(&mut promises, B, b, 0, at(1000)), one(1, X));
    assert_eq!(promises.settled(&mut breaking, at(1000)), Settled::NotBefore(at(10_500)));
    assert_eq!(outstanding(&mut promises, A, a, 1, at(1001)), []);
    assert_eq!(promises.settled(&mut breaking, at(1001)), Settled::NotBefore(at(10_500)), "B has not");
    assert_eq!(promises.renew(B, Some(b), 1, at(1002)), Renewed::Granted { lease: b }, "that acknowledges too");
    assert_eq!(promises.settled(&mut breaking, at(1002)), Settled::Yes);
    promises.applied(breaking, [], at(1002));
    assert!(is_held(&mut promises, Y, at(1003)) && !is_held(&mut promises, X, at(1003)));
}

#[test]
fn p2_the_leases_that_are_waited_for_end_one_after_the_other() {
    let mut promises = promises();
    for (client, now) in [(A, 0), (B, 500), (C, 300)] {
        lease(&mut promises, client, at(now));
        hold(&mut promises, client, &[X], at(now));
    }
    let mut breaking = promises.begin_break([X], None, at(600));
    assert_eq!(promises.settled(&mut breaking, at(600)), Settled::NotBefore(at(10_500)));
    assert_eq!(promises.settled(&mut breaking, at(10_500)), Settled::NotBefore(at(10_800)));
    assert_eq!(promises.settled(&mut breaking, at(10_900)), Settled::NotBefore(at(11_000)));
    assert_eq!(promises.settled(&mut breaking, at(11_000)), Settled::Yes);
    promises.applied(breaking, [], at(11_000));
    assert_eq!(promises.stats(at(11_000)).lapsed, 3);
}

#[test]
fn p2_what_was_not_sent_is_not_acknowledged() {
    let mut promises = promises();
    let a = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X], at(0));
    assert_eq!(promises.breaks(A, a, 99, at(0)), None);
    let mut breaking = promises.begin_break([X], None, at(0));
    assert_ne!(promises.settled(&mut breaking, at(0)), Settled::Yes);
    promises.applied(breaking, [], at(0));
}

#[test]
fn p2_acknowledgements_that_come_twice_or_in_disorder_do_no_harm() {
    let mut promises = promises();
    let a = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X, Y], at(0));
    let mut first = promises.begin_break([X], None, at(0));
    let mut second = promises.begin_break([Y], None, at(0));
    assert_eq!(outstanding(&mut promises, A, a, 2, at(0)), []);
    assert_eq!(promises.breaks(A, a, 1, at(0)), None);
    assert_eq!(promises.settled(&mut first, at(0)), Settled::Yes);
    assert_eq!(promises.settled(&mut second, at(0)), Settled::Yes);
    promises.applied(first, [], at(0));
    promises.applied(second, [], at(0));
}

#[test]
fn p2_a_second_mutation_waits_for_the_break_that_the_first_one_began() {
    let mut promises = promises();
    let a = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X], at(0));
    let first = promises.begin_break([X], Some(B), at(0));
    let mut second = promises.begin_break([X], Some(C), at(10));
    assert_eq!(promises.settled(&mut second, at(10)), Settled::NotBefore(at(10_500)));
    // Nor does it help that the first one is given up.
    promises.applied(first, [], at(20));
    let mut third = promises.begin_break([Y, X], Some(C), at(30));
    assert_eq!(promises.settled(&mut second, at(30)), Settled::NotBefore(at(10_500)));
    assert_eq!(promises.settled(&mut third, at(30)), Settled::NotBefore(at(10_500)));
    assert_eq!(outstanding(&mut promises, A, a, 0, at(40)), one(1, X), "one break is enough");
    assert_eq!(outstanding(&mut promises, A, a, 1, at(40)), []);
    assert_eq!(promises.settled(&mut second, at(40)), Settled::Yes);
    assert_eq!(promises.settled(&mut third, at(40)), Settled::Yes);
    promises.applied(second, [], at(50));
    promises.applied(third, [], at(50));
}

#[test]
fn p2_what_a_mutation_turns_out_to_change_as_well_is_waited_for() {
    let mut promises = promises();
    let a = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[Y], at(0));
    let mut breaking = promises.begin_break([X], Some(B), at(0));
    assert_eq!(promises.settled(&mut breaking, at(0)), Settled::Yes);
    promises.extend(&mut breaking, [X, Y], at(10));
    assert_eq!(breaking.objects(), &BTreeSet::from([X.0, Y.0]));
    assert_eq!(promises.settled(&mut breaking, at(10)), Settled::NotBefore(at(10_500)));
    assert_eq!(outstanding(&mut promises, A, a, 1, at(20)), []);
    assert_eq!(promises.settled(&mut breaking, at(20)), Settled::Yes);
    assert_eq!(read(&mut promises, A, &[X, Y], at(30)).withheld, [X, Y]);
    promises.applied(breaking, [], at(40));
    hold(&mut promises, A, &[X, Y], at(50));
}

#[test]
fn p2_ones_own_callback_stays_and_is_not_waited_for() {
    let mut promises = promises();
    let a = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X], at(0));
    let mut breaking = promises.begin_break([X], Some(A), at(0));
    assert_eq!(promises.settled(&mut breaking, at(0)), Settled::Yes);
    promises.applied(breaking, [X], at(0));
    assert_eq!(outstanding(&mut promises, A, a, 0, at(0)), []);
    assert!(is_held(&mut promises, X, at(10)));
    // Who writes in place does not say who it is, and relies on nothing.
    hold(&mut promises, A, &[Y], at(20));
    assert!(is_held(&mut promises, Y, at(30)));
}

#[test]
fn p3_nobody_gets_a_callback_on_what_is_breaking() {
    let mut promises = promises();
    for client in [A, B] {
        lease(&mut promises, client, at(0));
    }
    let first = promises.begin_break([X], Some(B), at(0));
    let second = promises.begin_break([X], Some(C), at(0));
    for client in [A, B] {
        assert_eq!(read(&mut promises, client, &[X, Y], at(1)).withheld, [X], "{client}");
    }
    promises.applied(first, [], at(2));
    assert_eq!(read(&mut promises, A, &[X], at(3)).withheld, [X], "the second one is not over");
    promises.applied(second, [], at(4));
    hold(&mut promises, A, &[X], at(5));
    assert_eq!(promises.stats(at(5)).withheld, 3);
}

/// The object is breaking from 20 to 40. Reads from before that, from within, to within and to behind it.
#[test]
fn p4_a_read_that_overlaps_a_break_in_any_way_gets_no_callback() {
    for (from, to, overlaps) in
        [(0, 10, false), (10, 30, true), (10, 50, true), (25, 35, true), (30, 50, true), (50, 60, false)]
    {
        let mut promises = promises();
        lease(&mut promises, A, at(0));
        let (mut since, mut grants, mut breaking) = (None, None, None);
        for now in 0..=60 {
            match now {
                20 => breaking = Some(promises.begin_break([X], Some(B), at(now))),
                40 => {
                    promises.applied(breaking.take().unwrap(), [], at(now));
                }
                _ => {}
            }
            if now == from {
                since = Some(promises.begin_read());
            }
            if now == to {
                grants = Some(promises.grant(A, [X, Y], since.take().unwrap(), at(now)));
            }
        }
        let withheld = if overlaps { vec![X] } else { vec![] };
        assert_eq!(grants.unwrap().withheld, withheld, "read from {from} to {to}");
    }
}

#[test]
fn p4_what_is_broken_as_well_later_overlaps_from_then_on() {
    let mut promises = promises();
    lease(&mut promises, A, at(0));
    let mut breaking = promises.begin_break([X], Some(B), at(0));
    let since = promises.begin_read();
    promises.extend(&mut breaking, [Y], at(0));
    assert_eq!(promises.grant(A, [X, Y, Z], since, at(0)).withheld, [X, Y]);
    promises.applied(breaking, [], at(0));
}

#[test]
fn p4_reads_that_are_given_up_leave_nothing() {
    let mut promises = promises();
    for _ in 0..10 {
        let since = promises.begin_read();
        let breaking = promises.begin_break([X], None, at(0));
        promises.applied(breaking, [], at(0));
        promises.end_read(since);
    }
    assert!(promises.breaking.is_empty());
    assert!(format!("{:?}", promises.log).contains("events: []"), "{:?}", promises.log);
}

#[test]
fn p5_a_renewal_without_acknowledgements_is_told_the_breaks_first_and_prolongs_nothing() {
    let mut promises = promises();
    let a = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X, Y], at(0));
    let mut breaking = promises.begin_break([X, Y], Some(B), at(1000));
    let both = vec![Break { serial: 1, object: X }, Break { serial: 2, object: Y }];
    for now in [2000, 5000, 9000, 10_499] {
        assert_eq!(promises.renew(A, Some(a), 0, at(now)), Renewed::BreaksFirst(both.clone()));
        assert_eq!(promises.settled(&mut breaking, at(now)), Settled::NotBefore(at(10_500)));
    }
    assert_eq!(promises.renew(A, Some(a), 1, at(10_499)), Renewed::BreaksFirst(one(2, Y)), "half is not enough");
    assert_eq!(promises.renew(A, Some(a), 1, at(10_500)), Renewed::Lapsed);
    assert_eq!(promises.settled(&mut breaking, at(10_500)), Settled::Yes);
    promises.applied(breaking, [], at(10_500));
}

#[test]
fn p5_a_renewal_with_the_acknowledgements_is_granted_at_once() {
    let mut promises = promises();
    let a = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X, Y], at(0));
    let breaking = promises.begin_break([X], Some(B), at(1000));
    assert_eq!(promises.renew(A, Some(a), 1, at(2000)), Renewed::Granted { lease: a });
    promises.applied(breaking, [], at(2000));
    assert!(is_held(&mut promises, Y, at(12_499)));
    assert!(!is_held(&mut promises, Y, at(12_500)));
}

#[test]
fn p5_one_message_holds_no_more_breaks_than_its_limit() {
    let mut promises = promises();
    let a = lease(&mut promises, A, at(0));
    let objects: Vec<ObjectId> = (0..MAX_BREAKS as u64 + 5).map(ObjectId).collect();
    hold(&mut promises, A, &objects, at(0));
    let mut breaking = promises.begin_break(objects, None, at(0));
    let first = outstanding(&mut promises, A, a, 0, at(0));
    assert_eq!(first.len(), MAX_BREAKS);
    let rest = outstanding(&mut promises, A, a, first[MAX_BREAKS - 1].serial, at(0));
    assert_eq!(rest.len(), 5);
    assert_ne!(promises.settled(&mut breaking, at(0)), Settled::Yes);
    assert_eq!(outstanding(&mut promises, A, a, rest[4].serial, at(0)), []);
    assert_eq!(promises.settled(&mut breaking, at(0)), Settled::Yes);
    promises.applied(breaking, [], at(0));
}

#[test]
fn p6_after_a_restart_clients_of_before_are_waited_for_until_they_are_heard_of() {
    let mut promises = Promises::new(terms(), 5, [A, B], at(1000));
    let mut breaking = promises.begin_break([X], Some(C), at(1000));
    assert_eq!(promises.settled(&mut breaking, at(1000)), Settled::NotBefore(at(11_500)));
    lease(&mut promises, A, at(2000));
    assert_eq!(promises.stats(at(2000)).in_grace, 1);
    assert_eq!(promises.settled(&mut breaking, at(2000)), Settled::NotBefore(at(11_500)), "not of B");
    promises.heard_of(B);
    assert_eq!(promises.settled(&mut breaking, at(2000)), Settled::Yes);
    promises.applied(breaking, [], at(2000));
}

#[test]
fn p6_clients_that_never_come_back_are_waited_for_until_their_leases_have_ended() {
    let mut promises = Promises::new(terms(), 5, [A], at(1000));
    let mut breaking = promises.begin_break([X], Some(C), at(3000));
    assert_eq!(promises.settled(&mut breaking, at(11_499)), Settled::NotBefore(at(11_500)));
    assert_eq!(promises.settled(&mut breaking, at(11_500)), Settled::Yes);
    promises.applied(breaking, [], at(11_500));
    assert_eq!(promises.stats(at(11_500)).in_grace, 0);
    assert!(promises.holders(at(11_500)).is_empty());
}

#[test]
fn p6_a_client_does_not_wait_for_itself_and_is_not_thereby_heard_of() {
    let mut promises = Promises::new(terms(), 5, [A], at(0));
    let mut own = promises.begin_break([X], Some(A), at(0));
    assert_eq!(promises.settled(&mut own, at(0)), Settled::Yes);
    promises.applied(own, [], at(0));
    let mut of_another = promises.begin_break([X], None, at(0));
    assert_eq!(promises.settled(&mut of_another, at(0)), Settled::NotBefore(at(10_500)));
    promises.applied(of_another, [], at(0));
}

#[test]
fn p6_a_longer_term_of_the_process_before_is_waited_for() {
    let mut promises = Promises::new(terms(), 5, [A], at(0));
    promises.wait_at_most(LeaseTerms::new(Duration::from_secs(100)), at(0));
    let mut breaking = promises.begin_break([X], Some(C), at(0));
    assert_eq!(promises.settled(&mut breaking, at(50_000)), Settled::NotBefore(at(105_000)));
    assert_eq!(promises.settled(&mut breaking, at(105_000)), Settled::Yes);
    promises.applied(breaking, [], at(105_000));
}

#[test]
fn p6_the_record_has_who_holds_leases_and_who_may_still() {
    let mut promises = Promises::new(terms(), 5, [C], at(0));
    lease(&mut promises, A, at(0));
    lease(&mut promises, B, at(5000));
    assert_eq!(promises.holders(at(6000)), BTreeSet::from([A, B, C]));
    promises.heard_of(C);
    promises.end_lease(B);
    assert_eq!(promises.holders(at(6000)), BTreeSet::from([A]));
    assert!(promises.holders(at(10_500)).is_empty());
}

#[test]
fn p7_the_oldest_callbacks_are_broken_to_make_room() {
    let mut promises = promises().with_max_callbacks(3);
    let (a, b) = (lease(&mut promises, A, at(0)), lease(&mut promises, B, at(0)));
    hold(&mut promises, A, &[X, Y], at(0));
    hold(&mut promises, B, &[X, Y], at(0));
    assert_eq!(outstanding(&mut promises, A, a, 0, at(0)), one(1, X));
    assert_eq!(outstanding(&mut promises, B, b, 0, at(0)), []);
    let stats = promises.stats(at(0));
    assert_eq!((stats.callbacks, stats.broken_for_room, stats.broken), (3, 1, 0));
    // P2: A may still count on what it has not acknowledged.
    let mut breaking = promises.begin_break([X], Some(B), at(0));
    assert_eq!(promises.settled(&mut breaking, at(0)), Settled::NotBefore(at(10_500)));
    assert_eq!(outstanding(&mut promises, A, a, 1, at(0)), []);
    assert_eq!(promises.settled(&mut breaking, at(0)), Settled::Yes);
    promises.applied(breaking, [], at(0));
}

#[test]
fn p7_callbacks_of_ended_leases_make_room_first() {
    let mut promises = promises().with_max_callbacks(2);
    lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X, Y], at(0));
    let b = lease(&mut promises, B, at(20_000));
    hold(&mut promises, B, &[X, Y], at(20_000));
    assert_eq!(outstanding(&mut promises, B, b, 0, at(20_000)), []);
    assert_eq!(promises.stats(at(20_000)).broken_for_room, 0);
    promises.sweep(at(20_000));
    assert_eq!(promises.stats(at(20_000)).callbacks, 2);
}

#[test]
fn p7_callbacks_that_were_given_up_make_room_before_older_ones_that_count() {
    let mut promises = promises().with_max_callbacks(3);
    let a = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X], at(0));
    lease(&mut promises, B, at(0));
    hold(&mut promises, B, &[X, Y], at(0));
    promises.end_lease(B);
    hold(&mut promises, A, &[Y, Z], at(10));
    assert_eq!(outstanding(&mut promises, A, a, 0, at(10)), []);
    assert_eq!(promises.stats(at(10)).broken_for_room, 0);
}

#[test]
fn p7_room_is_made_without_looking_at_every_callback() {
    // Were each looked at for each that is granted, this would take minutes.
    const ROOM: u64 = 300_000;
    let mut promises = promises().with_max_callbacks(ROOM as usize);
    let a = lease(&mut promises, A, at(0));
    for object in 0..ROOM + 30_000 {
        read(&mut promises, A, &[ObjectId(object)], at(1));
    }
    let stats = promises.stats(at(1));
    assert_eq!((stats.callbacks, stats.broken_for_room), (ROOM, 30_000));
    assert_eq!(outstanding(&mut promises, A, a, 29_999, at(1)), one(30_000, ObjectId(29_999)));
}

/// A client with a callback on one object more than breaks are kept for it, all of them broken; the last object, and
/// the mutation that waits.
fn overrun(promises: &mut Promises) -> (LeaseId, ObjectId, Breaking) {
    let a = lease(promises, A, at(0));
    let objects: Vec<ObjectId> = (0..=MAX_OUTSTANDING as u64).map(|object| ObjectId(object << 3)).collect();
    hold(promises, A, &objects, at(0));
    let breaking = promises.begin_break(objects.iter().copied(), Some(B), at(0));
    (a, objects[MAX_OUTSTANDING], breaking)
}

/// Acknowledges all that a client is told; how many that were.
fn acknowledge_all(promises: &mut Promises, client: ClientId, lease: LeaseId, now: BootTime) -> usize {
    let (mut acked, mut count) = (0, 0);
    loop {
        let breaks = outstanding(promises, client, lease, acked, now);
        let Some(last) = breaks.last() else { return count };
        acked = last.serial;
        count += breaks.len();
    }
}

#[test]
fn p7_a_client_with_too_many_breaks_lets_its_lease_run_out() {
    let mut promises = promises();
    let (a, _, mut breaking) = overrun(&mut promises);
    assert_eq!(acknowledge_all(&mut promises, A, a, at(10)), MAX_OUTSTANDING);
    assert_eq!(promises.settled(&mut breaking, at(20)), Settled::NotBefore(at(10_500)), "one it was not told of");
    let acked = MAX_OUTSTANDING as u64;
    assert_eq!(promises.renew(A, Some(a), acked, at(30)), Renewed::BreaksFirst(vec![]));
    assert_eq!(promises.settled(&mut breaking, at(10_500)), Settled::Yes);
    promises.applied(breaking, [], at(10_500));
    assert_eq!(promises.renew(A, Some(a), acked, at(10_500)), Renewed::Lapsed);
    let a = lease(&mut promises, A, at(10_600));
    hold(&mut promises, A, &[X], at(10_600));
    assert_eq!(promises.renew(A, Some(a), 0, at(10_700)), Renewed::Granted { lease: a }, "a new life, a new start");
}

#[test]
fn p7_a_break_that_found_no_room_is_waited_for_by_the_next_mutation_too() {
    let mut promises = promises();
    let (a, lost, first) = overrun(&mut promises);
    acknowledge_all(&mut promises, A, a, at(10));
    let mut second = promises.begin_break([lost], Some(C), at(20));
    assert_eq!(promises.settled(&mut second, at(20)), Settled::NotBefore(at(10_500)), "A counts on it");
    promises.applied(first, [], at(30));
    let mut third = promises.begin_break([lost], Some(C), at(40));
    assert_eq!(promises.settled(&mut third, at(40)), Settled::NotBefore(at(10_500)));
    assert_eq!(promises.settled(&mut third, at(10_500)), Settled::Yes);
    promises.applied(second, [], at(10_500));
    promises.applied(third, [], at(10_500));
}

#[test]
fn p7_later_breaks_do_not_acknowledge_the_one_that_found_no_room() {
    let mut promises = promises();
    lease(&mut promises, B, at(0));
    let (a, _, mut first) = overrun(&mut promises);
    hold(&mut promises, A, &[ObjectId(1)], at(0));
    acknowledge_all(&mut promises, A, a, at(10));
    let mut second = promises.begin_break([ObjectId(1)], Some(B), at(20));
    acknowledge_all(&mut promises, A, a, at(30));
    assert_eq!(promises.settled(&mut first, at(40)), Settled::NotBefore(at(10_500)));
    assert_eq!(promises.settled(&mut second, at(40)), Settled::NotBefore(at(10_500)));
    promises.applied(first, [], at(50));
    promises.applied(second, [], at(50));
}

#[test]
fn a_mutation_brings_its_client_callbacks_on_what_its_reply_shows() {
    let mut promises = promises();
    lease(&mut promises, A, at(0));
    let new = ObjectId(99);
    let breaking = promises.begin_break([X], Some(A), at(0));
    let grants = promises.applied(breaking, [X, new], at(0));
    assert!(grants.lease.is_some() && grants.withheld.is_empty(), "{grants:?}");
    assert!(is_held(&mut promises, new, at(1)) && is_held(&mut promises, X, at(1)));
    let breaking = promises.begin_break([X], Some(C), at(2));
    assert_eq!(promises.applied(breaking, [X], at(2)), Grants::default(), "C has no lease");
}

#[test]
fn a_mutation_brings_no_callbacks_on_what_others_were_changing_beside_it() {
    let mut promises = promises();
    lease(&mut promises, A, at(0));
    // One that began before and goes on, one that began before and is over, one that came between.
    let before = promises.begin_break([X], Some(B), at(0));
    let over = promises.begin_break([Y], Some(B), at(0));
    let own = promises.begin_break([X, Y, Z, ObjectId(20)], Some(A), at(1));
    promises.applied(over, [], at(2));
    let between = promises.begin_break([Z], Some(C), at(3));
    promises.applied(between, [], at(4));
    assert_eq!(promises.applied(own, [X, Y, Z, ObjectId(20)], at(5)).withheld, [X, Y, Z]);
    promises.applied(before, [], at(6));
    // Two of the same client know nothing of each other either.
    let first = promises.begin_break([X], Some(A), at(7));
    let second = promises.begin_break([X], Some(A), at(8));
    assert_eq!(promises.applied(first, [X], at(9)).withheld, [X]);
    assert_eq!(promises.applied(second, [X], at(10)).withheld, [X]);
}

#[test]
fn the_oldest_breaks_and_ended_leases_take_no_memory_for_ever() {
    let mut promises = promises();
    for round in 0..20_000u64 {
        let now = at(round);
        let a = lease(&mut promises, A, now);
        hold(&mut promises, A, &[X, Y], now);
        let breaking = promises.begin_break([X], Some(B), now);
        assert_eq!(outstanding(&mut promises, A, a, 1, now), []);
        promises.applied(breaking, [], now);
    }
    promises.sweep(at(20_000));
    let stats = promises.stats(at(20_000));
    assert_eq!((stats.leases, stats.callbacks), (1, 1));
    assert!(stats.callback_bytes < 10_000, "{stats:?}");
    assert!(promises.breaking.is_empty() && promises.clients.len() == 1);
}

/// What is done wrong on purpose, to see that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wrong {
    /// Nothing.
    Nothing,
    /// A mutation is applied without waiting.
    NobodyWaits,
    /// A mutation does not break anything, and what was read beside it is promised.
    NothingIsBroken,
    /// A read is counted from behind its rows.
    ReadsBeginLate,
    /// Clients take replies that a break has overtaken.
    RepliesAreNotOvertaken,
    /// Clients acknowledge before they drop what they have.
    AcknowledgedTooEarly,
    /// Clients count their leases from the answer.
    LeasesAreCountedFromTheAnswer,
    /// Clients' clocks run at two thirds of the speed.
    ClocksDriftTooFar,
    /// Clients go on as before after their lease has lapsed.
    LapsedLeasesAreRevived,
    /// A server that restarts waits for nobody.
    HoldersAreForgotten,
}

const OBJECTS: u64 = 4;
const CLIENTS: usize = 3;
const STEPS: usize = 500;

/// A client that keeps versions of what it read, and uses them as long as it may.
struct Reader {
    id: ClientId,
    /// Thousandths of a second that pass on its clock in each second of the server's.
    rate: u64,
    /// The server process that it speaks to.
    epoch: u64,
    lease: Option<LeaseId>,
    /// Until when the lease counts, by its clock.
    until: BootTime,
    acked: u64,
    renewing: bool,
    copies: BTreeMap<u64, u64>,
    /// What it is changing itself.
    changing: BTreeMap<u64, u32>,
    log: EventLog,
    /// Breaks that have come and are not applied yet.
    received: Vec<(LeaseId, Vec<Break>)>,
}

impl Reader {
    fn clock(&self, now: BootTime) -> BootTime {
        now * self.rate as u32 / 1000
    }

    fn void(&mut self) {
        self.lease = None;
        self.until = BootTime::ZERO;
        self.acked = 0;
        self.copies.clear();
        self.received.clear();
        self.log.note_all();
    }

    /// What it would answer a program with that asked now.
    fn usable(&self, now: BootTime) -> impl Iterator<Item = (u64, u64)> + '_ {
        let counts = self.lease.is_some() && self.clock(now) < self.until;
        let copies = self.copies.iter().filter(move |(object, _)| counts && !self.changing.contains_key(object));
        copies.map(|(object, version)| (*object, *version))
    }
}

/// A mutation on its way.
struct Change {
    client: Option<usize>,
    /// Whether the client is there still, and waits for the answer.
    awaited: bool,
    objects: BTreeSet<u64>,
    /// The client's moment of sending.
    sent: Option<Since>,
}

/// Everything that is under way. Any of these may go on next.
enum UnderWay {
    ReadAsked { client: usize, objects: Vec<u64>, sent: Since },
    Reading { client: usize, left: Vec<u64>, sent: Since, since: Since, rows: Vec<(u64, u64)> },
    ReadAnswered { client: usize, sent: Since, rows: Vec<(u64, u64)>, grants: Grants },
    RenewalAsked { client: usize, sent: BootTime, lease: Option<LeaseId>, acked: u64 },
    RenewalAnswered { client: usize, sent: BootTime, answer: Renewed },
    BreaksAsked { client: usize, lease: LeaseId, acked: u64 },
    BreaksAnswered { client: usize, lease: LeaseId, answer: Breaks },
    ChangeAsked { change: Change },
    ChangeWaits { change: Change, breaking: Breaking, began: BootTime, settled: bool },
    ChangeApplied { change: Change, breaking: Breaking, rows: Vec<(u64, u64)> },
    ChangeAnswered { change: Change, rows: Vec<(u64, u64)>, grants: Grants },
}

/// What has happened, to see that the model does not pass because nothing does.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    used: u64,
    applied: u64,
    waited: u64,
    withheld: u64,
    own: u64,
    breaks: u64,
    breaks_first: u64,
    lapsed: u64,
    restarts: u64,
    for_room: u64,
}

struct Model {
    random: SmallRng,
    wrong: Wrong,
    now: BootTime,
    epoch: u64,
    room: usize,
    server: Promises,
    /// The durable record of holders, and what this process knows to be in it.
    durable: BTreeSet<ClientId>,
    recorded: BTreeSet<ClientId>,
    versions: Vec<u64>,
    clients: Vec<Reader>,
    under_way: Vec<UnderWay>,
    tally: Tally,
}

impl Model {
    fn new(seed: u64, wrong: Wrong) -> Model {
        let mut random = SmallRng::seed_from_u64(seed);
        let room = if random.random_bool(0.3) { random.random_range(1..5) } else { MAX_CALLBACKS };
        let clients = (0..CLIENTS).map(|client| Reader {
            id: ClientId(client as u128),
            // A twentieth either way is the margin.
            rate: if wrong == Wrong::ClocksDriftTooFar { 667 } else { random.random_range(950..=1050) },
            epoch: 1,
            lease: None,
            until: BootTime::ZERO,
            acked: 0,
            renewing: false,
            copies: BTreeMap::new(),
            changing: BTreeMap::new(),
            log: EventLog::default(),
            received: Vec::new(),
        });
        let clients = clients.collect();
        Model {
            wrong,
            now: at(1000),
            epoch: 1,
            room,
            server: Promises::new(terms(), random.random(), [], at(1000)).with_max_callbacks(room),
            durable: BTreeSet::new(),
            recorded: BTreeSet::new(),
            versions: vec![0; OBJECTS as usize],
            clients,
            under_way: Vec::new(),
            tally: Tally::default(),
            random,
        }
    }

    fn some_objects(&mut self) -> Vec<u64> {
        (0..OBJECTS).filter(|_| self.random.random_bool(0.4)).collect()
    }

    fn run(mut self) -> Result<Tally, String> {
        for step in 0..STEPS {
            self.step();
            self.check().map_err(|what| format!("step {step}: {what}"))?;
        }
        Ok(self.tally)
    }

    fn step(&mut self) {
        let client = self.random.random_range(0..CLIENTS);
        let connected = self.clients[client].epoch == self.epoch;
        match self.random.random_range(0..1000) {
            0..100 => self.now += at(self.random.random_range(1..100)),
            100..125 => self.now += at(self.random.random_range(100..6000)),
            125..127 => self.restart(),
            127..133 => self.leave(client),
            133..200 => self.apply_breaks(client),
            200..220 => self.ask_change(None),
            220..1000 if self.under_way.len() > 12 || self.random.random_bool(0.6) => self.go_on(),
            _ if !connected => self.reconnect(client),
            220..500 => {
                let objects = self.some_objects();
                let sent = self.clients[client].log.begin();
                self.under_way.push(UnderWay::ReadAsked { client, objects, sent });
            }
            500..680 => {
                let reader = &mut self.clients[client];
                if !reader.renewing {
                    reader.renewing = true;
                    let (sent, lease, acked) = (reader.clock(self.now), reader.lease, reader.acked);
                    self.under_way.push(UnderWay::RenewalAsked { client, sent, lease, acked });
                }
            }
            680..900 => {
                if let Reader { lease: Some(lease), acked, .. } = self.clients[client] {
                    self.under_way.push(UnderWay::BreaksAsked { client, lease, acked });
                }
            }
            _ => self.ask_change(Some(client)),
        }
    }

    fn ask_change(&mut self, client: Option<usize>) {
        let objects: BTreeSet<u64> = self.some_objects().into_iter().take(2).collect();
        let sent = client.map(|client| {
            let reader = &mut self.clients[client];
            objects.iter().for_each(|object| *reader.changing.entry(*object).or_default() += 1);
            reader.log.begin()
        });
        let change = Change { client, awaited: client.is_some(), objects, sent };
        self.under_way.push(UnderWay::ChangeAsked { change });
    }

    /// A client applies the breaks that it has received, and may acknowledge them from then on.
    fn apply_breaks(&mut self, client: usize) {
        let reader = &mut self.clients[client];
        for (lease, breaks) in std::mem::take(&mut reader.received) {
            for one in &breaks {
                reader.copies.remove(&one.object.0);
            }
            if let (true, Some(last)) = (reader.lease == Some(lease), breaks.last()) {
                reader.acked = reader.acked.max(last.serial);
            }
        }
    }

    /// A client finds that it speaks to another process: what it holds is void.
    fn reconnect(&mut self, client: usize) {
        self.lose(|one| one.belongs_to() == Some(client));
        self.clients[client].void();
        self.clients[client].epoch = self.epoch;
    }

    /// A client leaves, or a new life of it begins.
    fn leave(&mut self, client: usize) {
        self.lose(|one| one.belongs_to() == Some(client));
        let reader = &mut self.clients[client];
        reader.void();
        reader.changing.clear();
        reader.epoch = self.epoch;
        self.server.heard_of(reader.id);
        self.server.end_lease(reader.id);
        for one in &mut self.under_way {
            if let Some(change) = one.change()
                && change.client == Some(client)
            {
                change.awaited = false;
            }
        }
    }

    /// Loses what is on its way between the two sides.
    fn lose(&mut self, which: impl Fn(&UnderWay) -> bool) {
        for one in std::mem::take(&mut self.under_way) {
            if which(&one) { self.give_up(one) } else { self.under_way.push(one) }
        }
    }

    fn give_up(&mut self, one: UnderWay) {
        match one {
            UnderWay::ReadAsked { client, sent, .. } | UnderWay::ReadAnswered { client, sent, .. } => {
                self.clients[client].log.end(sent);
            }
            UnderWay::Reading { client, sent, since, .. } => {
                self.clients[client].log.end(sent);
                self.server.end_read(since);
            }
            UnderWay::RenewalAsked { client, .. } | UnderWay::RenewalAnswered { client, .. } => {
                self.clients[client].renewing = false;
            }
            _ => {}
        }
    }

    /// The server ends at any moment, and another process begins.
    fn restart(&mut self) {
        self.tally.restarts += 1;
        self.lose(UnderWay::is_asked);
        for one in std::mem::take(&mut self.under_way) {
            match one {
                // The clients ask again and learn that it is done, or not to be done.
                UnderWay::ChangeAsked { change }
                | UnderWay::ChangeWaits { change, .. }
                | UnderWay::ChangeApplied { change, .. } => {
                    self.under_way.push(UnderWay::ChangeAnswered { change, rows: vec![], grants: Grants::default() });
                }
                other => self.under_way.push(other),
            }
        }
        let holders = if self.wrong == Wrong::HoldersAreForgotten { BTreeSet::new() } else { self.durable.clone() };
        self.epoch += 1;
        let seed = self.random.random();
        self.server = Promises::new(terms(), seed, holders, self.now).with_max_callbacks(self.room);
        self.recorded.clear();
    }

    /// One of those under way gets one step further, or is lost.
    fn go_on(&mut self) {
        if self.under_way.is_empty() {
            return;
        }
        let place = self.random.random_range(0..self.under_way.len());
        let one = self.under_way.swap_remove(place);
        if one.may_be_lost() && self.random.random_bool(0.05) {
            return self.give_up(one);
        }
        if let Some(next) = self.next(one) {
            self.under_way.push(next);
        }
    }

    fn next(&mut self, one: UnderWay) -> Option<UnderWay> {
        let now = self.now;
        match one {
            UnderWay::ReadAsked { client, objects, sent } => {
                let since = self.server.begin_read();
                Some(UnderWay::Reading { client, left: objects, sent, since, rows: vec![] })
            }
            UnderWay::Reading { client, mut left, sent, mut since, mut rows } => {
                if let Some(object) = left.pop() {
                    rows.push((object, self.versions[object as usize]));
                    return Some(UnderWay::Reading { client, left, sent, since, rows });
                }
                if self.wrong == Wrong::ReadsBeginLate {
                    self.server.end_read(since);
                    since = self.server.begin_read();
                }
                let shown: Vec<ObjectId> = rows.iter().map(|(object, _)| ObjectId(*object)).collect();
                let grants = self.server.grant(self.clients[client].id, shown, since, now);
                self.tally.withheld += grants.withheld.len() as u64;
                Some(UnderWay::ReadAnswered { client, sent, rows, grants })
            }
            UnderWay::ReadAnswered { client, sent, rows, grants } => {
                let reader = &mut self.clients[client];
                for (object, version) in rows {
                    let overtaken = reader.log.overtaken(&sent, object) && self.wrong != Wrong::RepliesAreNotOvertaken;
                    if reader.lease.is_some_and(|lease| grants.include(lease, ObjectId(object))) && !overtaken {
                        reader.copies.insert(object, version);
                    }
                }
                reader.log.end(sent);
                None
            }
            UnderWay::RenewalAsked { client, sent, lease, acked } => {
                let id = self.clients[client].id;
                if lease.is_none() && !self.recorded.contains(&id) {
                    self.recorded = self.server.holders(now);
                    self.recorded.insert(id);
                    self.durable = self.recorded.clone();
                }
                let answer = self.server.renew(id, lease, acked, now);
                Some(UnderWay::RenewalAnswered { client, sent, answer })
            }
            UnderWay::RenewalAnswered { client, sent, answer } => {
                self.renewed(client, sent, answer);
                None
            }
            UnderWay::BreaksAsked { client, lease, acked } => {
                match self.server.breaks(self.clients[client].id, lease, acked, now) {
                    Some(answer) => Some(UnderWay::BreaksAnswered { client, lease, answer }),
                    // It waits. That it acknowledges again later is no harm.
                    None => Some(UnderWay::BreaksAsked { client, lease, acked }),
                }
            }
            UnderWay::BreaksAnswered { client, lease, answer } => {
                match answer {
                    Breaks::Outstanding(breaks) => self.broken(client, lease, breaks),
                    Breaks::Lapsed => self.lapsed(client, lease),
                }
                None
            }
            UnderWay::ChangeAsked { change } => {
                let objects: Vec<ObjectId> = change.objects.iter().map(|object| ObjectId(*object)).collect();
                let objects = if self.wrong == Wrong::NothingIsBroken { vec![] } else { objects };
                let id = change.client.map(|client| self.clients[client].id);
                let breaking = self.server.begin_break(objects, id, now);
                Some(UnderWay::ChangeWaits { change, breaking, began: now, settled: false })
            }
            UnderWay::ChangeWaits { mut change, mut breaking, began, settled } => {
                if !settled && self.wrong != Wrong::NobodyWaits {
                    return Some(UnderWay::ChangeWaits { change, breaking, began, settled });
                }
                match self.random.random_range(0..10) {
                    // It was not applied.
                    0 => Some(UnderWay::ChangeApplied { change, breaking, rows: vec![] }),
                    // It would have changed more.
                    1 => {
                        let more = self.random.random_range(0..OBJECTS);
                        if change.objects.insert(more) {
                            if let (true, Some(client)) = (change.awaited, change.client) {
                                *self.clients[client].changing.entry(more).or_default() += 1;
                            }
                            if self.wrong != Wrong::NothingIsBroken {
                                self.server.extend(&mut breaking, [ObjectId(more)], now);
                            }
                        }
                        Some(UnderWay::ChangeWaits { change, breaking, began: now, settled: false })
                    }
                    _ => {
                        self.tally.applied += 1;
                        let mut rows = Vec::new();
                        for object in &change.objects {
                            self.versions[*object as usize] += 1;
                            rows.push((*object, self.versions[*object as usize]));
                        }
                        Some(UnderWay::ChangeApplied { change, breaking, rows })
                    }
                }
            }
            UnderWay::ChangeApplied { change, breaking, rows } => {
                let shown: Vec<ObjectId> = rows.iter().map(|(object, _)| ObjectId(*object)).collect();
                let grants = self.server.applied(breaking, shown, now);
                Some(UnderWay::ChangeAnswered { change, rows, grants })
            }
            UnderWay::ChangeAnswered { change, rows, grants } => {
                self.changed(change, &rows, &grants);
                None
            }
        }
    }

    fn renewed(&mut self, client: usize, sent: BootTime, answer: Renewed) {
        let reader = &mut self.clients[client];
        reader.renewing = false;
        match answer {
            Renewed::Granted { lease } => {
                if reader.lease != Some(lease) {
                    reader.void();
                    reader.lease = Some(lease);
                }
                let from = match self.wrong {
                    Wrong::LeasesAreCountedFromTheAnswer => reader.clock(self.now),
                    _ => sent,
                };
                reader.until = reader.until.max(from + terms().counted());
            }
            Renewed::BreaksFirst(breaks) => {
                self.tally.breaks_first += 1;
                if let Some(lease) = reader.lease {
                    self.broken(client, lease, breaks);
                }
            }
            Renewed::Lapsed => {
                if let Some(lease) = reader.lease {
                    self.lapsed(client, lease);
                }
            }
        }
    }

    fn lapsed(&mut self, client: usize, lease: LeaseId) {
        let reader = &mut self.clients[client];
        if reader.lease != Some(lease) {
            return;
        }
        self.tally.lapsed += 1;
        let copies = std::mem::take(&mut reader.copies);
        reader.void();
        if self.wrong == Wrong::LapsedLeasesAreRevived {
            let lease = granted(self.server.renew(reader.id, None, 0, self.now));
            reader.lease = Some(lease);
            reader.until = reader.clock(self.now) + terms().counted();
            reader.copies = copies;
        }
    }

    fn broken(&mut self, client: usize, lease: LeaseId, breaks: Vec<Break>) {
        let reader = &mut self.clients[client];
        if reader.lease != Some(lease) {
            return;
        }
        let acked = reader.acked;
        let new: Vec<Break> = breaks.into_iter().filter(|one| one.serial > acked).collect();
        self.tally.breaks += new.len() as u64;
        new.iter().for_each(|one| reader.log.note(one.object.0));
        if let (Wrong::AcknowledgedTooEarly, Some(last)) = (self.wrong, new.last()) {
            reader.acked = last.serial;
        }
        reader.received.push((lease, new));
    }

    /// A client gets the answer to its own mutation.
    fn changed(&mut self, change: Change, rows: &[(u64, u64)], grants: &Grants) {
        let (true, Some(client), Some(sent)) = (change.awaited, change.client, change.sent) else { return };
        let reader = &mut self.clients[client];
        for object in &change.objects {
            let row = rows.iter().find(|(shown, _)| shown == object);
            let overtaken = reader.log.overtaken(&sent, *object);
            match row {
                Some((_, version))
                    if reader.lease.is_some_and(|lease| grants.include(lease, ObjectId(*object))) && !overtaken =>
                {
                    reader.copies.insert(*object, *version);
                    self.tally.own += 1;
                }
                _ => {
                    reader.copies.remove(object);
                }
            }
            reader.log.note(*object);
            let count = reader.changing.entry(*object).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                reader.changing.remove(object);
            }
        }
        reader.log.end(sent);
    }

    /// No client would use another version than the newest, and nobody waits for too long.
    fn check(&mut self) -> Result<(), String> {
        let now = self.now;
        for client in &self.clients {
            for (object, version) in client.usable(now) {
                self.tally.used += 1;
                let newest = self.versions[object as usize];
                if version != newest {
                    let id = client.id;
                    return Err(format!("{id} uses version {version} of {object} at {now:?}, and {newest} is applied"));
                }
            }
        }
        let kept = terms().kept();
        for one in &mut self.under_way {
            let UnderWay::ChangeWaits { breaking, began, settled, .. } = one else { continue };
            match self.server.settled(breaking, now) {
                Settled::Yes => *settled = true,
                Settled::NotBefore(_) if *settled => return Err(format!("what was settled is not at {now:?}")),
                Settled::NotBefore(moment) if moment <= now || moment > *began + kept => {
                    return Err(format!("it began at {began:?}, is not settled at {now:?}, and waits for {moment:?}"));
                }
                Settled::NotBefore(_) => self.tally.waited += 1,
            }
        }
        self.tally.for_room = self.tally.for_room.max(self.server.stats(now).broken_for_room);
        Ok(())
    }
}

impl UnderWay {
    /// The client between whom and the server this is on its way.
    fn belongs_to(&self) -> Option<usize> {
        match self {
            UnderWay::ReadAsked { client, .. }
            | UnderWay::Reading { client, .. }
            | UnderWay::ReadAnswered { client, .. }
            | UnderWay::RenewalAsked { client, .. }
            | UnderWay::RenewalAnswered { client, .. }
            | UnderWay::BreaksAsked { client, .. }
            | UnderWay::BreaksAnswered { client, .. } => Some(*client),
            _ => None,
        }
    }

    fn is_asked(&self) -> bool {
        let asked = matches!(self, UnderWay::ReadAsked { .. } | UnderWay::Reading { .. });
        asked || matches!(self, UnderWay::RenewalAsked { .. } | UnderWay::BreaksAsked { .. })
    }

    fn may_be_lost(&self) -> bool {
        self.belongs_to().is_some() && !matches!(self, UnderWay::Reading { .. })
    }

    fn change(&mut self) -> Option<&mut Change> {
        match self {
            UnderWay::ChangeAsked { change }
            | UnderWay::ChangeWaits { change, .. }
            | UnderWay::ChangeApplied { change, .. }
            | UnderWay::ChangeAnswered { change, .. } => Some(change),
            _ => None,
        }
    }
}

/// Everything at once, in any order: no client ever uses anything but the newest version, and no mutation waits for
/// longer than a lease runs.
#[test]
fn no_client_uses_an_old_version_whatever_happens() {
    let mut all = Tally::default();
    for seed in 0..3000 {
        match Model::new(seed, Wrong::Nothing).run() {
            Ok(tally) => {
                all.used += tally.used;
                all.applied += tally.applied;
                all.waited += tally.waited;
                all.withheld += tally.withheld;
                all.own += tally.own;
                all.breaks += tally.breaks;
                all.breaks_first += tally.breaks_first;
                all.lapsed += tally.lapsed;
                all.restarts += tally.restarts;
                all.for_room += tally.for_room;
            }
            Err(what) => panic!("seed {seed}, {what}"),
        }
    }
    println!("{all:?}");
    let counts = [all.used, all.applied, all.waited, all.withheld, all.own, all.breaks, all.breaks_first];
    assert!(counts.iter().all(|count| *count > 1000), "{all:?}");
    assert!(all.lapsed > 1000 && all.restarts > 1000 && all.for_room > 300, "{all:?}");
}

#[test]
fn the_model_notices_what_is_done_wrong() {
    for wrong in [
        Wrong::NobodyWaits,
        Wrong::NothingIsBroken,
        Wrong::ReadsBeginLate,
        Wrong::RepliesAreNotOvertaken,
        Wrong::AcknowledgedTooEarly,
        Wrong::LeasesAreCountedFromTheAnswer,
        Wrong::ClocksDriftTooFar,
        Wrong::LapsedLeasesAreRevived,
        Wrong::HoldersAreForgotten,
    ] {
        let found = (0..3000).find_map(|seed| Some((seed, Model::new(seed, wrong).run().err()?)));
        match found {
            Some((seed, what)) => println!("{wrong:?}: seed {seed}, {what}"),
            None => panic!("{wrong:?} goes unnoticed"),
        }
    }
}
