//! Whether the kernel's pages of a file still hold what the server has.
//!
//! The pages are known to be good as of one `change`. This client's own changes move it on without spoiling them: each
//! reply says the `change` before and after, and pairs that join end to end form a chain. A `change` that the chain
//! does not reach was somebody else's.
//!
//! An open that has the pages dropped takes effect only when the kernel has received its reply. Until it is seen to have
//! (*confirmed*), another open must not have them kept, for its reply could come first.

/// Pairs remembered while replies are out of order. More than are ever in flight for one file.
const MAX_LINKS: usize = 64;

/// The state of one file's pages.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    good_at: Option<u64>,
    links: Vec<(u64, u64)>,
    /// Counts the times the pages were to be dropped.
    round: u32,
    /// Whether the kernel has dropped them for this round.
    confirmed: bool,
}

impl Pages {
    /// The kernel is being told to drop the pages, and those read from then on are good at this `change`. Returns what
    /// to pass to [`Pages::dropped`] once it has.
    pub fn filled(&mut self, change: u64) -> u32 {
        if self.good_at != Some(change) {
            self.start_over();
            self.good_at = Some(change);
        }
        self.round
    }

    /// The kernel has dropped the pages as [`Pages::filled`] wanted; of no effect if they are to be dropped anew.
    pub fn dropped(&mut self, round: u32) {
        self.confirmed |= self.round == round;
    }

    /// Nothing is known of the pages any more.
    pub fn forget(&mut self) {
        self.start_over();
    }

    fn start_over(&mut self) {
        self.good_at = None;
        self.round = self.round.wrapping_add(1);
        self.confirmed = false;
        self.links.clear();
        self.links.shrink_to_fit();
    }

    /// This client changed the file from `before` to `after`.
    pub fn own_change(&mut self, before: u64, after: u64) {
        let Some(mut good_at) = self.good_at else { return };
        if self.links.len() == MAX_LINKS {
            self.links.remove(0);
        }
        self.links.push((before, after));
        while let Some(place) = self.links.iter().position(|(before, _)| *before == good_at) {
            good_at = self.links.swap_remove(place).1;
        }
        self.good_at = Some(good_at);
    }

    /// Whether the pages are good at `change`.
    pub fn good_at(&self, change: u64) -> bool {
        self.good_at == Some(change)
    }

    /// Whether the kernel may keep the pages at an open that found the file at `change`.
    pub fn may_keep(&self, change: u64) -> bool {
        self.confirmed && self.good_at(change)
    }

    /// Whether anything is known of the pages.
    pub fn known(&self) -> bool {
        self.good_at.is_some()
    }

    /// Whether `change` lies behind a change of this client that is known already.
    pub fn superseded(&self, change: u64) -> bool {
        self.links.iter().any(|(before, _)| *before == change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_changes_keep_pages_good_in_any_order_of_replies() {
        let mut pages = Pages::default();
        pages.filled(5);
        pages.own_change(7, 8);
        assert!(!pages.good_at(8));
        assert!(pages.superseded(7));
        pages.own_change(6, 7);
        pages.own_change(5, 6);
        assert!(pages.good_at(8));
        assert!(!pages.superseded(7), "the chain is complete");
    }

    #[test]
    fn a_change_by_somebody_else_breaks_the_chain() {
        let mut pages = Pages::default();
        pages.filled(5);
        pages.own_change(6, 7);
        assert!(!pages.good_at(7) && pages.good_at(5));
        pages.filled(7);
        assert!(pages.good_at(7));
    }

    #[test]
    fn pages_are_kept_only_after_the_kernel_has_dropped_the_old_ones() {
        let mut pages = Pages::default();
        let first = pages.filled(5);
        assert!(pages.good_at(5) && !pages.may_keep(5));
        assert_eq!(pages.filled(5), first, "another open meanwhile drops them too, and either will do");
        pages.own_change(5, 6);
        pages.dropped(first);
        assert!(pages.may_keep(6) && !pages.may_keep(5));
        let second = pages.filled(7);
        pages.dropped(first);
        assert!(!pages.may_keep(7), "that was the drop before");
        pages.forget();
        pages.dropped(second);
        let third = pages.filled(7);
        pages.dropped(second);
        assert!(!pages.may_keep(7));
        pages.dropped(third);
        assert!(pages.may_keep(7));
    }

    #[test]
    fn pages_never_filled_are_never_good() {
        let mut pages = Pages::default();
        pages.own_change(1, 2);
        assert!(!pages.good_at(2) && !pages.known());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut pages = Pages::default();
        pages.filled(0);
        for n in 0..1000 {
            pages.own_change(10 + 2 * n, 11 + 2 * n);
        }
        assert!(pages.links.len() <= MAX_LINKS);
    }
}
