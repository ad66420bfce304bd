//! One 512-byte header block (POSIX.1-1988 ustar, with GNU tar's and star's variations).

use super::BLOCK;

/// A header block whose checksum is right.
pub(super) struct Header<'a>(&'a [u8; BLOCK]);

/// Which variation a block is of; it decides what the bytes after the names mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl<'a> Header<'a> {
    /// Checks the checksum: the sum of all bytes, its own field as spaces. Ancient writers summed signed bytes.
    pub(super) fn new(block: &'a [u8; BLOCK]) -> Result<Self, &'static str> {
        let header = Self(block);
        let promised = octal(header.field(148, 8))?;
        let counted = |at: usize| if (148..156).contains(&at) { b' ' } else { block[at] };
        let unsigned: u64 = (0..BLOCK).map(|at| u64::from(counted(at))).sum();
        let signed: i64 = (0..BLOCK).map(|at| i64::from(counted(at).cast_signed())).sum();
        if promised == unsigned || i64::try_from(promised) == Ok(signed) {
            Ok(header)
        } else {
            Err("header checksum is wrong")
        }
    }

    fn field(&self, start: usize, len: usize) -> &'a [u8] {
        &self.0[start..start + len]
    }

    fn format(&self) -> Format {
        match self.field(257, 8) {
            b"ustar  \0" => Format::Gnu,
            magic if magic.starts_with(b"ustar\0") && self.field(508, 4) == b"tar\0" => Format::Star,
            magic if magic.starts_with(b"ustar") => Format::Ustar,
            _ => Format::V7,
        }
    }

    /// Name with its prefix.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = match self.format() {
            Format::Ustar => until_nul(self.field(345, 155)),
            Format::Star => until_nul(self.field(345, 131)),
            Format::V7 | Format::Gnu => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(self.field(157, 100)).to_vec()
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[156]
    }

    pub(super) fn mode(&self) -> Result<i64, &'static str> {
        number(self.field(100, 8))
    }

    pub(super) fn uid(&self) -> Result<i64, &'static str> {
        number(self.field(108, 8))
    }

    pub(super) fn gid(&self) -> Result<i64, &'static str> {
        number(self.field(116, 8))
    }

    pub(super) fn size(&self) -> Result<i64, &'static str> {
        number(self.field(124, 12))
    }

    pub(super) fn mtime(&self) -> Result<i64, &'static str> {
        number(self.field(136, 12))
    }

    /// Major and minor number.
    pub(super) fn device(&self) -> Result<(i64, i64), &'static str> {
        Ok((number(self.field(329, 8))?, number(self.field(337, 8))?))
    }

    /// Old GNU sparse: four pairs of offset and length, whether more follow in a block of their own, the whole size.
    pub(super) fn sparse(&self) -> (&'a [u8], bool, &'a [u8]) {
        (self.field(386, 96), self.0[482] != 0, self.field(483, 12))
    }
}

/// Bytes up to the first NUL.
pub(super) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number: octal digits, or big-endian two's complement when the first bit is set (GNU, star).
pub(super) fn number(field: &[u8]) -> Result<i64, &'static str> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => binary(field),
        _ => octal(field).and_then(|n| i64::try_from(n).map_err(|_| "number in header is too big")),
    }
}

fn octal(field: &[u8]) -> Result<u64, &'static str> {
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0u64, |sum, digit| match digit {
        b'0'..=b'7' if sum < 1 << 60 => Ok(sum * 8 + u64::from(digit - b'0')),
        b'0'..=b'7' => Err("number in header is too big"),
        _ => Err("number in header is not octal"),
    })
}

fn binary(field: &[u8]) -> Result<i64, &'static str> {
    // The first bit only marks the form; the second one is the sign.
    let negative = field[0] & 0x40 != 0;
    let mut value: i128 = i128::from(field[0] & 0x3f) - if negative { 0x40 } else { 0 };
    for byte in &field[1..] {
        value = value * 256 + i128::from(*byte);
    }
    i64::try_from(value).map_err(|_| "number in header is too big")
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn numbers_are_octal_or_binary_and_nothing_else() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644 \0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Ok(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Ok(-2));
        assert_eq!(number(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"), Ok(i64::MAX));
        assert!(number(b"\x80\0\0\0\x80\0\0\0\0\0\0\0").is_err());
        assert!(number(b"-000644\0").is_err());
        assert!(number(b"00006x4\0").is_err());
    }
}
