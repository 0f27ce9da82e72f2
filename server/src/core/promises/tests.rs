//! The rules P1 to P7 one by one.

mod model;

use std::time::Duration;

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

/// The volume that X, Y and Z are in.
const VOLUME: VolumeId = VolumeId(1);

#[test]
fn on_a_quiet_volume_nobody_gets_callbacks() {
    let mut promises = promises();
    lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X], at(0));
    promises.quiet(VOLUME);
    promises.quiet(VOLUME);
    let elsewhere = Fid { volume: VolumeId(2), vnode: 10, generation: 0 }.into();
    // As long as one of the two says so.
    for _ in 0..2 {
        assert_eq!(read(&mut promises, A, &[Y, elsewhere], at(1)).withheld, [Y]);
        let breaking = promises.begin_break([Z], Some(A), at(1));
        assert_eq!(promises.applied(breaking, [Z], at(1)).withheld, [Z]);
        promises.loud(VOLUME);
    }
    assert!(promises.quiet.is_empty());
    assert!(read(&mut promises, A, &[Y], at(2)).withheld.is_empty());
}

#[test]
fn what_was_broken_and_not_acknowledged_counts_among_a_volumes_callbacks() {
    let mut promises = promises();
    let lease = lease(&mut promises, A, at(0));
    hold(&mut promises, A, &[X, Y], at(0));
    // One that nobody has waited for.
    let breaking = promises.begin_break([X], Some(B), at(1));
    promises.applied(breaking, [], at(1));
    let mut objects = promises.objects_of(VOLUME);
    objects.sort_unstable();
    assert_eq!(objects, [X, Y]);
    let mut all = promises.begin_break(objects, None, at(2));
    assert!(matches!(promises.settled(&mut all, at(2)), Settled::NotBefore(_)));
    promises.breaks(A, lease, 2, at(3));
    assert_eq!(promises.settled(&mut all, at(3)), Settled::Yes);
    promises.applied(all, [], at(3));
    assert!(promises.objects_of(VOLUME).is_empty());
}
