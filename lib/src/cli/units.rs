//! Words of the command line that stand for numbers.

/// A size: a number alone or with K, M, G or T (by 1024 each, lower case too), and `B` or `iB`
/// after that if one likes.
///
/// The error is the reason alone, as argh wants it: not a size, or more than 64 bits hold.
pub fn parse_size(s: &str) -> std::result::Result<u64, String> {
    let end = s.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(s.len());
    let (number, unit) = s.split_at(end);
    let mut unit = unit.to_ascii_lowercase();
    if unit.ends_with('b') {
        unit.pop();
        if unit.len() > 1 && unit.ends_with('i') {
            unit.pop();
        }
    }
    let shift = match unit.as_str() {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err("not a size, such as 64, 16K or 1M".to_owned()),
    };
    if number.is_empty() {
        return Err("not a size, such as 64, 16K or 1M".to_owned());
    }
    let number = number.parse::<u64>().ok();
    number.and_then(|n| n.checked_mul(1 << shift)).ok_or_else(|| "too large a size".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_counted_by_1024() {
        for (text, size) in [
            ("0", 0),
            ("64", 64),
            ("64B", 64),
            ("16K", 16 << 10),
            ("16kib", 16 << 10),
            ("1MB", 1 << 20),
            ("2g", 2 << 30),
            ("1TiB", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in
            ["", "K", "B", "-1", "+1", "1.5M", " 1", "1 K", "64iB", "1KK", "1KiBB", "1P", "1é"]
        {
            assert!(parse_size(text).unwrap_err().starts_with("not a size"), "{text}");
        }
        for text in ["18446744073709551616", "18014398509481984K", "99999999999T"] {
            assert_eq!(parse_size(text), Err("too large a size".to_owned()), "{text}");
        }
    }
}
