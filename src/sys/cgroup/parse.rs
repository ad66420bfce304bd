//! The few shapes in which the kernel writes cgroup figures. Nothing here allocates.

/// A number alone in a file; `max`, `-1` and anything else are none.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    digits(text.trim_ascii())
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// The key and value of every `key value` line.
pub(super) fn fields(text: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let space = line.iter().position(|b| *b == b' ')?;
        Some((&line[..space], digits(line[space + 1..].trim_ascii())?))
    })
}

/// The value of the line `key value`.
pub(super) fn field(text: &[u8], key: &[u8]) -> Option<u64> {
    fields(text).find(|(name, _)| *name == key).map(|(_, value)| value)
}

/// The value of `key=` in a line such as `some avg10=0.00 total=12`.
pub(super) fn assigned<'a>(line: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    line.split(|b| *b == b' ')
        .find_map(|part| part.strip_prefix(key)?.strip_prefix(b"="))
}

/// As [`assigned`], a whole number.
pub(super) fn assigned_number(line: &[u8], key: &[u8]) -> Option<u64> {
    digits(assigned(line, key)?.trim_ascii())
}

/// As [`assigned`], a percentage with decimals.
pub(super) fn assigned_float(line: &[u8], key: &[u8]) -> Option<f64> {
    std::str::from_utf8(assigned(line, key)?).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{assigned_float, assigned_number, field, number};

    #[test]
    fn numbers_and_fields_are_read_and_junk_is_none() {
        assert_eq!(number(b"42\n"), Some(42));
        assert_eq!(number(b"max\n"), None);
        assert_eq!(number(b"-1\n"), None);
        assert_eq!(number(b""), None);
        assert_eq!(number(b"18446744073709551616\n"), None);
        let events = b"low 0\noom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(field(events, b"oom_kill"), Some(2));
        assert_eq!(field(events, b"oom_ki"), None);
        let line = b"some avg10=1.50 avg60=0.00 avg300=0.00 total=77";
        assert_eq!(assigned_number(line, b"total"), Some(77));
        assert_eq!(assigned_float(line, b"avg10"), Some(1.5));
        assert_eq!(assigned_float(line, b"avg1"), None);
    }
}
