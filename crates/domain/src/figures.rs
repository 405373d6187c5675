//! Numbers as people read them.

/// A count with thousands apart: `336,776`.
pub fn count(n: impl Into<i128>) -> String {
    let n: i128 = n.into();
    let digits = n.unsigned_abs().to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3 + 1);
    if n < 0 {
        text.push('-');
    }
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 row`, `336,776 rows`.
pub fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// Bytes with a binary unit: `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut size = n as f64 / 1024.0;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if size < 10.0 { format!("{size:.1} {}", UNITS[unit]) } else { format!("{size:.0} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        for (n, expected) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (336_776, "336,776"), (-1_234_567, "-1,234,567")]
        {
            assert_eq!(count(n), expected);
        }
        for (n, expected) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (15 << 20, "15 MiB"), (u64::MAX, "16384 PiB")]
        {
            assert_eq!(bytes(n), expected);
        }
        assert_eq!((counted(1, "row"), counted(2_000, "row")), ("1 row".to_owned(), "2,000 rows".to_owned()));
    }
}
