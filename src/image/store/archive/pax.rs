//! Extended headers (POSIX.1-2001 pax): records of `length key=value\n` that override fields of the next header.

use std::collections::BTreeMap;

use super::sparse::Extent;

/// The most extended attributes of one entry: their names alone would soon exceed what Linux lists of a file (64 KiB).
const MAX_XATTRS: usize = 1024;

/// What the extended headers before an entry say about it.
#[derive(Default)]
pub(super) struct Overrides {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    /// Seconds since the epoch, and nanoseconds on top.
    pub mtime: Option<(i64, u32)>,
    /// By name; said again, one is replaced.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub sparse: Sparse,
}

/// GNU tar's keys for files with holes, all three versions of them.
#[derive(Default)]
pub(super) struct Sparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    pub real_size: Option<u64>,
    /// The map of version 0.0 (key by key) and 0.1 (one list).
    pub map: Vec<Extent>,
    pub has_map: bool,
    offset: Option<u64>,
}

const MALFORMED: &str = "extended header is malformed";

impl Overrides {
    /// Takes over the records of one extended header.
    pub(super) fn read(&mut self, mut records: &[u8]) -> Result<(), &'static str> {
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or(MALFORMED)?;
            let len = usize::try_from(decimal(&records[..space])?).map_err(|_| MALFORMED)?;
            if len <= space + 1 || len > records.len() || records[len - 1] != b'\n' {
                return Err(MALFORMED);
            }
            let record = &records[space + 1..len - 1];
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(MALFORMED)?;
            self.set(&record[..equals], &record[equals + 1..])?;
            records = &records[len..];
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value takes the override back (pax, "extended header keyword precedence").
        let unset = value.is_empty();
        match key {
            b"path" => self.path = text(value)?,
            b"linkpath" => self.link = text(value)?,
            b"size" => self.size = optional(unset, || decimal(value))?,
            b"uid" => self.uid = optional(unset, || signed(value))?,
            b"gid" => self.gid = optional(unset, || signed(value))?,
            b"mtime" => self.mtime = optional(unset, || time(value))?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) {
                        return Err("extended attribute without a usable name");
                    }
                    self.xattrs.insert(name.to_vec(), value.to_vec());
                    if self.xattrs.len() > MAX_XATTRS {
                        return Err("too many extended attributes");
                    }
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(name, value)?;
                }
            }
        }
        Ok(())
    }
}

impl Sparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"minor" => self.minor = Some(decimal(value)?),
            b"name" => self.name = text(value)?,
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"offset" => self.offset = Some(decimal(value)?),
            b"numbytes" => {
                let offset = self.offset.take().ok_or("sparse map has a length without an offset")?;
                self.has_map = true;
                self.map.push(Extent {
                    offset,
                    len: decimal(value)?,
                });
            }
            b"numblocks" => self.has_map = true,
            b"map" => {
                self.has_map = true;
                self.map.clear();
                let mut numbers = value.split(|byte| *byte == b',').filter(|number| !number.is_empty());
                while let Some(offset) = numbers.next() {
                    let len = numbers.next().ok_or("sparse map has an offset without a length")?;
                    self.map.push(Extent {
                        offset: decimal(offset)?,
                        len: decimal(len)?,
                    });
                }
            }
            _ => {}
        }
        Ok(())
    }
}

fn optional<T>(unset: bool, read: impl FnOnce() -> Result<T, &'static str>) -> Result<Option<T>, &'static str> {
    if unset { Ok(None) } else { read().map(Some) }
}

fn text(value: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    match value {
        [] => Ok(None),
        _ if value.contains(&0) => Err("name in extended header contains NUL"),
        _ => Ok(Some(value.to_vec())),
    }
}

/// Digits only: no sign, no space.
pub(super) fn decimal(digits: &[u8]) -> Result<u64, &'static str> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("number in extended header is malformed");
    }
    digits
        .iter()
        .try_fold(0u64, |sum, digit| {
            sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
        })
        .filter(|number| i64::try_from(*number).is_ok())
        .ok_or("number in extended header is too big")
}

fn signed(value: &[u8]) -> Result<i64, &'static str> {
    let (digits, negative) = value.strip_prefix(b"-").map_or((value, false), |digits| (digits, true));
    let number = decimal(digits)?.cast_signed();
    Ok(if negative { -number } else { number })
}

/// Seconds with an optional fraction, which counts away from zero: `-1.5` is half a second before `-1`.
fn time(value: &[u8]) -> Result<(i64, u32), &'static str> {
    let mut parts = value.splitn(2, |byte| *byte == b'.');
    let whole = parts.next().unwrap_or_default();
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err("number in extended header is malformed");
    }
    let seconds = signed(whole)?;
    let nanoseconds = (0..9).fold(0u32, |sum, at| {
        sum * 10 + fraction.get(at).map_or(0, |digit| u32::from(digit - b'0'))
    });
    if whole.starts_with(b"-") && nanoseconds > 0 {
        return Ok((seconds - 1, 1_000_000_000 - nanoseconds));
    }
    Ok((seconds, nanoseconds))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{MAX_XATTRS, Overrides, time};

    #[test]
    fn records_are_counted_exactly() {
        let mut overrides = Overrides::default();
        overrides.read(b"10 path=a\n\x32\x31 SCHILY.xattr.u=\n\0\n").unwrap();
        assert_eq!(overrides.path.as_deref(), Some(&b"a"[..]));
        assert_eq!(overrides.xattrs, BTreeMap::from([(b"u".to_vec(), b"\n\0".to_vec())]));
        for wrong in [
            &b"8 path=a\n"[..],
            b"11 path=a\n",
            b"99999999999999999999 path=a\n",
            b"-10 path=a\n",
            b"9 path a\n",
            b"11 path=a\0\n",
            b"10 size=-1\n",
            b"28 size=9223372036854775808\n",
            b"19 SCHILY.xattr.=x\n",
        ] {
            assert!(Overrides::default().read(wrong).is_err(), "{}", wrong.escape_ascii());
        }
    }

    #[test]
    fn attributes_are_counted_by_name() {
        let record = |n: usize, value: char| format!("23 SCHILY.xattr.{n:04}={value}\n").into_bytes();
        let mut overrides = Overrides::default();
        for value in ['a', 'b'] {
            for n in 0..MAX_XATTRS {
                overrides.read(&record(n, value)).unwrap();
            }
        }
        assert_eq!(overrides.xattrs.len(), MAX_XATTRS);
        assert!(overrides.xattrs.values().all(|value| value == b"b"));
        assert_eq!(
            overrides.read(&record(MAX_XATTRS, 'a')),
            Err("too many extended attributes")
        );
    }

    #[test]
    fn times_may_lie_before_the_epoch() {
        assert_eq!(time(b"12.5"), Ok((12, 500_000_000)));
        assert_eq!(time(b"-1.25"), Ok((-2, 750_000_000)));
        assert_eq!(time(b"-1"), Ok((-1, 0)));
        assert!(time(b"1.x").is_err());
        assert!(time(b"").is_err());
    }
}
