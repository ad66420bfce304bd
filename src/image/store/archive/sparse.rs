//! Files with holes: where the stored bytes belong.

use super::header;
use super::pax::decimal;

/// Where some of the stored bytes belong in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::image::store) struct Extent {
    pub offset: u64,
    pub len: u64,
}

/// The most extents that a file may have: 16 MiB of memory.
pub(super) const MAX_EXTENTS: usize = 1 << 20;

/// Reads offset and length pairs of the old GNU form; an empty field ends them.
pub(super) fn old_gnu(pairs: &[u8], map: &mut Vec<Extent>) -> Result<(), &'static str> {
    for pair in pairs.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let (offset, len) = (header::number(&pair[..12])?, header::number(&pair[12..])?);
        let unsigned = |n: i64| u64::try_from(n).map_err(|_| "sparse map has a negative number");
        map.push(Extent {
            offset: unsigned(offset)?,
            len: unsigned(len)?,
        });
    }
    if map.len() > MAX_EXTENTS {
        Err("sparse map is too long")
    } else {
        Ok(())
    }
}

/// Reads the map of pax version 1.0, which stands before the data: a count, then offsets and lengths, one a line.
/// `more` gives the next block.
pub(super) fn pax_1_0<E>(
    mut more: impl FnMut() -> Result<[u8; super::BLOCK], E>,
    wrong: impl Fn(&'static str) -> E,
) -> Result<Vec<Extent>, E> {
    let mut text: Vec<u8> = Vec::new();
    let mut at = 0;
    let mut number = || loop {
        if let Some(len) = text[at..].iter().position(|byte| *byte == b'\n') {
            let value = decimal(&text[at..at + len]).map_err(&wrong)?;
            at += len + 1;
            return Ok(value);
        }
        // A number has 19 digits at most, so a block without a line end is no map.
        if text.len() - at > 32 {
            return Err(wrong("sparse map is malformed"));
        }
        text.drain(..at);
        at = 0;
        text.extend_from_slice(&more()?);
    };
    let count = number()?;
    if count > MAX_EXTENTS as u64 {
        return Err(wrong("sparse map is too long"));
    }
    let mut map = Vec::new();
    for _ in 0..count {
        map.push(Extent {
            offset: number()?,
            len: number()?,
        });
    }
    Ok(map)
}

/// Extents must rise, stay inside the file and add up to what is stored.
pub(super) fn check(map: &[Extent], stored: u64, real_size: u64) -> Result<(), &'static str> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for extent in map {
        if extent.offset < end {
            return Err("sparse map goes backwards");
        }
        end = extent.offset.checked_add(extent.len).ok_or("sparse map is too big")?;
        sum += extent.len;
        if end > real_size {
            return Err("sparse map goes past the end of the file");
        }
    }
    if sum == stored {
        Ok(())
    } else {
        Err("sparse map and stored size disagree")
    }
}

#[cfg(test)]
mod tests {
    use super::{Extent, check};

    #[test]
    fn maps_that_lie_are_found() {
        let map = |pairs: &[(u64, u64)]| -> Vec<Extent> {
            pairs
                .iter()
                .map(|(offset, len)| Extent {
                    offset: *offset,
                    len: *len,
                })
                .collect()
        };
        assert_eq!(check(&map(&[(0, 1), (4096, 2), (9000, 0)]), 3, 9000), Ok(()));
        assert!(check(&map(&[(0, 2), (1, 1)]), 3, 9000).is_err());
        assert!(check(&map(&[(u64::MAX, 2)]), 2, u64::MAX).is_err());
        assert!(check(&map(&[(10, 2)]), 2, 11).is_err());
        assert!(check(&map(&[(10, 2)]), 3, 12).is_err());
    }
}
