//! Holes in what is copied: blocks of zeros need not be written to a file that is new.

use std::ops::Range;

/// The unit in which holes are looked for, in bytes; the block size of most file systems.
const BLOCK: usize = 4096;

fn is_zero(block: &[u8]) -> bool {
    // Without an early end, for which compilers find the widest instructions there are.
    block.iter().fold(0, |all, byte| all | byte) == 0
}

/// The ranges of `data` that hold something else than zeros, rounded to blocks of 4 KiB; in order, with gaps between.
pub fn data_ranges(data: &[u8]) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let mut blocks = data[from..].chunks(BLOCK).map(is_zero);
        let zeros = blocks.by_ref().take_while(|zero| *zero).count();
        let start = from + zeros * BLOCK;
        if start >= data.len() {
            return None;
        }
        // The block that ended the zeros is the first of these.
        let full = 1 + blocks.take_while(|zero| !*zero).count();
        from = (start + full * BLOCK).min(data.len());
        Some(start..from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(data: &[u8]) -> Vec<Range<usize>> {
        data_ranges(data).collect()
    }

    #[test]
    fn zeros_are_no_data() {
        assert!(ranges(&[]).is_empty());
        assert!(ranges(&[0; 3 * BLOCK + 1]).is_empty());
        assert_eq!(ranges(&[1; 3 * BLOCK + 1]), vec![0..3 * BLOCK + 1]);
    }

    #[test]
    fn ranges_begin_and_end_with_blocks() {
        let mut data = vec![0; 10 * BLOCK + 100];
        data[BLOCK + 7] = 1;
        data[2 * BLOCK] = 1;
        data[5 * BLOCK - 1] = 1;
        data[10 * BLOCK + 99] = 1;
        assert_eq!(ranges(&data), [BLOCK..3 * BLOCK, 4 * BLOCK..5 * BLOCK, 10 * BLOCK..10 * BLOCK + 100]);
    }
}
