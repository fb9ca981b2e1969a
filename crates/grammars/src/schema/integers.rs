//! Integers in a range as a regular expression, exact at any size.

use serde_json::Number;

/// A number's value if it is an integer, however it is written.
pub(super) fn integer(number: &Number) -> Option<i128> {
    let whole = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
    let float = || number.as_f64().filter(|it| it.fract() == 0.0 && it.abs() < 1e37);
    whole.or_else(|| float().map(|it| it as i128))
}

/// The least integer that a bound allows, or the greatest.
pub(super) fn bound(number: &Number, exclusive: bool, least: bool) -> Option<i128> {
    let step = i128::from(exclusive) * if least { 1 } else { -1 };
    integer(number).map(|it| it + step).or_else(|| {
        let float = number.as_f64().filter(|it| it.abs() < 1e37)?;
        Some(if least { float.ceil() } else { float.floor() } as i128)
    })
}

/// The integers from `least` to `greatest`, both included, as JSON writes them; `None` where there
/// is none.
pub(super) fn range(least: Option<i128>, greatest: Option<i128>) -> Option<String> {
    let mut parts = Vec::new();
    if least.is_none_or(|it| it < 0) {
        // The negative ones by their absolute values.
        let (from, to) = (greatest.map_or(1, |it| (-it).max(1)), least.map(|it| -it));
        parts.extend(absolute(from as u128, to.map(|it| it as u128)).map(|it| format!("-{it}")));
    }
    if greatest.is_none_or(|it| it >= 0) {
        let (from, to) = (least.unwrap_or(0).max(0), greatest);
        parts.extend(absolute(from as u128, to.map(|it| it as u128)));
    }
    (!parts.is_empty()).then(|| format!("({})", parts.join("|")))
}

fn absolute(from: u128, to: Option<u128>) -> Option<String> {
    if to.is_some_and(|to| to < from) {
        return None;
    }
    let mut parts = Vec::new();
    let (first, last) = (digits(from), to.map(digits));
    let longest = last.as_ref().map_or(first.len(), Vec::len);
    for len in first.len()..=longest {
        let low = if len == first.len() { first.clone() } else { power(len) };
        let high = last.clone().filter(|it| it.len() == len).unwrap_or_else(|| vec![9; len]);
        parts.push(same_length(&low, &high));
    }
    if to.is_none() {
        parts.push(format!("[1-9][0-9]{{{longest},}}"));
    }
    Some(format!("({})", parts.join("|")))
}

fn digits(value: u128) -> Vec<u8> {
    value.to_string().bytes().map(|it| it - b'0').collect()
}

/// The least number of so many digits.
fn power(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::from(at == 0)).collect()
}

/// The strings of digits between two of one length.
fn same_length(low: &[u8], high: &[u8]) -> String {
    let (Some((&a, low)), Some((&b, high))) = (low.split_first(), high.split_first()) else {
        return String::new();
    };
    let any = |len: usize| if len == 0 { String::new() } else { format!("[0-9]{{{len}}}") };
    if low.iter().all(|it| *it == 0) && high.iter().all(|it| *it == 9) {
        return format!("[{a}-{b}]{}", any(low.len()));
    }
    if a == b {
        return format!("{a}{}", same_length(low, high));
    }
    let mut parts = vec![format!("{a}{}", same_length(low, &vec![9; low.len()]))];
    if a + 1 < b {
        parts.push(format!("[{}-{}]{}", a + 1, b - 1, any(low.len())));
    }
    parts.push(format!("{b}{}", same_length(&vec![0; high.len()], high)));
    format!("({})", parts.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_lies_between_their_bounds() {
        let regex = |least, greatest| {
            regex::Regex::new(&format!("^{}$", range(least, greatest).unwrap_or("x".into())))
                .unwrap()
        };
        for (least, greatest) in
            [(-12, 105), (0, 0), (7, 7), (-9, -3), (99, 1000), (5, 2), (-100, 99)]
        {
            let both = regex(Some(least), Some(greatest));
            let (above, below) = (regex(Some(least), None), regex(None, Some(greatest)));
            for value in -2000..2000_i128 {
                let text = value.to_string();
                assert_eq!(both.is_match(&text), (least..=greatest).contains(&value), "{value}");
                assert_eq!(above.is_match(&text), value >= least, "{value}");
                assert_eq!(below.is_match(&text), value <= greatest, "{value}");
            }
            assert!(!above.is_match("007") && !below.is_match("-0"));
        }
        let int64 = regex(Some(i64::MIN.into()), Some(i64::MAX.into()));
        for (text, fits) in [
            ("9223372036854775807", true),
            ("9223372036854775808", false),
            ("-9223372036854775808", true),
            ("-9223372036854775809", false),
            ("9007199254740993", true),
        ] {
            assert_eq!(int64.is_match(text), fits, "{text}");
        }
    }
}
