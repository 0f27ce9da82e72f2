//! What came of worlds.

use larder_benches::digest::Digested;
use larder_benches::seeds::Ran;

use crate::client::Totals;
use crate::fate::Waits;
use crate::history::Counts;

/// What came of a world.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub(crate) seed: u64,
    /// Of all that happened.
    pub(crate) digest: u64,
    /// Requests that a kernel would have made of the clients.
    pub(crate) requests: u64,
    /// Virtual seconds.
    pub(crate) seconds: f64,
    pub(crate) server_crashes: u64,
    pub(crate) partitions: u64,
    pub(crate) stops: u64,
    pub(crate) squatters: u64,
    pub(crate) forged: u64,
    pub(crate) stale: u64,
    pub(crate) errors: Vec<String>,
    pub(crate) totals: Totals,
    pub(crate) waits: Waits,
    pub(crate) counts: Counts,
    /// Objects whose history has no explanation.
    pub(crate) unexplained: Option<String>,
    /// Whether there was none without what `prompt` allows.
    pub(crate) late: bool,
}

impl Digested for Summary {
    fn digest(&self) -> u64 {
        self.digest
    }
}

/// Prints what came of worlds.
pub(crate) fn report(ran: &Ran<Summary>) {
    let Ran { worlds, cpu } = ran;
    let total = |of: fn(&Summary) -> u64| worlds.iter().map(of).sum::<u64>();
    let most = worlds.iter().map(|world| world.waits.longest).max().unwrap_or_default();
    println!(
        "{} worlds, {:.0} virtual seconds: {} reads, {} writes, {} operations on names, {} changes of unknown fate, \
         {} errors; {} cache hits, {} fetches, {} stores, {} conflicts, {} lookups repeated; {} callbacks broken, \
         {} breaks received, {} changes waited, at most {most:?}, {} leases lapsed, {} times everything was void; \
         {} client crashes, {} partitions, {} stops, {} squatters, {} server crashes ({} seen by clients)",
        worlds.len(),
        worlds.iter().map(|world| world.seconds).sum::<f64>(),
        total(|world| world.counts.reads as u64),
        total(|world| world.counts.writes as u64),
        total(|world| world.counts.names as u64),
        total(|world| world.counts.unknown as u64),
        total(|world| world.errors.len() as u64),
        total(|world| world.totals.hits),
        total(|world| world.totals.fetches),
        total(|world| world.totals.stores),
        total(|world| world.totals.conflicts),
        total(|world| world.stale),
        total(|world| world.waits.broken),
        total(|world| world.totals.breaks),
        total(|world| world.waits.waited),
        total(|world| world.waits.lapsed),
        total(|world| world.totals.voids),
        total(|world| world.totals.crashes),
        total(|world| world.partitions),
        total(|world| world.stops),
        total(|world| world.squatters),
        total(|world| world.server_crashes),
        total(|world| world.totals.restarts),
    );
    let requests = total(|world| world.requests);
    println!(
        "{requests} client operations in {:.1} s of one processor, checks and all: {:.0} a second",
        cpu.as_secs_f64(),
        requests as f64 / cpu.as_secs_f64(),
    );
    for (seed, error) in worlds.iter().flat_map(|world| world.errors.iter().map(move |error| (world.seed, error))) {
        println!("  an operation failed in the world of seed {seed}: {error}");
    }
}

/// A run in which nothing happened is no test.
pub(crate) fn assert_eventful(worlds: &[Summary]) {
    let total = |of: fn(&Summary) -> u64| worlds.iter().map(of).sum::<u64>();
    let happened = [
        ("cache hits", total(|world| world.totals.hits)),
        ("fetches", total(|world| world.totals.fetches)),
        ("stores", total(|world| world.totals.stores)),
        ("breaks", total(|world| world.totals.breaks)),
        ("waits", total(|world| world.waits.waited)),
        ("lapses", total(|world| world.totals.voids)),
        ("client crashes", total(|world| world.totals.crashes)),
        ("partitions", total(|world| world.partitions)),
        ("stops", total(|world| world.stops)),
        ("server crashes", total(|world| world.server_crashes)),
        ("changes of unknown fate", total(|world| world.counts.unknown as u64)),
    ];
    for (what, times) in happened {
        assert!(times > 0, "no {what}");
    }
}
